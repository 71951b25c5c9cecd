"""Tiny random pipelines of further families: those whose text encoders are decoders, and videos.

Text encoders and tokenizers are stand-ins (a tiny Llama or T5 that reads letters); the denoisers, their calls, guidance
and schedules are those of the real families. Needs the extra `diffusion`.
"""

from typing import Any

from dsas.files.json_values import JsonObject
from dsas.model.foreign import Foreign

WIDTH = 16  # width of the text encoders
_SIZE: JsonObject = {"height": 16, "width": 16}
_SHORT: JsonObject = {**_SIZE, "max_sequence_length": 16}
_OUT: JsonObject = {"text_encoder_out_layers": (0, 1, 2)}
# The arguments with which each draws two branches in two steps, besides prompts, steps and noise.
NEWER_OPTIONS: dict[str, JsonObject] = {
    "flux2": {**_SHORT, **_OUT, "height": 32},
    "klein": {**_SHORT, **_OUT, "height": 32},
    "qwen-image": {**_SIZE, "negative_prompt": ["bad", "worse"], "true_cfg_scale": 3.0},
    "z-image": {**_SHORT, "negative_prompt": ["bad", "worse"]},
    "chroma": {**_SHORT, "negative_prompt": ["bad", "worse"]},
    "sana": {**_SHORT, "height": 32, "width": 32, "use_resolution_binning": False, "complex_human_instruction": None},
    "lumina2": {**_SIZE, "system_prompt": "", "negative_prompt": ["bad", "worse"], "max_sequence_length": 48},
    "auraflow": {**_SHORT},
    "cogview4": {**_SHORT},
    "sd3.5": {**_SHORT},
    "wan": {**_SHORT, "num_frames": 5},
    "animatediff": {**_SIZE, "num_frames": 3},
}


def flow(diffusers: Foreign) -> Foreign:
    """Return the scheduler of most of these pipelines."""
    return diffusers.FlowMatchEulerDiscreteScheduler()


def decoder(causal: bool = False) -> Foreign:
    """Return a tiny decoder in place of a text encoder."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

    config = LlamaConfig(
        vocab_size=64, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return (LlamaForCausalLM if causal else LlamaModel)(config)


def chatting(tokenizer: Foreign) -> Foreign:
    """Return a tokenizer with a chat template that writes nothing but the texts, and room for one of Qwen-Image."""
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% elif m['role'] == 'user' %}"
        "{{ m['content'][0]['text'] }}{% endif %}{% endfor %}"
    )
    tokenizer.model_max_length = 512
    return tokenizer


def flux2(d: Foreign, parts: Any, *, klein: bool = False) -> Foreign:
    """Return FLUX.2, or Klein, which has guidance in two passes."""
    vae = d.AutoencoderKLFlux2(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4, sample_size=16,
        layers_per_block=1,
    )  # fmt: skip
    transformer = d.Flux2Transformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=3 * WIDTH, timestep_guidance_channels=32, axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=not klein,
    )  # fmt: skip
    kind = d.Flux2KleinPipeline if klein else d.Flux2Pipeline
    return kind(
        scheduler=flow(d), vae=vae, text_encoder=decoder(causal=True), tokenizer=chatting(parts.letters()),
        transformer=transformer,
    )  # fmt: skip


def qwen_image(d: Foreign, parts: Any) -> Foreign:
    """Return Qwen-Image: two streams, two passes."""
    vae = d.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False], latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )  # fmt: skip
    transformer = d.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    return d.QwenImagePipeline(
        scheduler=flow(d), vae=vae, text_encoder=decoder(causal=True), tokenizer=chatting(parts.letters()),
        transformer=transformer,
    )  # fmt: skip


def z_image(d: Foreign, parts: Any) -> Foreign:
    """Return Z-Image: one stream, one batch, whose conditional rows come first."""
    transformer = d.ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, cap_feat_dim=WIDTH, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    return d.ZImagePipeline(
        scheduler=flow(d), vae=parts.vae(d, shift_factor=0.1, scaling_factor=1.0), text_encoder=decoder(),
        tokenizer=chatting(parts.letters()), transformer=transformer,
    )  # fmt: skip


def chroma(d: Foreign, parts: Any) -> Foreign:
    """Return Chroma: FLUX with guidance in two passes that nothing names."""
    transformer = d.ChromaTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, axes_dims_rope=(4, 4, 8), approximator_num_channels=8, approximator_hidden_dim=32,
        approximator_layers=1,
    )  # fmt: skip
    pipeline = d.ChromaPipeline(
        scheduler=flow(d), vae=parts.vae(d, shift_factor=0.1), text_encoder=parts.t5(WIDTH),
        tokenizer=parts.letters(), transformer=transformer,
    )  # fmt: skip
    pipeline.default_sample_size = 8
    return pipeline


def sana(d: Foreign, parts: Any) -> Foreign:
    """Return Sana: linear attention, one batch."""
    vae = d.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock",) * 2,
        decoder_block_types=("ResBlock",) * 2, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()), downsample_block_type="conv", upsample_block_type="interpolate",
    )  # fmt: skip
    transformer = d.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=8,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=WIDTH,
        sample_size=8, patch_size=1,
    )  # fmt: skip
    return d.SanaPipeline(
        tokenizer=chatting(parts.letters()), text_encoder=decoder(), vae=vae, transformer=transformer,
        scheduler=flow(d),
    )  # fmt: skip


def lumina2(d: Foreign, parts: Any) -> Foreign:
    """Return Lumina 2: one stream, two passes, time that runs the other way."""
    transformer = d.Lumina2Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=2, num_refiner_layers=1,
        num_attention_heads=2, num_kv_heads=2, multiple_of=16, axes_dim_rope=(4, 4, 4), axes_lens=(64, 32, 32),
        cap_feat_dim=WIDTH,
    )  # fmt: skip
    pipeline = d.Lumina2Pipeline(
        transformer=transformer, scheduler=flow(d), vae=parts.vae(d, shift_factor=0.1), text_encoder=decoder(),
        tokenizer=chatting(parts.letters()),
    )  # fmt: skip
    pipeline.vae_scale_factor = 2
    return pipeline


def auraflow(d: Foreign, parts: Any) -> Foreign:
    """Return AuraFlow: two streams, then one of both, one batch."""
    transformer = d.AuraFlowTransformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_mmdit_layers=2, num_single_dit_layers=2,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=WIDTH, caption_projection_dim=16,
        pos_embed_max_size=256,
    )  # fmt: skip
    return d.AuraFlowPipeline(
        tokenizer=parts.letters(), text_encoder=parts.t5(WIDTH), vae=parts.vae(d), transformer=transformer,
        scheduler=flow(d),
    )  # fmt: skip


def cogview4(d: Foreign, parts: Any) -> Foreign:
    """Return CogView4: two streams, the image's first, two passes."""
    transformer = d.CogView4Transformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        text_embed_dim=WIDTH, time_embed_dim=8, condition_dim=4, sample_size=8, rope_axes_dim=(16, 16),
    )  # fmt: skip
    return d.CogView4Pipeline(
        tokenizer=chatting(parts.letters()), text_encoder=decoder(), vae=parts.vae(d), transformer=transformer,
        scheduler=d.FlowMatchEulerDiscreteScheduler(
            base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
        ),
    )  # fmt: skip


def sd35(d: Foreign, parts: Any) -> Foreign:
    """Return Stable Diffusion 3.5, whose blocks have a second attention among the positions of the picture."""
    transformer = d.SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=2 * WIDTH, caption_projection_dim=16, pooled_projection_dim=2 * WIDTH, out_channels=4,
        pos_embed_max_size=16, dual_attention_layers=(0, 1), qk_norm="rms_norm",
    )  # fmt: skip
    return d.StableDiffusion3Pipeline(
        vae=parts.vae(d, shift_factor=0.1), text_encoder=parts.clip(projected=True),
        text_encoder_2=parts.clip(projected=True), text_encoder_3=parts.t5(2 * WIDTH), tokenizer=parts.letters(),
        tokenizer_2=parts.letters(), tokenizer_3=parts.letters(), transformer=transformer, scheduler=flow(d),
    )  # fmt: skip


def wan(d: Foreign, parts: Any) -> Foreign:
    """Return Wan 2.2: videos, two passes, and one denoiser for the early steps and another one for the late ones."""

    def transformer() -> Foreign:
        return d.WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
            text_dim=WIDTH, freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
        )  # fmt: skip

    vae = d.AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True], latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4, scale_factor_temporal=2, scale_factor_spatial=2,
    )  # fmt: skip
    return d.WanPipeline(
        tokenizer=parts.letters(), text_encoder=parts.t5(WIDTH), vae=vae, scheduler=flow(d), transformer=transformer(),
        transformer_2=transformer(), boundary_ratio=0.6,
    )  # fmt: skip


def animatediff(d: Foreign, parts: Any) -> Foreign:
    """Return AnimateDiff: videos from Stable Diffusion, a row per frame."""
    base = parts.pipeline("sd")
    motion = d.MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=4, motion_num_attention_heads=2
    )
    names = ("vae", "text_encoder", "tokenizer", "unet")
    return d.AnimateDiffPipeline(
        **{name: base.components[name] for name in names},
        motion_adapter=motion,
        scheduler=d.DDIMScheduler(clip_sample=False, steps_offset=1),
    )
