"""The fused step on CUDA: each token is read once and written once, and computed in float32 in between.

Rows may have strengths and Steerings of their own (a line of the table each), which costs no further pass. Imported
only where there is a package `triton`. TRITON_INTERPRET=1 runs it on a CPU, slowly: so it was tested; no GPU was at
hand.

Left out: widths beyond 65536, float64, and gradients, which `dsas.methods.kernels.operator` has.
"""

# pyright: reportInvalidTypeForm=false
from importlib import import_module
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from dsas.methods.kernels.fold import Fold
from dsas.methods.kernels.launch import launch

triton: Any = import_module("triton")
tl: Any = import_module("triton.language")


@triton.jit
def _kernel(
    t, out, offset, slope, theta, bias, rows, slots, tokens, dim,
    HAS_SLOPE: tl.constexpr, HAS_THETA: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    row = token // tokens
    column = tl.arange(0, BLOCK)
    inside = column < dim
    line = tl.load(slots + row).to(tl.int64) if HAS_SLOTS else token * 0
    x = tl.load(t + token * dim + column, mask=inside, other=0.0).to(tl.float32)
    edit = tl.load(offset + line * dim + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_SLOPE:
        edit += x * tl.load(slope + line * dim + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_THETA:
        weight = tl.load(theta + line * dim + column, mask=inside, other=0.0).to(tl.float32)
        score = tl.sum(x * weight, axis=0) + tl.load(bias + line).to(tl.float32)
        edit *= 1.0 / (1.0 + tl.exp(-score))
    if HAS_ROWS:
        edit *= tl.load(rows + row).to(tl.float32)
    tl.store(out + token * dim + column, (x + edit).to(out.dtype.element_ty), mask=inside)


def step(
    t: Float[Tensor, "batch token dim"],
    fold: Fold,
    rows: Float[Tensor, " batch"] | None = None,
    slots: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch token dim"]:
    """Return t + gain * (slope * t + offset) in the dtype of `t`, computed in float32."""
    started = launch(t, fold, rows, slots)
    if started.programs:
        _kernel[(started.programs,)](*started.arguments, **started.flags)
    return started.out
