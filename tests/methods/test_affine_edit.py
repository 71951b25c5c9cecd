"""The prepared edit against equation (1) written out in float64; and what it may not do.

Tolerances, relative to the largest value: 1e-6 in float32 (sums of 64 products, each to 6e-8), 2**-8 in bfloat16 and
2**-11 in float16 (one rounding), 1e-14 in float64.
"""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from dsas.methods.affine_edit import AffineEdit, prepared

TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
DIM = 64
Gate = Literal["sigmoid", "relu", "none"]


def edit_of(
    gate: Gate = "sigmoid", *, slope: bool = True, support: bool = False, dtype: torch.dtype = torch.float32,
    dim: int = DIM,
) -> AffineEdit:  # fmt: skip
    numbers: dict[str, Any] = {"offset": torch.randn(dim, dtype=dtype)}
    if slope:
        numbers |= {"slope": torch.randn(dim, dtype=dtype)}
    if support:
        numbers |= {"low": -torch.rand(dim, dtype=dtype), "high": torch.rand(dim, dtype=dtype)}
    if gate != "none":
        numbers |= {"theta": torch.randn(1, dim, dtype=dtype) / 8, "bias": torch.randn(1, dtype=dtype), "form": gate}
    return AffineEdit(**numbers)


def by_hand(t: Tensor, edit: AffineEdit, rows: Tensor | None = None) -> np.ndarray:
    """Return t + row * activation(theta . t + bias) * (slope * t + offset), token by token, in float64."""
    offset, slope, low, high, theta, bias = (None if x is None else x.double().numpy() for x in edit[:6])
    x = t.double().numpy()
    out = x.copy()
    for row in range(x.shape[0]):
        for token in range(x.shape[1]):
            v = x[row, token]
            gain = 1.0 if rows is None else float(rows[row])
            if theta is not None and bias is not None:
                score = float(v @ theta[0] + bias[0])
                gain *= max(0.0, score) if edit.form == "relu" else 1 / (1 + np.exp(-score))
            inside = 1.0 if low is None or high is None else (low <= v) & (v <= high)
            out[row, token] = v + gain * inside * (offset + (0 if slope is None else slope * v))
    return out


def close_to(got: Tensor, expected: np.ndarray) -> None:
    scale = np.abs(expected).max()
    np.testing.assert_allclose(got.double().numpy(), expected, rtol=0, atol=TOLERANCE[got.dtype] * scale)


@pytest.mark.parametrize("gate", ["sigmoid", "relu", "none"])
@pytest.mark.parametrize("support", [True, False], ids=["bounded", "everywhere"])
@pytest.mark.parametrize("slope", [True, False], ids=["affine", "addition"])
@pytest.mark.parametrize("by_row", [True, False], ids=["by row", "one strength"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_is_prepared_computes_the_equation(
    dtype: torch.dtype, by_row: bool, slope: bool, support: bool, gate: Gate
) -> None:
    t, edit = torch.randn(3, 5, DIM).to(dtype), edit_of(gate, slope=slope, support=support)
    rows = torch.tensor([0.5, 0.0, 1.7]) if by_row else None
    before = t.clone()
    got, gain = prepared(edit, dtype, None if rows is None else rows.view(-1, 1, 1))(t)
    assert got.dtype == dtype
    assert (gain is None) == (gate == "none" and not by_row)
    close_to(got, by_hand(t, edit, rows))
    assert torch.equal(t, before)
    if by_row:
        assert torch.equal(got[1], t[1])  # strength 0: the same bits


def test_a_float64_activation_is_computed_in_float64() -> None:
    t, edit = torch.randn(2, 3, DIM, dtype=torch.float64), edit_of(dtype=torch.float64)
    close_to(prepared(edit, torch.float64, None)(t)[0], by_hand(t, edit))


def test_widths_and_strides_of_every_kind_are_read_right() -> None:
    for dim in (1, 3, 65):
        edit, wide = edit_of(dim=dim), torch.randn(4, 2, 2 * dim)
        step = prepared(edit, torch.float32, None)
        for t in (wide[..., ::2], wide[:, :1, :dim], wide[..., :dim].transpose(0, 1)):
            close_to(step(t)[0], by_hand(t, edit))
        assert step(wide[:, :0, :dim])[0].shape == (4, 0, dim)


def test_numbers_taken_elsewhere_are_all_taken_and_those_that_are_there_are_not_copied() -> None:
    edit = edit_of(support=True)._replace(factor=0.5)
    there = edit.to(torch.device("cpu"), torch.float64)
    assert {value.dtype for value in there[:6] if value is not None} == {torch.float64}
    assert (there.form, there.factor) == ("sigmoid", 0.5)
    assert all(one is other for one, other in zip(edit.to(torch.device("cpu"), torch.float32), edit, strict=True))


@pytest.mark.compile
def test_what_is_prepared_compiles_without_a_break_and_stays_the_same() -> None:
    edit = edit_of(support=True)
    step = lambda t, rows: prepared(edit, torch.bfloat16, rows)(t)[0]  # noqa: E731
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    t, rows = torch.randn(2, 3, DIM).bfloat16(), torch.rand(2, 1, 1)
    torch.testing.assert_close(compiled(t, rows), step(t, rows))
