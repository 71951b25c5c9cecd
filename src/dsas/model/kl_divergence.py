"""KL divergence: how far one distribution of the next token is from another, per token, in nats.

    KL(p || q) = sum over the vocabulary's v with p(v) > 0 of p(v) (log p(v) - log q(v))

A token whose probability is 0, such as one masked by a logit of -inf, adds nothing, though its logarithm is -inf. If q
gives probability 0 to a token that p does not, the divergence is infinite.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def kl_divergence(
    before: Float[Tensor, "*token vocabulary"], after: Float[Tensor, "*token vocabulary"]
) -> Float[Tensor, "*token"]:
    """Return KL(softmax(before) || softmax(after)) of logits, in float32 or better; `after` may need gradients."""
    wide = torch.promote_types(before.dtype, torch.float32)
    p, q = before.to(wide).log_softmax(-1), after.to(wide).log_softmax(-1)
    share = p.exp()
    return (share * (p - q).masked_fill(share == 0, 0.0)).sum(-1)
