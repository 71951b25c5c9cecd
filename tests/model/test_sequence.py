"""Sequences: what is kept of a batch's rows when they go on, are cut, chosen anew and copied. Column c has state c."""

import pytest
import torch
from torch import Tensor

from dsas.errors import StateError
from dsas.model import sequence
from dsas.model.passed import Turn
from dsas.model.sequence import PackedSequences, Sequences

KEY = "site"


def run(rows: Sequences, start: int, tokens: int, *, generation: object = None, prompt: int | None = None) -> None:
    """Run a pass, in which row r carries 100 r + c out of column c."""
    column, row = torch.arange(start, start + tokens), torch.arange(rows.batch)
    rows.begin(start, tokens, column.repeat(rows.batch, 1), generation=generation, prompt=prompt)
    rows.keep()
    rows.carry(KEY, (100.0 * row[:, None] + column).unsqueeze(-1))
    rows.end()


def ran(*passes: int, batch: int = 1) -> Sequences:
    """Return rows that ran passes of these many tokens."""
    rows, start = Sequences(batch), 0
    for tokens in passes:
        run(rows, start, tokens)
        start += tokens
    return rows


def state(rows: Sequences, *, anew: bool = False) -> list[float] | None:
    found = rows.state(KEY, anew=anew)
    return None if found is None else found[:, 0].tolist()


def tokens_kept(rows: Sequences) -> list[int]:
    return [token for entry, _ in rows.passes() for token in range(entry.start, entry.end)]


@pytest.mark.parametrize("length", [8, 7, 5, 4, 2, 1])
def test_cut_anywhere_the_state_is_that_of_the_last_token_that_is_left(length: int) -> None:
    rows = ran(4, 1, 3)
    rows.real = torch.ones(1, 8, dtype=torch.bool)
    rows.crop(length)
    assert state(rows) == [length - 1]
    assert tokens_kept(rows) == list(range(length))
    assert (rows.length, rows.real.shape[1]) == (length, length)


def test_cut_to_nothing_a_row_begins_anew() -> None:
    rows = ran(4, 1)
    rows.crop(0)
    assert (state(rows), rows.passes(), rows.turns) == (None, [], [])


def test_of_a_pass_of_many_tokens_only_the_end_is_kept_and_a_cut_inside_of_it_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sequence, "KEPT_COLUMNS", 4)
    rows = ran(6, 4)
    rows.crop(8)
    assert state(rows) == [7.0]
    rows.crop(6)
    assert state(rows) == [5.0]
    assert rows.passes()[0][0].carried[KEY].shape == (1, 1, 1)
    rows.crop(5)
    with pytest.raises(StateError, match=r"pass of 6 tokens.*smaller chunks"):
        state(rows)


@pytest.mark.parametrize(
    ("length", "after_one", "after_several"),
    [
        (9, [Turn(0, 4), Turn(6, 9)], [Turn(0, 4), Turn(6)]),  # to the end of the second prompt, which goes on
        (8, [Turn(0, 4), Turn(6, 8)], [Turn(0, 4), Turn(6)]),
        (6, [Turn(0, 4)], [Turn(0, 4), Turn(6)]),  # the second prompt is as if it never was
        (5, [Turn(0, 4)], [Turn(0, 4), Turn(5)]),
        (4, [Turn(0, 4)], [Turn(0)]),
        (3, [Turn(0, 3)], [Turn(0)]),
    ],
)
def test_after_a_cut_prompts_are_those_of_the_passes_that_are_left_and_of_what_comes_next(
    length: int, after_one: list[Turn], after_several: list[Turn]
) -> None:
    for tokens, expected in ((1, after_one), (2, after_several)):
        rows = ran(4, 1, 1, 3, 1)
        assert rows.turns == [Turn(0, 4), Turn(6, 9)]
        rows.crop(length)
        run(rows, length, tokens)
        assert rows.turns == expected


def test_a_pass_over_fewer_columns_than_ran_says_itself_that_the_cache_was_cut() -> None:
    rows = ran(4, 1, 1)
    rows.begin(3, 1)
    assert state(rows) == [2.0]
    assert rows.turns == [Turn(0, 3)]


def test_rows_that_are_chosen_anew_keep_what_they_carried_and_padding_and_say_which_they_were() -> None:
    rows = ran(3, batch=3)
    rows.real = torch.tensor([[0, 1, 1], [1, 1, 1], [0, 0, 1]], dtype=torch.bool)
    rows.select(torch.tensor([2, 0]))
    rows.select(torch.tensor([0, 0, 1, 1]))
    assert rows.batch == 4
    rows.begin(3, 1)
    assert state(rows) == [202.0, 202.0, 2.0, 2.0]
    assert rows.real.int().tolist() == [[0, 0, 1]] * 2 + [[0, 1, 1]] * 2
    run(rows, 3, 1)
    (first, moved), (_, last) = rows.passes()
    assert moved is not None
    assert moved.tolist() == [2, 2, 0, 0]
    assert last is None
    assert len(first.carried[KEY]) == 3
    rows.crop(3)  # looked up in the log again
    assert state(rows) == [202.0, 202.0, 2.0, 2.0]


def test_rows_that_are_chosen_after_the_last_pass_leave_what_is_told_of_it() -> None:
    rows = ran(3, batch=2)
    rows.select(torch.tensor([1, 1, 0]))
    assert rows.rows == 2
    assert [moved for _, moved in rows.passes()] == [None]


def test_a_copy_goes_on_by_itself_and_leaves_the_first_as_it_was() -> None:
    rows = ran(4, 1)
    other, third = rows.fork(), rows.fork()
    other.crop(2)
    run(other, 2, 2)
    third.select(torch.tensor([0, 0]))
    run(third, 5, 1)
    assert (tokens_kept(rows), state(rows), rows.turns, rows.batch) == ([0, 1, 2, 3, 4], [4.0], [Turn(0, 4)], 1)
    assert (tokens_kept(other), state(other), other.turns) == ([0, 1, 2, 3], [3.0], [Turn(0)])
    assert (tokens_kept(third), state(third)) == ([0, 1, 2, 3, 4, 5], [5.0, 105.0])
    run(rows, 5, 2)
    assert other.turns == [Turn(0)]


def test_what_was_carried_in_an_earlier_turn_is_nothing_to_one_that_decides_anew_unless_the_user_said_the_prompt() -> (
    None
):
    rows = ran(4, 1)
    rows.begin(5, 3)
    assert state(rows) == [4.0]
    assert state(rows, anew=True) is None
    rows.prompt_tokens = torch.tensor([6])
    assert state(rows, anew=True) == [4.0]


def test_a_pass_that_was_not_kept_leaves_a_gap_and_what_came_before_it_is_not_told() -> None:
    rows = ran(4)
    rows.begin(4, 2)
    rows.end()
    run(rows, 6, 1)
    assert tokens_kept(rows) == [6]


def test_a_pass_that_raised_half_way_is_forgotten_when_it_runs_again() -> None:
    rows = ran(4)
    rows.begin(4, 1)
    rows.keep()
    rows.carry(KEY, torch.full((1, 1, 1), -1.0))
    assert rows.length == 4
    run(rows, 4, 1)
    assert tokens_kept(rows) == [0, 1, 2, 3, 4]
    rows.crop(5)
    assert state(rows) == [4.0]


def test_where_what_came_before_is_not_known_and_matters_it_is_not_taken_for_a_beginning() -> None:
    rows = Sequences(1, unseen=5)
    assert state(rows) is None
    rows.refusal = "shared pages"
    with pytest.raises(StateError, match="shared pages"):
        state(rows)
    run(rows, 5, 1)
    assert state(rows) == [5.0]


def test_a_call_of_generate_says_where_its_prompt_ends_whatever_pieces_it_comes_in_and_whatever_is_taken_back() -> None:
    rows, call = Sequences(1), object()
    for start, tokens in ((0, 3), (3, 1), (4, 1), (5, 4), (7, 3)):  # the last two are guesses, two of them refused
        run(rows, start, tokens, generation=call, prompt=5)
        assert rows.turns == [Turn(0, 5)]
    run(rows, 2, 1, generation=call, prompt=5)
    assert rows.turns == [Turn(0, 5)]


@pytest.mark.parametrize("prompt", [9, 3], ids=["with the cached ones", "the new ones alone"])
def test_another_call_over_the_same_cache_begins_a_turn_with_its_new_tokens(prompt: int) -> None:
    rows = ran(4, 1, 1)
    call = object()
    for start in (6, 5, 7):  # even where it goes back to before its own beginning
        run(rows, start, 2, generation=call, prompt=prompt)
        assert rows.turns == [Turn(0, 4), Turn(6, 9)]


def test_another_call_over_a_prompt_that_nothing_was_generated_after_goes_on_with_it() -> None:
    rows = ran(4)
    run(rows, 4, 2, generation=object(), prompt=6)
    assert rows.turns == [Turn(0, 6)]


def test_another_call_that_reads_the_last_answer_alone_goes_on_with_the_answer() -> None:
    rows = ran(4, 1, 1)
    run(rows, 6, 1, generation=object(), prompt=7)
    assert rows.turns == [Turn(0, 4)]


def test_virtual_columns_are_no_prompt_that_one_token_could_follow() -> None:
    rows = Sequences(1, unseen=6, virtual=6)
    rows.begin(6, 1)
    assert rows.turns == [Turn(0)]
    rows.end()
    rows.begin(7, 1)
    assert rows.turns == [Turn(0, 7)]
    rows.begin(6, 1)
    assert rows.turns == [Turn(0)]
    plain = Sequences(1, unseen=6)
    plain.begin(6, 1)
    assert plain.turns == [Turn(0, 6)]


def test_texts_of_a_packed_row_carry_each_its_own_last_state_and_nothing_where_one_has_none() -> None:
    texts = [Sequences(1), ran(4)]
    for text, (start, tokens) in zip(texts, ((0, 3), (4, 2)), strict=True):
        text.begin(start, tokens)
    packed = PackedSequences(texts)
    assert PackedSequences([Sequences(1)]).state(KEY, anew=False) is None
    before: Tensor | None = packed.state(KEY, anew=False)
    assert before is not None
    assert before.tolist() == [[0.0], [3.0]]
    packed.carry(KEY, torch.tensor([[10.0, 11.0, 12.0], [20.0, 21.0, 22.0]]).unsqueeze(-1))
    for text in texts:
        text.end()
    after = packed.state(KEY, anew=False)
    assert after is not None
    assert after.tolist() == [[12.0], [21.0]]


def test_a_regulator_that_is_asked_twice_in_one_pass_is_told_the_same_twice() -> None:
    rows = Sequences(1)
    rows.begin(0, 2)
    assert rows.state("key", anew=False) is None
    rows.carry("key", torch.tensor([[[1.0], [2.0]]]))
    assert rows.state("key", anew=False) is None
    rows.end()
    rows.begin(2, 1)
    for _ in range(2):
        state = rows.state("key", anew=False)
        assert state is not None
        assert state.tolist() == [[2.0]]
        rows.carry("key", torch.tensor([[[5.0]]]))


def test_of_a_long_pass_no_more_than_its_end_stays_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence, "KEPT_COLUMNS", 4)
    rows = ran(8)
    found = rows.state(KEY, anew=False)
    assert found is not None
    assert found.tolist() == [[7.0]]
    assert found.untyped_storage().nbytes() == found.nbytes
