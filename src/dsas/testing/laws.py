"""Laws: what every transform, regulator and Steering must keep, by number, and how a broken one is reported."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

LAWS: dict[int, str] = {
    1: "strength 0 is the identity bit for bit and leaves the model as it was",
    2: "a row's result depends on that row alone, however it is batched, padded, cached or cut",
    3: "nothing is written into a tensor that was given; shape, dtype and device are kept, in bfloat16 too",
    4: "hooks come off on every exit path",
    5: "what is saved and loaded is exact, and does not load onto a model it does not fit",
    6: "nothing is ignored in silence",
    7: "gradients flow through transform, regulator and strength, and never into the model's weights",
    8: "torch.compile never ignores steering",
    9: "state follows the sequence: over cached prefixes and copies of them, caches in turn, cuts",
}
TOLERANCE = 1e-4
DIFFERENCE = 1e-6


class LawBroken(AssertionError):
    """A law does not hold; the message names the law and what was observed."""


def require(law: int, holds: bool, seen: str) -> None:
    """Raise LawBroken, naming the law, unless it holds; `seen` is a sentence on what happened instead."""
    if not holds:
        raise LawBroken(f"law {law} ({LAWS[law]}) is broken: {seen}")


@contextmanager
def untouched(law: int, what: str, *tensors: Tensor) -> Iterator[None]:
    """Require that nothing inside the block writes into the tensors."""
    before = [tensor.detach().clone() for tensor in tensors]
    yield
    same = all(torch.equal(old, new) for old, new in zip(before, tensors, strict=True))
    require(law, same, f"{what} wrote into a tensor that it was given")


def close(a: Tensor, b: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether two tensors agree up to `tolerance`, relative to the largest value of `b` (or 1, if that is less)."""
    if a.shape != b.shape:
        return False
    scale = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
    return bool(((a.detach().double() - b.detach().double()).abs() <= tolerance * scale).all())


def require_gradient(function: Callable[[Tensor], Tensor], at: Tensor, what: str) -> None:
    """Require that the slope of `function` at `at` (float64) along a random direction equals that from differences.

    A function that is flat almost everywhere, such as a threshold, has slope 0 and needs no gradient.
    """
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(at.shape, generator=generator, dtype=at.dtype)
    x = at.detach().clone().requires_grad_()
    value = function(x)
    weights = torch.randn(value.shape, generator=generator, dtype=at.dtype)
    slope = 0.0
    if value.requires_grad:
        (gradient,) = torch.autograd.grad((value * weights).sum(), x, allow_unused=True)
        slope = 0.0 if gradient is None else float((gradient * direction).sum())
    with torch.no_grad():
        ahead, behind = (function(at + step * direction) for step in (DIFFERENCE, -DIFFERENCE))
    expected = float(((ahead - behind) * weights).sum()) / (2 * DIFFERENCE)
    near = abs(slope - expected) <= 0.02 * abs(expected) + 0.03
    require(7, near, f"the slope of {what} is {slope:.4g} by its gradient, {expected:.4g} by differences")
