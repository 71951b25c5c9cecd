"""Tiny random text-to-image pipelines, one of each family, built in code: no download, no file.

They draw noise; they have the modules, calls, guidance and output types of the real families, which is what steering
depends on. Needs the extra `diffusion`.
"""

import warnings
from typing import Any

import torch

from dsas.errors import MissingExtraError, OptionError, closest
from dsas.files.json_values import JsonObject
from dsas.model.foreign import Foreign
from dsas.testing import newer_pipelines as newer

PIPELINES: tuple[str, ...] = ("sd", "sdxl", "sd3", "flux", "pixart")
NEWER_PIPELINES: tuple[str, ...] = tuple(newer.NEWER_OPTIONS)
_TEXT_WIDTH, _TOKENS, _LETTERS = 16, 16, "abcdefghijklmnopqrstuvwxyz ,.0123456789"


def tiny_pipeline(family: str = "sd", *, seed: int = 0) -> Foreign:
    """Return a random pipeline of one of `PIPELINES` or `NEWER_PIPELINES`, in float32 and evaluation mode.

    It has no progress bar. Pictures of `PIPELINES` are 16 x 16 by default (8 x 8 latents); the others are called with
    `NEWER_OPTIONS` of `dsas.testing.newer_pipelines`. The global random state is left as it was. Raises OptionError for
    an unknown family, MissingExtraError without diffusers.
    """
    builders = {"sd": _sd, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux, "pixart": _pixart}
    if family not in (*PIPELINES, *NEWER_PIPELINES):
        known = closest(family, (*PIPELINES, *NEWER_PIPELINES))
        raise OptionError(f"unknown family {family!r}; closest: {known}")
    try:
        import diffusers
    except ImportError as error:
        raise MissingExtraError("diffusers", "diffusion") from error
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # from diffusers, about its own parts
        torch.manual_seed(seed)
        pipeline = builders[family](diffusers) if family in builders else _newer(family, diffusers)
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class _Parts:
    """Parts that newer families also use."""

    def __init__(self) -> None:
        self.vae, self.clip, self.t5, self.letters, self.pipeline = _vae, _clip, _t5, _letters, tiny_pipeline


def _newer(family: str, diffusers: Foreign) -> Foreign:
    parts = _Parts()
    if family in ("flux2", "klein"):
        return newer.flux2(diffusers, parts, klein=family == "klein")
    builders = {
        "qwen-image": newer.qwen_image, "z-image": newer.z_image, "chroma": newer.chroma, "sana": newer.sana,
        "lumina2": newer.lumina2, "auraflow": newer.auraflow, "cogview4": newer.cogview4, "sd3.5": newer.sd35,
        "wan": newer.wan, "animatediff": newer.animatediff,
    }  # fmt: skip
    return builders[family](diffusers, parts)


def _sd(diffusers: Foreign) -> Foreign:
    unet = diffusers.UNet2DConditionModel(
        **_UNET,
        cross_attention_dim=_TEXT_WIDTH,
    )
    return diffusers.StableDiffusionPipeline(
        vae=_vae(diffusers),
        text_encoder=_clip(),
        tokenizer=_letters(),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(diffusers: Foreign) -> Foreign:
    unet = diffusers.UNet2DConditionModel(
        **_UNET,
        cross_attention_dim=2 * _TEXT_WIDTH,
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + _TEXT_WIDTH,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(diffusers),
        text_encoder=_clip(),
        text_encoder_2=_clip(projected=True),
        tokenizer=_letters(),
        tokenizer_2=_letters(),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )


def _sd3(diffusers: Foreign) -> Foreign:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * _TEXT_WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * _TEXT_WIDTH,
        out_channels=4,
        pos_embed_max_size=16,
    )
    return diffusers.StableDiffusion3Pipeline(
        vae=_vae(diffusers, shift_factor=0.1),
        text_encoder=_clip(projected=True),
        text_encoder_2=_clip(projected=True),
        text_encoder_3=_t5(2 * _TEXT_WIDTH),
        tokenizer=_letters(),
        tokenizer_2=_letters(),
        tokenizer_3=_letters(),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def _flux(diffusers: Foreign) -> Foreign:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * _TEXT_WIDTH,
        pooled_projection_dim=_TEXT_WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    pipeline = diffusers.FluxPipeline(
        vae=_vae(diffusers, shift_factor=0.1),
        text_encoder=_clip(),
        tokenizer=_letters(),
        text_encoder_2=_t5(2 * _TEXT_WIDTH),
        tokenizer_2=_letters(),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )
    pipeline.default_sample_size = 8
    return pipeline


def _pixart(diffusers: Foreign) -> Foreign:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=_TEXT_WIDTH,
        cross_attention_dim=16,
        use_additional_conditions=False,
        norm_num_groups=1,
    )
    return diffusers.PixArtAlphaPipeline(
        tokenizer=_letters(),
        text_encoder=_t5(_TEXT_WIDTH),
        vae=_vae(diffusers),
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


_UNET: JsonObject = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "sample_size": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (1, 2),
    "norm_num_groups": 4,
}


def _vae(diffusers: Foreign, **options: Any) -> Foreign:
    return diffusers.AutoencoderKL(
        block_out_channels=[8, 8],
        down_block_types=["DownEncoderBlock2D", "DownEncoderBlock2D"],
        up_block_types=["UpDecoderBlock2D", "UpDecoderBlock2D"],
        norm_num_groups=4,
        sample_size=16,
        **options,
    )


def _clip(*, projected: bool = False) -> Foreign:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(_LETTERS) + 1,
        hidden_size=_TEXT_WIDTH,
        projection_dim=_TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=_TOKENS,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _t5(width: int) -> Foreign:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=len(_LETTERS) + 1, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return T5EncoderModel(config)


def _letters() -> Foreign:
    """Return a tokenizer with one token per letter; number 0 is both end and padding."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    end = "<|end|>"
    vocabulary = {end: 0} | {letter: number for number, letter in enumerate(_LETTERS, 1)}
    one = Tokenizer(WordLevel(vocabulary, unk_token=end))
    one.pre_tokenizer = Split(Regex("."), "isolated")
    one.post_processor = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=one, eos_token=end, pad_token=end, unk_token=end, model_max_length=_TOKENS
    )
