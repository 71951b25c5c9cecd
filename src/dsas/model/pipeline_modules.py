"""Pipeline modules: the parts of a diffusers pipeline as one tree of modules.

The modules of a pipeline keep their own names, so a site is "unet.down_blocks.0.resnets.0.norm1" or
"transformer.transformer_blocks.3". What differs between families of denoisers is written down here: where their parts
are, and how their pipelines run guidance.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from dsas.errors import OptionError, StateError
from dsas.model.compiled_code import uncompiled
from dsas.model.foreign import Foreign, Given, Pipeline
from dsas.model.guidance import Branch, Order
from dsas.model.sites import JOINT, MIXED, STREAMS, Site

__all__ = ["PIPELINE_FAMILIES", "Branch", "PipelineFamily", "PipelineModules"]
_DENOISER = re.compile(r"(unet|transformer)(_\d+)?")  # if there are two, each runs its own steps
_TEMPORAL = re.compile(r"(^|\.)(motion_modules|temp_\w+|temporal_\w+|transformer_in)(\.|$)")  # rows are positions
_SKIPS = re.compile(r"(FBC|MagCache|SeaCache)\w*|TransformerBlockSkipHook")  # hooks of diffusers on skipped blocks


class PipelineFamily(NamedTuple):
    """Globs of the sites of one kind of denoiser, and how its pipelines run guidance.

    guidance: both branches in one batch, with the order of its rows, or one batch after the other ("apart"), the
    conditional one first.
    """

    residual: tuple[str, ...]
    norm: tuple[str, ...]
    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    guidance: Order


_BLOCKS, _SINGLE = "transformer.transformer_blocks.*", "transformer.single_transformer_blocks.*"
_LAYERS = "transformer.layers.*"
_DOUBLE = ((f"{_BLOCKS}.norm1", f"{_BLOCKS}.norm2"), (f"{_BLOCKS}.attn",), (f"{_BLOCKS}.ff",))
_CROSS = (_DOUBLE[0], (f"{_BLOCKS}.attn1", f"{_BLOCKS}.attn2"), (f"{_BLOCKS}.ff",))
_AURA = "transformer.joint_transformer_blocks.*"
_WAN = "transformer*.blocks.*"

# By the class of the denoiser. Modules that single blocks run both streams through have no image part; their outputs
# have one.
PIPELINE_FAMILIES: dict[str, PipelineFamily] = {
    "UNet2DConditionModel": PipelineFamily(
        ("unet.**.resnets.*", "unet.**.attentions.*"),
        ("unet.**norm*",),
        ("unet.**.attn1", "unet.**.attn2"),
        ("unet.**.ff",),
        "unconditional first",
    ),
    "UNetMotionModel": PipelineFamily(  # one row per frame; in the motion modules, one row per position
        ("unet.**.resnets.*", "unet.**.attentions.*"),
        ("unet.**.resnets.*.norm*", "unet.**.attentions.**norm*"),
        ("unet.**.attentions.**.attn1", "unet.**.attentions.**.attn2"),
        ("unet.**.attentions.**.ff",),
        "unconditional first",
    ),
    "SD3Transformer2DModel": PipelineFamily(  # SD 3.5 has a second attention, among the positions of the picture
        (_BLOCKS,), _DOUBLE[0], (*_DOUBLE[1], f"{_BLOCKS}.attn2"), _DOUBLE[2], "unconditional first"
    ),
    "PixArtTransformer2DModel": PipelineFamily((_BLOCKS,), *_CROSS, "unconditional first"),
    "SanaTransformer2DModel": PipelineFamily((_BLOCKS,), *_CROSS, "unconditional first"),
    "AuraFlowTransformer2DModel": PipelineFamily(
        (_AURA, _SINGLE),
        (f"{_AURA}.norm1", f"{_AURA}.norm2"),
        (f"{_AURA}.attn",),
        (f"{_AURA}.ff",),
        "unconditional first",
    ),
    "ZImageTransformer2DModel": PipelineFamily(  # image and text are one stream from the first layer on
        (_LAYERS,),
        (f"{_LAYERS}.attention_norm1", f"{_LAYERS}.ffn_norm1"),
        (f"{_LAYERS}.attention",),
        (f"{_LAYERS}.feed_forward",),
        "conditional first",
    ),
    "FluxTransformer2DModel": PipelineFamily((_BLOCKS, _SINGLE), *_DOUBLE, "apart"),
    "Flux2Transformer2DModel": PipelineFamily((_BLOCKS, _SINGLE), *_DOUBLE, "apart"),
    "ChromaTransformer2DModel": PipelineFamily((_BLOCKS, _SINGLE), *_DOUBLE, "apart"),
    "QwenImageTransformer2DModel": PipelineFamily(
        (_BLOCKS,),
        (f"{_BLOCKS}.img_norm1", f"{_BLOCKS}.img_norm2"),
        (f"{_BLOCKS}.attn",),
        (f"{_BLOCKS}.img_mlp",),
        "apart",
    ),
    "CogView4Transformer2DModel": PipelineFamily(
        (_BLOCKS,), _DOUBLE[0], (f"{_BLOCKS}.attn1",), (f"{_BLOCKS}.ff",), "apart"
    ),
    "Lumina2Transformer2DModel": PipelineFamily(  # image and text are one stream here, too
        (_LAYERS,),
        (f"{_LAYERS}.norm1", f"{_LAYERS}.ffn_norm1"),
        (f"{_LAYERS}.attn",),
        (f"{_LAYERS}.feed_forward",),
        "apart",
    ),
    "WanTransformer3DModel": PipelineFamily(
        (_WAN,), (f"{_WAN}.norm1", f"{_WAN}.norm3"), (f"{_WAN}.attn1", f"{_WAN}.attn2"), (f"{_WAN}.ffn",), "apart"
    ),
}
TEXT_SITES = ("text_encoder*.**layers.*", "text_encoder*.**encoder.block.*")  # in CLIP and decoders, and in T5


class PipelineModules(nn.Module):
    """The modules of a pipeline in the order in which they run: text encoders, ControlNets, denoisers, then the others.

    shorthands: the globs that each shorthand means here; "text" means the layers of the text encoders.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        """Collect the modules of `pipeline`, which stay its own. Raises OptionError without a denoiser."""
        super().__init__()
        self.pipeline = pipeline
        found = {name: uncompiled(part) for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
        self.denoisers = sorted(name for name in found if _DENOISER.fullmatch(name))
        if not self.denoisers:
            raise OptionError(f"a {type(pipeline).__name__} has no part named unet or transformer to steer")
        self.encoders = sorted(name for name in found if name.startswith("text_encoder"))
        self.companions = sorted(name for name in found if "controlnet" in name)  # they run beside the denoiser
        first = [*self.encoders, *self.companions, *self.denoisers]
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
        """The scheduler's class and options, without diffusers' private entries, one of which has no fixed order."""
        scheduler = self.pipeline.scheduler
        options = sorted((name, value) for name, value in scheduler.config.items() if not name.startswith("_"))
        return f"{type(scheduler).__name__} {options}"

    def drawing(self) -> nn.ModuleDict:
        """Return the modules that a picture depends on before it is decoded: text encoders and denoiser."""
        return nn.ModuleDict({name: self.get_submodule(name) for name in (*self.encoders, *self.denoisers)})

    def check_unchanged(self) -> None:
        """Raise StateError for a part of the pipeline that has been replaced since."""
        parts: dict[str, object] = self.pipeline.components
        for name in (*self.encoders, *self.companions, *self.denoisers):
            part = parts.get(name)
            if not isinstance(part, nn.Module) or uncompiled(part) is not self._modules[name]:
                raise StateError(
                    f"the {name} of this {type(self.pipeline).__name__} was replaced after the Steering was applied, "
                    "so it is not steered: leave the Steering and apply it again"
                )

    def check_computed(self, site: Site) -> None:
        """Raise StateError for a site whose module diffusers skips in some passes, to save time or to guide."""
        registry: Foreign = getattr(self.get_submodule(site.path), "_diffusers_hook", None)
        for hook in getattr(registry, "hooks", {}).values():
            if _SKIPS.fullmatch(type(hook).__name__):
                raise StateError(
                    f"site {site}: a {type(hook).__name__} of diffusers skips this module in some passes and puts "
                    "something else in place of what it gives, which would be steered again: call disable_cache() (or "
                    "take off the guider that skips layers), or choose sites inside the blocks, such as 'attention'"
                )

    def reads_text(self, site: Site) -> bool:
        """Whether the tokens of a site are those of the prompt."""
        if site.path.partition(".")[0] in self.encoders:
            return True
        streams = self._streams(site)
        return site.side == "output" and site.index < len(streams) and streams[site.index] == "text"

    def is_temporal(self, site: Site) -> bool:
        """Whether each position is a row and each frame a token at a site of a video."""
        return _TEMPORAL.search(site.path) is not None

    def is_joint(self, site: Site) -> bool:
        """Whether a site's stream is a part of one sequence of both streams."""
        return site.side == "output" and type(self.get_submodule(site.path)).__name__ in JOINT

    def has_picture(self, site: Site) -> bool:
        """Whether the tokens of a site are the positions of a picture, with no tokens of a prompt among them."""
        names = site.path.split(".")
        around = [type(self.get_submodule(".".join(names[:end]))).__name__ for end in range(1, len(names) + 1)]
        mixed = any(kind in MIXED for kind in around) or any("SingleTransformerBlock" in kind for kind in around[:-1])
        return not mixed and not self.reads_text(site)

    def text_tokens(self, name: str, given: Mapping[str, Given]) -> int | None:
        """Return how many tokens come before those of the picture in blocks with both streams."""
        text, own = given.get("encoder_hidden_states"), getattr(self.get_submodule(name), "register_tokens", None)
        if not isinstance(text, Tensor):
            return None
        return text.shape[1] + (own.shape[1] if isinstance(own, Tensor) else 0)

    def stream(self, site: Site, given: Given, text: int | None) -> slice | None:
        """Return which tokens of one sequence belong to a site's stream, or None if all do.

        text: how many tokens of the prompt come first. Raises StateError where that is unknown.
        """
        if not self.is_joint(site) or not isinstance(given, Tensor):  # some return them separately if asked to
            return None
        if text is None:
            raise StateError(f"site {site}: where the prompt ends in a sequence of both streams is unknown")
        return slice(0, text) if self._streams(site)[site.index] == "text" else slice(text, None)

    def _streams(self, site: Site) -> tuple[str, ...]:
        kind = type(self.get_submodule(site.path)).__name__
        return STREAMS.get(kind) or JOINT.get(kind) or ()
