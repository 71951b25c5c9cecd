"""Picture options: how commands let a pipeline draw, and what they check before anything is loaded."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from dsas.cli.choices import Branch
from dsas.cli.options import LARGEST_SEED, in_method
from dsas.errors import OptionError

if TYPE_CHECKING:
    from dsas import Drawing
    from dsas.model.foreign import Foreign

# Those of the library, written again because importing it takes seconds; a test compares them.
Pooling = Literal["mean", "position"]
DRAWN = (
    "prompt", "num_inference_steps", "num_images_per_prompt", "num_videos_per_prompt", "generator", "output_type",
    "return_dict",
)  # fmt: skip
INDEX = "model_index.json"
in_pictures = partial(typer.Option, rich_help_panel="Pictures")

Seed = Annotated[int, in_pictures(min=0, max=LARGEST_SEED, help="Seed of the first prompt; prompt i has SEED + i.")]
Steps = Annotated[int, in_pictures(min=1, help="Denoising steps.")]
Guidance = Annotated[float | None, in_pictures(help="Guidance scale; default: the pipeline's own.")]
Negative = Annotated[str | None, in_pictures(help="Negative prompt, the same for every prompt.")]
BranchName = Annotated[Branch, in_method(help="Which branch of guidance is read or steered.")]
CallOptions = Annotated[str, in_pictures("--options", help="JSON object of further arguments of the pipeline's call.")]
PoolingName = Annotated[Pooling, in_pictures(help="Learn from the mean over a picture's positions, or from each one.")]
Positions = Annotated[int, in_pictures(min=1, help="With --pooling position: how many are read per picture or prompt.")]
PerStep = Annotated[bool, in_pictures("--per-step", help="Fit one regulator per denoising step.")]
NO_OPTIONS = "{}"


class Drawn(NamedTuple):
    """How pictures are drawn, as the command line says it, checked."""

    steps: int
    options: dict[str, "Foreign"]
    seed: int
    branch: Branch
    pooling: Pooling = "mean"
    positions: int = 32
    per_step: bool = False

    def drawing(self, batch_size: int = 4) -> "Drawing":
        """Return the options as the library takes them."""
        import dsas  # here, because it imports torch

        return dsas.Drawing(**self._asdict(), batch_size=batch_size)


def call_options(given: str, guidance: float | None, negative: str | None) -> dict[str, "Foreign"]:
    """Return the arguments of the pipeline's call. Raises OptionError unless they are a JSON object of others."""
    try:
        found = json.loads(given)
    except ValueError as error:
        raise OptionError(f"--options must be a JSON object, got {given!r:.60}: {error}") from error
    if not isinstance(found, dict):
        raise OptionError(f"--options must be a JSON object, got {given!r:.60}")
    if taken := [name for name in found if name in DRAWN]:
        raise OptionError(f"--options must not hold {taken}: other options of the command set them")
    own = {"guidance_scale": ("--guidance", guidance), "negative_prompt": ("--negative", negative)}
    for name, (option, value) in own.items():
        if value is not None and name in found:
            raise OptionError(f"give {option} or {name!r} in --options, not both")
    return found | {name: value for name, (_, value) in own.items() if value is not None}


def check_pipeline(name: str) -> None:
    """Raise OptionError for what is neither a folder with a pipeline nor a hub id."""
    folder = Path(name)
    if not folder.is_dir():
        return
    index = folder / INDEX
    if not index.is_file():
        held = "a transformers model" if (folder / "config.json").is_file() else "none"
        raise OptionError(f"expected a folder with a diffusers pipeline ({INDEX}), but {name} holds {held}")
    try:
        kind = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise OptionError(f"{index} is not a JSON object: {error}") from error
    if not isinstance(kind, str):
        raise OptionError(f"{index} does not say which pipeline it is: it has no _class_name")


def is_pipeline(name: str) -> bool:
    """Whether a local folder, or else a repository on the hub, holds a diffusers pipeline and not a language model."""
    folder = Path(name)
    if folder.is_dir() or folder.exists() or name.endswith(".gguf"):
        return (folder / INDEX).is_file()
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, INDEX)).is_file()
    except (OSError, ValueError):
        return False


def check_meant(
    command: Callable[..., object], given: Mapping[str, "Foreign"], names: Sequence[str], kind: str
) -> None:
    """Raise OptionError for options that have no effect on this kind of model and differ from their default.

    given: the values of all options of the command, by the names of its parameters.
    """
    parameters = inspect.signature(command).parameters
    for name in names:
        if given[name] != parameters[name].default:
            option = {"call": "options", "parts": "part"}.get(name, name).replace("_", "-")
            raise OptionError(f"--{option} has no effect on {kind}: remove it")
