"""E2E-DSAS: transforms and regulators of all sites are learned together, and control texts are kept as they are.

    loss  =  transport + control_weight * control                                       as in `dsas.training.terms`

Source: E2E-DSAS (arXiv 2512.03661), with the transport term of LinEAS (arXiv 2503.10679).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from dsas.model.sites import Site
from dsas.runtime.rule import Rule
from dsas.training.learner import Learner
from dsas.training.learning import LEARNED_FORMS, LearnedForm, LearnedParts, regulated_rule
from dsas.training.objectives.base import Objective, RegulatorStart, TrainingTask
from dsas.training.trainer import Trainer, data_of


@final
@dataclass(frozen=True, kw_only=True)
class E2E(Objective):
    """Transports the source to the target and learns when to act.

    regulator_form: form of the regulators, "sigmoid" (`Logistic`) or "relu" (`Rectified`, which is exactly 0 off the
    concept). control_weight: weight >= 0 of the control term, relative to the transport term, which is a sum over
    source texts.
    """

    name: ClassVar[str] = "e2e-dsas"
    paired: ClassVar[bool] = False
    reads_logits: ClassVar[bool] = False

    regulator_form: LearnedForm = "sigmoid"
    control_weight: float = 0.3

    def __post_init__(self) -> None:
        known = self.regulator_form in LEARNED_FORMS and self.control_weight >= 0 and self.sparsity >= 0
        self.require(known, f"regulator_form one of {tuple(LEARNED_FORMS)}, control_weight >= 0 and sparsity >= 0")

    @property
    def needs_control(self) -> bool:
        """Always: regulators are learned, and control texts are kept as they are."""
        return True

    def first_rule(self, site: Site, sets: Mapping[str, Tensor], start: RegulatorStart) -> Rule:
        """Return the identity with a regulator of the form that is learned."""
        return regulated_rule(self.regulator_form, site, sets, scratch=start == "scratch")

    def learned(self, rules: Sequence[Rule]) -> LearnedParts:
        """Regulators are learned, and `Lineas` transforms."""
        return LearnedParts(regulators=True, vectors=False)

    def learner(self, task: TrainingTask) -> Learner:
        """Return the learner that compares activations, with the control term."""
        data = data_of(task.texts, task.target, task.batches)
        return Trainer(task.work, task.rules, data, task.plan, task.ranks, control_weight=self.control_weight)

    def finish(self, rules: Sequence[Rule], sets: Mapping[str, Mapping[Site, Tensor]]) -> list[Rule]:
        """Return the learned rules unchanged."""
        return list(rules)
