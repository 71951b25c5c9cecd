"""Proximal: the sparse group lasso on (w - 1, b), as a step after each step of the optimiser.

    R(v)    = share |v|_1 + (1 - share) sqrt(d) |v|_2         for v = w - 1 and v = b / size of each site, d numbers
    prox(v) = max(0, 1 - tau (1 - share) sqrt(d) / |u|_2) u,  u = sign(v) max(0, |v| - tau share)

with tau = sparsity x current learning rate. Soft-thresholding first and shrinking the group afterwards is the exact
proximal map of the sum (Simon et al. 2013, "A sparse-group lasso"). Numbers that reach 0 are exactly 0, so neurons
outside the support cost nothing and do not change.

Source: LinEAS (arXiv 2503.10679, section on sparsity). The groups (each of the two vectors of a site) and share = 0.95,
which is that of Simon et al., are chosen here. Limitations: all coordinates share one tau, where the metric of Adam
would need one each; so with Adam the fixed point is not that of the penalised loss.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

SHARE = 0.95


def shrink(v: Float[Tensor, " dim"], tau: float, *, share: float = SHARE) -> Float[Tensor, " dim"]:
    """Return the proximal map of tau * R at `v`; tau >= 0, and the share of the first norm is in [0, 1]."""
    soft = v.sign() * (v.abs() - tau * share).clamp(min=0)
    norm = torch.linalg.vector_norm(soft)
    kept = (1 - tau * (1 - share) * math.sqrt(len(v)) / norm.clamp(min=torch.finfo(v.dtype).tiny)).clamp(min=0)
    return kept * soft


def shrink_line_(
    slope: Float[Tensor, " dim"], offset: Float[Tensor, " dim"], size: Float[Tensor, " dim"], tau: float
) -> None:
    """Take the proximal step on the parameters of one site, in place: towards slope 1 and offset 0.

    size: the size of each neuron's activations, in whose units the offset is.
    """
    with torch.no_grad():
        slope.copy_(1 + shrink(slope - 1, tau))
        offset.copy_(size * shrink(offset / size, tau))
