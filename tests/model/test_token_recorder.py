"""The token recorder: what it reports of the last sequences that a thread ran, and of which thread."""

import json
import weakref
from collections.abc import Callable
from functools import partial
from threading import Thread, current_thread

import pytest
import torch
from torch import Tensor

from dsas.errors import StateError
from dsas.model.by_thread import ByThread
from dsas.model.forward_pass import ForwardPass
from dsas.model.packed_rows import Packing
from dsas.model.sequence import PackedSequences, Sequences
from dsas.model.site_summary import NOT_RECORDED
from dsas.model.token_recorder import TokenRecorder
from dsas.model.token_trace import Trace

ONE = torch.tensor([1.0])


def values(*rows: list[float]) -> Tensor:
    return torch.tensor(rows).unsqueeze(-1)


def begin(
    recorder: TokenRecorder, rows: Sequences, tokens: int, ids: Tensor | None = None, mask: Tensor | None = None
) -> ForwardPass:
    """Open the record of a pass that goes on from the rows."""
    start = rows.length
    rows.begin(start, tokens, ids)
    rows.end()
    rows.real = mask
    step = ForwardPass(rows.batch, tokens, past=start, mask=mask, token_ids=ids, history=rows)
    recorder.begin(step)
    return step


def elsewhere(function: Callable[[], object]) -> Thread:
    thread = Thread(target=function)
    thread.start()
    thread.join()
    return thread


def test_passes_are_joined_and_a_gain_is_multiplied_by_its_factor_when_it_is_read() -> None:
    recorder, rows = TokenRecorder(["a", "b"]), Sequences(1)
    for number, ids in enumerate((torch.tensor([[5, 6]]), None)):
        step = begin(recorder, rows, 2 - number, ids)
        recorder.add(0, step, values([1.0, 2.0][number:]))
        recorder.add_gain(1, 0.5, None if number == 0 else values([3.0]))
    trace = recorder.trace(ONE)
    assert trace.strengths[:, 0].tolist() == [[1.0, 2.0, 2.0], [0.5, 0.5, 1.5]]
    assert trace.token_ids is not None
    assert trace.token_ids.tolist() == [[5, 6, -1]]
    assert recorder.trace(ONE, start=2).strengths[:, 0].tolist() == [[2.0], [1.5]]
    with pytest.raises(StateError, match="nothing was recorded"):
        recorder.trace(ONE, start=3)


def test_of_a_module_that_runs_several_times_a_pass_the_mean_of_all_calls_is_told() -> None:
    recorder = TokenRecorder(["a", "b"])
    step = begin(recorder, Sequences(1), 2)
    for value in (1.0, 2.0, 6.0):
        recorder.add(0, step, values([value, 0.0]))
        recorder.add_gain(1, value, values([1.0, 0.5]))
    assert recorder.trace(ONE).strengths[:, 0].tolist() == [[3.0, 0.0], [3.0, 1.5]]


def test_what_is_of_other_tokens_than_those_of_the_pass_is_not_recorded_which_is_no_zero() -> None:
    recorder = TokenRecorder(["patches", "tokens"])
    step = begin(recorder, Sequences(1), 2)
    recorder.add(0, step, values([1.0, 1.0, 1.0]))
    recorder.add(1, step, values([1.0, 0.25]))
    assert recorder.trace(ONE).strengths[0].isnan().all()
    missing, found = recorder.summaries(ONE, [1.0, 1.0])
    assert missing == NOT_RECORDED
    assert tuple(found) == (0.625, 1)


def test_padding_is_zero_and_counts_in_no_mean_and_a_hit_is_more_than_half_of_what_the_row_was_asked_for() -> None:
    recorder = TokenRecorder(["a"])
    step = begin(recorder, Sequences(2), 2, mask=torch.tensor([[False, True], [True, True]]))
    recorder.add(0, step, values([9.0, 2.0], [2.0, 5.0]))
    strength = torch.tensor([3.0, 9.0])
    assert recorder.trace(strength).strengths[0].tolist() == [[0.0, 2.0], [2.0, 5.0]]
    assert [tuple(line) for line in recorder.summaries(strength, [1.0])] == [(3.0, 2)]


def test_a_closed_record_takes_nothing_and_leaves_what_was_told() -> None:
    recorder = TokenRecorder(["a"])
    assert not recorder.has_passes()
    step = begin(recorder, Sequences(1), 1)
    recorder.add(0, step, values([1.0]))
    recorder.begin(None)
    recorder.add(0, step, values([7.0]))
    recorder.add_gain(0, 7.0, None)
    assert recorder.trace(ONE).strengths.tolist() == [[[1.0]]]


def test_every_text_of_a_packed_row_is_a_row_of_the_trace_and_goes_on_by_itself() -> None:
    recorder, texts = TokenRecorder(["a", "b", "c"]), [Sequences(1), Sequences(1)]

    def run(texts: list[Sequences], packing: Packing, ids: Tensor) -> None:
        taken = packing.take(ids)
        for number, one in enumerate(texts):
            length = packing.spans[number][2]
            one.begin(packing.starts[number], length, taken[number : number + 1, :length])
            one.current.rows = slice(number, number + 1)
            one.end()
        step = ForwardPass(len(texts), packing.longest, history=PackedSequences(texts))
        step.packing = packing
        recorder.begin(step)
        recorder.add(0, step, taken.float().unsqueeze(-1))
        recorder.add_gain(1, 2.0, ids.float().unsqueeze(-1))
        recorder.add(2, None, 3.0 * ids.float().unsqueeze(-1))  # of one who did not take the texts apart

    run(texts, Packing([(0, 0, 1), (0, 1, 2)], 3), torch.tensor([[7, 8, 9]]))
    run([texts[1], Sequences(1)], Packing([(0, 0, 1), (0, 1, 1)], 2, [2, 0]), torch.tensor([[4, 3]]))
    trace = recorder.trace(torch.tensor([0.5, 1.0]))
    assert trace.token_ids is not None
    assert trace.strength is not None
    assert [row[real].tolist() for row, real in zip(trace.token_ids, trace.real, strict=True)] == [[8, 9, 4], [3]]
    for site, factor in enumerate((1, 2, 3)):
        found = [row[real].tolist() for row, real in zip(trace.strengths[site], trace.real, strict=True)]
        assert found == [[8 * factor, 9 * factor, 4 * factor], [3 * factor]]
    assert trace.strength.tolist() == [0.5, 1.0]


def test_the_record_keeps_the_tokens_of_the_pass_and_not_the_batch_that_they_were_cut_from() -> None:
    recorder, batch = TokenRecorder(["a"]), torch.arange(1000)[None]
    rows = Sequences(1)
    begin(recorder, rows, 2, batch[:, 500:502])
    ((kept, _),) = rows.passes()
    assert kept.ids is not None
    assert (kept.ids.tolist(), kept.ids.untyped_storage().nbytes()) == ([[500, 501]], 16)


def test_a_thread_tells_its_own_last_or_where_it_has_none_the_last_of_any_or_that_of_the_thread_named() -> None:
    made: ByThread[str] = ByThread()
    assert made.of() is None
    one = elsewhere(lambda: made.put("one"))
    assert (made.own(), made.of(), made.of(one)) == (None, "one", "one")
    other = elsewhere(lambda: made.put("other"))
    assert (made.of(), made.of(one), made.of(other), made.of(Thread())) == ("other", "one", "other", None)
    assert made.put("mine") == "mine"
    elsewhere(lambda: made.put("late"))
    assert (made.own(), made.of(), made.of(current_thread())) == ("mine", "mine", "mine")
    assert made.of(one) == "one"


def test_of_threads_that_are_gone_only_what_ran_last_is_kept() -> None:
    made: ByThread[ForwardPass] = ByThread()
    steps = [ForwardPass(1, 1) for _ in range(3)]
    alive = [weakref.ref(step) for step in steps]
    while steps:
        elsewhere(partial(made.put, steps.pop(0)))
    assert [step() is None for step in alive] == [True, True, False]
    assert made.of() is alive[2]()


def test_two_threads_record_at_once_and_each_its_own() -> None:
    recorder = TokenRecorder(["a"])
    mine = begin(recorder, Sequences(1), 1)

    def other() -> None:
        recorder.add(0, begin(recorder, Sequences(1), 2), values([5.0, 5.0]))

    thread = elsewhere(other)
    recorder.add(0, mine, values([1.0]))
    assert recorder.trace(ONE).strengths.tolist() == [[[1.0]]]
    assert recorder.trace(ONE, thread=thread).strengths.tolist() == [[[5.0, 5.0]]]


def test_what_is_outside_the_decoder_counts_to_the_pass_that_it_runs_in_and_before_one_to_the_next() -> None:
    recorder, rows = TokenRecorder(["tower", "a"]), Sequences(1)
    recorder.add_outside(0, values([1.0, 3.0]), torch.tensor([[True, False]]))
    recorder.begin(None)  # as the model is called, after `generate` has seen the picture
    recorder.add(1, begin(recorder, rows, 2), values([5.0, 5.0]))
    recorder.add_outside(0, values([2.0]), torch.tensor([[True]]))
    begin(recorder, rows, 1)
    assert recorder.trace(ONE).outside["tower"][0].strengths.tolist() == [[1.0, 0.0]]
    assert [call.strengths.tolist() for call in recorder.trace(ONE).outside["tower"]] == [[[1.0, 0.0]], [[2.0]]]
    assert recorder.trace(ONE, start=2).outside == {}
    assert recorder.summaries(ONE, [1.0, 1.0]) == [(1.5, 2), (5.0, 2)]
    recorder.restart()
    recorder.add_outside(0, values([9.0]), torch.tensor([[True]]))
    assert len(recorder.trace(ONE).outside["tower"]) == 2


def test_where_rows_have_strengths_of_their_own_the_hits_of_a_site_with_other_rows_are_unknown() -> None:
    recorder, rows, asked = TokenRecorder(["tower"]), Sequences(2), torch.tensor([1.0, 4.0])
    begin(recorder, rows, 1)
    recorder.add_outside(0, values([1.0], [1.0]), torch.ones(2, 1, dtype=torch.bool))
    assert recorder.summaries(asked, [1.0]) == [(1.0, 1)]
    recorder.add_outside(0, values([4.0]), torch.ones(1, 1, dtype=torch.bool))
    assert recorder.summaries(asked, [1.0]) == [(2.0, None)]


def test_a_trace_shows_the_sites_that_were_recorded_and_null_where_a_pass_was_not() -> None:
    nan = float("nan")
    strengths = torch.tensor([[[nan, nan]], [[0.5, nan]]])
    trace = Trace(("tower", "layer"), strengths, torch.ones(1, 2, dtype=torch.bool), None, torch.ones(1))
    assert trace.row().sites == ("layer",)
    told = json.loads(trace.to_json())
    assert (told["sites"], told["rows"][0]["strength"]) == (["layer"], [[0.5, None]])
    nothing = trace._replace(strengths=torch.full((2, 1, 2), nan))
    with pytest.raises(StateError, match="every site of this Steering reads other tokens"):
        nothing.row()
