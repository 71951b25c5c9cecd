"""Example stream: sets of any length in parts, a uniform sample of what was seen, and errors by place in the set."""

from collections.abc import Iterable
from itertools import count, islice
from typing import Any

import numpy as np
import pytest

import dsas
from dsas.errors import OptionError, TextsError
from dsas.fitting import example_stream
from dsas.fitting.example_stream import ExampleStream, Reservoir, Sampled, sampled
from dsas.model.examples import ExampleSets, check_sets

EXAMPLES = 30


def numbers(word: str, examples: int = EXAMPLES) -> list[str]:
    return [f"{word} {number}" for number in range(examples)]


def begun(
    source: Iterable[Any], control: Iterable[Any], target: Iterable[Any] | None, reservoir: Reservoir | int
) -> tuple[ExampleStream, ExampleSets]:
    stream = ExampleStream(source, control, target, reservoir)
    return stream, check_sets(stream.first["source"], stream.first["control"], stream.first.get("target"))


def kept(reservoir: Reservoir | int, examples: int = EXAMPLES) -> Sampled:
    return sampled(*begun(*(iter(numbers(word, examples)) for word in ("bad", "plain", "good")), reservoir))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example_stream, "PART", 3)


def test_every_example_is_kept_equally_often() -> None:
    times, seeds, size = np.zeros(EXAMPLES), 600, 6
    for seed in range(seeds):
        found = kept(Reservoir(size, seed)).sets.control
        assert len(set(found)) == size
        times[[int(text.split()[1]) for text in found]] += 1
    expected = seeds * size / EXAMPLES
    assert float((np.square(times - expected) / expected).sum()) < 60  # chi squared, 29 degrees: above it in 1 of 1,500


def test_sets_no_longer_than_the_reservoir_are_kept_whole_and_in_order() -> None:
    found = kept(EXAMPLES)
    assert found.sets.source == numbers("bad")
    assert not found.some_left_out
    assert found.counts == {"source": EXAMPLES, "control": EXAMPLES, "target": EXAMPLES}


def test_the_same_seed_keeps_the_same_and_source_and_target_stay_pairs() -> None:
    found = kept(Reservoir(6, 1))
    assert found.sets == kept(Reservoir(6, 1)).sets
    assert found.sets.source != kept(Reservoir(6, 2)).sets.source
    pairs = zip(found.sets.source, found.sets.target, strict=True)
    assert all(one.split()[1] == other.split()[1] for one, other in pairs)


def test_sets_may_differ_in_length_and_one_may_be_short() -> None:
    found = sampled(*begun(numbers("bad", 25), numbers("plain", 7), iter(numbers("good", 4)), 6))
    assert found.counts == {"source": 25, "control": 7, "target": 4}
    assert found.sets.target == numbers("good", 4)
    assert len(found.sets.control) == 6


def test_without_a_target_the_chosen_halves_or_the_control_of_each_part_are_the_target() -> None:
    pairs = [{"chosen": f"good {number}", "rejected": f"bad {number}"} for number in range(EXAMPLES)]
    found = sampled(*begun(iter(pairs), numbers("plain"), None, 5))
    numbered = [[text.split()[1] for text in texts] for texts in (found.sets.source, found.sets.target)]
    assert numbered[0] == numbered[1]
    assert {text.split()[0] for text in found.sets.target} == {"good"}
    with pytest.warns(dsas.DsasWarning, match="no target texts were given"):
        stream = begun(numbers("bad"), iter(numbers("plain")), None, 5)
    assert (
        sampled(*stream).sets.target == sampled(*begun(numbers("bad"), numbers("plain"), numbers("plain"), 5)).sets[1]
    )


def test_an_example_that_cannot_be_read_is_named_by_its_place_before_anything_runs_or_when_it_comes() -> None:
    wrong = [*numbers("bad", 20), "", *numbers("more", 5)]
    stream, sets = begun(wrong, numbers("plain"), numbers("good"), 5)
    with pytest.raises(TextsError, match=r"source\[20\] must be a text that is not empty"):
        stream.check(sets)
    stream, sets = begun(iter(wrong), numbers("plain"), numbers("good"), 5)  # a generator can be read only once
    stream.check(sets)
    with pytest.raises(TextsError, match=r"source\[20\] must be a text that is not empty"):
        sampled(stream, sets)
    mixed = [*numbers("good", 9), [{"role": "assistant", "content": "hello"}]]
    with pytest.raises(TextsError, match=r"target\[9\] is a conversation: expected a text, as source\[0\] is"):
        sampled(*begun(numbers("bad"), numbers("plain"), mixed, 5))


def test_spans_stay_with_their_texts_and_must_not_begin_late() -> None:
    marked = [dsas.Example(text, ((0, len(text)),)) for text in numbers("bad", 12)]
    found = sampled(*begun(marked, numbers("plain"), numbers("good"), 5)).sets
    assert found.spans == [((0, len(str(text))),) for text in found.source]
    late = begun([*numbers("bad", 8), *marked], numbers("plain"), numbers("good"), 5)
    with pytest.raises(TextsError, match="have spans, and the first 8 have none"):
        sampled(*late)


def test_one_text_no_set_at_all_and_a_reservoir_too_small_are_refused() -> None:
    for wrong in ("one text", dsas.Example("one text"), {"prompt": "a", "completion": "b"}):
        with pytest.raises(TextsError, match="control must be a list of texts, got one text"):
            ExampleStream(numbers("bad"), wrong, None, 5)  # type: ignore
    with pytest.raises(OptionError, match="a reservoir holds at least 4 examples, got 3"):
        ExampleStream(numbers("bad"), numbers("plain"), None, 3)


def test_an_endless_generator_is_read_no_further_than_it_is_used() -> None:
    read: list[int] = []

    def endless() -> Iterable[str]:
        for number in count():
            read.append(number)
            yield f"bad {number}"

    stream, sets = begun(endless(), numbers("plain", 5), numbers("good", 5), 5)
    assert [part.start for part in islice(stream.parts(sets), 3)] == [0, 5, 8]
    assert len(read) == 5 + 3 + 3
