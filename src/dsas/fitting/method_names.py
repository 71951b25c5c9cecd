"""Methods by name: what a user may give as transform and regulator, turned into the function that fits one site.

"caa"                                        a name of the registry
"logistic*posterior"                         a product of regulators by name
dsas.Custom(function), dsas.Constant(0.5)    an object, used as it is at every site
functools.partial(dsas.Logistic.fit, ...)    any function with the signature of `fit`
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from dsas.errors import OptionError
from dsas.methods.moments import Moments
from dsas.regulators import REGULATORS, factors_of
from dsas.regulators.base import FittedRegulator, Regulator
from dsas.regulators.product import Product
from dsas.transforms import TRANSFORMS
from dsas.transforms.base import Transform

FitTransform = Callable[[Tensor, Tensor], Transform]
FitMoments = Callable[[Moments, Moments], Transform | None]
FitRegulator = Callable[..., FittedRegulator]


def transform_fit(transform: str | Transform | FitTransform) -> FitTransform:
    """Return the requested function (source, target) -> Transform. Raises OptionError for an unknown name."""
    if isinstance(transform, Transform):
        return lambda _source, _target: transform
    if isinstance(transform, nn.Module):
        raise OptionError(f"got a bare {type(transform).__name__}; wrap it as dsas.Custom(module)")
    if callable(transform):
        return transform
    TRANSFORMS.check(transform)
    return TRANSFORMS[transform].fit


def moments_fit(transform: FitTransform) -> FitMoments | None:
    """Return how a transform is made from moments, with the same options; None if its own class does not say."""
    options: dict[str, Any] = {}
    while isinstance(transform, partial):
        if transform.args:
            return None
        options, transform = {**transform.keywords, **options}, transform.func
    of = getattr(transform, "__self__", None)
    if isinstance(of, type) and issubclass(of, Transform) and transform == of.fit and "fit_moments" in vars(of):
        return partial(of.fit_moments, **options)
    return None


def regulator_fit(regulator: str | Regulator | FitRegulator) -> FitRegulator:
    """Return the requested function (source, control, target) -> FittedRegulator. Raises OptionError."""
    if isinstance(regulator, Regulator):
        return lambda _source, _control, _target: FittedRegulator(regulator, None)
    if isinstance(regulator, nn.Module):
        raise OptionError(f"a {type(regulator).__name__} is not a regulator: make it a subclass of dsas.Regulator")
    if callable(regulator):
        return regulator
    kinds = [REGULATORS[name] for name in factors_of(regulator)]
    return kinds[0].fit if len(kinds) == 1 else partial(Product.fit, of=kinds)


def takes_groups(fit: FitRegulator) -> bool:
    """Whether a regulator can learn from single tokens or positions, with `groups` saying which text each is from."""
    try:
        parameters = inspect.signature(fit).parameters.values()
    except ValueError:  # written in C, without a signature
        return False
    return any(one.name == "groups" or one.kind is one.VAR_KEYWORD for one in parameters)


def takes_pairs(fit: FitTransform) -> bool:
    """Whether a transform reads source[i] and target[i] as one example with and without the behaviour."""
    while isinstance(fit, partial):
        fit = fit.func
    return bool(getattr(getattr(fit, "__self__", None), "pairs", False))
