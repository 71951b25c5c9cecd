"""Terms: what training minimises, as pure functions of tensors.

    transport  =  mean over sites and neurons of  sum_k (s_(k) - g_k)^2 / u^2    s_(k): steered source, sorted; g: goal
    control    =  mean over sites and control tokens of  || a' - a ||_2 / u      a: the unsteered activation
    loss       =  transport + control_weight * control
    u          =  root of the mean square of the site's target activations

Activations of one model may be five hundred times larger than those of another, and twenty times larger at one site
than at the next. The factor u, which the sources do not have, gives control_weight the same meaning everywhere, and no
site outweighs the others.

In one dimension optimal transport pairs sorted samples, so with equal sizes the sum is n times the squared Wasserstein
distance W2^2 to the target sample. For other sizes goal k is the mean of the target's quantile function over
((k-1)/n, k/n): then the sum differs from n W2^2 by a constant that no parameter changes, and its gradient is exact.

Source: LinEAS (arXiv 2503.10679, section 3) for the transport term; the control term has the form of the retain loss
of circuit breakers (arXiv 2406.04313). Limitations: each neuron is compared separately.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def goal(target: Float[Tensor, "sample2 dim"], count: int) -> Float[Tensor, "count dim"]:
    """Return, for each of `count` ranks, the mean of the target's quantile function over that rank's share."""
    ranked = target.double().sort(0).values
    samples = len(ranked)
    if samples == count:
        return ranked.to(target.dtype)
    total = torch.cat([ranked.new_zeros(1, ranked.shape[1]), ranked.cumsum(0)])
    places = torch.arange(count + 1, dtype=torch.float64, device=target.device) * samples / count
    below = places.floor().long().clamp(max=samples - 1)
    integral = total[below] + (places - below).unsqueeze(-1) * ranked[below]
    return (integral.diff(dim=0) * count / samples).to(target.dtype)


def size(target: Float[Tensor, "sample dim"]) -> Float[Tensor, " dim"]:
    """Return the root mean square of each neuron, at least a thousandth of the site's."""
    square = target.double().square()
    floor = (1e-3 * square.mean().sqrt()).clamp(min=torch.finfo(torch.float32).tiny)
    return square.mean(0).sqrt().clamp(min=floor).to(target.dtype)


def transport(
    pooled: Sequence[Float[Tensor, "sample _"]], goals: Sequence[Float[Tensor, "sample _"]], units: Sequence[float]
) -> Float[Tensor, ""]:
    """Return the transport term of all sites, without unit; `goals` are from `goal`, `units` are the sites' u.

    Sites may differ in width.
    """
    each = zip(pooled, goals, units, strict=True)
    terms = [(s.sort(0).values - g).square().sum(0).mean() / unit**2 for s, g, unit in each]
    return torch.stack([term.to(terms[0].device) for term in terms]).mean()  # a model may be spread over devices


def drift(steered: Float[Tensor, "token dim"], unsteered: Float[Tensor, "token dim"]) -> Float[Tensor, ""]:
    """Return the sum over tokens of how far each was moved, in float32 or better; its gradient is 0 for no move."""
    wide = torch.promote_types(steered.dtype, torch.float32)
    return torch.linalg.vector_norm(steered.to(wide) - unsteered.to(wide), dim=-1).sum()
