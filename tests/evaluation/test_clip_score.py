import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, CLIPConfig, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dsas.errors import MissingExtraError, OptionError
from dsas.evaluation.clip_score import ClipScore

WORDS = ("<pad>", "<start>", "<end>", "<unknown>", "red", "blue", "dog")
TEXTS = ["red dog", "blue", "dog dog dog", "red", "blue dog red"]
SIDE = 16
MEAN, DEVIATION = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
BLOCK = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Return the folder of a tiny random CLIP with its processor, and the model."""
    folder = tmp_path_factory.mktemp("clip")
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unknown>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<start>", eos_token="<end>", unk_token="<unknown>"
    )
    sized = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    pictures = CLIPImageProcessorPil(**sized, image_mean=MEAN, image_std=DEVIATION)
    CLIPProcessor(pictures, tokenizer).save_pretrained(folder)
    text = {"vocab_size": len(WORDS), "max_position_embeddings": 6, "bos_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(
            CLIPConfig(
                text_config={**BLOCK, **text, "pad_token_id": 0},
                vision_config={**BLOCK, "image_size": SIDE, "patch_size": 8},
                projection_dim=8,
                initializer_factor=10.0,
            )
        )
    model.eval().save_pretrained(folder)
    return folder, model


def pictures(n: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)


def by_hand(model, picture: np.ndarray, text: str) -> float:
    """Return the score of one picture that needs no resizing and one short text, from the two towers."""
    ids = torch.tensor([[1, *(WORDS.index(word) for word in text.split()), 2]])
    x = torch.tensor((picture / 255 - MEAN) / DEVIATION, dtype=torch.float32).permute(2, 0, 1)[None]
    with torch.no_grad():
        seen = model.visual_projection(model.vision_model(pixel_values=x).pooler_output)[0].double().numpy()
        read = model.text_projection(model.text_model(input_ids=ids).pooler_output)[0].double().numpy()
    return 100 * max(0.0, float(seen @ read / np.linalg.norm(seen) / np.linalg.norm(read)))


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_it_is_the_cosine_of_both_towers_in_any_batch_and_nothing_below_zero(clip, batch_size):
    folder, model = clip
    shown = pictures(20)
    texts = TEXTS * 4
    found = ClipScore(folder, device="cpu", batch_size=batch_size)(shown, texts)
    expected = [by_hand(model, picture, text) for picture, text in zip(shown, texts, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert min(expected) == 0.0
    assert max(expected) > 1


def test_floats_count_as_the_bytes_they_stand_for_and_larger_pictures_are_made_smaller(clip):
    score = ClipScore(clip[0], device="cpu")
    shown = pictures(5)
    np.testing.assert_allclose(score(shown / 255, TEXTS), score(shown, TEXTS), atol=1e-6)
    flat = np.repeat(np.repeat(shown[:, :1, :1], SIDE, axis=1), SIDE, axis=2)
    large = np.repeat(np.repeat(flat, 2, axis=1), 3, axis=2)
    np.testing.assert_allclose(score(large, TEXTS), score(flat, TEXTS), atol=1e-3)


def test_a_text_longer_than_the_model_can_read_is_cut(clip):
    score = ClipScore(clip[0], device="cpu")
    long, cut = "red dog blue dog red red red", "red dog blue dog"
    np.testing.assert_allclose(score(pictures(1), [long]), score(pictures(1), [cut]), atol=1e-6)


def test_what_is_not_a_picture_and_a_text_each_is_refused(clip):
    score = ClipScore(clip[0], device="cpu")
    with pytest.raises(OptionError, match="a text for each of 2 pictures, got 1 texts"):
        score(pictures(2), ["red"])
    with pytest.raises(OptionError, match="a text for each of 3 pictures, got one text"):
        score(pictures(3), "red")
    with pytest.raises(OptionError, match="batch_size >= 1, got 0"):
        ClipScore(clip[0], batch_size=0)


def test_a_folder_without_a_clip_model_is_refused_by_name(tmp_path):
    with pytest.raises(OptionError, match=r"no CLIP model could be loaded from .*missing"):
        ClipScore(tmp_path / "missing", device="cpu")
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(OptionError, match="expected a CLIP model, got one of type 'bert'"):
        ClipScore(tmp_path, device="cpu")


def test_without_pillow_the_extra_is_named(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match="diffusion"):
        ClipScore(clip[0], device="cpu")
