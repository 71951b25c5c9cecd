"""Packed rows: where each of several texts in a row begins and ends, and that each is read as if it were alone."""

from typing import Any

import pytest
import torch
from makers import Position, logits_of, random_steering
from torch import Tensor

import dsas
from dsas.errors import OptionError, StateError, StrengthError
from dsas.model.packed_rows import Packing, spans_of
from dsas.testing import tiny_model

IDS = torch.arange(1, 7)[None]
PLACES = torch.tensor([[0, 1, 2, 3, 0, 1]])  # texts of four tokens and of two
PADDED = torch.tensor([[0, 0, 1, 1, 1, 1, 0]], dtype=torch.bool)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(layers=1)


@pytest.mark.parametrize(
    ("given", "real", "spans"),
    [
        ({"position_ids": [[0, 1, 2, 3, 0, 1]]}, None, [(0, 0, 4), (0, 4, 2)]),
        ({"position_ids": [[0, 0, 0]]}, None, [(0, 0, 1), (0, 1, 1), (0, 2, 1)]),
        ({"position_ids": [[0, 1, 2], [0, 1, 0]]}, None, [(0, 0, 3), (1, 0, 2), (1, 2, 1)]),
        ({"position_ids": [[0, 1, 2, 3]]}, None, None),
        ({"position_ids": [[7, 8, 9]]}, None, None),  # of one token after another over a cache
        ({"position_ids": [[1, 1, 0, 1, 2, 3, 4]]}, PADDED, None),  # what padding has for a place says nothing
        ({"position_ids": [[0, 0, 0, 1, 0, 1, 0]]}, PADDED, [(0, 2, 2), (0, 4, 2)]),
        ({"seq_idx": [[0, 0, 1, 1, 1, 2]]}, None, [(0, 0, 2), (0, 2, 3), (0, 5, 1)]),
        ({"seq_idx": [[0, 0, 1]], "position_ids": [[0, 1, 2]]}, None, [(0, 0, 2), (0, 2, 1)]),
        ({"cu_seq_lens_q": [0, 2, 6]}, None, [(0, 0, 2), (0, 2, 4)]),
        ({"cu_seq_lens_q": [0, 2, 4]}, None, [(0, 0, 2), (0, 2, 2)]),  # what is left is filling
        ({"cu_seq_lens_q": [0, 2, 2, 6]}, None, [(0, 0, 2), (0, 2, 4)]),
        ({"cu_seq_lens_q": [0, 6], "position_ids": [[0, 1, 0, 1, 2, 3]]}, None, None),
        ({"position_ids": [[[0, 1, 0]], *([[[0, 5, 5]]] * 3)]}, None, [(0, 0, 2), (0, 2, 1)]),  # pictures have three
        ({"position_ids": None}, None, None),
        ({}, None, None),
    ],
)
def test_texts_begin_where_what_the_model_was_given_begins_anew(
    given: dict[str, Any], real: Any, spans: list[tuple[int, int, int]] | None
) -> None:
    read = {name: None if value is None else torch.tensor(value) for name, value in given.items()}
    shapes = [value.shape[-2:] for value in read.values() if value is not None and value.ndim > 1]
    assert spans_of(read, *(shapes[0] if shapes else (1, 6)), real) == spans


def test_one_row_of_positions_is_for_all_rows() -> None:
    assert spans_of({"position_ids": PLACES}, 2, 6, None) == [(0, 0, 4), (0, 4, 2), (1, 0, 4), (1, 4, 2)]


@pytest.mark.parametrize(
    ("given", "rows", "named"),
    [
        ({"cu_seq_lens_q": [0, 2, 8]}, 1, "cumulative lengths.*6 tokens"),
        ({"cu_seq_lens_q": [1, 2, 6]}, 1, "cumulative lengths"),
        ({"cu_seq_lens_q": [0, 2, 6]}, 2, "2 rows"),
        ({"position_ids": [[0, 1, 2, 3, 2, 3]]}, 1, "a number other than 0"),
    ],
)
def test_boundaries_that_cannot_be_read_are_refused(given: dict[str, Any], rows: int, named: str) -> None:
    read = {name: torch.tensor(value) for name, value in given.items()}
    with pytest.raises(StateError, match=named):
        spans_of(read, rows, 6, None)


def test_texts_are_laid_under_each_other_and_put_back_where_they_were_and_filling_is_left_alone() -> None:
    whole = torch.arange(14.0).view(2, 7, 1)
    packing = Packing([(0, 1, 2), (1, 0, 3), (1, 5, 1)], 7)
    taken = packing.take(whole)
    assert packing.real.int().tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert [row[real, 0].tolist() for row, real in zip(taken, packing.real, strict=True)] == [[1, 2], [7, 8, 9], [12]]
    put = packing.put(whole, -taken - 100)
    changed = [1, 2, 7, 8, 9, 12]
    assert put.flatten().tolist() == [-value - 100 if value in changed else value for value in range(14)]
    assert whole.flatten().tolist() == list(range(14))


def strengths(applied: Any) -> list[list[float]]:
    trace = applied.trace()
    return [row[real].tolist() for row, real in zip(trace.strengths[0], trace.real, strict=True)]


def packed(model: Any, places: Tensor = PLACES, **given: Any) -> Tensor:
    return logits_of(model, IDS, position_ids=places, **given)


def test_every_text_of_a_row_has_positions_a_strength_and_a_prompt_of_its_own(model: Any) -> None:
    with random_steering(model, regulator=Position()).apply(model, [0.5, 2.0]) as applied:
        packed(model)
        assert strengths(applied) == [[0.5, 1.0, 1.5, 2.0], [2.0, 4.0]]
        assert applied.trace().token_ids.tolist() == [[1, 2, 3, 4], [5, 6, 0, 0]]
    generated = random_steering(model, regulator=dsas.Schedule("generated"))
    with generated.apply(model, prompt_tokens=[3, 1]) as applied:
        packed(model)
        assert strengths(applied) == [[0.0, 0.0, 0.0, 1.0], [0.0, 1.0]]
    with generated.apply(model, prompt_tokens=[3, 1, 1]), pytest.raises(OptionError, match="3 prompt lengths"):
        packed(model)
    with random_steering(model).apply(model, [1.0, 2.0, 3.0]), pytest.raises(StrengthError, match="3 strengths"):
        packed(model)


def test_texts_that_cannot_be_told_apart_are_refused_only_where_their_places_matter(model: Any) -> None:
    places = torch.tensor([[0, 1, 2, 3, 2, 3]])
    steering = random_steering(model, regulator=dsas.Constant())
    with steering.apply(model) as applied:
        packed(model)
        packed(model, places)
        assert [line.mean_strength for line in applied.report()] == [1.0]  # of the pass before
    with (
        random_steering(model, regulator=Position()).apply(model),
        pytest.raises(StateError, match="restart at a number"),
    ):
        packed(model, places)
    with steering.apply(model, skip_sinks=True), pytest.raises(StateError, match="restart at a number"):
        packed(model, places)
    with steering.apply(model, [1.0, 2.0]), pytest.raises(StateError, match="restart at a number"):
        packed(model, places)


def test_packed_rows_do_not_go_on_from_a_cache(model: Any) -> None:
    with random_steering(model, regulator=Position()).apply(model):
        cache = model(IDS, use_cache=True).past_key_values
        with pytest.raises(StateError, match="continue from a cache"):
            packed(model, past_key_values=cache)
