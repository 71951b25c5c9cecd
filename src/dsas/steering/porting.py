"""Porting: whether the regulators of a Steering still tell source from control on a relative of its model.

    score(text) = mean over its tokens, but the first, of h_site(t),     with t from the unsteered model
    AUROC       = how often a source text scores higher than a control text (ties count half)

A site holds if the AUROC reaches `least`; otherwise its weight becomes 0. The verdict is

    fits                              every site that is steered holds
    fits with weights as shown        at least half of them do
    refit these sites                 fewer do

A regulator that scores all texts alike distinguishes nothing, and its site holds; so does one in a tower of pictures or
sounds, whose patches belong to no text. Use texts other than those the
Steering was fitted on, some 20 of each. Intervals are 95 % score intervals of the AUROC (Newcombe, Statistics in
Medicine 25:559, 2006, method 5).

Limitations: whether the transform still does what it did is not measured: see `dsas.calibrate` and the measures.
"""

import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dsas.errors import DsasWarning, ModelMismatchError, OptionError
from dsas.model.conversation import Content
from dsas.model.evaluation_mode import evaluation_mode
from dsas.model.examples import Given, check_kinds, check_texts
from dsas.model.identity import ModelIdentity
from dsas.model.reading import Reading
from dsas.model.sites import labels
from dsas.model.subject import Examples, Subject
from dsas.model.wrappers import class_name
from dsas.runtime.applied import Applied, ApplyOptions
from dsas.runtime.fuse import check_unsteered
from dsas.runtime.rule import Rule
from dsas.runtime.unchanged import only_asked

VERDICTS = ("fits", "fits with weights as shown", "refit these sites")


class PortedSite(NamedTuple):
    """The result for one steered site.

    auroc, low, high: in [0, 1], with its 95 % interval; None where the regulator scores all texts alike. on_source,
    on_control: mean score. weight: the site's weight on this model.
    """

    site: str
    auroc: float | None
    low: float | None
    high: float | None
    on_source: float
    on_control: float
    weight: float


class Ported(NamedTuple):
    """A Steering on another model: which sites hold there, and the Steering with its weights and sites there.

    verdict: one of `VERDICTS`. differences: how the model differs from the one it was fitted on, empty when it is that
    one. steering: not calibrated, because its strength was not measured on this model.
    """

    verdict: str
    sites: tuple[PortedSite, ...]
    differences: tuple[str, ...]
    steering: Any

    def refit(self) -> list[str]:
        """Return the sites that do not hold."""
        return [site.site for site in self.sites if site.weight == 0]


class Asked(NamedTuple):
    """The options of `Steering.port`."""

    source: Sequence[Given]
    control: Sequence[Given]
    least: float
    reading: Reading | None


def port(
    rules: Sequence[Rule], fitted: ModelIdentity, subject: Subject, asked: Asked
) -> tuple[list[Rule], tuple[PortedSite, ...], tuple[str, ...]]:
    """Return the rules on a relative, the results for those that steer, and how the relative differs.

    Raises as `Steering.port` does.
    """
    if not 0 <= asked.least <= 1:
        raise OptionError(f"least is an AUROC from 0 to 1, got {asked.least}")
    texts = {name: check_texts(name, getattr(asked, name)) for name in ("source", "control")}
    check_kinds(texts)
    examples, identity = subject.examples(asked.reading), subject.identity
    examples.pad_token()  # raises for a subject without tokens
    check_unsteered(subject.module, "porting")
    there, differences = _there(rules, fitted, subject, identity)
    steered = [rule for rule in there if rule.weight > 0]
    if not steered:
        raise OptionError("expected a Steering with a site that is steered, got one whose weights are all 0")
    names, scores = labels([rule.site for rule in steered]), _scored(subject, examples, steered, texts)
    found = [
        _ported(name, rule.weight, one, asked.least) for name, rule, one in zip(names, steered, scores, strict=True)
    ]
    weights = iter([site.weight for site in found])
    kept = [rule._replace(weight=next(weights)) if rule.weight > 0 else rule for rule in there]
    return kept, tuple(found), tuple(differences)


def placed(rules: Sequence[Rule], fitted: ModelIdentity, subject: Subject) -> list[Rule]:
    """Return the rules at their sites' paths in a relative, and warn if its weights differ.

    Raises ModelMismatchError.
    """
    identity = subject.identity
    there, differences = _there(rules, fitted, subject, identity)
    if differences:
        warnings.warn(
            f"the weights of this {identity.model_class} are not those the Steering was fitted on "
            f"({'; '.join(differences)}): it fits by shape, but its strength and selectivity were not measured here; "
            f"{subject.measured_by}",
            DsasWarning,
            stacklevel=4,
        )
    return there


def verdict_of(sites: Sequence[PortedSite]) -> str:
    """Return the verdict over the sites that were steered."""
    hold = sum(site.weight > 0 for site in sites)
    return VERDICTS[0 if hold == len(sites) else 1 if 2 * hold >= len(sites) else 2]


def _there(
    rules: Sequence[Rule], fitted: ModelIdentity, subject: Subject, identity: ModelIdentity
) -> tuple[list[Rule], list[str]]:
    """Return the rules at their paths in a relative, and how it differs (nothing for the same model)."""
    try:
        relation = fitted.compare(identity)
    except ModelMismatchError as error:
        inside = _inside(fitted, subject)
        if not inside:
            raise
        raise ModelMismatchError(f"{error}, or give the {fitted.model_class} that is in it as .{inside}") from error
    there = fitted.sites_in(subject.module, [rule.site for rule in rules])
    known = fitted.differences(identity, subject.module) if relation == "relative" else []
    differences = known or (["their values differ"] if relation == "relative" else [])
    return [rule._replace(site=site) for rule, site in zip(rules, there, strict=True)], differences


def _inside(fitted: ModelIdentity, subject: Subject) -> str:
    """Return the path of a model of the fitted kind inside a module of the user's own; empty where there is none."""
    for path, one in subject.module.named_modules():
        if path and fitted.width and class_name(one) == fitted.model_class:
            with suppress(ModelMismatchError):
                fitted.compare(ModelIdentity.of(one))
                return path
    return ""


def _scored(
    subject: Subject, examples: Examples, rules: Sequence[Rule], texts: dict[str, list[Content]]
) -> list[dict[str, np.ndarray]]:
    """Return, for each rule that steers, the score of every text of each set."""
    asked = only_asked(rules)
    everything = [text for own in texts.values() for text in own]
    names, scores = labels([rule.site for rule in asked]), np.zeros((len(asked), len(everything)))
    applied = Applied(asked, subject, 1.0, ApplyOptions())
    with torch.no_grad(), evaluation_mode(subject.module), applied:
        for batch in examples.batches(everything, range(len(everything)), examples.batch_size):
            examples.run(batch)
            trace = applied.trace()
            for place, row in enumerate(batch.rows):
                values = trace.strengths[:, place, trace.real[place]]
                counts = examples.counted(batch)[place][examples.real(batch)[place]]
                scores[:, row] = _mean(values[:, -len(counts) :], counts).double().numpy()
            for number, rule in enumerate(asked):
                for call in trace.outside.get(names[number], ())[-1:]:  # in an encoder, whose tokens are others
                    counts = examples.counted_at(batch, rule.site, call.real.shape[1])
                    if counts.shape == call.real.shape:  # a tower's rows are pictures, not texts
                        pairs = zip(batch.rows, call.strengths, counts & call.real, strict=True)
                        for row, values, own in pairs:
                            scores[number, row] = float(_mean(values[None], own))
    ends = np.cumsum([len(own) for own in texts.values()])[:-1]
    return [dict(zip(texts, np.split(row, ends), strict=True)) for row in scores]


def _ported(name: str, weight: float, scores: dict[str, np.ndarray], least: float) -> PortedSite:
    """Return the result for a site that was steered with `weight`, from its scores."""
    source, control = scores["source"], scores["control"]
    on_source, on_control = float(source.mean()), float(control.mean())
    if not np.ptp(np.concatenate([source, control])) > 0:  # or not a number
        return PortedSite(name, None, None, None, on_source, on_control, weight)
    higher = np.sign(source[:, None] - control[None]) / 2 + 0.5
    auroc = float(higher.mean())
    low, high = _interval(auroc, len(source), len(control))
    return PortedSite(name, auroc, low, high, on_source, on_control, weight if auroc >= least else 0.0)


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    """Return the mean over tokens that count, without the row's first, an attention sink, if there are others."""
    later = counts & (torch.arange(len(counts)) > 0)
    return values[:, later if later.any() else counts].mean(1)


def _interval(auroc: float, source: int, control: int) -> tuple[float, float]:
    """Return the values that differ from an AUROC by 1.96 of their own standard errors (Hanley and McNeil's)."""

    def far(value: float) -> bool:
        pairs = (source + control) / 2 - 1
        spread = value * (1 - value) / (source * control)
        spread *= 1 + pairs * ((1 - value) / (2 - value) + value / (1 + value))
        return abs(value - auroc) > 1.96 * math.sqrt(spread)

    ends = []
    for end in (0.0, 1.0):
        near = auroc
        for _ in range(50):
            middle = (near + end) / 2
            near, end = (near, middle) if far(middle) else (middle, end)
        ends.append(near)
    return ends[0], ends[1]
