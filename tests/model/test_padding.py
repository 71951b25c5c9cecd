"""Padding: which columns are tokens, told from every kind of mask, and never guessed from what a window hides."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from dsas.model.padding import real_columns

ROWS = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)
BEFORE = ROWS[:, :3]


def prepared(real: Tensor, tokens: int) -> Tensor:
    """Return the boolean mask (row, 1, token, column) of the last tokens over these columns."""
    columns = real.shape[1]
    return real[:, None, None, :] & torch.ones(tokens, columns, dtype=torch.bool).tril(columns - tokens)


def additive(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)


def read(mask: Any, before: Tensor | None, start: int, columns: int, prompt: Tensor | None = None) -> Any:
    found = real_columns(mask, prompt, before, 2, start, columns)
    return None if found is None else found.int().tolist()


ALL = ROWS.int().tolist()


@pytest.mark.parametrize(
    "mask",
    [
        ROWS.long(),
        pad(ROWS.long(), (0, 3)),  # as long as a static cache
        torch.ones(2, 1).long(),  # of the new token alone
        prepared(ROWS, 1),
        additive(prepared(ROWS, 1)),
        pad(prepared(ROWS, 1), (0, 3)),
        {"full_attention": prepared(ROWS, 1), "sliding_attention": torch.zeros(2, 1, 1, 2, dtype=torch.bool)},
        {"sliding_attention": prepared(ROWS, 1)[..., -2:]},
        torch.zeros(2, 2).long(),  # of no length that could be meant
        None,
    ],
    ids=["2-D", "2-D static", "new alone", "4-D", "additive", "4-D static", "dict", "dict sliding", "other", "none"],
)
def test_a_token_that_goes_on_from_a_padded_cache_is_real_and_the_padding_stays_what_it_was(mask: Any) -> None:
    assert read(mask, BEFORE, 3, 1) == ALL


@pytest.mark.parametrize("kind", ["boolean", "additive", "dict", "sliding", "longer"])
def test_a_prompt_s_own_padding_is_what_no_token_of_it_may_see(kind: str) -> None:
    mask: Any = prepared(ROWS, 4)
    if kind == "additive":
        mask = additive(mask)
    if kind == "longer":
        mask = pad(mask, (0, 5))
    if kind == "dict":
        mask = {"sliding_attention": mask & False, "full_attention": mask}
    if kind == "sliding":
        mask = {"sliding_attention": mask}
    assert read(mask, None, 0, 4) == ALL


@pytest.mark.parametrize("tokens", [1, 2, 6])
def test_what_a_sliding_window_hides_is_no_padding(tokens: int) -> None:
    place = torch.arange(6)
    seen = (place[None, :] <= place[-tokens:, None]) & (place[None, :] > place[-tokens:, None] - 2)
    mask = seen[None, None].expand(2, 1, tokens, 6)
    start = 6 - tokens
    for held in (6, max(tokens, 2)):  # columns that the cache still holds
        assert read(mask[..., -held:], None, start, tokens) == [[1] * 6] * 2


def test_a_mask_of_the_new_tokens_alone_can_say_that_some_are_padding() -> None:
    assert read(torch.tensor([[0, 1], [1, 1]]), BEFORE, 3, 2) == [[0, 1, 1, 0, 1], [1] * 5]


def test_what_no_pass_showed_before_the_cache_was_filled_counts_as_real() -> None:
    assert read(torch.tensor([[0, 1], [1, 1]]), None, 3, 2) == [[1, 1, 1, 0, 1], [1] * 5]
    assert read(None, ROWS, 3, 1) == ALL
    assert read(None, BEFORE, 4, 1) == [[0, 1, 1, 1, 1], [1] * 5]


def test_a_mask_that_generate_was_given_is_that_of_its_rows_beams_and_what_comes_after_it() -> None:
    given = torch.tensor([[0, 1, 1]])
    mask = torch.zeros(2, 1, 1, 8, dtype=torch.bool)
    assert read(mask, None, 3, 1, given) == [[0, 1, 1, 1]] * 2
    assert read(mask, None, 0, 2, given) == [[0, 1]] * 2
    assert read(ROWS.long(), None, 3, 1, given) == ALL  # the model's own says more
    assert real_columns(None, torch.ones(2, 3), None, 3, 3, 1) is None  # of other rows


def test_without_any_sign_of_padding_nothing_is_kept() -> None:
    assert read(None, None, 3, 1) is None
    assert read("flash", None, 3, 1) is None
    assert read(torch.ones(2, 4, 4), None, 0, 4) is None
