"""Examples: sets that are checked, and batches that are padded where the mask says."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from makers import unchecked

from dsas.errors import OptionError, TextsError
from dsas.model.examples import check_sets, check_texts
from dsas.model.token_batches import batches


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", "b", "c"], "source must hold at least 4 texts, got 3"),
        ([], "source must hold at least 4 texts, got 0"),
        (["a", "b", "  \n", "d"], r"source\[2\] must be a text that is not empty, got '  \\n'"),
        (["a", None, "c", "d"], r"source\[1\] must be a text that is not empty, got None"),
        (None, "source must be a list of texts or conversations, got NoneType"),
        (7, "source must be a list of texts or conversations, got int"),
        (b"bytes", "source must be a list of texts, got one text"),
        ("a bare string", "source must be a list of texts, got one text; put it into a list"),
    ],
)
def test_a_set_of_texts_that_cannot_be_used_is_named(texts: Any, message: str) -> None:
    with pytest.raises(TextsError, match=message):
        unchecked(check_texts)("source", texts)


def test_a_set_of_texts_that_can_be_used_is_kept_as_it_is() -> None:
    assert check_texts("source", ("a", "b", "a", " d ")) == ["a", "b", "a", " d "]


def test_what_can_be_gone_through_once_is_a_set_and_is_gone_through_once() -> None:
    word = {"source": "bad", "control": "fine", "target": "good"}
    sets = {name: iter([f"{said} {number}" for number in range(4)]) for name, said in word.items()}
    found = unchecked(check_sets)(**sets).as_dict()
    assert found == {name: [f"{said} {number}" for number in range(4)] for name, said in word.items()}


@pytest.mark.parametrize("side", ["left", "right"])
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12), size=st.integers(1, 5))
def test_batches_hold_every_row_once_and_padding_only_where_the_mask_says(
    side: Any, lengths: list[int], size: int
) -> None:
    rows = [[100 * number + place for place in range(1, length + 1)] for number, length in enumerate(lengths)]
    found, widths = {}, []
    for batch in batches(rows, size, pad=-1, side=side):
        assert len(batch.rows) <= size
        widths.append(batch.tokens.shape[1])
        for row, tokens, mask in zip(batch.rows, batch.tokens, batch.mask, strict=True):
            found[row] = tokens[mask].tolist()
            assert bool((tokens[~mask] == -1).all())
            assert bool(mask[-1 if side == "left" else 0])
            assert bool(mask.any())
    assert found == dict(enumerate(rows))
    assert widths == sorted(widths, reverse=True)


def test_no_batch_is_wider_than_its_longest_row() -> None:
    widths = [batch.tokens.shape[1] for batch in batches([[1] * 9, [1], [1] * 2, [1] * 8], 2, pad=0, side="left")]
    assert widths == [9, 2]


def test_a_batch_of_less_than_one_row_is_refused() -> None:
    with pytest.raises(OptionError, match="batch size of at least 1, got 0"):
        next(batches([[1]], 0, pad=0, side="left"))
    assert list(batches([], 3, pad=0, side="left")) == []
    assert next(batches([[1]], 3, pad=0, side="left")).tokens.dtype == torch.long


def test_a_batch_with_as_many_rows_as_tokens_is_padded_by_one_token_where_layouts_must_be_told_apart() -> None:
    rows = [[1, 2, 3], [4, 5, 6], [7, 8]]
    (square,) = batches(rows, 3, pad=0, side="right")
    (padded,) = batches(rows, 3, pad=0, side="right", oblong=True)
    assert (square.tokens.shape, padded.tokens.shape) == ((3, 3), (3, 4))
    assert padded.tokens[:, :3].equal(square.tokens)
    assert padded.mask.sum() == square.mask.sum() == 8
    assert next(batches([[1]], 3, pad=0, side="right", oblong=True)).tokens.shape == (1, 1)
