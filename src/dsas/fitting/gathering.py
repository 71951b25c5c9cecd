"""Gathering: sets of any length, run part by part; what is kept of them does not grow with their length.

Kept are the vectors of the examples in the reservoir (`dsas.fitting.example_stream`) and, once a set is longer than
that, the moments of all its vectors (`dsas.methods.moments`). The first part of the sets is as large as the reservoir,
so sets that are no longer than that are collected as a whole.

With a checkpoint folder, a file there holds what is kept after the last whole part, and another one what was collected
of the part at work; so a fit that goes on computes nothing twice, and files do not grow with the sets either.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor

from dsas.errors import TextsError
from dsas.files.atomic import keep, kept
from dsas.fitting.collect import Collected, checkpoint_file, collect, file_of, numbered, places_of
from dsas.fitting.example_stream import ExampleStream, Part, Sampled
from dsas.methods.moments import Moments
from dsas.model.examples import ExampleSets
from dsas.model.sites import Site
from dsas.model.subject import Examples

OF_MOMENTS = ("source", "target")  # the sets that transforms learn from


class Gathering(NamedTuple):
    """What to gather: the examples, how they are read, at which sites, and where activations are stored."""

    examples: Examples
    stream: ExampleStream
    sets: ExampleSets
    sites: Sequence[Site]
    checkpoint: str | Path | None
    progress: bool


class Gathered:
    """The examples that are kept, with their vectors, and moments of all where some were left out."""

    def __init__(self, sampled: Sampled, *, by_position: bool) -> None:
        self.sampled, self._by_position = sampled, by_position
        self._vectors: Collected = {}
        self._rows: dict[str, list[int]] = {}
        self._moments: dict[Site, dict[str, Moments]] = {}

    def vectors(self, site: Site) -> dict[str, Tensor]:
        """Return the vectors (example, step, sample, dim) of each set at a site."""
        return {name: self._vectors[site][rows] for name, rows in self._rows.items()}

    def moments(self, site: Site) -> tuple[Moments, Moments] | None:
        """Return the moments of source and target at a site; None where no example was left out."""
        found = self._moments.get(site)
        return None if found is None else (found["source"], found["target"])

    def add(self, part: Part, rows: dict[str, list[int]], found: Collected) -> None:
        """Add the next part; rows: the row in `found` of each example of each set."""
        taken = self.sampled.add(part)
        if part.start == 0:
            self._vectors, self._rows = found, rows
            return
        if not self._moments:
            self._begin()
        for site, vectors in found.items():
            for name, members in rows.items():
                own, places = vectors[members], taken[name]
                if name in OF_MOMENTS and members:
                    self._moments[site][name] = self._moments[site][name].joined(self._moments_of(own))
                if places:
                    there = [self._rows[name][place] for place in places]
                    self._vectors[site][there] = own[list(places.values())]

    def skip(self, part: Part) -> None:
        """Add the examples of a part whose vectors are stored."""
        self.sampled.add(part)

    def tensors(self) -> dict[str, Tensor]:
        """Return what is kept besides the examples, once there was a second part."""
        found: dict[str, Tensor] = {}
        for number, (site, vectors) in enumerate(self._vectors.items()):
            found[f"site {number}"] = vectors
            for name, (count, *moments) in self._moments[site].items():
                found[f"{name} {number}"] = torch.stack(moments)
                found[f"{name} count {number}"] = torch.tensor(count)
        return found

    def restore(self, sites: Sequence[Site], found: Mapping[str, Tensor]) -> None:
        """Take what `tensors` returned."""
        self._rows = _rows(self.sampled.sets)
        for number, site in enumerate(sites):
            self._vectors[site] = found[f"site {number}"]
            self._moments[site] = {
                name: Moments(int(found[f"{name} count {number}"]), *found[f"{name} {number}"]) for name in OF_MOMENTS
            }

    def _begin(self) -> None:
        """Give each example a row of its own, which others can take, and work out the moments so far."""
        for site in list(self._vectors):
            own = self.vectors(site)
            self._moments[site] = {name: self._moments_of(own[name]) for name in OF_MOMENTS}
            self._vectors[site] = torch.cat(list(own.values()))
        self._rows = _rows(self.sampled.sets)

    def _moments_of(self, vectors: Tensor) -> Moments:
        return Moments.of(vectors.flatten(0, 2) if self._by_position else vectors.mean((1, 2)))


def gathered(task: Gathering) -> Gathered:
    """Run all examples and return what is kept of them.

    Raises TextsError for what is wrong with an example, or for a checkpoint of other examples.
    """
    found = Gathered(Sampled(task.stream.reservoir), by_position=task.examples.by_position)
    state = _State(task)
    for part in task.stream.parts(task.sets):
        texts, rows = numbered(part.sets.as_dict())
        places = places_of(part.sets.as_dict(), texts, part.start)
        if state.holds(task.examples.depends(texts, places) if task.checkpoint is not None else []):
            found.skip(part)
            state.restore(found)
            continue
        file = file_of(task.examples, texts, places, task.sites, task.checkpoint)
        vectors = collect(task.examples, texts, places, task.sites, checkpoint=task.checkpoint, progress=task.progress)
        found.add(part, rows, vectors)
        state.write(found, part, file)
    state.end()
    return found


class _State:
    """What is kept after each whole part, in a file of the checkpoint folder; nothing without a folder."""

    def __init__(self, task: Gathering) -> None:
        self._task, self._mark, self._parts = task, b"", 0
        self._file: Path | None = None
        self._saved: dict[str, Tensor] | None = None
        self._files: list[Path] = []

    def holds(self, depends: object) -> bool:
        """Whether the vectors of the next part are stored; depends: what they depend on, JSON-ready."""
        if self._task.checkpoint is None:
            return False
        self._mark = hashlib.sha256(self._mark + json.dumps(depends).encode()).digest()
        self._parts += 1
        if self._parts == 1:
            names, drawn = list(map(repr, self._task.sites)), list(self._task.stream.reservoir)
            read = [names, "a stream", drawn, self._mark.hex()]
            self._file = checkpoint_file(self._task.examples.module, read, self._task.checkpoint)
            data = None if self._file is None else kept(self._file, "all texts are run again")
            self._saved = None if data is None else load(data)
        return self._saved is not None and self._parts <= int(self._saved["parts"])

    def restore(self, found: Gathered) -> None:
        """Take the stored vectors once all parts that they are of have been read. Raises TextsError for others."""
        if self._saved is not None and self._parts == int(self._saved["parts"]):
            if bytes(self._saved["mark"].tolist()) != self._mark:
                self._refuse()
            found.restore(self._task.sites, self._saved)
            self._saved = None

    def write(self, found: Gathered, part: Part, file: Path | None) -> None:
        """Store what is kept after a part, if it is not the first, and remove the file of the part alone."""
        if self._file is None or file is None:
            return
        self._files.append(file)
        if part.start > 0:
            more = {"parts": torch.tensor(self._parts), "mark": torch.tensor(list(self._mark), dtype=torch.uint8)}
            keep(self._file, save({**found.tensors(), **more}))
            while self._files:
                self._files.pop().unlink(missing_ok=True)

    def end(self) -> None:
        """Raise TextsError if more was stored than was read."""
        if self._saved is not None:
            self._refuse()

    def _refuse(self) -> None:
        raise TextsError(
            f"the checkpoint {self._file} goes on with other examples than these sets do: give the same sets, or "
            "remove the file to begin anew"
        )


def _rows(sets: ExampleSets) -> dict[str, list[int]]:
    """Return the row of each example where the rows of one set follow those of another."""
    found: dict[str, list[int]] = {}
    for name, members in sets.as_dict().items():
        start = sum(map(len, found.values()))
        found[name] = list(range(start, start + len(members)))
    return found
