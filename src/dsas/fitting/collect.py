"""Collection: the activations of many examples, gathered in one pass over the model, interruptible and resumable.

With a checkpoint folder, what has been collected is written there every half minute and on every way out, Ctrl-C
included; a later call with the same model, examples, sites and options resumes and computes nothing twice.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from safetensors.torch import load, save
from torch import Tensor, nn

from dsas.files.atomic import keep, kept
from dsas.fitting.parallel_collect import vectors_by_workers
from dsas.model.conversation import Content
from dsas.model.foreign import Foreign
from dsas.model.identity import fingerprint
from dsas.model.sites import Site
from dsas.model.subject import Examples
from dsas.parallel.progress import SECONDS_BETWEEN_CHECKPOINTS, progress_bar
from dsas.parallel.workers import Spread

Collected = dict[Site, Float[Tensor, "text step sample dim"]]


def collect(
    examples: Examples,
    texts: Sequence[Content],
    places: Sequence[int],
    sites: Sequence[Site],
    *,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Collected:
    """Return the activations of every site on each text, float32 on the CPU, in the order of `texts`.

    places: the position of each text in its set; see `places_of`.
    """
    store = _Store(len(texts), sites, file_of(examples, texts, places, sites, checkpoint))
    batches = examples.batches(texts, places, examples.batch_size)
    waiting = [batch for batch in batches if not store.done[batch.rows].all()]
    if examples.spread == Spread():
        found = enumerate(examples.vectors(waiting, sites))
    else:
        found = vectors_by_workers(examples, waiting, sites)
    with progress_bar(progress) as bar, store:
        task = bar.add_task("collecting activations", total=len(store.done), completed=int(store.done.sum()))
        for number, vectors in found:
            store.put(waiting[number].rows, vectors)
            bar.advance(task, len(waiting[number].rows))
    return store.vectors


def numbered(sets: Mapping[str, Sequence[Content]]) -> tuple[list[Content], dict[str, list[int]]]:
    """Return every text once, and the numbers of each set's members."""
    texts = list(dict.fromkeys(text for members in sets.values() for text in members))
    row = {text: number for number, text in enumerate(texts)}
    return texts, {name: [row[text] for text in members] for name, members in sets.items()}


def places_of(sets: Mapping[str, Sequence[Content]], texts: Sequence[Content], start: int = 0) -> list[int]:
    """Return the position of each text in its set; the first position if it is in several sets.

    start: the position of the first text of each set, if these are parts of sets.
    """
    places: dict[Content, int] = {}
    for members in sets.values():
        for place, text in enumerate(members):
            places[text] = min(place, places.get(text, place))
    return [start + places[text] for text in texts]


class _Store:
    """The vectors collected so far and the texts they cover; a context manager that writes them when it is left."""

    def __init__(self, texts: int, sites: Sequence[Site], file: Path | None) -> None:
        self.done: Bool[Tensor, " text"] = torch.zeros(texts, dtype=torch.bool)
        self.vectors: Collected = {}
        self._texts, self._file, self._written = texts, file, time.monotonic()
        if file is not None:
            self._read(file, sites)

    def put(self, rows: list[int], vectors: Mapping[Site, Tensor]) -> None:
        for site, value in vectors.items():
            if site not in self.vectors:
                self.vectors[site] = value.new_zeros(self._texts, *value.shape[1:])
            self.vectors[site][rows] = value
        self.done[rows] = True
        if time.monotonic() - self._written > SECONDS_BETWEEN_CHECKPOINTS:
            self._write()

    def _read(self, file: Path, sites: Sequence[Site]) -> None:
        data = kept(file, "all texts are run again")
        if data is not None:
            saved = load(data)
            self.done = saved["done"].bool()
            self.vectors = {site: saved[f"site {number}"] for number, site in enumerate(sites)}

    def _write(self) -> None:
        if self._file is not None and self.vectors:
            named = {f"site {number}": value for number, value in enumerate(self.vectors.values())}
            keep(self._file, save({**named, "done": self.done.to(torch.uint8)}))
        self._written = time.monotonic()

    def __enter__(self) -> "_Store":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._write()


def file_of(
    examples: Examples,
    texts: Sequence[Content],
    places: Sequence[int],
    sites: Sequence[Site],
    folder: str | Path | None,
) -> Path | None:
    """Return the file of a folder in which the vectors of these texts are kept; None without a folder."""
    if folder is None:
        return None
    return checkpoint_file(examples.module, [list(map(repr, sites)), examples.depends(texts, places)], folder)


def checkpoint_file(model: nn.Module, read: list[Foreign], checkpoint: str | Path | None) -> Path | None:
    """Return the checkpoint's file for `read`, which holds sites, texts, and how they become vectors, JSON-ready."""
    if checkpoint is None:
        return None
    what = [fingerprint(model), str(next(model.parameters()).dtype), *read]
    return Path(checkpoint) / f"{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]}.safetensors"
