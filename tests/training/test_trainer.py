"""The trainer on a model that is no language model: gradients, micro-batches, recovery, traps, sparsity."""

from typing import Any

import pytest
import torch
from blocks import DIM, NOT_HELD, Two, batch_of, check_gradient, rules_of, trainer_of, work_on
from makers import hooks_on
from torch import Tensor

import dsas
from dsas.errors import OptionError
from dsas.model.forward_pass import ForwardPass
from dsas.training.learning import LearnedParts, half_everywhere, learnable, settled, support
from dsas.training.loop import learn
from dsas.training.plan import HeldOut, Optimiser, Plan
from dsas.training.trainer import Data, Trainer


@pytest.mark.parametrize("size", [9, 4])
def test_every_gradient_is_that_of_finite_differences_whether_the_batch_is_cut_or_not(size: int) -> None:
    check_gradient(trainer_of(size=size), absolute=1e-7)


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
    assert held["held_term"] == pytest.approx(found.term * 9 / 5)
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
    rules = [learnable(rule, torch.device("cpu"), LearnedParts(False, False))]
    data = Data([(x, torch.ones(40, 1, dtype=torch.bool))], [], [slope * x[:, 0].flip(0) + offset])
    plan = Plan(300, Optimiser("adam", 0.1), NOT_HELD)
    trainer = Trainer(work_on(model), rules, data, plan)
    (found,) = settled(rules, learn(trainer, progress=False).values)
    torch.testing.assert_close(found.transform.get_buffer("slope"), slope, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.transform.get_buffer("offset"), offset, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("gate", ["sigmoid", "relu"])
def test_from_scratch_the_regulators_gradient_is_zero_at_first_and_not_after_one_step(gate: Any) -> None:
    def rules(dtype: torch.dtype) -> list[dsas.Rule]:
        return rules_of(dtype, lambda: half_everywhere(gate, DIM), moved=False)

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
    step = ForwardPass(1, 8)
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
        own = trainer.data.target[int(name[0])].square().mean(0).sqrt()  # each neuron's unit
        unit = {"offset": own**2, "theta": own**-2}.get(name.rpartition(".")[2], torch.ones(()))
        torch.testing.assert_close(value.detach(), before[f"leaf {name}"] - rate * unit * slopes[name])


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_activations_a_thousand_times_as_large_learn_the_same_edit_a_thousand_times_as_large(name: Any) -> None:
    def learned(factor: float) -> dict[str, Tensor]:
        torch.manual_seed(5)
        x, other = torch.randn(9, 4, DIM, dtype=torch.float64), torch.randn(7, 4, DIM, dtype=torch.float64)
        line = dsas.Lineas(1 + 0.1 * torch.randn(DIM).double(), 0.1 * factor * torch.randn(DIM).double())
        when = dsas.Logistic(torch.randn(DIM).double() / factor, torch.tensor(0.2).double())
        rule = learnable(dsas.Rule(dsas.Site("after"), line, when), torch.device("cpu"), LearnedParts(True, False))
        every = [(factor * t, torch.ones(len(t), 4, dtype=torch.bool)) for t in (x, other)]
        data = Data(every[:1], every[1:], [factor * torch.randn(8, DIM, dtype=torch.float64) - 0.3 * factor])
        model = Two().double()
        work = work_on(model)._replace(run=lambda batch: model.after(batch[0]))
        model.after.weight.data.copy_(torch.eye(DIM))
        model.after.bias.data.zero_()
        plan = Plan(6, Optimiser(name, 0.01, 0.02), NOT_HELD, 0.1)
        trainer = Trainer(work, [rule], data, plan, control_weight=0.7)
        return learn(trainer, progress=False).values

    small, large = learned(1.0), learned(1000.0)
    units = {"0.transform.slope": 1, "0.transform.offset": 1000, "0.regulator.theta": 1e-3, "0.regulator.bias": 1}
    for leaf, unit in units.items():
        torch.testing.assert_close(large[leaf], unit * small[leaf], rtol=1e-4, atol=1e-9)


def test_sparsity_keeps_neurons_at_exactly_the_identity_and_dense_moves_them_all() -> None:
    def rules(dtype: torch.dtype) -> list[dsas.Rule]:
        return rules_of(dtype, dsas.Constant, moved=False)

    counts = []
    for sparsity in (0.0, 0.5, 100.0):
        optimiser = Optimiser("sgd", 0.1)
        trainer = trainer_of(rules=rules, control_weight=0.0, sparsity=sparsity, steps=30, optimiser=optimiser)
        counts.append(support(settled(trainer.rules, learn(trainer, progress=False).values)))
    assert counts[0] == 2 * DIM
    assert 0 < counts[1] < 2 * DIM
    assert counts[2] == 0


def test_the_weights_their_flags_and_the_hooks_are_as_they_were() -> None:
    trainer = trainer_of()
    model = trainer._work.model
    trainer.close()
    model.first.requires_grad_(False)  # pyright: ignore[reportCallIssue]
    trainer = Trainer(trainer._work, trainer.rules, trainer.data, trainer.plan, control_weight=0.7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    learn(trainer, progress=False)
    trainer.close()
    assert [parameter.requires_grad for parameter in model.parameters()] == [False] * 2 + [True] * 4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert hooks_on(model) == 0


def test_a_site_that_never_fires_is_named_and_the_model_is_given_back() -> None:
    rules = rules_of(torch.float32)
    rules.append(learnable(rules[0]._replace(site=dsas.Site("after")), torch.device("cpu"), LearnedParts(True, False)))

    class Quiet(Two):
        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(x)))

    model = Quiet()
    batch = batch_of(5, 0.0, torch.float32)
    data = Data([batch], [batch], [torch.randn(5, DIM)] * 3)
    with pytest.raises(
        dsas.DsasError, match="these sites never ran in the forward pass: after; closest that fired: 'first'"
    ):
        Trainer(work_on(model), rules, data, Plan(3), control_weight=1.0)
    assert hooks_on(model) == 0
    assert all(parameter.requires_grad for parameter in model.parameters())
