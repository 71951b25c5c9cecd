"""Collection: the activations of many texts, gathered in one pass over the model, interruptible and resumable.

With a checkpoint folder, what has been collected is written there every half minute and on every way out, Ctrl-C
included; a later call with the same model, texts, sites and options goes on from there and computes nothing twice.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from dsas.errors import DsasWarning, OptionError
from dsas.files.atomic import replace_files
from dsas.fitting.activations import pooled_activations, token_activations
from dsas.fitting.parallel_collect import pooled_by_name, pooled_shards
from dsas.fitting.picture_activations import drawn_activations
from dsas.model.drawing import Drawing, prompt_batches
from dsas.model.examples import Batch, Spans, batches, pad_token, token_spans, tokenize
from dsas.model.identity import fingerprint
from dsas.model.image_pipeline import Parts
from dsas.model.reading import Reading
from dsas.model.sites import Site
from dsas.parallel.progress import SECONDS_BETWEEN_CHECKPOINTS, progress_bar
from dsas.parallel.workers import Spread


def collect(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    sites: Sequence[Site],
    *,
    reading: Reading = Reading(),
    checkpoint: str | Path | None = None,
    spread: Spread = Spread(),
    progress: bool = True,
) -> dict[Site, Float[Tensor, "text dim"]]:
    """Return each text's pooled activation at every site, float32 on the CPU, in the order of `texts`.

    spread: where the model runs; over several workers the model is loaded again by each, and the result is the same.
    """
    store = _Store(len(texts), sites, _file(model, [list(texts), list(reading)], sites, checkpoint))
    waiting = [batch for batch in read_batches(tokenizer, texts, reading) if not store.done[batch.rows].all()]
    inputs, pooling, skip_sinks = [inputs_of(batch) for batch in waiting], reading.pooling, reading.skip_sinks
    if spread == Spread():
        found = enumerate(pooled_activations(model, inputs, sites, pooling=pooling, skip_sinks=skip_sinks))
    else:
        how = pooled_by_name(model, sites, pooling=pooling, skip_sinks=skip_sinks, threads=spread.threads)
        found = pooled_shards(how, inputs, spread)
    return _gathered(store, [batch.rows for batch in waiting], found, progress)


def collect_drawn(
    parts: Parts,
    prompts: Sequence[str],
    places: Sequence[int],
    sites: Sequence[Site],
    *,
    drawing: Drawing,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> dict[Site, Float[Tensor, "prompt step sample dim"]]:
    """Return what every site did while the pictures of the prompts were drawn, in the order of `prompts`.

    places: where each prompt stands in its set, which its seed follows from. Otherwise as `dsas.model.drawing`.
    """
    drawing.check()
    what = [list(prompts), list(places), drawing.as_dict(), parts.schedule]
    store = _Store(len(prompts), sites, _file(parts, what, sites, checkpoint))
    batches = prompt_batches(prompts, places, drawing.batch_size)
    waiting = [batch for batch in batches if not store.done[batch.rows].all()]
    vectors = drawn_activations(parts, waiting, sites, drawing)
    return _gathered(store, [batch.rows for batch in waiting], enumerate(vectors), progress)


def _gathered(
    store: "_Store", waiting: Sequence[list[int]], batches: Iterator[tuple[int, dict[Site, Tensor]]], progress: bool
) -> dict[Site, Tensor]:
    """Put batch after batch, each with its number, into the store and return what it then holds."""
    with progress_bar(progress) as bar, store:
        task = bar.add_task("collecting activations", total=len(store.done), completed=int(store.done.sum()))
        for number, vectors in batches:
            store.put(waiting[number], vectors)
            bar.advance(task, len(waiting[number]))
    return store.pooled


class LabelledTokens(NamedTuple):
    """Single tokens of many texts.

    vectors: of each site (token, dim), float32 on the CPU. shown: Bool (token,), True where a span covers the token.
    texts: Int (token,), the number of the text that each token is of.
    """

    vectors: dict[Site, Float[Tensor, "token dim"]]
    shown: Bool[Tensor, " token"]
    texts: Int[Tensor, " token"]


def collect_tokens(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    spans: Sequence[Spans],
    sites: Sequence[Site],
    *,
    reading: Reading = Reading(),
    progress: bool = True,
) -> LabelledTokens:
    """Return all tokens of `texts` but special ones and, with `reading.skip_sinks`, the first of each text.

    spans: for each text, where (start, stop) in characters it shows the behaviour; a token counts as covered when it
    shares a character with a span.
    """
    covered = token_spans(tokenizer, texts, spans)
    found: dict[Site, list[Tensor]] = {site: [] for site in sites}
    shown, owners = [], []

    def chosen() -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for batch in read_batches(tokenizer, texts, reading):
            counted = batch.mask.clone()
            for place, row in enumerate(batch.rows):
                marks = covered[row][: int(batch.mask[place].sum())]
                counted[place, : len(marks)] &= torch.tensor([mark is not None for mark in marks])
                counted[place, 0] &= not reading.skip_sinks
                keep = counted[place, : len(marks)].tolist()
                shown.extend(bool(mark) for mark, kept in zip(marks, keep, strict=True) if kept)
                owners.extend([row] * sum(keep))
            yield inputs_of(batch), counted

    with progress_bar(progress) as bar:
        task = bar.add_task("collecting tokens", total=None)
        for vectors in token_activations(model, chosen(), sites):
            for site, value in vectors.items():
                found[site].append(value)
            bar.advance(task)
    every = {site: torch.cat(pieces) for site, pieces in found.items()}
    return LabelledTokens(every, torch.tensor(shown, dtype=torch.bool), torch.tensor(owners))


def read_batches(tokenizer: Any, texts: Sequence[str], reading: Reading) -> list[Batch]:
    """Return the texts as batches, padded on the right. Warns of texts that are cut."""
    rows = cut_rows(tokenize(tokenizer, texts), reading.max_tokens)
    return list(batches(rows, reading.batch_size, pad=pad_token(tokenizer), side="right"))


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """Return a batch as a model takes it."""
    return {"input_ids": batch.tokens, "attention_mask": batch.mask.long()}


def cut_rows(rows: list[list[int]], max_tokens: int) -> list[list[int]]:
    """Return rows of at most `max_tokens` tokens, and warn of those that were longer."""
    if max_tokens < 1:
        raise OptionError(f"max_tokens must be at least 1, got {max_tokens}")
    too_long = sum(len(row) > max_tokens for row in rows)
    if too_long:
        warnings.warn(f"{too_long} texts were cut to max_tokens={max_tokens}", DsasWarning, stacklevel=5)
    return [row[:max_tokens] for row in rows]


class _Store:
    """Vectors collected so far and which texts they cover; a context manager that writes them out on leaving."""

    def __init__(self, texts: int, sites: Sequence[Site], file: Path | None) -> None:
        self.done: Bool[Tensor, " text"] = torch.zeros(texts, dtype=torch.bool)
        self.pooled: dict[Site, Tensor] = {}
        self._texts, self._file, self._written = texts, file, time.monotonic()
        if file is not None and file.is_file():
            self._read(file, sites)

    def put(self, rows: list[int], vectors: dict[Site, Tensor]) -> None:
        for site, value in vectors.items():
            if site not in self.pooled:
                self.pooled[site] = value.new_zeros(self._texts, *value.shape[1:])
            self.pooled[site][rows] = value
        self.done[rows] = True
        if time.monotonic() - self._written > SECONDS_BETWEEN_CHECKPOINTS:
            self._write()

    def _read(self, file: Path, sites: Sequence[Site]) -> None:
        try:
            saved = load(file.read_bytes())
            pooled = {site: saved[f"site {number}"] for number, site in enumerate(sites)}
            self.done, self.pooled = saved["done"].bool(), pooled
        except (SafetensorError, KeyError) as error:
            message = f"{file} is damaged ({error}): it is not used, and all texts are run again"
            warnings.warn(message, DsasWarning, stacklevel=5)

    def _write(self) -> None:
        if self._file is not None and self.pooled:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            named = {f"site {number}": value for number, value in enumerate(self.pooled.values())}
            replace_files({self._file: save({**named, "done": self.done.to(torch.uint8)})})
        self._written = time.monotonic()

    def __enter__(self) -> "_Store":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._write()


def _file(model: nn.Module, read: list[Any], sites: Sequence[Site], checkpoint: str | Path | None) -> Path | None:
    """Return the file for what was `read`, JSON-ready: texts, and how they become vectors."""
    if checkpoint is None:
        return None
    what = [fingerprint(model), str(next(model.parameters()).dtype), list(map(str, sites)), read]
    return Path(checkpoint) / f"{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]}.safetensors"
