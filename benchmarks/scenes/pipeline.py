"""The text-to-image model of the demo: a stock diffusers `StableDiffusionPipeline`, small enough for the repository.

| part | class | shape | parameters |
|---|---|---|---|
| picture to latents | AutoencoderKL | 32x32x3 to 8x8x4 | 0.7 million |
| denoiser | UNet2DConditionModel | 8x8 and 4x4, attention at 4x4 | 4.0 million |
| text | CLIPTextModel | 2 layers, width 96, one token per word | 0.2 million |

DDIM with v-prediction, zero terminal SNR and trailing timesteps (2305.08891), so 20 steps and fewer do.

The trained weights lie in `models/scenes` of the repository, and not in the wheel: 4.9 million parameters in float16
(10 MB), with a card that says how they were made (`scripts/train_scenes.py`) and how often a picture shows what its
caption says.

Limitations: no safety checker, and no word that is not in `scenes.world`.
"""

import re
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import torch

from dsas.errors import MissingExtraError, OptionError
from scenes.rendering import SIDE
from scenes.world import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, SIZES, Scene, Thing, caption

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from transformers import CLIPTextModel, PreTrainedTokenizerFast

WORDS = 24
MODEL = Path(__file__).parents[2] / "models" / "scenes"  # of a checkout of the repository
_SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")


class Sizes(NamedTuple):
    """Channels of the autoencoder's and the denoiser's levels, and the width of the text encoder."""

    autoencoder: tuple[int, ...] = (16, 32, 64)
    denoiser: tuple[int, ...] = (64, 128)
    text: int = 96


def scene_pipeline(folder: str | Path = MODEL) -> "StableDiffusionPipeline":
    """Return the trained pipeline, in float32 (the CPU's fastest) and without a network.

    It paints 32x32 pictures: `pipeline(captions, height=32, width=32)`, or `paint`. folder: where its weights lie.
    Raises OptionError when they do not, and MissingExtraError without diffusers.
    """
    diffusers = _diffusers()
    if not (Path(folder) / "model_index.json").is_file():
        raise OptionError(
            f"expected the picture model in {folder}, where there is none: it comes with the source repository of dsas "
            "and not with the installed package: check the repository out and give the path of its folder models/scenes"
        )
    return diffusers.StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)


def blank_pipeline(sizes: Sizes = Sizes()) -> "StableDiffusionPipeline":
    """Return an untrained pipeline of these sizes, in float32. Raises MissingExtraError without diffusers."""
    diffusers = _diffusers()
    return diffusers.StableDiffusionPipeline(
        vae=_autoencoder(sizes),
        unet=_denoiser(sizes),
        text_encoder=_text_encoder(sizes),
        tokenizer=word_tokenizer(),
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )


def word_tokenizer() -> "PreTrainedTokenizerFast":
    """Return a tokenizer with one token per word of the world, made from the captions' own words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    rows = chain(
        (Scene(ground, (Thing(SHAPES[0], COLOURS[0], size),)) for ground in BACKGROUNDS for size in SIZES),
        (
            Scene("sea", (Thing(shape, colour, "small", place),))
            for shape in SHAPES
            for colour in COLOURS
            for place in POSITIONS
        ),
    )
    words = dict.fromkeys(chain(("a", "and"), *(re.findall(r"\w+|,", caption(scene)) for scene in rows)))
    vocabulary = {word: index for index, word in enumerate((*_SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[(word, _SPECIAL.index(word)) for word in ("<start>", "<end>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=WORDS,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unknown>",
    )


def _autoencoder(sizes: Sizes) -> "AutoencoderKL":
    levels = len(sizes.autoencoder)
    return _diffusers().AutoencoderKL(
        block_out_channels=sizes.autoencoder,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIDE,
    )


def _denoiser(sizes: Sizes) -> "UNet2DConditionModel":
    return _diffusers().UNet2DConditionModel(
        sample_size=SIDE // 2 ** (len(sizes.autoencoder) - 1),
        block_out_channels=sizes.denoiser,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=sizes.text,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def _text_encoder(sizes: Sizes) -> "CLIPTextModel":
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(word_tokenizer()),
        hidden_size=sizes.text,
        intermediate_size=4 * sizes.text,
        projection_dim=sizes.text,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=WORDS,
        bos_token_id=_SPECIAL.index("<start>"),
        eos_token_id=_SPECIAL.index("<end>"),
        pad_token_id=_SPECIAL.index("<pad>"),
    )
    return CLIPTextModel(config)


def _scheduler() -> "DDIMScheduler":
    return _diffusers().DDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def _diffusers() -> ModuleType:
    try:
        import diffusers
    except ImportError as error:
        raise MissingExtraError("diffusers", "diffusion") from error
    return diffusers
