"""The trainer on a model that is no language model: gradients, micro-batches, recovery, traps, resume, Ctrl-C."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import hooks_on
from torch import Tensor, nn

import dsas
from dsas.errors import DsasWarning, OptionError
from dsas.step import Step
from dsas.training.learning import learnable, scratch, settled, support
from dsas.training.loop import learn
from dsas.training.passes import Work
from dsas.training.records import Log
from dsas.training.trainer import Data, HeldOut, Objective, Optimiser, Plan, Trainer

DIM, SITES = 6, ("first", "second")
NOT_HELD = HeldOut(share=0.0)


class Two(nn.Module):
    """Two blocks over (batch, token, dim); each token mixes with its row's mean, so rows matter and batches do not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.after = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        x = torch.tanh(self.second(x + x.mean(1, keepdim=True)))
        raise AssertionError("the pass goes on after the last site")


def mean_of_real(t: Tensor, real: Tensor) -> Tensor:
    weights = real.to(t.dtype) / real.sum(-1, keepdim=True)
    return (weights.unsqueeze(-1) * t).sum(1)


def work_on(model: nn.Module) -> Work:
    return Work(model, run=lambda batch: model(batch[0]), real=lambda batch: batch[1], pool=mean_of_real)


def batch_of(rows: int, shift: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    real = torch.ones(rows, 4, dtype=torch.bool)
    real[::3, 2:] = False
    return torch.randn(rows, 4, DIM, dtype=dtype) + shift, real


def cut(batch: tuple[Tensor, Tensor], size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(batch[0].split(size), batch[1].split(size), strict=True))


def rules_of(dtype: torch.dtype, regulator: Any = None, *, moved: bool = True) -> list[dsas.Rule]:
    rules = []
    for site in SITES:
        line = 1 + 0.3 * moved * torch.randn(DIM), 0.3 * moved * torch.randn(DIM)
        when = regulator() if regulator else dsas.Logistic(torch.randn(DIM), torch.tensor(0.2))
        rule = dsas.Rule(dsas.Site(site), dsas.Lineas(*(x.to(dtype) for x in line)), when.to(dtype))
        rules.append(learnable(rule, torch.device("cpu"), regulator=not isinstance(when, dsas.Constant)))
    return rules


def trainer_of(
    *, size: int = 9, dtype: torch.dtype = torch.float64, rules: Any = None, gamma: float = 0.7, **plan: Any
) -> Trainer:
    torch.manual_seed(3)
    model = Two().to(dtype)
    source, control = batch_of(9, 0.5, dtype), batch_of(7, -0.5, dtype)
    held = batch_of(5, 0.5, dtype), batch_of(4, -0.5, dtype)
    target = [torch.randn(8, DIM, dtype=dtype) - 0.3 for _ in SITES]
    data = Data(cut(source, size), cut(control, size), target, [held[0]], [held[1]])
    settings = {"steps": 12, "optimiser": Optimiser("adam", 0.05, 0.05), "held_out": NOT_HELD, **plan}
    wanted = Objective(gamma, settings.pop("sparsity", 0.0))
    return Trainer(work_on(model), rules(dtype) if rules else rules_of(dtype), data, Plan(wanted, **settings))


@pytest.mark.parametrize("size", [9, 4])
def test_every_gradient_is_that_of_finite_differences_whether_the_batch_is_cut_or_not(size: int) -> None:
    trainer = trainer_of(size=size)

    def loss() -> float:
        found = trainer.gradient()
        return found.transport + 0.7 * found.control

    loss()
    slopes = {name: value.grad.clone() for name, value in trainer.leaves.items() if value.grad is not None}
    assert slopes.keys() == trainer.leaves.keys()
    for name, value in trainer.leaves.items():
        for place in range(value.numel()):
            entry = value.detach().view(-1)
            entry[place] += 1e-6
            above = loss()
            entry[place] -= 2e-6
            below = loss()
            entry[place] += 1e-6
            expected = (above - below) / 2e-6
            assert float(slopes[name].view(-1)[place]) == pytest.approx(expected, rel=1e-5, abs=1e-7), name


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_micro_batches_give_the_gradient_of_the_full_batch(size: int) -> None:
    whole, parts = trainer_of(size=9), trainer_of(size=size)
    terms = whole.gradient()[:2], parts.gradient()[:2]
    assert terms[1] == pytest.approx(terms[0], rel=1e-12)
    for name, value in whole.leaves.items():
        torch.testing.assert_close(parts.leaves[name].grad, value.grad, rtol=1e-10, atol=1e-13)


def test_the_held_out_terms_are_those_of_training_on_the_same_texts() -> None:
    trainer = trainer_of(held_out=HeldOut(0.2))
    held = trainer.look()
    trainer.data = trainer.data._replace(source=trainer.data.held_source, control=trainer.data.held_control)
    trainer._unsteered, trainer._goals = trainer._unsteered[1:], trainer._goals_for(5)
    found = trainer.gradient()
    assert held["held_transport"] == pytest.approx(found.transport * 9 / 5)
    assert held["held_control"] == pytest.approx(found.control)
    assert 0 <= held["separation"] <= 1


def test_a_known_map_of_every_neuron_is_recovered() -> None:
    torch.manual_seed(0)
    slope, offset = 0.5 + torch.rand(DIM), torch.randn(DIM)
    x = torch.randn(40, 1, DIM)
    model = Two()
    model.first.weight.data.copy_(torch.eye(DIM))
    model.first.bias.data.zero_()
    rule = dsas.Rule(dsas.Site("first"), dsas.Lineas(torch.ones(DIM), torch.zeros(DIM)), dsas.Constant())
    rules = [learnable(rule, torch.device("cpu"), regulator=False)]
    data = Data([(x, torch.ones(40, 1, dtype=torch.bool))], [], [slope * x[:, 0].flip(0) + offset])
    plan = Plan(Objective(), 300, Optimiser("adam", 0.1), NOT_HELD)
    trainer = Trainer(work_on(model), rules, data, plan)
    (found,) = settled(rules, learn(trainer, progress=False).values)
    torch.testing.assert_close(found.transform.get_buffer("slope"), slope, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.transform.get_buffer("offset"), offset, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("gate", ["sigmoid", "relu"])
def test_from_scratch_the_regulators_gradient_is_zero_at_first_and_not_after_one_step(gate: Any) -> None:
    def rules(dtype: torch.dtype) -> list[dsas.Rule]:
        return rules_of(dtype, lambda: scratch(gate, DIM), moved=False)

    trainer = trainer_of(rules=rules)
    trainer.step(0)
    theta = trainer.leaves["0.regulator.theta"]
    assert theta.grad is not None
    assert not theta.grad.any()
    trainer.step(1)
    assert theta.grad.any()
    assert theta.any()


def test_a_rectifier_that_is_dead_on_the_source_is_refused_before_anything_is_learned() -> None:
    def rules(dtype: torch.dtype) -> list[dsas.Rule]:
        return rules_of(dtype, lambda: dsas.Rectified(torch.zeros(DIM), torch.tensor(-0.1)))

    trainer = trainer_of(rules=rules)
    with pytest.raises(OptionError, match=r"is 0 on every source token, .* it can never learn: first, second; start"):
        trainer.step(0)


def test_the_closed_form_rectifier_is_alive_on_the_source_even_when_nothing_can_be_told_apart() -> None:
    same = torch.randn(8, DIM)
    alike = dsas.Rectified.fit(same, same, same).regulator
    apart = dsas.Rectified.fit(same + 1, same - 1, same).regulator
    step = Step(1, 8)
    assert float(alike(same.unsqueeze(0), step).max()) > 0
    assert float(apart((same + 1).unsqueeze(0), step).mean()) == pytest.approx(1, abs=1e-5)
    assert float(apart((same - 1).unsqueeze(0), step).mean()) < 0.2


def test_sgd_and_adam_both_lower_the_loss_and_their_rate_follows_a_cosine_to_its_floor() -> None:
    for name, rate in (("sgd", 0.05), ("adam", 0.05)):
        trainer = trainer_of(optimiser=Optimiser(name, rate, rate), steps=20)
        rows = learn(trainer, progress=False).rows
        assert rows[19].loss < 0.8 * rows[0].loss
        assert [rows[k].rate for k in (0, 10)] == pytest.approx([rate, rate * (1e-3 + (1 - 1e-3) / 2)])
        assert rows[-1].rate == pytest.approx(rate * 1e-3)


def test_the_first_step_of_sgd_is_the_rate_times_the_gradient() -> None:
    trainer = trainer_of(optimiser=Optimiser("sgd", 0.05, 0.01))
    before = trainer.state()
    trainer.gradient()
    slopes = {name: value.grad.clone() for name, value in trainer.leaves.items()}
    trainer.step(0)
    for name, value in trainer.leaves.items():
        rate = 0.05 if "transform" in name else 0.01
        torch.testing.assert_close(value.detach(), before[f"leaf {name}"] - rate * slopes[name])


def test_sparsity_keeps_neurons_at_exactly_the_identity_and_dense_moves_them_all() -> None:
    def rules(dtype: torch.dtype) -> list[dsas.Rule]:
        return rules_of(dtype, dsas.Constant, moved=False)

    counts = []
    for sparsity in (0.0, 0.5, 100.0):
        optimiser = Optimiser("sgd", 0.1)
        trainer = trainer_of(rules=rules, gamma=0.0, sparsity=sparsity, steps=30, optimiser=optimiser)
        counts.append(support(settled(trainer.rules, learn(trainer, progress=False).values)))
    assert counts[0] == 2 * DIM
    assert 0 < counts[1] < 2 * DIM
    assert counts[2] == 0


def test_the_weights_their_flags_and_the_hooks_are_as_they_were() -> None:
    trainer = trainer_of()
    model = trainer._work.model
    trainer.close()
    model.first.requires_grad_(False)  # pyright: ignore[reportCallIssue]
    trainer = Trainer(trainer._work, trainer.rules, trainer.data, trainer.plan)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    learn(trainer, progress=False)
    trainer.close()
    assert [parameter.requires_grad for parameter in model.parameters()] == [False] * 2 + [True] * 4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert hooks_on(model) == 0


class Cut(Exception):
    """Stands for whatever ends a process."""


def cut_at(trainer: Trainer, number: int, error: type[BaseException]) -> None:
    take = trainer._move

    def move(scale: float) -> None:
        take(scale)
        if trainer.taken == number:  # pyright: ignore[reportAttributeAccessIssue]
            raise error
        trainer.taken += 1  # pyright: ignore[reportAttributeAccessIssue]

    trainer.taken, trainer._move = 0, move  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_a_resumed_training_ends_in_the_same_bits_as_one_that_was_never_cut(tmp_path: Path, name: Any) -> None:
    options = {"dtype": torch.float32, "optimiser": Optimiser(name, 0.02, 0.02), "held_out": HeldOut(0.2, every=3)}
    whole = learn(trainer_of(**options), progress=False)
    file, log = tmp_path / "state.safetensors", tmp_path / "log"
    for number in (4, 3):
        trainer = trainer_of(**options)
        cut_at(trainer, number, Cut)
        with pytest.raises(Cut):
            learn(trainer, file=file, log=Log(log), progress=False)
    resumed = learn(trainer_of(**options), file=file, log=Log(log), progress=False)
    assert all(torch.equal(value, whole.values[key]) for key, value in resumed.values.items())
    plain = [row._replace(seconds=0) for row in whole.rows]
    assert [row._replace(seconds=0) for row in resumed.rows] == plain
    again = learn(trainer_of(**options), file=file, progress=False)
    assert again.steps == whole.steps
    assert again.rows == resumed.rows
    lines = [json.loads(line) for line in (log / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [row.loss for row in resumed.rows]
    with (log / "log.csv").open(newline="") as opened:
        table = list(csv.DictReader(opened))
    assert [float(line["support"]) for line in table] == [row.support for row in resumed.rows]


def test_a_damaged_state_is_not_used_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"nothing")
    with pytest.warns(DsasWarning, match="is damaged .* training begins anew"):
        found = learn(trainer_of(), file=tmp_path / "state", progress=False)
    assert found.steps == 12


def test_ctrl_c_in_the_middle_of_a_step_gives_the_best_so_far() -> None:
    options = {"held_out": HeldOut(0.2, every=1)}
    trainer = trainer_of(**options)
    cut_at(trainer, 5, KeyboardInterrupt)
    found = learn(trainer, progress=False)
    assert (found.stopped, found.steps) == ("interrupted", 5)
    losses = [row.held_loss for row in found.rows]
    assert found.best_step == losses.index(min(losses))
    other = trainer_of(**options)
    for number in range(found.best_step):
        other.step(number)
    assert all(torch.equal(found.values[name], value) for name, value in other.leaves.items())


def test_training_stops_when_the_held_out_loss_no_longer_falls_and_keeps_its_least() -> None:
    trainer = trainer_of(
        optimiser=Optimiser("adam", 3.0, 3.0, floor=1.0), held_out=HeldOut(0.2, every=1, patience=3), steps=500
    )
    found = learn(trainer, progress=False)
    losses = [row.held_loss for row in found.rows]
    assert found.stopped == "early"
    assert found.best_step == losses.index(min(losses)) == len(losses) - 1 - 3


def test_a_loss_that_is_no_number_ends_training_with_the_last_good_parameters() -> None:
    trainer = trainer_of(optimiser=Optimiser("sgd", 1e300, 1.0), steps=50)
    found = learn(trainer, progress=False)
    assert found.stopped == "diverged"
    assert found.rows[-1].loss is None
    assert all(math.isfinite(row.loss) for row in found.rows[:-1])


def test_a_site_that_never_fires_is_named_and_the_model_is_given_back() -> None:
    rules = rules_of(torch.float32)
    rules.append(learnable(rules[0]._replace(site=dsas.Site("after")), torch.device("cpu"), regulator=True))

    class Quiet(Two):
        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(x)))

    model = Quiet()
    batch = batch_of(5, 0.0, torch.float32)
    data = Data([batch], [batch], [torch.randn(5, DIM)] * 3)
    with pytest.raises(dsas.DsasError, match="no output ever came from after; closest that fired: 'first'"):
        Trainer(work_on(model), rules, data, Plan(Objective(1.0), 3))
    assert hooks_on(model) == 0
    assert all(parameter.requires_grad for parameter in model.parameters())
