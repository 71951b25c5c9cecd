"""Launch: what the CUDA kernel is started with; plain arguments, so that it can be looked at without a GPU."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dsas.errors import OptionError
from dsas.methods.kernels.fold import Fold

WIDEST = 65536


class Launch(NamedTuple):
    """One program a token.

    out: where the result goes. arguments: tensors and sizes in the kernel's order; what is not there is `t`, which the
    flags say is not to be read. flags: what the kernel is compiled for.
    """

    out: Float[Tensor, "batch token dim"]
    programs: int
    arguments: tuple[Any, ...]
    flags: dict[str, Any]


def launch(
    t: Float[Tensor, "batch token dim"],
    fold: Fold,
    rows: Float[Tensor, " batch"] | None = None,
    slots: Int[Tensor, " batch"] | None = None,
) -> Launch:
    """Return how the kernel is started for one step. Raises OptionError for a width that no program can hold."""
    batch, tokens, dim = t.shape
    if dim > WIDEST:
        raise OptionError(f"one program holds a token of at most {WIDEST} numbers, got {dim}")
    t = t.contiguous()
    out = torch.empty_like(t)
    optional = [None if value is None else value.contiguous() for value in (*fold[1:], rows, slots)]
    slope, theta, _, row, slot = (value is not None for value in optional)
    arguments = (t, out, fold.offset.contiguous(), *(t if value is None else value for value in optional), tokens, dim)
    block = 1 << (dim - 1).bit_length()
    flags = {"HAS_SLOPE": slope, "HAS_THETA": theta, "HAS_ROWS": row, "HAS_SLOTS": slot, "BLOCK": block}
    return Launch(out, batch * tokens, arguments, flags | {"num_warps": min(16, max(1, block // 512))})
