"""Custom: a function or a module in two lines, what it does to a model, and what it cannot do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from makers import golden, golden_sets, hooks_on, logits_of
from torch import Tensor, nn

import dsas
from dsas.errors import OptionError
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.testing.models import WIDTH

SETS = {name: [f"{start} {n}" for n in range(5)] for name, start in (("source", "SHUT UP"), ("control", "the door"))}
IDS = torch.tensor([[5, 6, 7, 8]])


def fit(model: nn.Module, transform: Any) -> dsas.Steering:
    return dsas.fit(
        model, tiny_tokenizer(), **SETS, target=SETS["control"], transform=transform,
        regulator="constant", sites="model.layers.2", progress=False,
    )  # fmt: skip


def test_a_function_that_adds_the_golden_vector_is_the_golden_addition() -> None:
    (tokens,) = golden_sets("tokens")
    case = golden()["transforms"]["caa"]
    vector = torch.tensor(case["fitted"]["vector"])
    torch.testing.assert_close(dsas.Custom(lambda t: t + vector).edit(tokens), torch.tensor(case["edit"]))


class Halve(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH, bias=False)
        nn.init.eye_(self.layer.weight).data.mul_(0.5)

    def forward(self, t: Tensor) -> Tensor:
        return self.layer(t)


@pytest.mark.parametrize("function", [lambda t: 0.5 * t, Halve()], ids=["function", "module"])
def test_a_function_and_a_module_steer_in_two_lines(function: Any) -> None:
    """What leaves the last layer at half its length, and half as much of the way at strength 1/2, meets the norm."""
    model: Any = tiny_model()
    seen = []
    model.model.norm.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    steering = fit(model, dsas.Custom(function))
    seen.clear()
    logits_of(model, IDS)
    for strength in (1.0, 0.5):
        with steering.apply(model, strength):
            logits_of(model, IDS)
    torch.testing.assert_close(seen[1], 0.5 * seen[0])
    torch.testing.assert_close(seen[2], 0.75 * seen[0])
    assert steering.settings["transform"] == "custom"


def test_the_function_is_given_float32_in_a_model_of_lower_precision_whose_dtype_is_kept() -> None:
    dtypes = []
    custom = dsas.Custom(lambda t: dtypes.append(t.dtype) or 2 * t)
    assert custom(torch.ones(1, 2, 3).bfloat16()).dtype == torch.bfloat16
    assert dtypes == [torch.float32]


@pytest.mark.parametrize(
    "change",
    [lambda t: t[..., :-1], lambda t: t.sum(-1, keepdim=True), lambda t: t[0]],
    ids=["narrower", "one number", "no batch"],
)
def test_a_function_that_changes_the_shape_is_refused_and_the_hooks_come_off(change: Any) -> None:
    model = tiny_model()
    steering = fit(model, dsas.Custom(change))
    before = hooks_on(model)
    message = rf"must keep the shape of its input \(1, 4, {WIDTH}\), got \("
    with pytest.raises(OptionError, match=message), steering.apply(model):
        logits_of(model, IDS)
    assert hooks_on(model) == before


def test_saving_is_refused_with_what_to_do_instead_and_writes_nothing(tmp_path: Path) -> None:
    steering = fit(tiny_model(), dsas.Custom(torch.tanh))
    message = (
        r"^Custom\(function=.*\) holds code, which is not written to files: make it a subclass of dsas.Transform or "
        r"dsas.Regulator, in a package that declares it as an entry point$"
    )
    with pytest.raises(OptionError, match=message):
        steering.save_pretrained(tmp_path / "steering")
    assert not (tmp_path / "steering").exists()


def test_it_is_not_in_the_registry_and_cannot_be_fitted_by_name() -> None:
    assert "custom" not in dsas.TRANSFORMS
    with pytest.raises(OptionError, match="unknown transform 'custom'; closest: "):
        fit(tiny_model(), "custom")
    with pytest.raises(OptionError, match=r"not fitted from texts: give dsas.fit the object, Custom\(function\)"):
        dsas.Custom.fit(torch.randn(4, 2), torch.randn(4, 2))


def test_a_bare_module_is_refused_with_what_to_write() -> None:
    with pytest.raises(OptionError, match=r"got a bare Halve; wrap it as dsas.Custom\(module\)"):
        fit(tiny_model(), Halve())
