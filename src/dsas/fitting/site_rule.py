"""Recipe: how what was read at one site becomes its rule, and which sites are steered.

Of pictures there may be more to read than one vector a prompt: one a denoising step, from which each step gets a
regulator of its own; and single positions, from which the transform learns, and regulators whose fit takes groups.
"""

import warnings
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsas.errors import DsasWarning, OptionError
from dsas.fitting.collect import LabelledTokens
from dsas.fitting.method_names import FitRegulator, FitTransform
from dsas.methods.linear_boundary import Labelled, held_out_accuracy, separate
from dsas.model.sites import Site
from dsas.regulators.base import FittedRegulator
from dsas.regulators.perstep import PerStep
from dsas.regulators.product import Product
from dsas.runtime.rule import Rule

Selection = Literal["threshold", "smooth", "top", "all"]


class Choice(NamedTuple):
    """Which sites are steered."""

    selection: Selection
    threshold: float
    top: int

    def check(self) -> None:
        """Raise OptionError for a value out of range."""
        if self.selection not in get_args(Selection) or not 0 <= self.threshold <= 1 or self.top < 1:
            raise OptionError(
                f"selection must be one of {get_args(Selection)}, threshold from 0 to 1 and top >= 1, "
                f"got {self.selection!r}, {self.threshold}, {self.top}"
            )

    def said(self) -> str:
        """Return how a Steering's settings tell it."""
        value = {"threshold": f" {self.threshold}", "top": f" {self.top}"}
        return self.selection + value.get(self.selection, "")

    def weight(self, accuracy: float | None) -> float:
        """Return the weight of a site by its held-out accuracy, as far as it depends on this site alone."""
        if accuracy is None or self.selection in ("all", "top"):
            return 1.0
        if self.selection == "smooth":
            return max(0.0, 2 * accuracy - 1)
        return 1.0 if accuracy >= self.threshold else 0.0

    def of(self, rules: list[Rule]) -> list[Rule]:
        """Return the rules with the weights that need all of them to be known; warn when nothing is left."""
        if self.selection == "top":
            best = sorted(range(len(rules)), key=lambda number: -(rules[number].accuracy or 0.0))[: self.top]
            rules = [rule._replace(weight=float(number in best)) for number, rule in enumerate(rules)]
        if not any(rule.weight for rule in rules):
            best = max(rule.accuracy or 0.0 for rule in rules)
            warnings.warn(
                f"no site tells source from control well enough (best held-out accuracy {best:.2f}, threshold "
                f"{self.threshold}): nothing will be steered; give more texts, other sites, or selection='smooth'",
                DsasWarning,
                stacklevel=3,
            )
        return rules


class SiteData(NamedTuple):
    """What one site is fitted on: pooled vectors (text, dim), and labelled tokens where the source has spans.

    samples: what the transform learns from instead of source and target; the tokens are then those of pictures, and a
    regulator that cannot learn from them learns from the pooled vectors. steps: the same at each denoising step.
    """

    site: Site
    source: Float[Tensor, "text dim"]
    control: Float[Tensor, "text2 dim"]
    target: Float[Tensor, "text3 dim"]
    tokens: LabelledTokens | None = None
    samples: tuple[Tensor, Tensor] | None = None
    steps: tuple["SiteData", ...] = ()


class Recipe(NamedTuple):
    """How one site becomes a rule."""

    transform: FitTransform
    regulator: FitRegulator
    choice: Choice

    def rule(self, data: SiteData) -> Rule:
        """Fit regulator and transform at one site."""
        each = [self._regulated(one) for one in data.steps or (data,)]
        fitted = PerStep.joined(each) if data.steps else each[0]
        accuracy = fitted.accuracy
        if accuracy is None and self.choice.selection == "top":
            draw = partial(separate, components=5)
            accuracy = held_out_accuracy(Labelled.of(data.source, data.control), draw)
        weight = self.choice.weight(accuracy)
        moved = self.transform(*(data.samples or (data.source, data.target)))
        return Rule(data.site, moved, fitted.regulator, weight, accuracy)

    def _regulated(self, data: SiteData) -> FittedRegulator:
        if data.tokens is None:
            return self.regulator(data.source, data.control, data.target)
        vectors, shown, texts = data.tokens.vectors[data.site], data.tokens.shown, data.tokens.texts
        try:
            return self.regulator(
                vectors[shown], vectors[~shown], data.target, groups=torch.cat([texts[shown], texts[~shown]])
            )
        except TypeError as error:
            if "groups" not in str(error):
                raise
            if data.samples is not None:
                return self.regulator(data.source, data.control, data.target)
            raise OptionError(
                "this regulator cannot learn from spans, since its fit takes no groups; use 'logistic'"
            ) from error


def said(regulator: nn.Module) -> str:
    """Return what a regulator is called: its name, or those of its factors."""
    if isinstance(regulator, PerStep):
        return f"{said(regulator.regulators[0])} a step"
    factors = list(regulator.factors) if isinstance(regulator, Product) else [regulator]
    return "*".join(str(getattr(factor, "name", type(factor).__name__)) for factor in factors)
