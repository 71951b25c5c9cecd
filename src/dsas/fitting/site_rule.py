"""Site rule: how the activations of one site become its rule.

A pipeline gives more than one vector per prompt: one per denoising step, from which each step gets a regulator of its
own; and single positions, for the transform and for regulators whose fit takes groups.
"""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsas.errors import DsasWarning, OptionError
from dsas.fitting.method_names import FitRegulator, FitTransform, moments_fit, takes_groups
from dsas.fitting.selection import Selection
from dsas.methods.linear_boundary import Labelled, held_out_accuracy, separate
from dsas.methods.moments import Moments
from dsas.model.labelled_tokens import LabelledTokens
from dsas.model.sites import Site
from dsas.regulators.base import FittedRegulator, TunableRegulator, Untuned
from dsas.regulators.perstep import PerStep
from dsas.regulators.product import Product
from dsas.runtime.rule import Rule
from dsas.transforms.base import Transform


class SiteData(NamedTuple):
    """What one site is fitted on: pooled vectors (text, dim), and labelled tokens where the source has spans.

    samples: what the transform learns from instead of source and target; the tokens are then those of pictures, and a
    regulator that cannot learn from them learns from the pooled vectors. steps: the same at each denoising step.
    moments: those of all source and target examples, where these are only some of them.
    """

    site: Site
    source: Float[Tensor, "text dim"]
    control: Float[Tensor, "text2 dim"]
    target: Float[Tensor, "text3 dim"]
    tokens: LabelledTokens | None = None
    samples: tuple[Tensor, Tensor] | None = None
    steps: tuple["SiteData", ...] = ()
    moments: tuple[Moments, Moments] | None = None


class SiteFit(NamedTuple):
    """A site's rule, and what its regulator still needs from single tokens; None when it is final.

    of_moments: whether the transform was made from moments.
    """

    rule: Rule
    untuned: Untuned | None
    of_moments: bool


class Recipe(NamedTuple):
    """How one site becomes a rule; its weight is what the selection gives it when it sees this site alone."""

    transform: FitTransform
    regulator: FitRegulator
    selection: Selection

    def fitted(self, data: SiteData) -> SiteFit:
        """Fit regulator and transform at one site."""
        each = [self._regulated(one) for one in data.steps or (data,)]
        fitted = PerStep.joined(each) if data.steps else each[0]
        accuracy = fitted.accuracy
        if accuracy is None and self.selection.needs_accuracy:
            draw = partial(separate, components=5)
            accuracy = held_out_accuracy(Labelled.of(data.source, data.control), draw)
        (weight,) = self.selection.weights([accuracy])
        whole = self._of_moments(data)
        moved = self.transform(*(data.samples or (data.source, data.target))) if whole is None else whole
        untuned = fitted.untuned if isinstance(fitted, TunableRegulator) else None
        return SiteFit(Rule(data.site, moved, fitted.regulator, weight, accuracy), untuned, whole is not None)

    def _of_moments(self, data: SiteData) -> Transform | None:
        """Return the transform made from the moments of all examples; None where it takes samples, or has them all."""
        of = None if data.moments is None else moments_fit(self.transform)
        return None if of is None or data.moments is None else of(*data.moments)

    def _regulated(self, data: SiteData) -> FittedRegulator:
        grouped = takes_groups(self.regulator)
        if data.tokens is None or (data.samples is not None and not grouped):
            return self.regulator(data.source, data.control, data.target)
        if not grouped:
            raise OptionError(
                "this regulator cannot learn from spans, since its fit takes no groups; use 'logistic', 'evidence' or "
                "'probe'"
            )
        vectors, shown, texts = data.tokens.vectors[data.site], data.tokens.shown, data.tokens.texts
        groups = torch.cat([texts[shown], texts[~shown]])
        return self.regulator(vectors[shown], vectors[~shown], data.target, groups=groups)


def select(rules: Sequence[Rule], selection: Selection) -> list[Rule]:
    """Return the rules with the weights that a selection gives them; warn when no site is left."""
    weights = selection.weights([rule.accuracy for rule in rules])
    if not any(weights):
        best = max(rule.accuracy or 0.0 for rule in rules)
        warnings.warn(
            f"no site tells source from control well enough (best held-out accuracy {best:.2f}, selection "
            f"{selection.describe()!r}): nothing will be steered; give more examples, other sites, or "
            "selection='smooth'",
            DsasWarning,
            stacklevel=3,
        )
    return [rule._replace(weight=weight) for rule, weight in zip(rules, weights, strict=True)]


def describe(regulator: nn.Module) -> str:
    """Return the name of a regulator, or those of its factors."""
    if isinstance(regulator, PerStep):
        return f"{describe(regulator.regulators[0])} a step"
    factors = list(regulator.factors) if isinstance(regulator, Product) else [regulator]
    return "*".join(str(getattr(factor, "name", type(factor).__name__)) for factor in factors)
