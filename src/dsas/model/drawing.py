"""Drawing: how prompts become pictures; `dsas.model.picture_activations` reads activations meanwhile.

A pipeline is run by its own call, up to the latents: nothing is decoded. Every picture starts from noise of its own
seed, so it depends neither on the other pictures of its batch nor on their number; prompts at the same place in two
sets start from the same noise.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch

from dsas.errors import DsasError, OptionError, closest
from dsas.files.json_values import Json, JsonObject
from dsas.model.foreign import Foreign, Pipeline
from dsas.model.hooks import Hooks, StopForward
from dsas.model.picture_passes import PicturePasses
from dsas.model.pipeline_modules import Branch, PipelineModules
from dsas.model.sites import Site

PicturePooling = Literal["mean", "position"]
OURS = (
    "prompt", "num_inference_steps", "num_images_per_prompt", "num_videos_per_prompt", "generator", "output_type",
    "return_dict",
)  # fmt: skip
_TEXTS = ("negative_prompt", "negative_prompt_2", "negative_prompt_3", "prompt_2", "prompt_3")  # one per prompt


class Drawing(NamedTuple):
    """How prompts become pictures, and pictures become vectors.

    steps: denoising steps, as the pipeline counts them. options: further arguments of the pipeline's own call, such as
    {"guidance_scale": 3.0, "height": 512}; a "negative_prompt" (or another of the texts that go with a prompt) is one
    text for all prompts, or a list with one per place in a set. images: pictures per prompt. seed: seed of each set's
    first prompt; the prompts after it take the following numbers. batch_size: prompts per run. branch: which branch of
    guidance is read, as in `Steering.apply`. pooling: "mean" over the positions of a picture; or "position": transform
    and regulator learn from `positions` single positions of it, the same ones in every picture. per_step: whether to
    fit one regulator per denoising step.
    """

    steps: int = 20
    options: Mapping[str, Json] = MappingProxyType({})
    images: int = 1
    seed: int = 0
    batch_size: int = 4
    branch: Branch = "conditional"
    pooling: PicturePooling = "mean"
    positions: int = 32
    per_step: bool = False

    def check(self) -> None:
        """Raise OptionError for a value out of range."""
        counts = {name: getattr(self, name) for name in ("steps", "images", "batch_size", "positions")}
        if abs(self.seed) > 2**62:
            raise OptionError(f"a Drawing needs a seed of less than 64 bits, got {self.seed}")
        if min(counts.values()) < 1 or self.pooling not in get_args(PicturePooling):
            raise OptionError(
                f"a Drawing needs {', '.join(counts)} >= 1 and pooling one of {get_args(PicturePooling)}, "
                f"got {tuple(counts.values())} and {self.pooling!r}"
            )
        if taken := [name for name in self.options if name in OURS]:
            raise OptionError(f"options must not hold {taken}: those are set by the other fields of a Drawing")

    def as_dict(self) -> JsonObject:
        """Return this Drawing as JSON-ready values; options that are not plain values become their text."""
        plain = {name: x if _is_plain(x) else repr(x)[:80] for name, x in self.options.items()}
        return {**self._asdict(), "options": plain}


class Prompts(NamedTuple):
    """Prompts of one run: `rows` gives the number of each prompt, `places` its place in its set."""

    rows: list[int]
    prompts: list[str]
    places: list[int]


def prompt_batches(prompts: Sequence[str], places: Sequence[int], size: int) -> list[Prompts]:
    """Return prompts in batches of at most `size`."""
    starts = range(0, len(prompts), size)
    spans = [range(start, min(start + size, len(prompts))) for start in starts]
    return [Prompts(list(span), [prompts[i] for i in span], [places[i] for i in span]) for span in spans]


def draw(
    pipeline: Pipeline,
    batch: Prompts,
    drawing: Drawing,
    *,
    output_type: str = "latent",
    call: Callable[..., Foreign] | None = None,
) -> Foreign:
    """Return the pictures or videos of a batch as the pipeline gives them; those of one prompt are adjacent.

    call: function that runs the pipeline, given it and its arguments; by default, the pipeline's own call. Raises
    OptionError for a pipeline that draws one picture per prompt, when asked for more, or that gives neither pictures
    nor videos; for options that the pipeline does not take, or not with these values.
    """
    _check_taken(pipeline, drawing.options)
    seeds = [drawing.seed + place * drawing.images + image for place in batch.places for image in range(drawing.images)]
    arguments = {
        "prompt": batch.prompts,
        "num_inference_steps": drawing.steps,
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
        "output_type": output_type,
        **{name: _of_batch(name, given, batch) for name, given in drawing.options.items()},
    }
    kind, takes = type(pipeline).__name__, inspect.signature(type(pipeline).__call__).parameters
    several = next((name for name in ("num_images_per_prompt", "num_videos_per_prompt") if name in takes), None)
    if several is None and any(one.kind is one.VAR_KEYWORD for one in takes.values()):  # such as a modular pipeline
        several = "num_images_per_prompt"
    if several is not None:
        arguments[several] = drawing.images
    elif drawing.images > 1:
        raise OptionError(f"a {kind} draws one picture per prompt, got a Drawing of {drawing.images} images")
    with _quiet(pipeline):
        try:
            given = pipeline(**arguments) if call is None else call(pipeline, **arguments)
        except (TypeError, ValueError) as error:
            if isinstance(error, DsasError):
                raise
            raise OptionError(f"a {kind} cannot be run with {dict(drawing.options)}: {error}") from error
    named = (given.get(name) for name in ("images", "frames")) if hasattr(given, "get") else [given]
    found: Foreign = next((part for part in named if part is not None), None)
    if not isinstance(found, (torch.Tensor, np.ndarray, list)):
        raise OptionError(f"a {kind} gives neither images nor frames, but a {type(given).__name__}")
    return found


def _check_taken(pipeline: Pipeline, options: Mapping[str, Json]) -> None:
    """Raise OptionError for an option that the pipeline's call does not have, or would silently drop."""
    kind = type(pipeline)
    taken = inspect.signature(kind.__call__).parameters
    any_name = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken.values())
    if any_name and not (kind.__module__.startswith("diffusers.") and "num_inference_steps" in taken):
        return  # other calls in diffusers accept only deprecated names there
    for name in options:
        if name not in taken:
            near = closest(name, [*taken][1:])
            raise OptionError(f"a {kind.__name__} takes no option {name!r}; closest: {near}")


def _of_batch(name: str, given: Json, batch: Prompts) -> Json:
    """Return an option as the pipeline takes it, with one negative prompt (or similar text) per prompt.

    Raises OptionError for a list that is too short for the places of these prompts.
    """
    if name not in _TEXTS or not isinstance(given, str | list):
        return given
    each = [given] if isinstance(given, str) else given
    if each and each.count(each[0]) == len(each):
        return [each[0]] * len(batch.prompts)
    if len(each) <= max(batch.places):
        raise OptionError(
            f"{name} has {len(each)} texts, and a set has {1 + max(batch.places)} prompts or more: give one text for "
            "all prompts, or one for each"
        )
    return [each[place] for place in batch.places]


def _is_plain(value: Json) -> bool:
    kinds = str | int | float | bool | None
    return isinstance(value, kinds) or (isinstance(value, list) and all(isinstance(x, kinds) for x in value))


def watch(hooks: Hooks, reader: PicturePasses, parts: PipelineModules, sites: Sequence[Site]) -> None:
    """Let a reader see the passes of a pipeline; a run raises StopForward before denoising if no site is there."""
    for module, read in reader.calls:
        hooks.on_call(module, read)
    reader.watch_runs(hooks, lambda: None)
    if all(site.path.partition(".")[0] in parts.encoders for site in sites):
        hooks.on_call(parts.denoiser, _stop)


def _stop(*_arguments: object) -> None:
    raise StopForward


@contextmanager
def _quiet(pipeline: Pipeline) -> Iterator[None]:
    """Hide the pipeline's own progress bar inside the block."""
    before = vars(pipeline).get("_progress_bar_config")
    vars(pipeline)["_progress_bar_config"] = {**(before or {}), "disable": True}
    try:
        yield
    finally:
        del vars(pipeline)["_progress_bar_config"]
        if before is not None:
            vars(pipeline)["_progress_bar_config"] = before
