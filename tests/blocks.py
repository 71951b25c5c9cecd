"""A model that is no language model, and trainers on it: two blocks over vectors, batches cut or not."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dsas
from dsas.training.learner import Learner
from dsas.training.learning import LearnedParts, learnable
from dsas.training.passes import Work
from dsas.training.plan import HeldOut, Optimiser, Plan
from dsas.training.trainer import Data, Trainer

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


def mean_of_real(t: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    real = batch[1]
    weights = real.to(t.dtype) / real.sum(-1, keepdim=True)
    return (weights.unsqueeze(-1) * t).sum(1)


def work_on(model: nn.Module) -> Work:
    def real(batch: tuple[Tensor, Tensor]) -> Tensor:
        return batch[1]

    return Work(model, run=lambda batch: model(batch[0]), real=real, counted=real, pool=mean_of_real)


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
        rules.append(learnable(rule, torch.device("cpu"), LearnedParts(not isinstance(when, dsas.Constant), False)))
    return rules


def trainer_of(
    *, size: int = 9, dtype: torch.dtype = torch.float64, rules: Any = None, control_weight: float = 0.7, **plan: Any
) -> Trainer:
    torch.manual_seed(3)
    model = Two().to(dtype)
    source, control = batch_of(9, 0.5, dtype), batch_of(7, -0.5, dtype)
    held = batch_of(5, 0.5, dtype), batch_of(4, -0.5, dtype)
    target = [torch.randn(8, DIM, dtype=dtype) - 0.3 for _ in SITES]
    data = Data(cut(source, size), cut(control, size), target, [held[0]], [held[1]])
    settings = {"steps": 12, "optimiser": Optimiser("adam", 0.05, 0.05), "held_out": NOT_HELD, **plan}
    own = rules(dtype) if rules else rules_of(dtype)
    return Trainer(work_on(model), own, data, Plan(**settings), control_weight=control_weight)


def check_gradient(
    learner: Learner, *, step: float = 1e-6, rel: float = 1e-5, absolute: float = 1e-8, every: int = 1
) -> None:
    """Hold the gradient of every `every`-th number of each leaf, the last first, to that of finite differences."""

    def loss() -> float:
        return learner.gradient().loss

    loss()
    slopes = {name: value.grad.clone() for name, value in learner.leaves.items() if value.grad is not None}
    assert slopes.keys() == learner.leaves.keys()
    for name, value in learner.leaves.items():
        entries, slope = value.detach().view(-1), slopes[name].view(-1)
        for place in range(len(entries) - 1, -1, -every):
            entries[place] += step
            above = loss()
            entries[place] -= 2 * step
            below = loss()
            entries[place] += step
            expected = (above - below) / (2 * step)
            assert float(slope[place]) == pytest.approx(expected, rel=rel, abs=absolute), name
