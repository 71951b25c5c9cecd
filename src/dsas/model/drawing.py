"""Drawing: how prompts become pictures; `dsas.model.picture_activations` reads what the pipeline does meanwhile.

A pipeline is run by its own call, to the latents: nothing is decoded. Every picture starts from noise of its own seed,
so it depends neither on the pictures beside it nor on their number; prompts at the same place of two sets start from
the same noise.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

import torch

from dsas.errors import OptionError
from dsas.files.json_values import Json, JsonObject
from dsas.model.foreign import Foreign, Pipeline
from dsas.model.hooks import Hooks, StopForward
from dsas.model.picture_passes import PicturePasses
from dsas.model.pipeline_modules import Branch, PipelineModules
from dsas.model.sites import Site

PicturePooling = Literal["mean", "position"]
_OURS = ("prompt", "num_inference_steps", "num_images_per_prompt", "generator", "output_type", "return_dict")


class Drawing(NamedTuple):
    """How prompts become pictures, and pictures become vectors.

    steps: denoising steps, as the pipeline counts them. options: further arguments of the pipeline's own call, such as
    {"guidance_scale": 3.0, "height": 512}. images: pictures a prompt. seed: of the first prompt of each set, the next
    ones count on. batch_size: prompts a run. branch: of guidance, which is read, as in `Steering.apply`.
    pooling: "mean" over the positions of a picture; or "position": transform and regulator learn from `positions`
    single positions of it, the same ones in every picture. per_step: a regulator for each denoising step.
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
        if min(counts.values()) < 1 or self.pooling not in get_args(PicturePooling):
            raise OptionError(
                f"a Drawing needs {', '.join(counts)} >= 1 and pooling one of {get_args(PicturePooling)}, "
                f"got {tuple(counts.values())} and {self.pooling!r}"
            )
        if taken := [name for name in self.options if name in _OURS]:
            raise OptionError(f"options must not hold {taken}: those are set by the other fields of a Drawing")

    def as_dict(self) -> JsonObject:
        """Return it as values fit for JSON; options that are no plain values become their text."""
        kinds = str | int | float | bool | None
        plain = {name: x if isinstance(x, kinds) else repr(x)[:80] for name, x in self.options.items()}
        return {**self._asdict(), "options": plain}


class Prompts(NamedTuple):
    """Prompts of one run: `rows` says which prompt each one was, `places` where it stands in its set."""

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
    """Return the pictures of a batch, those of one prompt side by side, as the pipeline gives them.

    call: what runs the pipeline, given it and its arguments, when not its own call.
    """
    seeds = [drawing.seed + place * drawing.images + image for place in batch.places for image in range(drawing.images)]
    arguments = {
        "prompt": batch.prompts,
        "num_inference_steps": drawing.steps,
        "num_images_per_prompt": drawing.images,
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
        "output_type": output_type,
        **drawing.options,
    }
    with _quiet(pipeline):
        return (pipeline(**arguments) if call is None else call(pipeline, **arguments)).images


def watch(hooks: Hooks, reader: PicturePasses, parts: PipelineModules, sites: Sequence[Site]) -> None:
    """Let a reader see the passes of a pipeline; a run raises StopForward before it denoises when no site is there."""
    for module, read in reader.calls:
        hooks.on_call(module, read)
    reader.watch_runs(hooks, lambda: None)
    if all(site.path.partition(".")[0] in parts.encoders for site in sites):
        hooks.on_call(parts.denoiser, _stop)


def _stop(*_arguments: object) -> None:
    raise StopForward


@contextmanager
def _quiet(pipeline: Pipeline) -> Iterator[None]:
    """Keep the pipeline's own progress bar away inside the block."""
    before = vars(pipeline).get("_progress_bar_config")
    vars(pipeline)["_progress_bar_config"] = {**(before or {}), "disable": True}
    try:
        yield
    finally:
        del vars(pipeline)["_progress_bar_config"]
        if before is not None:
            vars(pipeline)["_progress_bar_config"] = before
