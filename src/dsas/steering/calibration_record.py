"""Calibration record: a calibrated strength and its evidence; a Steering carries it, and storage keeps it as JSON.

`dsas.calibrate` makes it. Limitations: the texts themselves are not stored, only their numbers.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from dsas.errors import OptionError
from dsas.files.json_values import Json, JsonObject

FORMAT = 2  # version of what `as_dict` returns; older records have no number


class Spent(NamedTuple):
    """What one budget allows, and how much damage steering at the calibrated strength does.

    damage: "perplexity" (steered over unsteered), "loss" (nats per token), "mean-perplexity" (steered over unsteered,
    mean over texts), "kl" (nats per token) or "accuracy" (points lost). most: what is allowed. worst: whether it is for
    the worst kind of text, and not the mean over the kinds. tuned: damage on the tuning texts. held_out: on the
    held-out texts: mean, low and high of the 95 % interval, n. by_kind: the same for each kind of held-out text. sure:
    the share of bootstrap draws of the tuning texts that had to keep it, 0 if only the texts themselves had to.
    """

    damage: str
    most: float
    worst: bool
    tuned: float
    held_out: dict[str, float]
    by_kind: dict[str, dict[str, float]]
    sure: float = 0.0

    @property
    def kept(self) -> bool:
        """Whether the damage on the held-out texts is within the budget; its interval may still reach beyond."""
        return self.held_out["mean"] <= self.most


class Calibration(NamedTuple):
    """The largest strength found to keep all budgets on the tuning texts, and the check on held-out texts.

    strength: > 0. budgets: one entry each. curve: (strength, damage by budget) on the tuning texts, or the quantile of
    the damage that a budget's `sure` asks for, at every strength tried, in ascending order; None for a damage that is
    not finite. broken: the strength, at most 5 % above, that breaks a budget; None if all that were tried keep them.
    tune, held_out: number of texts by kind. weights: weight of each site, None if unchanged. before: the weights before
    the sites were first calibrated, from which another calibration of the sites begins; None if they never were.
    steering: digest of the Steering at these weights. model: fingerprint of the model.
    dsas_version: the version that measured it.
    """

    strength: float
    budgets: tuple[Spent, ...]
    curve: tuple[tuple[float | None, ...], ...]
    broken: float | None
    tune: dict[str, int]
    held_out: dict[str, int]
    weights: dict[str, float] | None
    steering: str
    model: str
    dsas_version: str
    before: dict[str, float] | None = None

    @property
    def kept(self) -> bool:
        """Whether every budget is kept on the held-out texts, too."""
        return all(budget.kept for budget in self.budgets)

    def as_dict(self) -> JsonObject:
        """Return everything as JSON-ready values."""
        return {"format": FORMAT, **self._asdict(), "budgets": [budget._asdict() for budget in self.budgets]}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Json]) -> "Calibration":
        """Return the record that `as_dict` wrote. Raises OptionError for a bad strength, TypeError for other fields."""
        fields = {name: value for name, value in stored.items() if name != "format"}
        budgets = tuple(Spent(**budget) for budget in stored["budgets"])
        if "format" not in stored:  # in these records, perplexity was the mean over texts
            budgets = tuple(
                one._replace(damage="mean-perplexity") if one.damage == "perplexity" else one for one in budgets
            )
        found = cls(**{**fields, "budgets": budgets, "curve": tuple(tuple(point) for point in stored["curve"])})
        if not isinstance(found.strength, int | float) or not 0 < found.strength < math.inf:
            raise OptionError(f"a calibrated strength must be finite and > 0, got {found.strength!r:.60}")
        return found

    def rows(self) -> list[JsonObject]:
        """Return a row for each strength that was tried, kind of text and budget, for a table."""
        found = [
            _row("tuning", "all", strength, spent, {"mean": damage, "n": sum(self.tune.values())})
            for strength, *damages in self.curve
            for spent, damage in zip(self.budgets, damages, strict=True)
        ]
        for spent in self.budgets:
            kinds = {**spent.by_kind, "all": spent.held_out}
            found += [_row("held-out", kind, self.strength, spent, values) for kind, values in kinds.items()]
        return found

    def lines(self) -> list[str]:
        """Return the evidence in words, one line for the strength and one per budget."""
        over = f"; {self.broken:.4g} breaks it" if self.broken is not None else ", the largest that was tried"
        texts = {"tuning": self.tune, "held-out": self.held_out}
        sets = [f"{sum(kinds.values())} {name} texts ({_listed(kinds)})" for name, kinds in texts.items()]
        lines = [f"strength {self.strength:.4g} keeps the budget{over}; {', '.join(sets)}; dsas {self.dsas_version}"]
        for spent in self.budgets:
            kinds = "worst kind" if spent.worst else "mean over kinds"
            found = "{mean:.4g} [{low:.4g}, {high:.4g}]".format(**spent.held_out)
            verdict = "kept" if spent.kept else "NOT KEPT"
            sure = f", {100 * spent.sure:g} % sure" if spent.sure else ""
            allowed = f"{spent.damage} at most {spent.most:g} ({kinds}{sure})"
            lines.append(f"{allowed}: tuned {spent.tuned:.4g}, held out {found}, {verdict}")
        return lines


def _row(texts: str, kind: str, strength: float | None, spent: Spent, found: Mapping[str, float | None]) -> JsonObject:
    numbers = {name: found.get(name) for name in ("mean", "low", "high", "n")}
    return {"texts": texts, "kind": kind, "strength": strength, "damage": spent.damage, "most": spent.most, **numbers}


def _listed(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in kinds.items())
