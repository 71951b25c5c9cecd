"""Methods by name: what a user may write for transform and regulator, as the function that fits it at one site.

"caa"                                        a name of the registry
"logistic*posterior"                         a product of regulators by name
dsas.Custom(function), dsas.Constant(0.5)    an object, used as it is at every site
functools.partial(dsas.Logistic.fit, ...)    any function with the signature of `fit`
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from dsas.errors import OptionError, closest
from dsas.regulators import REGULATORS, FittedRegulator, PerStep, Product, Regulator
from dsas.transforms import TRANSFORMS, Transform

FitTransform = Callable[[Tensor, Tensor], Transform]
FitRegulator = Callable[..., FittedRegulator]


def transform_fit(transform: str | Transform | FitTransform) -> FitTransform:
    """Return the function (source, target) -> Transform that is meant. Raises OptionError for an unknown name."""
    if isinstance(transform, Transform):
        return lambda _source, _target: transform
    if isinstance(transform, nn.Module):
        raise OptionError(f"a {type(transform).__name__} is no transform yet: give dsas.Custom(module)")
    return transform if callable(transform) else _named(transform, TRANSFORMS, "transform").fit


def regulator_fit(regulator: str | Regulator | FitRegulator) -> FitRegulator:
    """Return the function (source, control, target) -> FittedRegulator that is meant. Raises OptionError."""
    if isinstance(regulator, Regulator):
        return lambda _source, _control, _target: FittedRegulator(regulator, None)
    if isinstance(regulator, nn.Module):
        raise OptionError(f"a {type(regulator).__name__} is no regulator: make it a subclass of dsas.Regulator")
    if callable(regulator):
        return regulator
    names = [name.strip() for name in regulator.split("*")]
    kinds = [_named(name, REGULATORS, "regulator") for name in names]
    if Product in kinds:
        raise OptionError("write a product as the names of its factors, such as 'logistic*posterior'")
    if PerStep in kinds:
        raise OptionError("regulators a denoising step are asked for by dsas.Drawing(per_step=True), of any name")
    return kinds[0].fit if len(kinds) == 1 else partial(Product.fit, of=kinds)


def _named(name: str, registry: Mapping[str, Any], kind: str) -> Any:
    if name not in registry:
        raise OptionError(f"unknown {kind} {name!r}; closest: {closest(name, registry)}")
    return registry[name]


def methods_table() -> str:
    """Return the Markdown table of all methods, as docs/methods.md has it."""
    lines = []
    for title, registry in (("Transforms: how", TRANSFORMS), ("Regulators: when", REGULATORS)):
        lines += [f"## {title}", "", "| name | class | formula | paper | left out | FLOPs a token |"]
        lines += ["|---|---|---|---|---|---|"]
        for name, method in registry.items():
            facts = method.facts
            cells = (f"`{name}`", f"`{method.__name__}`", facts.formula, facts.paper, facts.left_out, facts.flops)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)
