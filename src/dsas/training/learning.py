"""Learning: rules whose vectors can be learned, their starting points, and their copies.

A rule that is learned is an ordinary rule: a `Lineas` whose slope and offset are float32 leaves with gradients (or,
where no activations are matched, an addition whose vector is one), and where regulators are learned a `Logistic`,
`Rectified`, `Probe` or `Evidence` whose theta and bias are such leaves as well, alone or in a product. So training runs
the same code as applying, and its result needs no conversion.

Two traps. At the identity map (slope 1, offset 0) a regulator's gradient is exactly 0, because it multiplies an edit
of 0: the transform moves first, and the regulator from the second step on. A rectifier that is 0 on every source token
has no gradient and never gets one: every start here is above 0 on the source, and any other is refused.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from dsas.errors import OptionError
from dsas.model.sites import Site
from dsas.regulators.base import Regulator
from dsas.regulators.constant import Constant
from dsas.regulators.evidence import Evidence
from dsas.regulators.logistic import Logistic
from dsas.regulators.probe import Probe
from dsas.regulators.product import Product
from dsas.regulators.rectified import Rectified
from dsas.regulators.schedule import Schedule
from dsas.runtime.rule import Rule
from dsas.transforms.affine import Translation
from dsas.transforms.base import Transform
from dsas.transforms.lineas import Lineas

LearnedForm = Literal["sigmoid", "relu"]
LEARNED_FORMS: dict[str, type[Logistic] | type[Rectified]] = {"sigmoid": Logistic, "relu": Rectified}
LEARNED = (Logistic, Rectified, Probe, Evidence)  # regulators whose theta and bias can be learned
IN_TRAINING = (Evidence, Schedule)  # regulators that read the forward pass, and can do so in training
SCRATCH = {"sigmoid": 0.0, "relu": 0.5}  # the bias at theta = 0: both regulators are then 1/2 everywhere


Method = TypeVar("Method", Transform, Regulator)


class LearnedParts(NamedTuple):
    """Which parts of rules are learned.

    regulators: whether theta and bias of the types in `LEARNED` are. vectors: whether transforms that add a vector are,
    besides `Lineas`.
    """

    regulators: bool
    vectors: bool


def half_everywhere(form: LearnedForm, dim: int) -> Logistic | Rectified:
    """Return a regulator of 1/2 everywhere, which learns as soon as the transform is not the identity."""
    return LEARNED_FORMS[form](torch.zeros(dim), torch.tensor(SCRATCH[form]))


def learnable(rule: Rule, device: torch.device, parts: LearnedParts) -> Rule:
    """Return a copy of a rule on `device` whose transform, and regulator if that is one of the parts, can be learned.

    A transform that adds a vector stays one with `parts.vectors`, and becomes the `Lineas` that it is otherwise: slope
    1, and the vector as offset. Of a product, the factors that can be learned are, and the others, such as a schedule,
    stay. Raises OptionError for any other transform but `Lineas`, and for a regulator that is to be learned and has no
    part among `LEARNED`.
    """
    transform, factors = rule.transform, _factors(rule.regulator)
    if parts.vectors and isinstance(transform, Translation):
        line = type(transform)(_leaf(transform.vector, device))
    elif isinstance(transform, Translation):
        line = Lineas(_leaf(torch.ones_like(transform.vector), device), _leaf(transform.vector, device))
    elif isinstance(transform, Lineas):
        line = Lineas(_leaf(transform.slope, device), _leaf(transform.offset, device))
    else:
        raise OptionError(
            f"training starts from 'lineas' transforms or additions of a vector, got {type(transform).__name__} at "
            f"{rule.site}: fit with transform='caa' or 'lineas', or begin without start"
        )
    if parts.regulators and not any(isinstance(one, LEARNED) for one in factors):
        names = ", ".join(repr(kind.name) for kind in LEARNED)
        raise OptionError(f"{_names(factors)} at {rule.site} cannot be learned; start from one of {names}")
    if unread := [one for one in factors if one.reads_forward_pass and not isinstance(one, IN_TRAINING)]:
        raise OptionError(f"{_names(unread)} at {rule.site} reads prompts, which training does not have")
    copies = [_copied(one, device, learned=parts.regulators) for one in factors]
    return rule._replace(transform=line, regulator=copies[0] if len(copies) == 1 else Product(copies))


def fixed(regulator: Regulator) -> bool:
    """Return whether nothing of a regulator can be learned because it is constant, or so within a schedule."""
    return all(isinstance(one, Constant | Schedule) for one in _factors(regulator))


def _factors(regulator: Regulator) -> list[Regulator]:
    if not isinstance(regulator, Product):
        return [regulator]
    return [one for factor in regulator.factors if isinstance(factor, Regulator) for one in _factors(factor)]


def _names(regulators: Sequence[Regulator]) -> str:
    return " x ".join(type(one).__name__ for one in regulators)


def _copied(regulator: Regulator, device: torch.device, *, learned: bool) -> Regulator:
    kept = copy.deepcopy(regulator).to(device)
    if not learned or not isinstance(regulator, LEARNED):
        return kept
    leaves: dict[str, Any] = {key: _leaf(getattr(regulator, key), device) for key in ("theta", "bias")}
    return type(regulator)(**{**kept.arguments(), **leaves})


def identity_rule(site: Site, dim: int, regulator: Regulator) -> Rule:
    """Return a rule for activations of `dim` neurons whose transform changes nothing."""
    return Rule(site, Lineas(torch.ones(dim), torch.zeros(dim)), regulator)


def regulated_rule(form: LearnedForm, site: Site, sets: Mapping[str, Tensor], *, scratch: bool) -> Rule:
    """Return the identity with a regulator of form `form`: fitted on the pooled `sets`, or 1/2 everywhere."""
    dim = sets["source"].shape[1]
    if scratch:
        return identity_rule(site, dim, half_everywhere(form, dim))
    with threadpool_limits(1, user_api="blas"):
        return identity_rule(
            site, dim, LEARNED_FORMS[form].fit(sets["source"], sets["control"], sets["target"]).regulator
        )


def leaves(rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Return everything that is learned, by name: "0.transform.slope" to "n.regulator.bias"."""
    found = {}
    for number, rule in enumerate(rules):
        for part, method in (("transform", rule.transform), ("regulator", rule.regulator)):
            named = method.named_buffers()
            found |= {f"{number}.{part}.{name}": value for name, value in named if value.requires_grad}
    return found


def settled(rules: Sequence[Rule], values: dict[str, Tensor]) -> list[Rule]:
    """Return ordinary rules on the CPU with the learned `values`; nothing is shared."""
    return [
        rule._replace(
            transform=_settled(rule.transform, f"{number}.transform", values),
            regulator=_settled(rule.regulator, f"{number}.regulator", values),
        )
        for number, rule in enumerate(rules)
    ]


def _settled(method: Method, path: str, values: Mapping[str, Tensor]) -> Method:
    if isinstance(method, Product):
        own = enumerate(_factors(method))
        return type(method)([_settled(factor, f"{path}.factors.{place}", values) for place, factor in own])
    arguments = {
        key: values.get(f"{path}.{key}", value).detach().cpu().clone() if isinstance(value, Tensor) else value
        for key, value in method.arguments().items()
    }
    return type(method)(**arguments)


def support(rules: Sequence[Rule]) -> int:
    """Return how many neurons have slope != 1 or an offset != 0, over all sites."""
    return sum(_changed(rule.transform) for rule in rules)


def _changed(transform: Transform) -> int:
    if isinstance(transform, Translation):
        return int((transform.vector != 0).sum())
    line = transform.get_buffer("slope"), transform.get_buffer("offset")
    return int(((line[0] != 1) | (line[1] != 0)).sum())


def _leaf(value: Tensor, device: torch.device) -> Tensor:
    dtype = torch.promote_types(value.dtype, torch.float32)
    return value.detach().to(device, dtype, copy=True).requires_grad_()
