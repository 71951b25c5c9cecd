"""Calibrate: the largest strength whose damage stays within a budget, and a check on texts that did not choose it.

The strength is searched on the tuning texts (`dsas.calibration.search`), by their damage or, where a budget says how
sure they must be that other texts keep it, by that quantile of their bootstrap; the held-out texts are measured once,
at the end, and only reported, with a 95 % interval by bootstrap over texts, drawn within each kind (steered and
unsteered values of a text stay together).

Per site, d_i is the damage (above none) that site i does alone at the strength s found for all sites together, and

    weight_i' = weight_i * min_j c_j / c_i        c_i = max(d_i, max_j d_j / 10)

so that a site ten times as harmful as another gets a tenth of its strength and the least harmful one keeps its own;
then the strength of all is searched again. weight_i is what the site had before it was ever calibrated, so that the
same calibration of a Steering that carries it gives the same again. d_i is that of the first budget; small or negative
values of it are noise, hence c_i. Limitations: the weights ignore how the damage of several sites combines; only the
second search sees it.
"""

import json
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import nn

from dsas.calibration.budget import NONE, Budget, Value
from dsas.calibration.search import Found, largest_kept
from dsas.calibration.sets import Given, Texts, checked_sets
from dsas.calibration.silence import hardly_felt, silence_on
from dsas.errors import DsasWarning, OptionError, StrengthError
from dsas.evaluation.intervals import bootstrap_groups, draw_counts
from dsas.files.results import Results
from dsas.model.conversation import as_json
from dsas.model.identity import fingerprint
from dsas.model.subject import subject_of
from dsas.parallel.progress import progress_bar
from dsas.runtime.rule import Rule, weighted, weights_of
from dsas.steering.calibration_record import Calibration, Spent
from dsas.steering.steering import Steering
from dsas.version import VERSION

_RESAMPLES = 2000
_SPREAD = 10.0  # the largest ratio between the damage of two sites that counts


def calibrate(
    model: nn.Module,
    tokenizer: Any,
    steering: Steering,
    *,
    tune: Given,
    held_out: Given,
    budget: Budget | Sequence[Budget] = Budget("perplexity", 1.05),
    per: Literal["all", "site"] = "all",
    start: float = 0.005,
    limit: float = 16.0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Calibration:
    """Find the largest strength that keeps the budget; `steering.calibrated(result)` stores it.

    tune: texts by kind that the search measures on, at least 4 of each; a plain list is one kind. held_out: other
    texts, which only check it. budget: one or several; all of them must hold.
    per: "all" finds one strength for all sites; "site" also sets the weight of each (one measurement per site and a
    second search).
    start, limit: where the search begins and ends, > 0; on texts that the regulators leave alone it already ends at
    strength 1, with a warning (`dsas.calibration.silence`).
    checkpoint: folder that remembers every measurement, so that an interrupted calibration repeats none.
    Raises TextsError for texts in both sets, StrengthError when `start` already breaks the budget, OptionError,
    ModelMismatchError. Neither the model nor the Steering is changed.
    """
    budgets = (budget,) if isinstance(budget, Budget) else tuple(budget)
    tuning, others = checked_sets(tune, held_out, budgets)
    if per not in ("all", "site") or not 0 < start <= limit < float("inf"):
        raise OptionError(f"expected per 'all' or 'site' and 0 < start <= limit, got {per!r}, {start} and {limit}")
    if not any(rule.weight > 0 for rule in steering.rules):
        raise OptionError("expected a Steering with a site that is steered, got one whose weights are all 0")
    module = subject_of(model, tokenizer).module
    before = None if steering.calibration is None else steering.calibration.before
    if per == "site":
        steering = Steering(weighted(steering.rules, before or {}), steering.model)
        before = weights_of(steering.rules)
    with progress_bar(progress) as bar:
        task = bar.add_task("calibrating", total=None)
        meter = _Meter(module, tokenizer, checkpoint, lambda: bar.advance(task))
        search = _Search(meter, budgets, tuning, float(start), float(limit), {}, {})
        found, chosen = search.largest(steering), steering
        if per == "site":
            chosen = Steering(search.reweighted(steering, found.strength), steering.model)
            search = search._replace(curve={}, silence={})
            found = search.largest(chosen)
        spent = tuple(_spent(meter, one, chosen, found.strength, (tuning, others)) for one in budgets)
    calibration = Calibration(
        strength=found.strength,
        budgets=spent,
        curve=search.points(),
        broken=found.broken,
        tune={kind: len(texts) for kind, texts in tuning.items()},
        held_out={kind: len(texts) for kind, texts in others.items()},
        weights=weights_of(chosen.rules) if per == "site" else None,
        before=before,
        steering=chosen.digest(),
        model=fingerprint(module),
        dsas_version=VERSION,
    )
    _warn(calibration, search.silence.get(found.strength))
    return calibration


class _Meter:
    """Measures a budget's values for one strength and kind of text at a time, and remembers them."""

    def __init__(
        self, model: nn.Module, tokenizer: Any, checkpoint: str | Path | None, step: Callable[[], None]
    ) -> None:
        self._model, self._tokenizer, self._step = model, tokenizer, step
        self._kept = Results(checkpoint) if checkpoint is not None else None
        self._identity = [fingerprint(model), str(next(model.parameters()).dtype)]
        self._known: dict[str, list[Value]] = {}

    def damage(
        self, budget: Budget, steering: Steering, strength: float, texts: Texts
    ) -> Callable[[list[np.ndarray]], np.ndarray]:
        """Return the damage as a function of how often each text of each kind is drawn."""
        kinds = budget.kinds(texts)
        after = [self._values(budget, texts[kind], steering, strength) for kind in kinds]
        before = [self._values(budget, texts[kind], None, 0.0) if budget.compares else [] for kind in kinds]
        self._step()

        def of(draws: list[np.ndarray]) -> np.ndarray:
            found = [budget.of_kind(*values) for values in zip(draws, after, before, strict=True)]
            return budget.over_kinds(np.stack(found))

        return of

    def silence(self, steering: Steering, texts: Texts) -> float | None:
        """Return the mean regulator value on texts that are left alone, else None."""
        return silence_on(self._model, self._tokenizer, steering, texts)

    def _values(self, budget: Budget, texts: list[Any], steering: Steering | None, strength: float) -> list[Value]:
        digest = steering.digest() if steering is not None else "unsteered"
        depends = [*self._identity, digest, strength, budget.name, list(map(as_json, texts))]

        def measure() -> list[Value]:
            steered = steering.apply(self._model, strength, record=False) if steering is not None else nullcontext()
            return budget.values(self._model, self._tokenizer, texts, steered)

        key = json.dumps(depends)
        if key not in self._known:
            self._known[key] = measure() if self._kept is None else self._kept.remember("damage", depends, measure)
        return self._known[key]


class _Search(NamedTuple):
    """The search on the tuning texts.

    curve fills with the damage of each budget by strength; silence with the mean regulator value, by the strength at
    which it was found to be too small for these texts to tell anything.
    """

    meter: _Meter
    budgets: tuple[Budget, ...]
    texts: Texts
    start: float
    limit: float
    curve: dict[float, tuple[float, ...]]
    silence: dict[float, float]

    def largest(self, steering: Steering) -> Found:
        """Return the largest strength that keeps all budgets. Raises StrengthError when already `start` breaks one."""

        def keeps(strength: float) -> bool:
            self.curve[strength] = tuple(self._damage(budget, steering, strength) for budget in self.budgets)
            return all(spent <= budget.most for spent, budget in zip(self.curve[strength], self.budgets, strict=True))

        def silent(strength: float) -> bool:
            if not hardly_felt(self.budgets, self.curve[strength], strength, self.limit):
                return False
            kinds = {kind for budget in self.budgets for kind in budget.kinds(self.texts)}
            value = self.meter.silence(steering, {kind: self.texts[kind] for kind in self.texts if kind in kinds})
            if value is not None:
                self.silence[strength] = value
            return value is not None

        found = largest_kept(keeps, start=self.start, limit=self.limit, enough=silent)
        if found.strength == 0:
            spent = zip(self.budgets, self.curve[self.start], strict=True)
            said = ", ".join(f"{budget.damage} {damage:.4g} (at most {budget.most:g})" for budget, damage in spent)
            raise StrengthError(
                f"no strength from {self.start:g} up keeps the budget, since {self.start:g} itself gives {said}: "
                "use a smaller start, or a looser budget"
            )
        return found

    def reweighted(self, steering: Steering, strength: float) -> list[Rule]:
        """Return the rules with weights by the damage that each does alone. Raises OptionError when none does any."""
        steered = [rule for rule in steering.rules if rule.weight > 0]
        first = self.budgets[0]
        first = first._replace(sure=0.0)  # sites are compared by their mean damage, not by a quantile
        alone = [self._damage(first, Steering([rule], steering.model), strength) for rule in steered]
        excess = np.array(alone) - NONE[first.damage]
        if not (np.isfinite(excess).all() and excess.max() > 0):
            raise OptionError(
                f"per='site' needs sites that do damage on their own, but at strength {strength:.4g} none does (a "
                "budget of kl, first in the list, is more sensitive than one of perplexity); use per='all'"
            )
        counted = np.maximum(excess, excess.max() / _SPREAD)
        weights = {rule.site: rule.weight * float(counted.min() / c) for rule, c in zip(steered, counted, strict=True)}
        return [rule._replace(weight=weights.get(rule.site, 0.0)) for rule in steering.rules]

    def points(self) -> tuple[tuple[float | None, ...], ...]:
        """Return the curve as `Calibration` keeps it."""
        return tuple(
            (strength, *(damage if math.isfinite(damage) else None for damage in self.curve[strength]))
            for strength in sorted(self.curve)
        )

    def _damage(self, budget: Budget, steering: Steering, strength: float) -> float:
        damage = self.meter.damage(budget, steering, strength, self.texts)
        if budget.sure == 0:
            return float(damage(_once(budget, self.texts))[0])
        sizes = enumerate(len(self.texts[kind]) for kind in budget.kinds(self.texts))
        draws = damage([draw_counts(size, resamples=_RESAMPLES, seed=[0, number]) for number, size in sizes])
        return float(np.quantile(np.nan_to_num(draws, nan=np.inf, posinf=np.inf), budget.sure, method="inverted_cdf"))


def _spent(meter: _Meter, budget: Budget, steering: Steering, strength: float, sets: tuple[Texts, Texts]) -> Spent:
    """Return what a budget allows, what the tuning texts spent of it, and what the held-out texts do."""
    tuning, others = sets
    tuned = meter.damage(budget, steering, strength, tuning)(_once(budget, tuning))[0]

    def interval(kinds: list[str]) -> dict[str, float]:
        some = {kind: others[kind] for kind in kinds}
        damage = meter.damage(budget._replace(on=()), steering, strength, some)
        return bootstrap_groups(damage, [len(texts) for texts in some.values()])._asdict()

    kinds = budget.kinds(others)
    by_kind = {kind: interval([kind]) for kind in kinds}
    return Spent(budget.damage, float(budget.most), budget.worst, float(tuned), interval(kinds), by_kind, budget.sure)


def _once(budget: Budget, texts: Texts) -> list[np.ndarray]:
    return [np.ones((1, len(texts[kind]))) for kind in budget.kinds(texts)]


def _warn(calibration: Calibration, silence: float | None) -> None:
    if silence is not None:
        warnings.warn(
            f"the tuning texts cannot tell how strong this Steering may be: its regulators are {silence:.2g} on them, "
            f"as a mean over tokens and sites, so they are hardly damaged up to strength {calibration.strength:g}, "
            "which is kept; tune also on texts on which it acts, such as wanted answers where the behaviour is asked "
            "for, or texts that border on it (dsas fires-on says where it acts)",
            DsasWarning,
            stacklevel=3,
        )
    elif calibration.broken is None:
        warnings.warn(
            f"every strength up to the limit {calibration.strength:g} keeps the budget, and a larger one may, too",
            DsasWarning,
            stacklevel=3,
        )
    for spent in calibration.budgets:
        if not spent.kept:
            warnings.warn(
                f"the budget is not kept on the held-out texts: {spent.damage} {spent.held_out['mean']:.4g}, at most "
                f"{spent.most:g}, at strength {calibration.strength:.4g}; it was {spent.tuned:.4g} on the tuning texts",
                DsasWarning,
                stacklevel=3,
            )
