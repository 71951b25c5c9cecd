"""States of ml-act do here what its hooks do with them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from formats.test_torch_vectors import IDS, added
from makers import logits_of
from torch import Tensor

import dsas
from dsas.errors import ArtifactError
from dsas.testing import tiny_model
from dsas.testing.models import WIDTH

PATH = "model.layers.1.post_attention_layernorm"


def linear_state(**others: Any) -> dict[str, Any]:
    w1, b1 = 1 + 0.2 * torch.randn(1, WIDTH), 0.3 * torch.randn(1, WIDTH)
    return {"net.w1": w1, "net.b1": b1, "quantiles_src": [-1e6, 1e6], "quantiles_dict_src": {}} | others


def gaussian_state(**others: Any) -> dict[str, Any]:
    numbers = {"mu1": torch.randn(WIDTH), "mu2": torch.randn(WIDTH)}
    deviations = {name: 0.5 + torch.rand(WIDTH) for name in ("std1", "std2")}
    deviations["std1"][3] = 1e-5  # which ml-act leaves alone
    return {**numbers, **deviations, "quantiles_src": "q_all", "quantiles_dict_src": {}} | others


def check_same(place: Path, hook: Any, strength: float = 1.0) -> None:
    """Require that what is adopted from a path gives the logits that a hook of our own gives."""
    model = tiny_model("llama", layers=3)
    plain = logits_of(model, IDS)
    with added(model, {PATH: hook}):
        expected = logits_of(model, IDS)
    with dsas.adopt(place, model, regulator="constant").apply(model, strength):
        torch.testing.assert_close(logits_of(model, IDS), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, plain, atol=1e-3)


def between(t: Tensor, moved: Tensor, low: Any, high: Any) -> Tensor:
    inside = (low < t) & (t < high)
    return torch.where(inside, moved, t)


def test_linear_act_maps_every_neuron_of_the_named_module_by_its_line(tmp_path: Path) -> None:
    state = linear_state()
    torch.save(state, tmp_path / f"{PATH}:0.statedict")
    check_same(tmp_path, lambda t: t + 0.4 * (state["net.w1"] * t + state["net.b1"] - t), 0.4)
    check_same(tmp_path / f"{PATH}:0.statedict", lambda t: state["net.w1"] * t + state["net.b1"])


def test_only_activations_between_the_quantiles_are_moved(tmp_path: Path) -> None:
    ends = [torch.full((1, WIDTH), -0.5), torch.full((1, WIDTH), 0.7)]
    for given in ({"quantiles_src": ends}, {"quantiles_src": "q_5_95", "quantiles_dict_src": {"q_5_95": ends}}):
        state = linear_state(**given)
        torch.save(state, tmp_path / f"{PATH}.statedict")
        check_same(tmp_path, lambda t, s=state: between(t, s["net.w1"] * t + s["net.b1"], *ends))


@pytest.mark.parametrize("kind", ["gaussian_ot", "mean_ot"])
def test_gaussian_and_mean_act_are_told_by_the_name_of_their_folder(tmp_path: Path, kind: str) -> None:
    state, folder = gaussian_state(), tmp_path / f"toxicity_{kind}"
    folder.mkdir()
    moves = state["std1"] > 1e-4
    ends = [torch.full((1, int(moves.sum())), end) for end in (-0.6, 0.6)]  # ml-act keeps those of moving neurons only
    torch.save(state | {"quantiles_src": ends}, folder / f"{PATH}.statedict")
    ratio = state["std2"] / state["std1"] if kind == "gaussian_ot" else 1.0

    def hook(t: Tensor) -> Tensor:
        return torch.where(moves, between(t, ratio * (t - state["mu1"]) + state["mu2"], -0.6, 0.6), t)

    check_same(folder, hook)


@pytest.mark.parametrize(
    ("name", "state", "message"),
    [
        (PATH, gaussian_state(), "Mean-AcT and Gaussian-AcT both save: put it into a"),
        (PATH, {"net.w1": torch.ones(1, 4)}, r"expected net\.w1 and net\.b1, or mu1, .* got 'net\.w1'"),
        (PATH, linear_state(**{"net.b1": torch.full((1, WIDTH), torch.inf)}), r"net\.b1 holds values that are not"),
        (PATH, linear_state(**{"net.b1": torch.ones(1, 4)}), "differ in length"),
        (PATH, linear_state(quantiles_src="q_1_99"), "expected two ends in quantiles_src, got None"),
        (PATH, linear_state(quantiles_src=[torch.ones(3), torch.ones(3)]), "quantiles_src has 3 numbers, the state 32"),
        (PATH, [torch.ones(4)], "expected the state of a hook of ml-act, got list"),
        (f"{PATH}:1", linear_state(), "named after a module and its first output"),
    ],
)
def test_what_is_no_state_is_refused(tmp_path: Path, name: str, state: Any, message: str) -> None:
    torch.save(state, tmp_path / f"{name}.statedict")
    with pytest.raises(ArtifactError, match=message):
        dsas.read_vectors(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"expected 1 to 10000 files ending in \.statedict, got 0"):
        dsas.read_vectors(tmp_path)
