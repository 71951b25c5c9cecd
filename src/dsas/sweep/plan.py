"""Plan: what a sweep is to measure, and how to repeat it, from its sweep.json.

    {"model": "...", "prompts": ["..."], "command": "dsas pareto ...", "settings": {"seeds": 3},
     "series": [{"name": "caa + logistic", "transform": "caa", "regulator": "logistic", "chosen": 0.2}]}

chosen: the strength chosen on the tuning texts, independent of samples.jsonl; null if none kept the budget.

It does not contain the Steerings themselves.
"""

from pathlib import Path
from typing import Any, NamedTuple

from dsas.errors import TextsError, closest
from dsas.files.json_values import JsonObject
from dsas.files.text_files import ENCODING, json_of
from dsas.model.foreign import Foreign


class SeriesPlan(NamedTuple):
    """One series: a transform with a regulator, and the strength chosen on tuning texts, None when there is none."""

    name: str
    transform: str
    regulator: str
    chosen: float | None


class Plan(NamedTuple):
    """The whole sweep; prompts are in the order in which samples number them."""

    model: str
    prompts: tuple[str, ...]
    series: tuple[SeriesPlan, ...]
    command: str
    settings: JsonObject


def read_plan(path: str | Path) -> Plan:
    """Read a sweep.json. Raises TextsError, naming the file and the field, for anything else."""
    path = Path(path)
    if not path.is_file():
        raise TextsError(f"{path}: no such file; the folder of a sweep has one")
    try:
        text = path.read_text(encoding=ENCODING)
    except UnicodeDecodeError as error:
        raise TextsError(f"{path}: expected UTF-8 text: {error}") from error
    place = str(path)
    found = json_of(text, place)
    prompts, series = _field(found, "prompts", list, place), _field(found, "series", list, place)
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise TextsError(f"{path}: expected 'prompts' as texts")
    plans = tuple(_series(each, f"{path}: series {number}") for number, each in enumerate(series))
    if len({plan.name for plan in plans}) < len(plans):
        raise TextsError(f"{path}: expected series of different names, got {[plan.name for plan in plans]}")
    return Plan(
        model=_field(found, "model", str, place),
        prompts=tuple(prompts),
        series=plans,
        command=_field(found, "command", str, place),
        settings=_field(found, "settings", dict, place),
    )


def _series(found: Any, place: str) -> SeriesPlan:
    name, transform, regulator = (_field(found, key, str, place) for key in ("name", "transform", "regulator"))
    chosen = _field(found, "chosen", (int, float, type(None)), place)
    try:
        return SeriesPlan(name, transform, regulator, None if chosen is None else float(chosen))
    except OverflowError as error:
        raise TextsError(
            f"{place}: expected 'chosen' as a strength, got a number of {len(str(chosen))} digits"
        ) from error


def _field(found: Any, name: str, kind: type | tuple[type, ...], place: str) -> Foreign:
    if not isinstance(found, dict):
        raise TextsError(f"{place}: expected a JSON object, got {type(found).__name__}")
    if name not in found:
        raise TextsError(f"{place}: no field {name!r}; closest: {closest(name, found)}")
    if not isinstance(found[name], kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise TextsError(f"{place}: expected {name!r} as {' or '.join(k.__name__ for k in kinds)}")
    return found[name]
