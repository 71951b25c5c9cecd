"""Pipeline modules: the parts of a diffusers pipeline as one tree of modules.

The modules of a pipeline stand under their own names, so a site is "unet.down_blocks.0.resnets.0.norm1" or
"transformer.transformer_blocks.3". What differs between families of denoisers is written down here: where their parts
are, and how their pipelines run guidance.
"""

from typing import Literal, NamedTuple

from torch import nn

from dsas.errors import OptionError
from dsas.model.compiled_code import uncompiled
from dsas.model.foreign import Pipeline
from dsas.model.sites import STREAMS, Site

Branch = Literal["conditional", "unconditional", "both"]
DENOISERS = ("unet", "transformer")


class PipelineFamily(NamedTuple):
    """Globs of the sites of one kind of denoiser, and how its pipelines run guidance.

    guidance: both branches in one batch, the unconditional rows first ("stacked"), or one batch after the other, the
    conditional first ("apart").
    """

    residual: tuple[str, ...]
    norm: tuple[str, ...]
    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    guidance: Literal["stacked", "apart"]


_BLOCKS = "transformer.transformer_blocks.*"
_JOINT = ((f"{_BLOCKS}.norm1", f"{_BLOCKS}.norm2"), (f"{_BLOCKS}.attn",), (f"{_BLOCKS}.ff",))

# By the class of the denoiser. FLUX's single blocks run both streams as one, so only what they give has an image part.
PIPELINE_FAMILIES: dict[str, PipelineFamily] = {
    "UNet2DConditionModel": PipelineFamily(
        ("unet.**.resnets.*", "unet.**.attentions.*"),
        ("unet.**norm*",),
        ("unet.**.attn1", "unet.**.attn2"),
        ("unet.**.ff",),
        "stacked",
    ),
    "SD3Transformer2DModel": PipelineFamily((_BLOCKS,), *_JOINT, "stacked"),
    "FluxTransformer2DModel": PipelineFamily((_BLOCKS, "transformer.single_transformer_blocks.*"), *_JOINT, "apart"),
    "PixArtTransformer2DModel": PipelineFamily(
        (_BLOCKS,), _JOINT[0], (f"{_BLOCKS}.attn1", f"{_BLOCKS}.attn2"), (f"{_BLOCKS}.ff",), "stacked"
    ),
}
TEXT_SITES = ("text_encoder*.**layers.*", "text_encoder*.**encoder.block.*")  # of CLIP, of T5


class PipelineModules(nn.Module):
    """The modules of a pipeline in the order in which they run: text encoders, denoiser, then the others.

    shorthands: the globs that each shorthand stands for here; "text" is the layers of the text encoders.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        """Put the modules of `pipeline` together; they stay its own. Raises OptionError without a denoiser."""
        super().__init__()
        self.pipeline = pipeline
        found = {name: uncompiled(part) for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
        self.denoisers = [name for name in DENOISERS if name in found]
        if not self.denoisers:
            raise OptionError(f"a {type(pipeline).__name__} has no part named {' or '.join(DENOISERS)} to steer")
        self.encoders = sorted(name for name in found if name.startswith("text_encoder"))
        first = [*self.encoders, *self.denoisers]
        for name in [*first, *(name for name in found if name not in first)]:
            self.add_module(name, found[name])
        family = self.family
        shorthands = {} if family is None else {key: getattr(family, key) for key in family._fields[:4]}
        self.shorthands: dict[str, tuple[str, ...]] = {**shorthands, "text": TEXT_SITES}

    @property
    def denoiser(self) -> nn.Module:
        """The module that each denoising step runs."""
        return self.get_submodule(self.denoisers[0])

    @property
    def family(self) -> PipelineFamily | None:
        """The row of `PIPELINE_FAMILIES` that holds here, or None."""
        return PIPELINE_FAMILIES.get(type(self.denoiser).__name__)

    @property
    def schedule(self) -> str:
        """The scheduler's class and options, without diffusers' own notes on them: one is a set, in no fixed order."""
        scheduler = self.pipeline.scheduler
        options = sorted((name, value) for name, value in scheduler.config.items() if not name.startswith("_"))
        return f"{type(scheduler).__name__} {options}"

    def drawing(self) -> nn.ModuleDict:
        """Return what a picture depends on before it is decoded: text encoders and denoiser."""
        return nn.ModuleDict({name: self.get_submodule(name) for name in (*self.encoders, *self.denoisers)})

    def reads_text(self, site: Site) -> bool:
        """Whether the tokens of a site are those of the prompt."""
        if site.path.partition(".")[0] in self.encoders:
            return True
        streams = STREAMS.get(type(self.get_submodule(site.path)).__name__, ())
        return site.side == "output" and site.index < len(streams) and streams[site.index] == "text"
