"""Adding an objective takes one file: training by name, its options, the settings and the laws follow from it alone."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from makers import pretend_installed
from torch import Tensor

import dsas
from dsas.errors import OptionError
from dsas.fitting.collect import collect
from dsas.model.subject import subject_of
from dsas.testing import check_steering, tiny_model, tiny_tokenizer
from dsas.training.objectives import objective_named

FILE = '''
"""Mean matching: at every site the mean of the steered source becomes that of the target."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch

import dsas
from dsas.training.learning import identity_rule


class MeanLearner(dsas.Learner):
    """Compares the means of all source texts, which one batch holds."""

    def __init__(self, task, weight):
        super().__init__(task.work, task.rules, task.target, task.plan, task.ranks)
        self.weight, self.goals = weight, [t.mean(0) for t in task.target]
        self.source, self.held = (task.batches(task.texts[name]) for name in ("source", "held_source"))

    def gradient(self, number=0):
        self.descent.optimiser.zero_grad(set_to_none=True)
        loss, seen = self.loss(self.source)
        loss.backward()
        return dsas.Gradient(float(loss.detach()), 0.0, float(loss.detach()), self.dead(seen))

    @torch.no_grad()
    def look(self):
        return {"held_loss": float(self.loss(self.held)[0])}

    def loss(self, batches):
        (seen,) = [self.passes.pooled(batch) for batch in batches]
        terms = [(one.value.mean(0) - goal).square().mean() for one, goal in zip(seen, self.goals)]
        return self.weight * torch.stack(terms).sum(), [seen]


@final
@dataclass(frozen=True, kw_only=True)
class MeanMatching(dsas.Objective):
    """Brings the means together."""

    name: ClassVar[str] = "toy-means"
    paired: ClassVar[bool] = False
    reads_logits: ClassVar[bool] = False

    weight: float = 1.0

    def __post_init__(self):
        self.require(self.weight > 0, "weight > 0")

    @property
    def needs_control(self):
        return False

    def first_rule(self, site, sets, start):
        return identity_rule(site, sets["source"].shape[1], dsas.Constant())

    def learned(self, rules):
        return dsas.LearnedParts(regulators=False, vectors=False)

    def learner(self, task):
        return MeanLearner(task, self.weight)

    def finish(self, rules, sets):
        return list(rules)
'''
SOURCE, TARGET = ([f"{start} {n}" for n in range(8)] for start in ("SHUT UP", "thank you"))
SITE = "model.layers.1"


@pytest.fixture
def _written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "toy_objective.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    pretend_installed(monkeypatch, {"dsas.objectives": ["toy_objective:MeanMatching"]})
    yield
    sys.modules.pop("toy_objective", None)


def mean_at(model: torch.nn.Module, texts: list[str]) -> Tensor:
    subject = subject_of(model, tiny_tokenizer())
    (found,) = collect(subject.examples(), texts, range(8), subject.sites(SITE), progress=False).values()
    return found.mean((0, 1, 2))


@pytest.mark.usefixtures("_written")
def test_one_file_makes_an_objective_that_is_trained_by_name_to_its_effect_and_is_lawful(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(layers=2), tiny_tokenizer()
    steering = dsas.train(
        model, tokenizer, source=SOURCE, target=TARGET, objective="toy-means", sites=SITE, steps=60,
        optimiser=dsas.Optimiser(rate=0.05), checkpoint=tmp_path / "log", running=dsas.Running(progress=False),
    )  # fmt: skip
    goal, before = mean_at(model, TARGET), mean_at(model, SOURCE)
    with steering.apply(model):
        after = mean_at(model, SOURCE)
    assert (after - goal).norm() < 0.2 * (before - goal).norm()
    check_steering(steering, model, tokenizer)
    assert steering.settings["fitted"] == "end to end: toy-means"
    assert steering.settings["training"]["weight"] == 1.0
    steering.save_pretrained(tmp_path / "kept")
    assert dsas.Steering.from_pretrained(tmp_path / "kept").digest() == steering.digest()


@pytest.mark.usefixtures("_written")
def test_its_options_are_taken_by_name_and_checked() -> None:
    assert objective_named("toy-means", {"weight": 2.0}).as_dict() == {"sparsity": 0.0, "weight": 2.0}
    with pytest.raises(OptionError, match="objective 'toy-means' has no option 'weigth'; closest: 'weight'"):
        objective_named("toy-means", {"weigth": 2.0})
    with pytest.raises(OptionError, match=r"expected weight > 0, got MeanMatching.*weight=0.0"):
        objective_named("toy-means", {"weight": 0.0})


def test_without_the_file_the_name_means_nothing() -> None:
    assert "toy-means" not in dsas.OBJECTIVES
