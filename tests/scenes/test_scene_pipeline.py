import sys

import numpy as np
import pytest
from safetensors import safe_open
from scenes import (
    Sizes,
    accuracy,
    as_markdown,
    blank_pipeline,
    caption,
    concept_present,
    every_scene,
    paint,
    save_grid,
    scene_pipeline,
)
from scenes.pipeline import MODEL, WORDS, word_tokenizer

from dsas.errors import MissingExtraError, OptionError

TINY = Sizes(autoencoder=(8, 8, 8), denoiser=(16, 16), text=16)


@pytest.fixture(scope="module")
def trained():
    return scene_pipeline()


@pytest.fixture(scope="module")
def blank():
    return blank_pipeline(TINY)


def test_the_stored_pipeline_paints_what_the_caption_says(trained):
    captions = ["a red circle, on grass", "a large yellow square in the centre, on sand"]
    first, second = paint(trained, captions, seed=0, steps=10)
    assert concept_present(first[None], "red circle").tolist() == [True]
    assert concept_present(first[None], "grass").tolist() == [True]
    assert concept_present(second[None], "large yellow square centre").tolist() == [True]
    assert concept_present(second[None], "sand").tolist() == [True]


def test_a_missing_model_is_an_error_that_says_where_it_is_to_be_had(tmp_path):
    with pytest.raises(OptionError, match=f"in {tmp_path}, where there is none: .* folder models/scenes"):
        scene_pipeline(tmp_path)


def test_the_stored_weights_are_float16_and_small():
    files = sorted(MODEL.rglob("*.safetensors"))
    assert [file.parent.name for file in files] == ["text_encoder", "unet", "vae"]
    for file in files:
        with safe_open(file, "pt") as tensors:
            assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} <= {"F16", "I64"}  # noqa: SIM118
    assert sum(file.stat().st_size for file in MODEL.rglob("*")) < 11e6


def test_the_card_states_the_command_and_the_accuracy():
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    assert "python scripts/train_scenes.py --minutes" in card
    assert "| two things, held-out pairs | 200 |" in card


def test_a_token_is_a_word_and_every_caption_fits():
    tokenizer = word_tokenizer()
    captions = [caption(scene) for things in (1, 2) for scene in list(every_scene(things=things))[::97]]
    rows = tokenizer(captions).input_ids
    assert max(map(len, rows)) <= WORDS
    assert not any(tokenizer.unk_token_id in row for row in rows)
    assert tokenizer.decode(rows[0], skip_special_tokens=True).replace(" ,", ",") == captions[0]


def test_a_picture_depends_on_its_row_and_seed_alone(blank):
    both = paint(blank, ["a red star", "a blue ring"], seed=1, steps=1)
    again = paint(blank, ["a white cross", "a blue ring"], seed=1, steps=1)
    other = paint(blank, ["a white cross", "a blue ring"], seed=2, steps=1)
    assert both.shape == (2, 32, 32, 3)
    np.testing.assert_allclose(both[1].astype(int), again[1].astype(int), atol=1)
    assert np.abs(both[1].astype(int) - other[1]).max() > 1


def test_accuracy_is_counted_for_each_kind_of_caption(blank):
    table = accuracy(blank, n=2)
    assert [(row.kind, row.n) for row in table] == [
        ("one thing, trained pairs", 2),
        ("two things, trained pairs", 2),
        ("one thing, held-out pairs", 2),
        ("two things, held-out pairs", 2),
    ]
    assert all(0 <= share <= 1 for row in table for share in row.shares.values())
    assert all(row.whole <= min(row.shares.values()) and row.distance > 20 for row in table)
    assert as_markdown(table).splitlines()[2].startswith("| one thing, trained pairs | 2 | ")


def test_a_grid_has_whole_rows_and_grey_where_pictures_end(tmp_path):
    from PIL import Image

    save_grid(np.zeros((3, 32, 32, 3), np.uint8), tmp_path / "grid.png", columns=2, scale=2)
    with Image.open(tmp_path / "grid.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape == (128, 128, 3)
    assert pixels[:64].max() == 0
    assert pixels[64:, :64].max() == 0
    assert (pixels[64:, 64:] == 128).all()


def test_without_diffusers_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for make in (scene_pipeline, blank_pipeline):
        with pytest.raises(MissingExtraError, match=r"dsas\[diffusion\]"):
            make()
