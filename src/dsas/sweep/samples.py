"""Samples: what a sweep measured, one JSON object per line, as arrays for every series and strength.

    {"series": s, "strength": x, "seed": 0, "measure": "generation", "item": 12, "text": "...",
     "scores": {"tox-block": 0.01}, "judge": 3.2}
    {"series": s, "strength": x, "seed": null, "measure": "loss", "kind": "web", "item": 3, "value": 3.1, "tokens": 19}
    {"series": s, "strength": x, "seed": null, "measure": m, "kind": "web", "item": 3, "value": 0.02}

with m one of kl, choice, change. loss: the text's log-loss in nats per token, over `tokens` predicted tokens. judge:
nats per token under an independent model, null without a judge or a text. The unsteered model is the series "unsteered"
at strength 0; its kl and change are 0, whether given or not.

For a pipeline, the text of a generation is what a detector reads in the picture, a score is 1 if it sees the concept,
and change is how far the picture of a control prompt moved, 0 to 255. "picture", if given, names a PNG file in the
folder of the samples.

A cell (a series at a strength) is complete when it has all items that any cell has. Cells that a killed sweep left
incomplete are skipped, with a warning that names them; so is a truncated last line. A loss or kl that is null or not
finite counts as infinite: the steered model broke down there.

Limitations: files are not compared, and a cell measured twice with different results is an error.
"""

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from dsas.errors import DsasWarning, TextsError, closest
from dsas.files.json_values import Json, JsonObject
from dsas.files.text_files import ENCODING, json_of
from dsas.model.foreign import Foreign

UNSTEERED = "unsteered"
GENERATION, LOSS, KL, CHOICE, CHANGE = "generation", "loss", "kl", "choice", "change"
_MEASURES = (GENERATION, LOSS, KL, CHOICE, CHANGE)
_BEFORE = "perplexity"  # measures per text, without its number of tokens


class Cell(NamedTuple):
    """One series at one strength.

    texts: by prompt, then seed. scores: toxicity in [0, 1]. judge: nats per token, NaN where there is none. losses and
    kl (both in nats per token) by kind of text, one per sentence; choices by kind of question, 1 where it is right.
    changes by kind of control prompt. pictures: files by kind ("" for the prompts) and item, where there are any.
    """

    series: str
    strength: float
    texts: tuple[tuple[str, ...], ...]
    scores: Float[np.ndarray, "scorer prompt seed"]
    judge: Float[np.ndarray, "prompt seed"]
    losses: dict[str, Float[np.ndarray, " sentence"]]
    kl: dict[str, Float[np.ndarray, " sentence"]]
    choices: dict[str, Float[np.ndarray, " question"]]
    changes: dict[str, Float[np.ndarray, " picture"]]
    pictures: dict[tuple[str, int], str]


class Samples(NamedTuple):
    """The complete cells, unsteered first, then series in the order of the file with rising strengths.

    prompts and seeds: their numbers, in the order of the arrays. left_out: a phrase for each incomplete cell. tokens:
    number of tokens in each sentence's loss, by kind of text.
    """

    scorers: tuple[str, ...]
    prompts: tuple[int, ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    left_out: tuple[str, ...]
    tokens: dict[str, Float[np.ndarray, " _"]]

    @property
    def of_pictures(self) -> bool:
        """Whether the sweep is of a pipeline."""
        return bool(self.cells[0].changes)


class _Key(NamedTuple):
    measure: str
    kind: str
    item: int
    seed: int


class _Loss(NamedTuple):
    value: float
    tokens: int


_Content = float | _Loss | tuple[str, tuple[float, ...], float | None]
_Found = dict[tuple[str, float], dict[_Key, _Content]]
_Pictures = dict[tuple[str, float], dict[tuple[str, int], str]]


def read_samples(path: str | Path) -> Samples:
    """Read the samples of a sweep; warns (DsasWarning) of what a killed sweep left incomplete.

    Raises TextsError, with file and line, for a file that is missing, a line that is not as above, or one that repeats
    another with a different result; and when the unsteered model lacks samples.
    """
    path = Path(path)
    found: _Found = {}
    pictures: _Pictures = {}
    scorers: tuple[str, ...] = ()
    for place, line in _lines(path):
        sample = _object(line, place)
        cell = (_field(sample, "series", str, place), _number(sample, "strength", place))
        if (cell[0] == UNSTEERED) != (cell[1] == 0):
            raise TextsError(
                f"{place}: expected strength 0 for {UNSTEERED!r} and no other, got {cell[0]!r} at {cell[1]:g}"
            )
        scorers = scorers or tuple(sample["scores"] if isinstance(sample.get("scores"), dict) else ())
        key, content = _read(sample, scorers, place)
        if found.setdefault(cell, {}).setdefault(key, content) != content:
            raise TextsError(f"{place}: this sample of {cell[0]!r} at {cell[1]:g} was there before with another result")
        if sample.get("picture") is not None:
            pictures.setdefault(cell, {})[key.kind, key.item] = _field(sample, "picture", str, place)
    if (UNSTEERED, 0.0) not in found:
        near = closest(UNSTEERED, dict.fromkeys(series for series, _ in found))
        raise TextsError(f"{path}: expected the series {UNSTEERED!r} at strength 0; closest: {near}")
    return _arranged(found, pictures, scorers, path)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Give every line that is not blank, with its place; a truncated last one is skipped with a warning."""
    if not path.is_file():
        siblings = [file.name for file in path.parent.glob("*.jsonl")]
        raise TextsError(f"{path}: no such file; closest in its folder: {closest(path.name, siblings)}")
    number = 0
    with path.open("rb") as file:
        for number, data in enumerate(file, start=1):
            place = f"{path}:{number}"
            try:
                line = data.decode(ENCODING)
                if not line.endswith("\n"):
                    json.loads(line)
            except (ValueError, RecursionError) as error:
                if data.endswith(b"\n"):
                    raise TextsError(f"{place}: expected UTF-8 text: {error}") from error
                warnings.warn(f"{place}: the last line is cut off and was left out", DsasWarning, stacklevel=3)
                return
            if line.strip():
                yield place, line


def _object(line: str, place: str) -> JsonObject:
    sample = json_of(line, place)
    if not isinstance(sample, dict):
        raise TextsError(f"{place}: expected a JSON object, got {type(sample).__name__}")
    return sample


def _read(sample: Mapping[str, Json], scorers: tuple[str, ...], place: str) -> tuple[_Key, _Content]:
    measure, item = _field(sample, "measure", str, place), _field(sample, "item", int, place)
    if measure == _BEFORE:
        raise TextsError(
            f"{place}: a perplexity without the number of tokens, as earlier versions of dsas measured it; "
            "run the sweep again: it measures the losses anew and keeps its continuations"
        )
    if measure not in _MEASURES:
        raise TextsError(f"{place}: no measure {measure!r}; closest: {closest(measure, _MEASURES)}")
    if measure == GENERATION:
        key = _Key(measure, "", item, _field(sample, "seed", int, place))
        nats = None if sample.get("judge") is None else _number(sample, "judge", place)
        return key, (_field(sample, "text", str, place), _scores(sample, scorers, place), nats)
    key = _Key(measure, _field(sample, "kind", str, place), item, 0)
    if measure == CHOICE:
        value = _number(sample, "value", place)
        if value not in (0, 1):
            raise TextsError(f"{place}: expected a choice of 0 or 1, got {value:g}")
        return key, value
    broken = sample.get("value", 0) is None or sample.get("value") != sample.get("value")
    value = math.inf if broken else float(_field(sample, "value", (int, float), place))
    if value < 0:
        raise TextsError(f"{place}: expected a {measure} >= 0, got {value:g}")
    if measure == LOSS:
        tokens = _field(sample, "tokens", int, place)
        if tokens < 1:
            raise TextsError(f"{place}: expected a loss over at least 1 token, got {tokens}")
        return key, _Loss(value, tokens)
    return key, value


def _scores(sample: Mapping[str, Json], scorers: tuple[str, ...], place: str) -> tuple[float, ...]:
    scores = _field(sample, "scores", dict, place)
    if set(scores) != set(scorers) or not scorers:
        raise TextsError(f"{place}: expected scores by {', '.join(scorers) or 'some scorer'}, got {list(scores)}")
    values = tuple(_number(scores, name, place) for name in scorers)
    if not all(0 <= value <= 1 for value in values):
        raise TextsError(f"{place}: expected scores in [0, 1], got {values}")
    return values


def _number(sample: Mapping[str, Json], name: str, place: str) -> float:
    value = float(_field(sample, name, (int, float), place))
    if not math.isfinite(value) or value < 0:
        raise TextsError(f"{place}: expected a finite {name!r} >= 0, got {value}")
    return value


def _field(sample: Mapping[str, Json], name: str, kind: type | tuple[type, ...], place: str) -> Foreign:
    if name not in sample:
        raise TextsError(f"{place}: no field {name!r}; closest: {closest(name, sample)}")
    value = sample[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise TextsError(f"{place}: expected {name!r} as {' or '.join(k.__name__ for k in kinds)}, got {value!r:.60}")
    return value


def _arranged(found: _Found, pictures: _Pictures, scorers: tuple[str, ...], path: Path) -> Samples:
    keys = {key for cell in found.values() for key in cell}
    prompts = tuple(sorted({key.item for key in keys if key.measure == GENERATION}))
    seeds = tuple(sorted({key.seed for key in keys if key.measure == GENERATION}))
    keys |= {_Key(GENERATION, "", prompt, seed) for prompt in prompts for seed in seeds}
    measures = {key.measure for key in keys}
    lacking = {GENERATION, CHANGE if CHANGE in measures else LOSS} - measures
    if lacking:
        raise TextsError(f"{path}: expected generation and loss, or change, got none of {', '.join(sorted(lacking))}")
    missing = {cell: len(_wanted(cell, keys) - have.keys()) for cell, have in found.items()}
    phrases = {cell: f"{cell[0]!r} at {cell[1]:g} (lacks {n} samples)" for cell, n in missing.items() if n}
    if (UNSTEERED, 0.0) in phrases:
        raise TextsError(
            f"{path}: the unsteered model was not measured completely, so there is nothing to compare with: "
            f"{phrases[UNSTEERED, 0.0]}"
        )
    if phrases:
        warnings.warn(f"{path}: incomplete, so not shown: {', '.join(phrases.values())}", DsasWarning, stacklevel=3)
    series = list(dict.fromkeys([UNSTEERED, *(name for name, _ in found)]))
    kept = sorted((cell for cell in found if cell not in phrases), key=lambda cell: (series.index(cell[0]), cell[1]))
    kinds = sorted({(key.measure, key.kind) for key in keys})
    items = {of: sorted(key for key in keys if (key.measure, key.kind) == of) for of in kinds}
    cells = tuple(_cell(cell, found[cell], items, pictures.get(cell, {})) for cell in kept)
    if not all(np.isfinite(values).all() for values in cells[0].losses.values()):
        raise TextsError(
            f"{path}: the unsteered model has losses that are not finite, so there is nothing to compare with"
        )
    tokens = _tokens(found, items, path)
    return Samples(scorers, prompts, seeds, cells, tuple(phrases.values()), tokens)


def _tokens(
    found: _Found, items: Mapping[tuple[str, str], Sequence[_Key]], path: Path
) -> dict[str, Float[np.ndarray, " _"]]:
    """Return the tokens of each sentence of each kind. Raises TextsError when two cells do not agree about them."""
    known: dict[_Key, int] = {}
    for cell, have in found.items():
        for key, content in have.items():
            if isinstance(content, _Loss) and known.setdefault(key, content.tokens) != content.tokens:
                raise TextsError(
                    f"{path}: {cell[0]!r} at {cell[1]:g} read {content.tokens} tokens of {key.kind} {key.item}, "
                    f"another cell {known[key]}: they were not measured on the same texts"
                )
    return {kind: np.array([known[key] for key in items[LOSS, kind]], float) for of, kind in items if of == LOSS}


def _wanted(cell: tuple[str, float], keys: set[_Key]) -> set[_Key]:
    return {key for key in keys if key.measure not in (KL, CHANGE)} if cell[0] == UNSTEERED else keys


def _cell(
    cell: tuple[str, float],
    have: Mapping[_Key, Any],
    items: Mapping[tuple[str, str], Sequence[_Key]],
    pictures: dict[tuple[str, int], str],
) -> Cell:
    drawn = items[GENERATION, ""]
    shape = (len({key.item for key in drawn}), len({key.seed for key in drawn}))
    texts, scores, judge = zip(*(have[key] for key in drawn), strict=True)
    rows = tuple(texts[start : start + shape[1]] for start in range(0, len(texts), shape[1]))

    def values(measure: str) -> dict[str, np.ndarray]:
        kinds = [kind for of, kind in items if of == measure]
        found = {kind: [have.get(key, 0.0) for key in items[measure, kind]] for kind in kinds}
        plain = {kind: [one.value if isinstance(one, _Loss) else one for one in some] for kind, some in found.items()}
        return {kind: np.array(some, float) for kind, some in plain.items()}

    return Cell(
        *cell,
        texts=rows,
        scores=np.array(scores, float).T.reshape(-1, *shape),
        judge=np.array(judge, float).reshape(shape),  # None becomes NaN
        losses=values(LOSS),
        kl=values(KL),
        choices=values(CHOICE),
        changes=values(CHANGE),
        pictures=pictures,
    )
