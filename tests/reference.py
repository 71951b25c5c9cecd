"""What a steered row must give: the whole row in one float64 pass without a cache, by hooks and arithmetic of its own.

Nothing of dsas is imported here. The steered value of token i depends on tokens 0 to i only, so that one pass over the
finished row gives what any way of running it must give:

    t'   = t + strength * h(t) * vector
    h(t) = sigmoid(theta . t + bias)          logistic            1                              constant
           max(0, theta . t + bias)           mera                1 at places start to stop - 1  generated
           1 if cos(m, tanh(theta (theta . m) / (theta . theta))) > threshold else 0             cast
           sigmoid(e - threshold)             evidence, fading
           sigmoid(theta . (t - a) + bias)    clean, a the sum of what the modules before have added

e is the sum of memory^(i - j) (theta . t_j + bias) over the tokens j up to i, without the row's first one, over the sum
of those weights plus 2; memory is 1, and for fading 0.8, from the beginning of the turn.

m is the mean of the turn's prompt so far, without the row's first token. Places count from the end of that prompt.
"""

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Spans = Sequence[tuple[int, int]]  # of columns: the prompt of each turn, from its first token to the one after its last


class Numbers(NamedTuple):
    """What is done at one module: its path, and the numbers of the equation above, in float64."""

    path: str
    kind: str
    strength: float
    vector: Tensor
    theta: Tensor
    bias: float = 0.0
    threshold: float = 0.0
    start: int = 0
    stop: int = 0
    spare_first: bool = False


class Reference(NamedTuple):
    """strengths: (site, token). logits: (token, vocabulary). margin: how close the closest decision of cast is."""

    strengths: Tensor
    logits: Tensor
    margin: float


def reference(model: nn.Module, sites: Sequence[Numbers], ids: Tensor, prompts: Spans) -> Reference:
    """Run the row `ids` (token,) with these turns; `model` is not touched, and need not be in float64."""
    wide, strengths, margins, added = _wide(model), [], [float("inf")], torch.zeros(())

    def steer(numbers: Numbers) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            nonlocal added
            t = output[0] if isinstance(output, tuple) else output
            h, margin = _regulated(numbers, t[0] - added if numbers.kind == "clean" else t[0], prompts)
            h[0] = 0.0 if numbers.spare_first else h[0]
            strengths.append(numbers.strength * h)
            margins.append(margin)
            change = (numbers.strength * h)[:, None] * numbers.vector
            added, changed = added + change, t + change
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    hooks = [wide.get_submodule(numbers.path).register_forward_hook(steer(numbers)) for numbers in sites]
    try:
        with torch.no_grad():
            logits = wide(input_ids=ids[None], use_cache=False).logits[0]
    finally:
        for hook in hooks:
            hook.remove()
    return Reference(torch.stack(strengths) if sites else torch.zeros(0, len(ids)), logits.double(), min(margins))


def similarity(m: Tensor, condition: Tensor) -> Tensor:
    """Return cos(m, tanh(c (c . m) / (c . c))) of every row of m."""
    projected = torch.tanh(torch.outer(m @ condition, condition) / (condition @ condition))
    return (m * projected).sum(-1) / (m.norm(dim=-1) * projected.norm(dim=-1))


def plain_activations(model: nn.Module, paths: Sequence[str], ids: Tensor) -> list[Tensor]:
    """Return what the modules at `paths` give for a row that is not steered, each (token, dim)."""
    wide, found = _wide(model), {}

    def keep(path: str) -> Any:
        return lambda _m, _a, output: found.update({path: (output[0] if isinstance(output, tuple) else output)[0]})

    hooks = [wide.get_submodule(path).register_forward_hook(keep(path)) for path in paths]
    with torch.no_grad():
        wide(input_ids=ids[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return [found[path] for path in paths]


@cache
def _wide(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double().eval()


def _regulated(numbers: Numbers, t: Tensor, prompts: Spans) -> tuple[Tensor, float]:
    """Return h of every token of one row (token, dim), and how close the closest decision was."""
    score = t @ numbers.theta + numbers.bias
    if numbers.kind in ("logistic", "clean"):
        return 1 / (1 + torch.exp(-score)), float("inf")
    if numbers.kind == "mera":
        return score.clamp(min=0), float("inf")
    h, margin = torch.ones(len(t), dtype=t.dtype), float("inf")
    if numbers.kind == "constant":
        return h, margin
    if numbers.kind in ("evidence", "fading"):
        begins = [start for start, _ in prompts] if numbers.kind == "fading" else [0]
        for i in range(len(t)):
            first = max(1, *(start for start in [0, *begins] if start <= i)) if i else 1
            weights = (0.8 if numbers.kind == "fading" else 1.0) ** torch.arange(i - first, -1, -1, dtype=t.dtype)
            e = (weights * score[first : i + 1]).sum() / (weights.sum() + 2)
            h[i] = 1 / (1 + torch.exp(numbers.threshold - e)) if i else 0.0
        return h, margin
    if numbers.kind == "held":
        own, _ = _regulated(numbers._replace(kind="evidence"), t, prompts)
        ends = [max((min(i, end - 1) for start, end in prompts if start <= i), default=-1) for i in range(len(t))]
        return torch.stack([own[end] if end >= 0 else h.new_zeros(()) for end in ends]), margin
    turns = zip(prompts, [*(start for start, _ in prompts[1:]), len(t)], strict=True)
    for (start, end), following in turns:
        for i in range(start, following):
            if numbers.kind == "generated":
                h[i] = float(i >= end and numbers.start <= i - end < numbers.stop)
                continue
            read = t[max(start, 1) : min(i + 1, end)]  # of this turn's prompt; the row's first token is left out
            if len(read) == 0:
                h[i] = 0.0
                continue
            found = float(similarity(read.mean(0, keepdim=True), numbers.theta))
            h[i], margin = float(found > numbers.threshold), min(margin, abs(found - numbers.threshold))
    return h, margin
