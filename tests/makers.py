"""What the tests steer with: hand-made Steerings of known vectors, golden numbers, and where a model's hooks are."""

import inspect
import json
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dsas
from dsas.model.forward_pass import ForwardPass
from dsas.model.identity import ModelIdentity
from dsas.regulators.base import FittedRegulator
from dsas.testing.models import WIDTH, tiny_tokenizer

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


def pretend_installed(monkeypatch: pytest.MonkeyPatch, points: dict[str, list[str]]) -> None:
    """Let packages seem to declare these entry points, "module:Class" by group, until the end of the test."""

    def entry_points(*, group: str) -> list[EntryPoint]:
        return [EntryPoint(value, value, group) for value in points.get(group, [])]

    for registry in (dsas.TRANSFORMS, dsas.REGULATORS, dsas.OBJECTIVES):
        monkeypatch.setattr(registry, "_known", dict(registry))
        monkeypatch.setattr(registry, "_complete", False)
    monkeypatch.setattr("dsas.methods.registry.entry_points", entry_points)


def templated(template: str, *, specials: tuple[str, ...] = (), bos: str | None = None, adds_bos: bool = True) -> Any:
    """Return a tokenizer of bytes and special tokens with a chat template; it may put the BOS before every text."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    backend = tiny_tokenizer().backend_tokenizer
    backend.add_special_tokens(list(specials))
    if bos is not None and adds_bos:
        number = backend.token_to_id(bos)
        backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, number)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=specials[-1] if specials else None, chat_template=template
    )


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
    reads_forward_pass: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()

    @classmethod
    def fit(cls, source: Tensor, control: Tensor, target: Tensor) -> FittedRegulator:
        return FittedRegulator(cls(), accuracy=None)

    def forward(self, t: Tensor, forward_pass: ForwardPass) -> Tensor:
        return (1 + forward_pass.positions).unsqueeze(-1).float()


@cache
def golden() -> dict[str, Any]:
    """Return the golden numbers that tests/golden/make_methods.py has made; nobody may change them."""
    return json.loads((Path(__file__).parent / "golden" / "methods.json").read_text())


def golden_sets(*names: str) -> list[Tensor]:
    """Return golden inputs, of source, control, target and tokens; float32 holds them exactly."""
    return [torch.tensor(golden()["inputs"][name]) for name in names]


def check_golden_transform(method: type[dsas.Transform], label: str, *, tolerance: float = 1e-5) -> None:
    """Require that a transform fitted on the golden sets has the numbers and edits that the reference gives.

    tolerance: relative; 1e-2 where scikit-learn's logistic regression is in it, which stops early by default.
    """
    source, target, tokens = golden_sets("source", "target", "tokens")
    case = golden()["transforms"][label]
    fitted = method.fit(source, target, **_options(case))
    for name, expected in case["fitted"].items():
        close_to(fitted.get_buffer(name), expected, name, tolerance)
    close_to(fitted.edit(tokens), case["edit"], "edit", tolerance)


def check_golden_regulator(
    method: type[dsas.Regulator],
    label: str,
    forward_pass: ForwardPass | None = None,
    *,
    tolerance: float = 1e-5,
    **options: Any,
) -> dsas.Regulator:
    """Require that a regulator fitted on the golden sets has the numbers, values and accuracy of the reference.

    forward_pass: where not all tokens are real. options: for the fit, besides those of the case.
    """
    source, control, target, tokens = golden_sets("source", "control", "target", "tokens")
    case = golden()["regulators"][label]
    regulator, accuracy = method.fit(source, control, target, **_options(case), **options)
    for name, expected in case["fitted"].items():
        if name != "projector":
            close_to(torch.as_tensor(getattr(regulator, name)), expected, name, tolerance)
    close_to(regulator(tokens, forward_pass or ForwardPass(*tokens.shape[:2])), case["values"], "values", tolerance)
    assert accuracy == (case["accuracy"] if case["accuracy"] is None else pytest.approx(case["accuracy"], abs=1e-6))
    return regulator


def close_to(got: Tensor, expected: Any, what: str, tolerance: float = 1e-5) -> None:
    """Require the same shape, and the same values up to `tolerance` of the largest."""
    wanted = np.asarray(expected, dtype=np.float64)
    assert tuple(got.shape) == wanted.shape, what
    np.testing.assert_allclose(
        got.double().numpy(), wanted, rtol=0, atol=tolerance * max(1e-30, np.abs(wanted).max()), err_msg=what
    )


def _options(case: dict[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(map(float, value)) if isinstance(value, list) and isinstance(value[0], int | float) else value
        for name, value in case["options"].items()
    }


def methods_table() -> str:
    """Return the Markdown table of all methods, as docs/reference/methods.md has it."""
    lines = []
    for title, registry in (("Transforms: how", dsas.TRANSFORMS), ("Regulators: when", dsas.REGULATORS)):
        lines += [f"## {title}", "", "| name | class | formula | paper | limitations | FLOPs per token |"]
        lines += ["|---|---|---|---|---|---|"]
        for name, method in registry.items():
            facts = method.facts
            cells = (f"`{name}`", f"`{method.__name__}`", facts.formula, facts.paper, facts.left_out, facts.flops)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)
