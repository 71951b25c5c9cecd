"""Tiny models of texts with pictures or sounds, with processors that are built here and need no files.

Their templates are shortened; what a processor makes of a picture, and which values it gives, is its own.
"""

from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from PIL import Image
from torch import nn

from dsas.testing import tiny_tokenizer
from dsas.testing.models import WIDTH

SIZES = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
MANY = {"num_key_value_heads": 2, "head_dim": 8}
# Content may be a text or a list of parts, as in Qwen's and Gemma's templates; {media} is what stands for a medium.
_EITHER = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% else %}MEDIA{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Lists of parts alone, pictures first, as in LLaVA's and SmolVLM's templates.
_LISTS = (
    "{% for m in messages %}{{ m.role.upper() + ': ' }}{% for p in m.content if p.type != 'text' %}MEDIA\n{% endfor %}"
    "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)


class Multimodal(NamedTuple):
    """A model with its processor; end: how many tokens the template puts behind an answer."""

    model: nn.Module
    processor: Any
    end: int
    kind: str = "image"


def _tokenizer(*specials: str, bos: str | None = None, **named: str) -> Any:
    """Return a tokenizer of bytes with these special tokens, and those under names, as model files have them."""
    made = tiny_tokenizer()
    every = [*specials, "<|im_start|>", "<|im_end|>"]
    made.add_special_tokens({"additional_special_tokens": every, "pad_token": "<pad>"})
    if bos:
        made.add_special_tokens({"bos_token": bos})
    for name, token in named.items():
        setattr(made, name, token)
        setattr(made, f"{name}_id", made.convert_tokens_to_ids(token))
    return made


def _built(kind: Any, tokenizer: Any, **held: Any) -> Any:
    """Return a processor whose class wants packages for videos that nobody needs here."""
    made = kind.__new__(kind)
    ids = {f"{one}_ids": [held.get(f"{one}_token_id")] for one in ("image", "video", "audio")}  # in older transformers
    for name, value in {"tokenizer": tokenizer, "video_processor": None, **ids, **held}.items():
        setattr(made, name, value)
    return made


def _config(kind: Any, tokenizer: Any, text: Any, seen: Any, **options: Any) -> Any:
    return kind(text_config=text, vision_config=seen, pad_token_id=tokenizer.pad_token_id, **options)


def llava() -> Multimodal:
    t = _tokenizer("<image>", bos="<s>")
    t._tokenizer.post_processor = _bos_first(t)
    crop = {"height": 28, "width": 28}
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=crop)
    processor = transformers.LlavaProcessor(
        images, t, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=_LISTS.replace("MEDIA", "<image>"),
    )  # fmt: skip
    seen = transformers.CLIPVisionConfig(**SIZES, image_size=28, patch_size=14)
    text = transformers.LlamaConfig(**SIZES, vocab_size=300)
    config = _config(
        transformers.LlavaConfig, t, text, seen, image_token_index=t.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )  # fmt: skip
    return Multimodal(_made(transformers.LlavaForConditionalGeneration, config), processor, 2)


def qwen() -> Multimodal:
    t = _tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    images = transformers.Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=84 * 84)
    number = t.convert_tokens_to_ids
    processor = _built(
        transformers.Qwen2_5_VLProcessor, t, image_processor=images, image_token="<|image_pad|>",
        video_token="<|video_pad|>", image_token_id=number("<|image_pad|>"), video_token_id=number("<|video_pad|>"),
        chat_template=_EITHER.replace("MEDIA", "<|vision_start|><|image_pad|><|vision_end|>"),
    )  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(
        text_config={**SIZES, "num_key_value_heads": 2, "vocab_size": 300,
                     "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}},
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": WIDTH,
                       "fullatt_block_indexes": [1]},
        image_token_id=number("<|image_pad|>"), video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"), vision_end_token_id=number("<|vision_end|>"),
    )  # fmt: skip
    return Multimodal(_made(transformers.Qwen2_5_VLForConditionalGeneration, config), processor, 2)


def gemma() -> Multimodal:
    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    t = _tokenizer(*named.values(), bos="<bos>", **named)
    images = transformers.Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    processor = transformers.Gemma3Processor(
        images, t, image_seq_length=4, chat_template="<bos>" + _EITHER.replace("MEDIA", "<start_of_image>")
    )
    text = transformers.Gemma3TextConfig(**SIZES, **MANY, vocab_size=300)
    seen = transformers.SiglipVisionConfig(**SIZES, image_size=28, patch_size=7)
    config = _config(
        transformers.Gemma3Config, t, text, seen, mm_tokens_per_image=4, image_token_id=t.image_token_id,
        boi_token_index=t.boi_token_id, eoi_token_index=t.eoi_token_id,
    )  # fmt: skip
    return Multimodal(_made(transformers.Gemma3ForConditionalGeneration, config), processor, 2)


def paligemma() -> Multimodal:
    t = _tokenizer("<image>", bos="<bos>")
    images = transformers.SiglipImageProcessorPil(size={"height": 28, "width": 28})
    images.image_seq_length = 4
    processor = transformers.PaliGemmaProcessor(images, t, chat_template=_EITHER.replace("MEDIA", "<image>"))
    text = transformers.GemmaConfig(**SIZES, **MANY, vocab_size=300)
    seen = transformers.SiglipVisionConfig(**SIZES, image_size=28, patch_size=14, projection_dim=WIDTH)
    config = _config(
        transformers.PaliGemmaConfig, t, text, seen, image_token_id=t.convert_tokens_to_ids("<image>"),
        projection_dim=WIDTH,
    )  # fmt: skip
    return Multimodal(_made(transformers.PaliGemmaForConditionalGeneration, config), processor, 3)


def smolvlm() -> Multimodal:
    named = {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>",
             "global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>"}  # fmt: skip
    t = _tokenizer(*named.values(), **named)
    images = transformers.SmolVLMImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    processor = _built(
        transformers.SmolVLMProcessor, t, image_processor=images, image_seq_len=1,
        chat_template=_LISTS.replace("MEDIA", "<image>"),
        image_token_id=t.image_token_id, video_size=None, video_token=None,
        video_processor=SimpleNamespace(num_frames=1, fps=1, size={}),
        fake_image_token=named["fake_image_token"], image_token="<image>",
        global_image_token=named["global_image_token"], end_of_utterance_token=named["end_of_utterance_token"],
    )  # fmt: skip
    text = transformers.LlamaConfig(**SIZES, vocab_size=300)
    seen = transformers.SmolVLMVisionConfig(**SIZES, image_size=28, patch_size=14)
    config = transformers.SmolVLMConfig(
        text_config=text,
        vision_config=seen,
        image_token_id=t.image_token_id,
        scale_factor=2,
        pad_token_id=t.pad_token_id,
    )
    return Multimodal(_made(transformers.SmolVLMForConditionalGeneration, config), processor, 2)


def qwen_audio(**options: Any) -> Multimodal:
    """Return it; options: of the config of its decoder."""
    t = _tokenizer("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
    sounds = transformers.WhisperFeatureExtractor(feature_size=16)
    template = _EITHER.replace("MEDIA", "<|audio_bos|><|AUDIO|><|audio_eos|>")
    processor = transformers.Qwen2AudioProcessor(sounds, t, chat_template=template)
    heard = transformers.Qwen2AudioEncoderConfig(
        num_mel_bins=16, d_model=WIDTH, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=64
    )
    config = transformers.Qwen2AudioConfig(
        audio_config=heard,
        text_config=transformers.Qwen2Config(**{**SIZES, "num_key_value_heads": 2, "vocab_size": 300, **options}),
        audio_token_index=t.convert_tokens_to_ids("<|AUDIO|>"),
    )  # fmt: skip
    return Multimodal(_made(transformers.Qwen2AudioForConditionalGeneration, config), processor, 2, "audio")


def whisper() -> Multimodal:
    """Return a model whose encoder takes the sound, and whose processor has no template."""
    from tokenizers.processors import TemplateProcessing

    begins = ("<|startoftranscript|>", "<|notimestamps|>")
    t = _tokenizer(*begins)
    named = [(name, t.convert_tokens_to_ids(name)) for name in (*begins, t.eos_token)]
    t._tokenizer.post_processor = TemplateProcessing(
        single=f"{begins[0]} {begins[1]} $A {t.eos_token}", special_tokens=named
    )
    sounds = transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    processor = _built(transformers.WhisperProcessor, t, feature_extractor=sounds, chat_template=None)
    config = transformers.WhisperConfig(
        vocab_size=300, num_mel_bins=16, d_model=WIDTH, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=100,
        max_target_positions=64, init_std=0.2, decoder_start_token_id=named[0][1], bos_token_id=t.eos_token_id,
        eos_token_id=t.eos_token_id, pad_token_id=t.pad_token_id, begin_suppress_tokens=None,
    )  # fmt: skip
    return Multimodal(_made(transformers.WhisperForConditionalGeneration, config), processor, 1, "audio")


FAMILIES = {
    "llava": llava, "qwen": qwen, "gemma": gemma, "paligemma": paligemma, "smolvlm": smolvlm, "qwen-audio": qwen_audio
}  # fmt: skip


@cache
def built(name: str) -> Multimodal:
    """Return one of them, made once; nobody may change it."""
    return FAMILIES[name]()


def medium(kind: str, seed: int) -> Any:
    """Return a picture of noise, of one of several sizes, or a second of noise to hear."""
    draw = np.random.default_rng(seed)
    if kind == "audio":
        return draw.normal(size=4000 + 800 * seed).astype(np.float32)
    return Image.fromarray(draw.integers(0, 255, (28 + 28 * (seed % 2), 56, 3), dtype=np.uint8))


def talk(kind: str, answer: str, seed: int) -> list[dict[str, Any]]:
    """Return a conversation about a medium."""
    asked = [{"type": kind, kind: medium(kind, seed)}, {"type": "text", "text": "What?"}]
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]


def _made(kind: Any, config: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(config).eval()


def _bos_first(tokenizer: Any) -> Any:
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
