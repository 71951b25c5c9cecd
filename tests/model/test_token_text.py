"""Pieces: together they are the text, whatever a tokenizer does at the edges of tokens."""

from typing import Any

import pytest

from dsas.model.token_text import Pieces, pieces
from dsas.testing import tiny_tokenizer


class Spaced:
    """Drops the space at the beginning of whatever it decodes, as tokenizers of the SentencePiece kind do."""

    words = (" the", " door", "s", " shut")

    def decode(self, ids: list[int], **_options: Any) -> str:
        return "".join(self.words[i] for i in ids).removeprefix(" ")


@pytest.mark.parametrize("text", ["plain", "é", "wörld 😀 и", "😀😀"])
def test_the_pieces_of_a_text_are_the_text_and_a_letter_of_several_tokens_is_whole(text: str) -> None:
    tokenizer = tiny_tokenizer()
    found = pieces(tokenizer, tokenizer(text)["input_ids"])
    assert "".join(found) == text
    assert [piece for piece in found if piece] == list(text)


def test_spaces_between_words_are_kept_where_the_tokenizer_drops_them_at_the_beginning() -> None:
    assert pieces(Spaced(), [0, 1, 2, 3]) == ["the", " door", "s", " shut"]


def test_half_a_letter_is_held_back_and_shown_broken_only_at_the_end() -> None:
    tokenizer = tiny_tokenizer()
    first, second = tokenizer("é")["input_ids"]
    row = Pieces(tokenizer)
    assert [row.push(first), row.push(second)] == ["", "é"]
    assert Pieces(tokenizer).push(first, last=True) == "\ufffd"
