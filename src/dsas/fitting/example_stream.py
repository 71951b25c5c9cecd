"""Example stream: sets of any length, read part by part, of which a bounded number of examples is kept.

The first part holds as many examples of each set as the reservoir; so sets that are no longer are read whole. Of longer
ones every example is run, and the reservoir stays a uniform sample of all that were seen: example number i takes the
place of one of the `size` that are kept with probability size / (i + 1) (algorithm R, Vitter 1985). The draws depend on
the seed and on i alone, so source[i] and target[i] stay together.

Limitations: texts that are in two sets are looked for in the first part only.
"""

from collections.abc import Iterable, Iterator, Mapping, Sized
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from dsas.errors import OptionError, TextsError
from dsas.files.json_values import JsonObject
from dsas.model.conversation import Completion, Content, Conversation
from dsas.model.examples import MINIMUM_TEXTS, Example, ExampleSets, Given, check_more, inner

PART = 1024  # examples per set that are run together after the first part


class Reservoir(NamedTuple):
    """How many examples of each set are kept where a method needs single samples, and the seed that chooses them.

    size: at least 4; sets that are no longer are used whole. seed: seed of the draws.
    """

    size: int = 4096
    seed: int = 0

    def places(self, start: int, count: int) -> dict[int, int]:
        """Return the places that `count` examples take, the first of them number `start` >= size: place, example.

        Both count from 0, examples from `start`. A place that several of them take goes to the last.
        """
        random = np.random.default_rng([self.seed, start])
        drawn = random.integers(0, np.arange(start + 1, start + count + 1))
        return {int(drawn[number]): int(number) for number in np.flatnonzero(drawn < self.size)}


class Part(NamedTuple):
    """Examples that follow one another in their sets; start: the place of the first of them in its set."""

    start: int
    sets: ExampleSets


class ExampleStream:
    """Three sets that are gone through part by part; a set without an end of its own may be gone through once.

    `first` holds the first examples of source, control and target, as they were given; target None where none was. The
    rest is read once `check_sets` has made sets of them.
    """

    def __init__(
        self,
        source: Iterable[Given],
        control: Iterable[Given],
        target: Iterable[Given] | None,
        reservoir: Reservoir | int,
    ) -> None:
        """Read the first examples. Raises OptionError for a reservoir that is too small, TextsError for one text."""
        self.reservoir = Reservoir(reservoir) if isinstance(reservoir, int) else reservoir
        if self.reservoir.size < MINIMUM_TEXTS:
            raise OptionError(f"a reservoir holds at least {MINIMUM_TEXTS} examples, got {self.reservoir.size}")
        given = {"source": source, "control": control, "target": target}
        self._given = {name: _many(name, members) for name, members in given.items() if members is not None}
        self._rest = {name: iter(members) for name, members in self._given.items()}
        self.first = {name: list(islice(rest, self.reservoir.size)) for name, rest in self._rest.items()}

    def check(self, sets: ExampleSets) -> None:
        """Raise TextsError for what is wrong with later examples of sets that are at hand, such as lists."""
        again = {
            name: islice(members, self.reservoir.size, None) if isinstance(members, Sized) else iter(())
            for name, members in self._given.items()
        }
        for _ in self._later(sets, again):
            pass

    def parts(self, sets: ExampleSets) -> Iterator[Part]:
        """Yield `sets`, which are the first part, and then all others, checked. It can be called once."""
        spans = None if sets.spans is None else list(sets.spans)
        yield Part(0, ExampleSets(list(sets.source), list(sets.control), list(sets.target), spans, sets.kind))
        yield from self._later(sets, self._rest)

    def _later(self, sets: ExampleSets, rest: Mapping[str, Iterator[Given]]) -> Iterator[Part]:
        start, count = self.reservoir.size, min(self.reservoir.size, PART)
        halves = any("chosen" in one for one in map(inner, self.first["source"]) if isinstance(one, Mapping))
        while True:
            given = {name: list(islice(members, count)) for name, members in rest.items()}
            if not any(given.values()):
                return
            if "target" not in given:
                given["target"] = list(map(inner, given["source"])) if halves else given["control"]
            yield Part(start, check_more(given, start, sets))
            start += count


def sampled(stream: ExampleStream, sets: ExampleSets) -> "Sampled":
    """Go through all examples and return those that are kept, without a model."""
    found = Sampled(stream.reservoir)
    for part in stream.parts(sets):
        found.add(part)
    return found


class Sampled:
    """The examples that are kept of all that were added, and how many these were."""

    def __init__(self, reservoir: Reservoir) -> None:
        self.reservoir, self.counts = reservoir, dict[str, int]()
        self._sets = ExampleSets([], [], [])

    @property
    def sets(self) -> ExampleSets:
        """The examples that are kept."""
        return self._sets

    @property
    def some_left_out(self) -> bool:
        """Whether a set has more examples than are kept."""
        return any(count > self.reservoir.size for count in self.counts.values())

    def add(self, part: Part) -> dict[str, dict[int, int]]:
        """Add the next part and return, for each set, which of its examples took which places: place, example."""
        named = part.sets.as_dict()
        self.counts = {name: self.counts.get(name, 0) + len(members) for name, members in named.items()}
        if part.start == 0:
            self._sets = part.sets
            return {name: dict(enumerate(range(len(members)))) for name, members in named.items()}
        taken = {name: self.reservoir.places(part.start, len(members)) for name, members in named.items()}
        kept: dict[str, list[Content]] = self._sets.as_dict()
        for name, places in taken.items():
            for place, number in places.items():
                kept[name][place] = named[name][number]
                if name == "source" and self._sets.spans is not None and part.sets.spans is not None:
                    self._sets.spans[place] = part.sets.spans[number]
        return taken

    def as_dict(self, of_transform: str) -> JsonObject:
        """Return what was kept, JSON-ready; of_transform: what the transform was fitted on."""
        return {**self.reservoir._asdict(), "transform": of_transform}


def _many(name: str, examples: Any) -> Iterable[Given]:
    if isinstance(examples, str | Example | Conversation | Completion | Mapping):
        raise TextsError(f"{name} must be a list of texts, got one text; put it into a list")
    if not isinstance(examples, Iterable):
        raise TextsError(f"{name} must be a list of texts, or something to go through, got {type(examples).__name__}")
    return examples
