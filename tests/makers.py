"""What the tests steer with: hand-made Steerings of known vectors, and where a model's hooks are."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import dsas
from dsas.identity import ModelIdentity
from dsas.regulators import FittedRegulator
from dsas.step import Step
from dsas.testing.models import WIDTH

PROMPTS = ("The quick brown fox", "Hi", "Who goes there, friend or foe?")


def random_steering(
    model: nn.Module,
    sites: Any = "residual",
    *,
    seed: int = 0,
    weight: float = 1.0,
    regulator: dsas.Regulator | None = None,
    transform: dsas.Transform | None = None,
) -> dsas.Steering:
    """Return an addition with a logistic regulator at every site named, unless told otherwise, all seeded."""
    generator = torch.Generator().manual_seed(seed)
    rules = []
    for site in dsas.find_sites(model, sites):
        vector, theta, bias = (torch.randn(shape, generator=generator) for shape in ((WIDTH,), (WIDTH,), ()))
        rule = dsas.Rule(
            site, transform or dsas.Addition(vector), regulator or dsas.Logistic(0.3 * theta, 0.3 * bias), weight
        )
        rules.append(rule)
    return dsas.Steering(rules, ModelIdentity.of(model))


def ids_of(tokenizer: Any, text: str) -> Tensor:
    """Return the token ids of one text, (1, token)."""
    return torch.tensor([tokenizer(text)["input_ids"]])


def logits_of(model: Any, ids: Tensor, **inputs: Any) -> Tensor:
    """Return the logits of one forward pass without gradients."""
    with torch.no_grad():
        return model(input_ids=ids, **inputs).logits


def hooks_on(model: nn.Module) -> int:
    """Return how many hooks are on the modules of a model."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def unchecked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of dsas without the run-time type checks of the tests, as users have it."""
    return inspect.unwrap(function)


class Idle(nn.Module):
    """A model with a module that no forward pass ever calls."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        return self.used(inputs_embeds)


class Position(dsas.Regulator):
    """Answers 1 + the position of every token, so that the trace shows which position each one was taken for."""

    name: ClassVar[str] = "position"
    reads_step: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()

    @classmethod
    def fit(cls, source: Tensor, control: Tensor, target: Tensor) -> FittedRegulator:
        return FittedRegulator(cls(), accuracy=None)

    def forward(self, t: Tensor, step: Step) -> Tensor:
        return (1 + step.positions).unsqueeze(-1).float()
