"""Curves: how much log-probability held-out source and control texts lose under each series of a sweep.

Source texts are those of the report's part, control texts its kinds of neutral text. Each series gets strengths of its
own around the stated damage (`dsas.evaluation.loss_curve.ladder`), measured as jobs of the sweep: stored, found again,
and spread over its workers, all series in parallel. Each series is compared with the series of the same transform with
the constant regulator or, if there is none, with the same Steering with that regulator.

They are stored in `curves.json`:

    {"damage": 0.02, "against": {"caa + logistic": "caa + constant"},
     "curves": {"caa + logistic": [{"strength": 0.1, "source": [0.3], "control": {"web": [0.01]}}]}}

with the loss of each text, in nats per token; without source texts there are no curves.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dsas.errors import TextsError
from dsas.evaluation.loss_curve import DAMAGE, MAX_STRENGTH, Curve, Losses, ladder
from dsas.evaluation.selectivity import Selectivity, selectivity, without_regulator
from dsas.files.json_values import JsonObject
from dsas.files.text_files import ENCODING
from dsas.model.foreign import Foreign
from dsas.steering.steering import Steering

CURVES = "curves.json"
CONSTANT = "constant"
Read = Callable[[Sequence[tuple[Steering | None, float]]], Sequence[Foreign]]  # results of `losses` jobs, in order


class Start(NamedTuple):
    """A series by name, with the names of its transform and regulator, and the first strength, > 0."""

    name: str
    steering: Steering
    transform: str
    regulator: str
    strength: float


class Curves(NamedTuple):
    """The curve of each series and of each Steering that one is compared with, and the pairs that are compared.

    damage: stated damage to control texts, in nats per token. against: by series, the name of the other curve.
    """

    damage: float = DAMAGE
    curves: Mapping[str, Curve] = {}
    against: Mapping[str, str] = {}

    def selectivities(self, *, resamples: int, seed: int) -> dict[str, Selectivity]:
        """Return the selectivity of each series, with 95 % intervals over texts."""
        return {
            name: selectivity(
                self.curves[name], damage=self.damage, against=self.curves[other], resamples=resamples, seed=seed
            )
            for name, other in self.against.items()
        }

    def as_dict(self) -> JsonObject:
        """Return what `read_curves` reads, JSON-ready."""
        curves = {
            name: [
                {"strength": strength, "source": one.source.tolist(), "control": _listed(one.control)}
                for strength, one in zip(curve.strengths, curve.losses, strict=True)
            ]
            for name, curve in self.curves.items()
        }
        return {"damage": self.damage, "against": dict(self.against), "curves": curves}


def measure_curves(read: Read, series: Sequence[Start]) -> Curves:
    """Measure the curves of every series and of what it is compared with; read: returns losses at strengths.

    Raises OptionError for a Steering under which the model breaks down at every strength.
    """
    steerings = {one.name: (one.steering, one.strength) for one in series}
    constants = {one.transform: one.name for one in reversed(series) if one.regulator == CONSTANT}
    against, digests = {}, {one.steering.digest(): one.name for one in reversed(series)}
    for one in series:
        name = one.name if one.regulator == CONSTANT else constants.get(one.transform)
        if name is None:
            constant = without_regulator(one.steering)
            name = digests.setdefault(constant.digest(), f"{one.name} without its regulator")
            steerings.setdefault(name, (constant, one.strength))
        against[one.name] = name
    (unsteered,) = read([(None, 0.0)])
    climbs = {
        name: ladder(damage=DAMAGE, start=strength, max_strength=max(strength, MAX_STRENGTH))
        for name, (_, strength) in steerings.items()
    }
    asked, curves = {name: next(climb) for name, climb in climbs.items()}, {}
    while asked:
        wanted = [(name, strength) for name, strengths in asked.items() for strength in strengths]
        found = read([(steerings[name][0], strength) for name, strength in wanted])
        lost: dict[str, list[Losses]] = {name: [] for name in asked}
        for (name, _), losses in zip(wanted, found, strict=True):
            lost[name].append(_lost(losses, unsteered))
        for name, some in lost.items():
            try:
                asked[name] = climbs[name].send(some)
            except StopIteration as ended:
                curves[name] = ended.value
                del asked[name]
    return Curves(DAMAGE, {name: curves[name] for name in steerings}, against)


def read_curves(path: str | Path) -> Curves:
    """Read a curves.json; a missing file means that nothing was measured. Raises TextsError for anything else."""
    path = Path(path)
    if not path.is_file():
        return Curves()
    try:
        found = json.loads(path.read_text(encoding=ENCODING))
        curves = {name: _curve(rows) for name, rows in found["curves"].items()}
        return Curves(float(found["damage"]), curves, {name: str(found["against"][name]) for name in found["against"]})
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise TextsError(f"{path}: not the curves of a sweep ({error!r}): run the sweep again") from error


def _curve(rows: Sequence[Mapping[str, Any]]) -> Curve:
    losses = [
        Losses(np.array(row["source"], float), {kind: np.array(some, float) for kind, some in row["control"].items()})
        for row in rows
    ]
    return Curve(tuple(float(row["strength"]) for row in rows), tuple(losses))


def _lost(steered: Mapping[str, Any], unsteered: Mapping[str, Any]) -> Losses:
    def more(after: Mapping[str, Any], before: Mapping[str, Any]) -> np.ndarray:
        return np.array(after["nats per token"], float) - np.array(before["nats per token"], float)

    kinds = {kind: more(some, unsteered["kinds"][kind]) for kind, some in steered["kinds"].items()}
    return Losses(more(steered["source"], unsteered["source"]), kinds)


def _listed(control: Mapping[str, np.ndarray]) -> JsonObject:
    return {kind: values.tolist() for kind, values in control.items()}
