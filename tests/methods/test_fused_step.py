"""The fused step, in each of its ways, against equation (1) written out in float64; and what no way may do.

Tolerances, relative to the largest value: 1e-6 in float32 (sums of 64 products, each to 6e-8), 2**-8 in bfloat16 (one
rounding), 1e-14 in float64. Triton's interpreter cuts bfloat16 off instead of rounding it, so there it is 2**-7.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dsas.errors import OptionError
from dsas.methods.kernels import Fold
from dsas.methods.kernels.fold import table
from dsas.methods.kernels.launch import WIDEST, launch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2**-7 if INTERPRETED else 2**-8}
DIM = 64


def no_triton() -> str:
    """Return why the CUDA kernel cannot run here, or nothing."""
    if importlib.util.find_spec("triton") is None:
        return "no package triton"
    if not (torch.cuda.is_available() or INTERPRETED):
        return "neither a GPU nor TRITON_INTERPRET=1"
    return ""


def way(name: str) -> Callable[..., Tensor]:
    return importlib.import_module(f"dsas.methods.kernels.{name}").step


# The kernel's source is read by Triton, not by the run-time type checks, so it is tested beside compiled code.
ON_CUDA = pytest.param("triton", marks=[pytest.mark.compile, pytest.mark.skipif(bool(no_triton()), reason=no_triton())])
WAYS = ["eager", "operator", ON_CUDA]


def fold_of(slots: int = 1, *, slope: bool, theta: bool, dtype: torch.dtype = torch.float32, dim: int = DIM) -> Fold:
    drawn = [torch.randn(slots, dim, dtype=torch.float64) for _ in range(3)]
    bias = torch.randn(slots, dtype=torch.float64)
    wanted = (drawn[0], drawn[1] if slope else None, drawn[2] / 8 if theta else None, bias if theta else None)
    return Fold(*(value if value is None else value.to(dtype) for value in wanted))


def by_hand(t: Tensor, fold: Fold, rows: Tensor | None = None, slots: Tensor | None = None) -> np.ndarray:
    """Return t + row * sigmoid(theta . t + bias) * (slope * t + offset), token by token, in float64."""
    offset, slope, theta, bias = (None if value is None else value.double().numpy() for value in fold)
    x = t.double().numpy()
    out = x.copy()
    for row in range(x.shape[0]):
        line = 0 if slots is None else int(slots[row])
        for token in range(x.shape[1]):
            v = x[row, token]
            gain = 1.0 if rows is None else float(rows[row])
            if theta is not None and bias is not None:
                gain /= 1 + np.exp(-(v @ theta[line] + bias[line]))
            out[row, token] = v + gain * (offset[line] + (0 if slope is None else slope[line] * v))
    return out


def close_to(got: Tensor, expected: np.ndarray) -> None:
    scale = np.abs(expected).max()
    np.testing.assert_allclose(got.double().numpy(), expected, rtol=0, atol=TOLERANCE[got.dtype] * scale)


@pytest.mark.parametrize("theta", [True, False], ids=["logistic", "constant"])
@pytest.mark.parametrize("slope", [True, False], ids=["affine", "addition"])
@pytest.mark.parametrize("by_row", [True, False], ids=["by row", "one strength"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", WAYS)
def test_every_way_computes_the_equation(name: str, dtype: torch.dtype, by_row: bool, slope: bool, theta: bool) -> None:
    t, fold = torch.randn(3, 5, DIM).to(dtype), fold_of(slope=slope, theta=theta)
    rows = torch.tensor([0.5, 0.0, 1.7]) if by_row else None
    before = t.clone()
    got = way(name)(t, fold, rows)
    assert got.dtype == dtype
    assert got.is_contiguous()
    close_to(got, by_hand(t, fold, rows))
    assert torch.equal(t, before)
    if by_row:
        assert torch.equal(got[1], t[1])  # strength 0: the same bits


@pytest.mark.parametrize("slope", [True, False], ids=["affine", "addition"])
@pytest.mark.parametrize("name", WAYS)
def test_rows_take_the_line_of_their_own_steering_and_line_0_changes_no_bit(name: str, slope: bool) -> None:
    fold = table([fold_of(slope=slope, theta=True), fold_of(slope=not slope, theta=False)])
    t, rows, slots = torch.randn(5, 3, DIM), torch.tensor([1.0, 0.4, 2.0, 0.3, 1.0]), torch.tensor([2, 0, 1, 1, 2])
    got = way(name)(t, fold, rows, slots)
    close_to(got, by_hand(t, fold, rows, slots))
    assert torch.equal(got[1], t[1])


@pytest.mark.parametrize("name", ["eager", "operator"])
def test_a_float64_activation_is_computed_in_float64(name: str) -> None:
    t, fold = torch.randn(2, 3, DIM, dtype=torch.float64), fold_of(slope=True, theta=True, dtype=torch.float64)
    close_to(way(name)(t, fold), by_hand(t, fold))


@pytest.mark.parametrize("name", WAYS)
def test_widths_and_strides_of_every_kind_are_read_right(name: str) -> None:
    for dim in (1, 3, 65):
        fold, wide = fold_of(slope=True, theta=True, dim=dim), torch.randn(4, 2, 2 * dim)
        for t in (wide[..., ::2], wide[:, :1, :dim], wide[..., :dim].transpose(0, 1)):
            close_to(way(name)(t, fold), by_hand(t, fold))
        assert way(name)(wide[:, :0, :dim], fold).shape == (4, 0, dim)


def test_lines_of_unlike_folds_fill_what_they_lack_with_what_has_no_effect() -> None:
    plain, full = fold_of(slope=False, theta=False), fold_of(slope=True, theta=True)
    t = torch.randn(2, 3, DIM)
    both = table([plain, full])
    assert both.offset.shape == (3, DIM)
    eager = way("eager")
    torch.testing.assert_close(eager(t, both, None, torch.tensor([1, 1])), eager(t, plain))
    torch.testing.assert_close(eager(t, both, None, torch.tensor([2, 2])), eager(t, full))


@pytest.mark.parametrize("slots", [None, torch.tensor([1, 0, 1])], ids=["one line", "lines"])
@pytest.mark.parametrize("theta", [True, False], ids=["logistic", "constant"])
@pytest.mark.parametrize("slope", [True, False], ids=["affine", "addition"])
def test_the_gradients_of_the_operator_are_those_that_differences_give(slope: bool, theta: bool, slots: Any) -> None:
    fold = fold_of(1 if slots is None else 2, slope=slope, theta=theta, dtype=torch.float64, dim=5)
    inputs = [torch.randn(3, 2, 5, dtype=torch.float64), *fold, torch.rand(3, dtype=torch.float64)]
    inputs = [value if value is None else value.requires_grad_() for value in inputs]

    def run(t: Tensor, *given: Any) -> Tensor:
        return way("operator")(t, Fold(*given[:4]), given[4], slots)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradcheck(run, [*inputs[:-1], None])


@pytest.mark.compile
@pytest.mark.parametrize("slots", [None, torch.tensor([1, 0, 1])], ids=["one line", "lines"])
@pytest.mark.parametrize("theta", [True, False], ids=["logistic", "constant"])
def test_the_operator_is_what_torch_asks_of_operators(theta: bool, slots: Any) -> None:
    fold = fold_of(1 if slots is None else 2, slope=True, theta=theta)
    inputs = [torch.randn(3, 2, DIM), *fold, torch.rand(3)]
    inputs = [value if value is None else value.requires_grad_() for value in inputs]
    step = importlib.import_module("dsas.methods.kernels.operator")
    torch.library.opcheck(step.OPERATOR, (*inputs, slots))


@pytest.mark.compile
@pytest.mark.parametrize("name", ["eager", "operator"])
def test_a_step_compiles_without_a_break_and_stays_the_same(name: str) -> None:
    fold, step = fold_of(slope=True, theta=True), way(name)
    compiled = torch.compile(lambda t, rows: step(t, fold, rows), fullgraph=True, backend="aot_eager")
    t, rows = torch.randn(2, 3, DIM), torch.rand(2)
    torch.testing.assert_close(compiled(t, rows), step(t, fold, rows))


def test_a_launch_has_one_program_a_token_and_says_what_is_not_there() -> None:
    fold, t = fold_of(slope=False, theta=True, dim=48), torch.randn(4, 48, 3).transpose(1, 2).bfloat16()
    started = launch(t, fold, rows=None, slots=torch.tensor([0, 0, 0, 0]))
    given, out, offset, slope, theta, bias, rows, slots, tokens, dim = started.arguments
    assert given.is_contiguous()
    assert torch.equal(given, t)
    assert (out.dtype, out.shape) == (torch.bfloat16, t.shape)
    assert out is started.out
    assert offset is fold.offset
    assert slope is given
    assert theta is fold.theta
    assert bias is fold.bias
    assert rows is given
    assert slots.tolist() == [0] * 4
    assert (tokens, dim, started.programs) == (3, 48, 12)
    assert started.flags == {
        "HAS_SLOPE": False, "HAS_THETA": True, "HAS_ROWS": False, "HAS_SLOTS": True, "BLOCK": 64, "num_warps": 1
    }  # fmt: skip


def test_a_token_too_wide_for_one_program_is_refused() -> None:
    with pytest.raises(OptionError, match=f"at most {WIDEST} numbers, got {WIDEST + 1}"):
        launch(torch.empty(1, 0, WIDEST + 1), Fold(torch.empty(1, WIDEST + 1)))
