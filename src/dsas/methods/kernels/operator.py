"""The fused step as one operator, `torch.ops.dsas.step`: opaque to torch.compile, with gradients of its own.

    gate    =  sigmoid(theta . t + bias)           gain = row * gate           edit = slope * t + offset
    dt      =  g + gain * slope * g + score * theta           with score = row * gate * (1 - gate) * (g . edit)
    doffset =  sum gain * g        dslope = sum gain * g * t        dtheta = sum score * t        dbias = sum score
    drow    =  sum gate * (g . edit)

for the gradient g of what came out. On a CUDA device it runs the Triton kernel where that package is there; everywhere
else the eager step.
"""

from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dsas.methods.kernels import eager
from dsas.methods.kernels.fold import Fold

SCHEMA = "(Tensor t, Tensor offset, Tensor? slope, Tensor? theta, Tensor? bias, Tensor? rows, Tensor? slots) -> Tensor"


def step(
    t: Float[Tensor, "batch token dim"],
    fold: Fold,
    rows: Float[Tensor, " batch"] | None = None,
    slots: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch token dim"]:
    """Return t + gain * (slope * t + offset) in the dtype of `t`."""
    return OPERATOR(t, *fold, rows, slots)


def _run(t: Tensor, *tensors: Tensor | None) -> Tensor:
    offset, slope, theta, bias, rows, slots = tensors
    assert offset is not None  # as the schema has it
    fold = Fold(offset, slope, theta, bias)
    if t.is_cuda and find_spec("triton") is not None:
        from dsas.methods.kernels import triton

        return triton.step(t, fold, rows, slots)
    return eager.step(t, fold, rows, slots)


def _shape(t: Tensor, *_tensors: Tensor | None) -> Tensor:
    return torch.empty_like(t, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    t, offset, slope, theta, bias, rows, slots = ctx.saved_tensors
    wide, g = t.to(offset.dtype), gradient.to(offset.dtype)
    whole = Fold(offset, slope, theta, bias)
    used = whole if slots is None else whole.of(slots)
    edit = used.offset.expand_as(wide) if used.slope is None else torch.addcmul(used.offset, wide, used.slope)
    row = wide.new_ones(1, 1, 1) if rows is None else rows.view(-1, 1, 1)
    pull = (g * edit).sum(-1, keepdim=True)
    gate, score = row.new_ones(1, 1, 1), torch.zeros_like(pull)
    if used.theta is not None and used.bias is not None:
        gate = torch.sigmoid((wide * used.theta).sum(-1, keepdim=True) + used.bias)
        score = row * gate * (1 - gate) * pull
    moved = row * gate * g
    to_t = g if used.slope is None else torch.addcmul(g, moved, used.slope)
    to_t = to_t if used.theta is None else torch.addcmul(to_t, score, used.theta)
    found = (
        _summed(moved, slots, offset),
        None if slope is None else _summed(moved * wide, slots, slope),
        None if theta is None else _summed(score * wide, slots, theta),
        None if bias is None else _summed(score, slots, bias.unsqueeze(-1)).squeeze(-1),
        None if rows is None else (gate * pull).sum((1, 2)),
    )
    return (to_t.to(t.dtype), *found, None)


def _summed(each: Tensor, slots: Tensor | None, like: Tensor) -> Tensor:
    """Return the sum over tokens, and over the rows of each line."""
    rows = each.sum(1)
    if slots is None:
        return rows.sum(0, keepdim=True)
    return torch.zeros_like(like).index_add(0, slots, rows)


OPERATOR = torch.library.custom_op("dsas::step", _run, mutates_args=(), schema=SCHEMA)
OPERATOR.register_fake(_shape)
OPERATOR.register_autograd(_backward, setup_context=_keep)
