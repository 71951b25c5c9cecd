"""Image pipeline: a diffusers pipeline that draws pictures from prompts, as one kind of subject."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dsas.errors import OptionError, TextsError
from dsas.files.json_values import JsonObject
from dsas.model.conversation import Content
from dsas.model.drawing import Drawing, Prompts, draw, prompt_batches, watch
from dsas.model.examples import ExampleSets, Spans
from dsas.model.foreign import Foreign
from dsas.model.forward_pass import ForwardPass
from dsas.model.hooks import Hooks
from dsas.model.identity import ModelIdentity, marks
from dsas.model.image_trace import PictureRecorder
from dsas.model.labelled_tokens import LabelledTokens
from dsas.model.picture_activations import drawn_activations
from dsas.model.picture_passes import PicturePasses
from dsas.model.pipeline_modules import Branch, PipelineModules
from dsas.model.reading import Tokens
from dsas.model.sites import Site, SitePatterns, find_sites
from dsas.model.strength import PromptTokens
from dsas.parallel.workers import Spread


@final
class ImagePipeline:
    """A pipeline of text encoders and a denoiser."""

    measured_by = "look at pictures over strengths, as `dsas images` draws them"

    def __init__(self, module: PipelineModules) -> None:
        self.module = module

    @property
    def identity(self) -> ModelIdentity:
        """Which denoiser this is, with the fingerprint of text encoders and denoiser together."""
        denoiser = self.module.denoiser
        mark, sketch = marks(self.module.drawing(), owner=denoiser)
        return ModelIdentity(type(denoiser).__name__, *_sizes(denoiser), mark, sketch=sketch)

    def sites(self, patterns: SitePatterns) -> list[Site]:
        """Return the sites that `patterns` name; see `find_sites`."""
        return find_sites(self.module, patterns)

    def passes(
        self, *, branch: Branch, prompt_tokens: PromptTokens, skip_sinks: bool, by: object = None
    ) -> PicturePasses:
        """Return the reader of the pipeline's passes. Raises OptionError for what only tokens of texts have."""
        if skip_sinks or prompt_tokens is not None:
            raise OptionError("skip_sinks and prompt_tokens are for the tokens of texts, not for pipelines")
        return PicturePasses(self.module, branch)

    def recorder(self, sites: Sequence[str]) -> PictureRecorder:
        """Return what records applied strengths by picture, step and position."""
        return PictureRecorder(sites)

    def check_fusing(self, sites: Sequence[Site], branch: Branch) -> None:
        """Raise OptionError unless both branches are steered, and for a site that is a part of its module's output.

        Raises StateError for a module that diffusers skips in some passes.
        """
        kind = type(self.module.pipeline).__name__
        if branch != "both":
            raise OptionError(
                f"a {kind} that is fused steers all rows, those of the negative prompt too: give branch='both', or use "
                "steering.apply(...), which steers the conditional branch alone"
            )
        for site in sites:
            self.module.check_computed(site)
        joint = [str(site) for site in sites if self.module.is_joint(site)]
        if joint:
            raise OptionError(
                f"{joint[0]} is one of two streams in one sequence, which a fused module cannot separate: use apply()"
            )

    def examples(self, reading: Any = None, *, training: bool = False) -> "PictureExamples":
        """Return how prompts are read. Raises OptionError for a reading of another kind, or unsupported in training."""
        drawing = reading or (Drawing(steps=1) if training else Drawing())
        if not isinstance(drawing, Drawing):
            raise OptionError(f"a pipeline is read by a dsas.Drawing, got a {type(drawing).__name__}")
        drawing.check()
        if training and (
            drawing.per_step or drawing.images > 1 or drawing.pooling != "mean" or drawing.branch == "both"
        ):
            raise OptionError(
                "training on a pipeline needs a Drawing of one image per prompt, one regulator for all steps, pooling "
                f"'mean' and one branch; got {drawing}"
            )
        return PictureExamples(self.module, drawing)


@final
class PictureExamples:
    """Prompts as a pipeline reads them: pictures are drawn, and the activations of the sites are read meanwhile."""

    def __init__(self, module: PipelineModules, reading: Drawing) -> None:
        self.module, self.reading, self.batch_size = module, reading, reading.batch_size
        self.incremental, self.spread = False, Spread()
        self.by_position, self.per_step = reading.pooling == "position", reading.per_step
        self.regulator = "logistic"

    def as_dict(self) -> JsonObject:
        """Return how prompts are read, JSON-ready."""
        return self.reading.as_dict()

    def check(self, sets: ExampleSets) -> None:
        """Raise TextsError for conversations and completions, which a pipeline does not read."""
        if sets.kind != "text":
            raise TextsError(f"a pipeline reads prompts: expected texts, got a {sets.kind}")

    def depends(self, texts: Sequence[Content], places: Sequence[int]) -> list[Foreign]:
        """Return what the vectors depend on besides the model, JSON-ready."""
        return ["prompts", list(texts), list(places), self.as_dict(), self.module.schedule]

    def batches(self, texts: Sequence[Content], places: Sequence[int], size: int) -> list[Prompts]:
        """Return the prompts in batches of at most `size`; a prompt's place in its set decides its noise."""
        return prompt_batches([one for one in texts if isinstance(one, str)], places, size)

    def vectors(
        self, batches: Sequence[Prompts], sites: Sequence[Site]
    ) -> Iterator[dict[Site, Float[Tensor, "row step sample dim"]]]:
        """Yield the activations of every site while each batch was drawn, float32 on the CPU."""
        return drawn_activations(self.module, batches, sites, self.reading)

    def labelled_tokens(
        self, texts: Sequence[Content], spans: Sequence[Spans], sites: Sequence[Site], advance: Callable[[], None]
    ) -> LabelledTokens:
        """Raise OptionError: the positions of a picture are not the characters of its prompt."""
        raise OptionError("spans mark tokens of texts: a pipeline is fitted on whole prompts, so leave them out")

    def token_scores(
        self,
        texts: Sequence[Content],
        directions: Mapping[Site, Float[Tensor, "dim direction"]],
        advance: Callable[[], None],
    ) -> None:
        """Return None: the positions of a picture are not a sequence of tokens."""

    def rows(self, texts: Sequence[Content], tokens: Tokens = "auto") -> NoReturn:
        """Raise OptionError: a pipeline generates no text."""
        raise OptionError("this needs a language model, got an image pipeline")

    def pad_token(self) -> NoReturn:
        """Raise OptionError: a pipeline generates no text."""
        self.rows(())

    def run(self, batch: Prompts) -> Foreign:
        """Draw a batch to the latents, with gradients where the caller records them."""
        call = inspect.unwrap(type(self.module.pipeline).__call__)  # the pipeline's call is wrapped in torch.no_grad()
        return draw(self.module.pipeline, batch, self.reading, call=call)

    def real(self, batch: Prompts) -> Bool[Tensor, "row 1"]:
        """Return True for every position: all of them count."""
        return torch.ones(len(batch.prompts), 1, dtype=torch.bool)

    counted = real

    def prompt_lengths(self, batch: Prompts) -> Sequence[int]:
        """Return nothing: pictures have no answers."""
        return ()

    def counted_at(self, batch: Prompts, site: Site, count: int) -> Bool[Tensor, "row place"]:
        """Return True for every position: all of them count."""
        return torch.ones(len(batch.prompts), count, dtype=torch.bool)

    def pool(self, t: Float[Tensor, "row token dim"], batch: Prompts) -> Float[Tensor, "row dim"]:
        """Return the mean over the positions of each picture; gradients flow through."""
        return t.to(torch.promote_types(t.dtype, torch.float32)).mean(1)

    def follow(self, hooks: Hooks, sites: Sequence[Site]) -> Callable[[Site, Tensor, Any], ForwardPass]:
        """Watch the passes of a run, and return the function that chooses the rows of a site's activation to read."""
        reader = PicturePasses(self.module, self.reading.branch)
        watch(hooks, reader, self.module, sites)
        return reader.at


def _sizes(denoiser: nn.Module) -> tuple[int, int]:
    """Return width and depth of a denoiser by its config; for a U-Net, the width of its bottleneck and its levels."""
    config: Any = getattr(denoiser, "config", {})
    levels = config.get("block_out_channels")
    if levels:
        return int(levels[-1]), len(levels)
    heads, width = config.get("num_attention_heads") or 0, config.get("attention_head_dim") or 0
    return int(heads * width), int(config.get("num_layers") or 0)
