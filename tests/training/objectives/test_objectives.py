"""Objectives: each by its name with its golden loss, options that are checked, and what they ask of sets and starts."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from makers import unchecked
from torch import Tensor, nn

import dsas
from dsas.errors import OptionError, TextsError
from dsas.model.rendering import Rendered
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.training.learning import learnable
from dsas.training.objectives import objective_named
from dsas.training.passes import Work
from dsas.training.plan import Plan
from dsas.training.ranks import ALONE

# What tests/golden/training_objective.py prints: the loss of every objective, with its defaults, on the small model.
LOSSES = {
    "lineas": 1.6166973217055858,
    "e2e-dsas": 1.818968243236292,
    "preference": 0.7077347949179635,
    "imitate": 0.14147311754183967,
}
TEXTS = {
    "source": ["0 1 2 3", "0 4 5", "6 1 1"],
    "target": ["0 1 5 5", "0 4 2 6", "6 3 0"],
    "control": ["2 2 6", "5 0 1 3"],
}


ANSWERED = {"source": ["6 | 1 2 3", "0 | 4 5"], "target": ["5 0 2 | 1 2 3", "4 | 4 5"], "control": TEXTS["control"]}


class Small(nn.Module):
    """Tokens to vectors, a site, and logits; all in float64."""

    def __init__(self) -> None:
        super().__init__()
        grid = torch.arange(21, dtype=torch.float64).reshape(7, 3)
        self.table, self.head = nn.Parameter(grid.sin()), nn.Parameter(grid.cos())
        self.site = nn.Identity()

    def forward(self, tokens: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.site(self.table[tokens]) @ self.head.T)


def rows(texts: list[str]) -> list[list[int]]:
    return [[int(token) for token in text.split() if token != "|"] for text in texts]


def rendered(text: str) -> Rendered:
    """What stands behind a bar is an answer."""
    (row,), before = rows([text]), len(text.partition("|")[0].split()) if "|" in text else 0
    return Rendered(row, [place >= before for place in range(len(row))], None, "|" in text)


class Reader:
    """What a learner asks of `Examples` here."""

    batch_size = 4

    def rows(self, texts: list[str]) -> list[Rendered]:
        return list(map(rendered, texts))

    def pad_token(self) -> int:
        return 0


def batches(texts: list[str]) -> list[Any]:
    """One text per batch."""
    return [
        SimpleNamespace(tokens=torch.tensor([row]), mask=torch.ones(1, len(row), dtype=torch.bool))
        for row in rows(texts)
    ]


def loss_of(objective: dsas.Objective) -> float:
    model, one = Small(), torch.arange(3, dtype=torch.float64)
    gate = dsas.Logistic((2 * one).cos(), torch.tensor(0.1, dtype=torch.float64))
    when = dsas.Constant() if objective.name == "lineas" else gate
    rule = dsas.Rule(dsas.Site("site"), dsas.Lineas(1 + 0.3 * one.sin(), 0.2 * one.cos()), when)
    work = Work(
        model,
        run=lambda batch: model(batch.tokens),
        real=lambda batch: batch.mask,
        counted=lambda batch: batch.mask,
        pool=lambda t, batch: (t * batch.mask.unsqueeze(-1)).sum(1) / batch.mask.sum(1, keepdim=True),
    )
    learned = [learnable(rule, torch.device("cpu"), objective.learned([rule]))]
    texts = ANSWERED if objective.name == "imitate" else TEXTS
    pooled = torch.cat([work.pool(model.table[batch.tokens], batch).detach() for batch in batches(texts["target"])])
    held = {"held_source": [], "held_control": [], "held_target": []}
    task = dsas.TrainingTask(work, learned, {**texts, **held}, [pooled], Plan(1), ALONE, batches, Reader())
    learner = objective.learner(task)
    try:
        return learner.gradient().loss
    finally:
        learner.close()


def test_every_objective_has_a_golden_loss() -> None:
    assert list(LOSSES) == list(dsas.OBJECTIVES)


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_an_objective_is_that_of_the_reference(name: str) -> None:
    assert loss_of(dsas.OBJECTIVES[name]()) == pytest.approx(LOSSES[name], rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_an_objective_is_rebuilt_by_its_repr_and_by_its_name_and_options(name: str) -> None:
    made = dsas.OBJECTIVES[name](sparsity=0.5)
    assert eval(repr(made), {kind.__name__: kind for kind in dsas.OBJECTIVES.values()}) == made
    assert objective_named(name, made.as_dict()) == made != dsas.OBJECTIVES[name]()


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (
            dsas.LinEAS,
            {"sparsity": float("nan")},
            "expected sparsity >= 0 and threshold from 0 to 1, got .*sparsity=nan",
        ),
        (dsas.LinEAS, {"threshold": 1.5}, "threshold from 0 to 1, got .*threshold=1.5"),
        (dsas.LinEAS, {"regulator": "logistics"}, "unknown regulator 'logistics'; closest: 'logistic'"),
        (
            dsas.E2E,
            {"regulator_form": "tanh"},
            r"regulator_form one of \('sigmoid', 'relu'\), .* got .*regulator_form='tanh'",
        ),
        (dsas.E2E, {"control_weight": -1.0}, "control_weight >= 0 .* got .*control_weight=-1.0"),
        (dsas.E2E, {"sparsity": -1.0}, "sparsity >= 0, got .*sparsity=-1.0"),
        (
            dsas.Imitate,
            {"regulator_form": "tanh"},
            r"regulator_form one of \('sigmoid', 'relu'\), .* got .*regulator_form='tanh'",
        ),
        (dsas.Imitate, {"control_weight": -1.0}, "control_weight >= 0, .* got .*control_weight=-1.0"),
        (dsas.Imitate, {"sparsity": -1.0}, "sparsity >= 0, .* got .*sparsity=-1.0"),
        (dsas.Imitate, {"new_tokens": 0}, "new_tokens >= 1 .* got .*new_tokens=0"),
        (dsas.Imitate, {"pairs_per_step": 0}, "pairs_per_step >= 1, got .*pairs_per_step=0"),
        (
            dsas.Preference,
            {"regulator_form": "tanh"},
            r"regulator_form one of \('sigmoid', 'relu'\), .* got .*regulator_form='tanh'",
        ),
        (dsas.Preference, {"control_weight": -1.0}, "control_weight >= 0, .* got .*control_weight=-1.0"),
        (dsas.Preference, {"sparsity": -1.0}, "sparsity >= 0, .* got .*sparsity=-1.0"),
        (dsas.Preference, {"beta": 0.0}, "beta > 0 .* got .*beta=0.0"),
        (dsas.Preference, {"pairs_per_step": 0}, "pairs_per_step >= 1, got .*pairs_per_step=0"),
    ],
)
def test_options_out_of_range_are_refused_when_the_objective_is_made(kind: Any, options: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        unchecked(kind.__init__)(object.__new__(kind), **options)


def test_a_name_or_an_option_that_is_unknown_is_answered_with_the_closest() -> None:
    with pytest.raises(OptionError, match="unknown objective 'preferences'; closest: 'preference'"):
        objective_named("preferences", {})
    with pytest.raises(
        OptionError, match="objective 'e2e-dsas' has no option 'control_wait'; closest: 'control_weight'"
    ):
        objective_named("e2e-dsas", {"control_wait": 1.0})


def test_a_regulator_that_is_fitted_needs_control_texts_and_a_start_without_regulators() -> None:
    sets = {"source": [f"SHUT UP {n}" for n in range(6)], "target": [f"thank you {n}" for n in range(6)]}
    given = {**sets, "steps": 1, "running": dsas.Running(progress=False), "sites": "residual"}
    control = [f"the door {n}" for n in range(6)]
    fitted = dsas.LinEAS(regulator="logistic", threshold=0.0)
    with pytest.raises(TextsError, match="control texts are needed"):
        dsas.train(tiny_model(layers=1), tiny_tokenizer(), **given, objective=fitted)
    gated = dsas.train(tiny_model(layers=1), tiny_tokenizer(), **given, control=control, objective="e2e-dsas")
    with pytest.raises(OptionError, match=r"start from has a Logistic at model.layers.0: remove regulator="):
        dsas.train(tiny_model(layers=1), tiny_tokenizer(), **given, control=control, objective=fitted, start=gated)
    plain = dsas.train(tiny_model(layers=1), tiny_tokenizer(), **given, objective="lineas")
    found = dsas.train(tiny_model(layers=1), tiny_tokenizer(), **given, control=control, objective=fitted, start=plain)
    assert [type(rule.regulator) for rule in found.rules] == [dsas.Logistic]
