"""LinEAS: transforms of all sites are learned together, so that the source gets the distribution of the target.

    loss  =  transport                                          as in `dsas.training.terms`; T(t) = w t + b at each site

Source: LinEAS (arXiv 2503.10679). Combining a regulator with the learned transforms is new here. Limitations: it does
not learn one site after another.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from threadpoolctl import threadpool_limits
from torch import Tensor

from dsas.errors import DsasWarning, OptionError
from dsas.fitting.method_names import regulator_fit
from dsas.model.sites import Site
from dsas.regulators.base import FittedRegulator
from dsas.regulators.constant import Constant
from dsas.runtime.rule import Rule
from dsas.training.learner import Learner
from dsas.training.learning import LearnedParts, identity_rule
from dsas.training.objectives.base import Objective, RegulatorStart, TrainingTask
from dsas.training.trainer import Trainer, data_of


@final
@dataclass(frozen=True, kw_only=True)
class LinEAS(Objective):
    """Transports the source to the target; a Steering to start from keeps its regulators.

    regulator: a name (see `dsas.fit`); it is fitted in closed form and combined with the transforms, which are learned
    without it, at sites where its accuracy is at least `threshold`, in [0, 1].
    """

    name: ClassVar[str] = "lineas"
    paired: ClassVar[bool] = False
    reads_logits: ClassVar[bool] = False

    regulator: str = "constant"
    threshold: float = 0.75

    def __post_init__(self) -> None:
        self.require(self.sparsity >= 0 and 0 <= self.threshold <= 1, "sparsity >= 0 and threshold from 0 to 1")
        regulator_fit(self.regulator)

    @property
    def needs_control(self) -> bool:
        """Whether a regulator is fitted."""
        return self.regulator != "constant"

    def first_rule(self, site: Site, sets: Mapping[str, Tensor], start: RegulatorStart) -> Rule:
        """Return the identity on every token."""
        return identity_rule(site, sets["source"].shape[1], Constant())

    def learned(self, rules: Sequence[Rule]) -> LearnedParts:
        """Only transforms are learned; a Steering to start from has no regulators if one is fitted."""
        own = [rule for rule in rules if not isinstance(rule.regulator, Constant)]
        if self.needs_control and own:
            raise OptionError(
                f"regulator={self.regulator!r} is combined with transforms that act on every token, but the Steering "
                f"to start from has a {type(own[0].regulator).__name__} at {own[0].site}: remove regulator= to keep it"
            )
        return LearnedParts(regulators=False, vectors=False)

    def learner(self, task: TrainingTask) -> Learner:
        """Return the learner that compares activations, without a control term."""
        return Trainer(task.work, task.rules, data_of(task.texts, task.target, task.batches), task.plan, task.ranks)

    def finish(self, rules: Sequence[Rule], sets: Mapping[str, Mapping[Site, Tensor]]) -> list[Rule]:
        """Return the learned rules with the fitted regulator, if one is asked for; warns when no site is steered."""
        if not self.needs_control:
            return list(rules)
        make, found = regulator_fit(self.regulator), []
        with threadpool_limits(1, user_api="blas"):
            for rule in rules:
                fitted: FittedRegulator = make(*(sets[name][rule.site] for name in ("source", "control", "target")))
                good = fitted.accuracy is None or fitted.accuracy >= self.threshold
                found.append(
                    rule._replace(regulator=fitted.regulator, accuracy=fitted.accuracy, weight=1.0 if good else 0.0)
                )
        if not any(rule.weight for rule in found):
            warnings.warn(f"no site reaches threshold={self.threshold}: nothing is steered", DsasWarning, stacklevel=4)
        return found
