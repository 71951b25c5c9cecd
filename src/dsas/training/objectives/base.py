"""The contract of an objective: what training minimises, what it learns for that, and from which texts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal, NamedTuple, final

from torch import Tensor

from dsas.errors import OptionError
from dsas.files.json_values import JsonObject
from dsas.model.conversation import Content
from dsas.model.examples import Given
from dsas.model.foreign import Foreign
from dsas.model.sites import Site
from dsas.model.subject import Examples
from dsas.runtime.rule import Rule
from dsas.training.answering import Answering
from dsas.training.learner import Learner
from dsas.training.learning import LearnedParts
from dsas.training.passes import Work
from dsas.training.plan import Plan
from dsas.training.ranks import Ranks

RegulatorStart = Literal["fitted", "scratch"]


class TrainingTask(NamedTuple):
    """The ingredients of a learner.

    rules: those to learn, with leaves that take gradients. texts: by set, "source", "control" and "target", and the
    parts of them that are held out, "held_source", "held_control" and, of pairs, "held_target". target: for each rule
    the pooled target activations of its site, (sample, dim), of the unsteered model. batches: makes micro-batches of
    texts as `work.run` takes them, small enough for every rank to get one. examples: how the subject reads texts.
    """

    work: Work
    rules: list[Rule]
    texts: Mapping[str, list[Content]]
    target: list[Tensor]
    plan: Plan
    ranks: Ranks
    batches: Callable[[list[Content]], list[Foreign]]
    examples: Examples


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """What `dsas.train` minimises.

    Contract: a subclass is final and a frozen dataclass. Its fields are its options, all JSON-ready and with defaults,
    so that `repr` rebuilds it; a value out of range raises OptionError when the object is made. `name` identifies it in
    the registry and on the command line. `paired` says that source[i] goes with target[i]; `reads_logits` that it reads
    logits, so that it needs a language model.

    sparsity: weight >= 0 of the sparse group lasso on the learned transforms; 0 is dense.
    """

    name: ClassVar[str]
    paired: ClassVar[bool]
    reads_logits: ClassVar[bool]

    sparsity: float = 0.0

    @property
    @abstractmethod
    def needs_control(self) -> bool:
        """Whether there must be control texts."""

    @abstractmethod
    def first_rule(self, site: Site, sets: Mapping[str, Tensor], start: RegulatorStart) -> Rule:
        """Return the rule that a site starts from when no Steering is given.

        sets: pooled activations (sample, dim) of "source", "target" and, where there are texts, "control".
        """

    @abstractmethod
    def learned(self, rules: Sequence[Rule]) -> LearnedParts:
        """Return which parts of these rules are learned. Raises OptionError for rules that it cannot start from."""

    @abstractmethod
    def learner(self, task: TrainingTask) -> Learner:
        """Return the learner, which computes the loss and its gradients; the caller closes it."""

    @abstractmethod
    def finish(self, rules: Sequence[Rule], sets: Mapping[str, Mapping[Site, Tensor]]) -> list[Rule]:
        """Return the rules of the Steering, given the learned ones and each set's pooled activations at every site."""

    @final
    def as_dict(self) -> JsonObject:
        """Return the options, JSON-ready."""
        return asdict(self)

    @final
    def require(self, holds: bool, expected: str) -> None:
        """Raise OptionError, with what was expected and what came, unless `holds`."""
        if not holds:
            raise OptionError(f"expected {expected}, got {self}")


class AsksFirst(Objective):
    """An objective that samples its own data: the source holds questions, which the model answers itself."""

    @abstractmethod
    def drawn(
        self, answering: Answering, source: Sequence[Given], control: Sequence[Given]
    ) -> dict[str, list[Content]]:
        """Return the sets to learn from, "source", "target" and "control", given questions and control."""
