"""CAST: one decision per row, made on its prompt and kept for the whole answer.

    h = 1 when  cos(m, tanh(c (c . m) / (c . c))) > threshold,  else 0        m = mean of the prompt's activations

c is the first principal direction of the differences between source and control. The threshold is the one that tells
the pooled samples apart best, and it decides the side on which to steer.

A prompt may come in pieces, so m is the mean of the prompt's tokens so far, without the first, which is an attention
sink: a prompt token is steered by what has been read up to it, and after the prompt the decision is fixed. In a
conversation over one cache, each turn is decided anew, from the tokens of its own prompt.

Source: CAST (arXiv 2409.05907, section 3). Limitations: a condition is read only at the sites that are steered;
conditions cannot be combined logically (multiply regulators instead).
"""

from typing import ClassVar, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dsas.methods.base import Facts, Samples
from dsas.methods.linear_boundary import Labelled, held_out_accuracy
from dsas.methods.served_form import PromptCondition, ServedGain
from dsas.model.forward_pass import ForwardPass
from dsas.regulators.base import FittedRegulator, Regulator


@final
class Cast(Regulator):
    """Steers a whole row or leaves it: condition (dim,), threshold a cosine, above the side on which to steer."""

    name: ClassVar[str] = "cast"
    facts: ClassVar[Facts] = Facts(
        formula="per row: 1 where cos(m, tanh(c (c . m) / (c . c))) > threshold, m = mean of the prompt",
        paper="CAST, arXiv 2409.05907",
        left_out="no conditions at other sites",
        flops="8 d",
    )
    reads_forward_pass = True
    condition: Tensor
    threshold: Tensor
    above: bool

    def __init__(self, condition: Float[Tensor, " dim"], threshold: Float[Tensor, ""], above: bool = True) -> None:
        """Keep the condition and its threshold."""
        super().__init__()
        self.keep(condition=condition, threshold=threshold, above=above)

    @classmethod
    def fit(
        cls, source: Samples, control: Samples, target: Samples, *, folds: int = 5, seed: int = 0
    ) -> FittedRegulator:
        """Return the regulator and its balanced accuracy over stratified folds; target is not used."""
        data = Labelled.of(source, control)
        accuracy = held_out_accuracy(data, _Condition.of, folds=folds, seed=seed)
        found = _Condition.of(data)
        condition = torch.from_numpy(found.direction).float()
        return FittedRegulator(cls(condition, torch.tensor(found.threshold), found.above), accuracy)

    def forward(self, t: Float[Tensor, "batch token dim"], forward_pass: ForwardPass) -> Float[Tensor, "batch token 1"]:
        """Return 1 or 0 for every token; it is piecewise constant, so no gradient flows."""
        total, count = (forward_pass.carried(name, anew=True) for name in ("total", "count"))
        if forward_pass.generated:
            if total is None or count is None:  # no prompt was seen, so there is nothing to decide on
                return t.new_zeros(*t.shape[:2], 1, dtype=torch.float32)
            sums, counts = total.unsqueeze(1), count.unsqueeze(1)
        else:
            counted = forward_pass.real & forward_pass.prompt & (forward_pass.positions > 0)
            wide = t.detach().to(self.condition.dtype)
            sums = torch.cumsum(wide.masked_fill(~counted.unsqueeze(-1), 0.0), dim=1)
            counts = torch.cumsum(counted.unsqueeze(-1).to(wide.dtype), dim=1)
            if total is not None and count is not None:
                sums, counts = sums + total.unsqueeze(1), counts + count.unsqueeze(1)
            forward_pass.carry("total", sums)
            forward_pass.carry("count", counts)
        holds = (similarity(sums / counts.clamp(min=1), self.condition) > self.threshold) == self.above
        return (holds.unsqueeze(-1) & (counts > 0)).float().expand(-1, t.shape[1], -1)

    def served_form(self) -> ServedGain:
        """Return the condition on the prompt."""
        return ServedGain(prompts=(PromptCondition(self.condition, self.threshold, self.above),))


def similarity(m: Float[Tensor, "*sample dim"], condition: Float[Tensor, "*#sample dim"]) -> Float[Tensor, "*sample"]:
    """Return cos(m, tanh(c (c . m) / (c . c))), which is >= 0: the squashed projection is on the side of m.

    condition: c, one or one per sample.
    """
    along = (m @ condition) if condition.ndim == 1 else (m * condition).sum(-1)
    along = along / condition.square().sum(-1).clamp(min=torch.finfo(m.dtype).tiny)
    squashed = torch.tanh(along.unsqueeze(-1) * condition)
    lengths = [x.square().sum(-1).sqrt().clamp(min=1e-8) for x in (m, squashed)]
    return (m * squashed).sum(-1) / (lengths[0] * lengths[1])


class _Condition(NamedTuple):
    """A condition fitted on labelled samples; `answers` is what `held_out_accuracy` needs from a boundary."""

    direction: np.ndarray
    threshold: float
    above: bool

    @classmethod
    def of(cls, data: Labelled) -> "_Condition":
        sets = [data.x[data.y == label] for label in (1, 0)]
        spread = [(x - x.mean(0)) / np.sqrt(len(x)) for x in sets]
        rows = np.concatenate([*spread, (sets[0].mean(0) - sets[1].mean(0))[None]])
        direction = np.linalg.svd(rows, full_matrices=False)[2][0]
        values = similarity(torch.from_numpy(data.x), torch.from_numpy(direction)).numpy()
        return cls(direction, *best_cut(values, data.y))

    def answers(self, x: np.ndarray) -> np.ndarray:
        values = similarity(torch.from_numpy(x), torch.from_numpy(self.direction)).numpy()
        return ((values > self.threshold) == self.above).astype(int)


def best_cut(values: np.ndarray, labels: np.ndarray) -> tuple[float, bool]:
    """Return the threshold of best balanced accuracy, half-way between two values, and whether 1 is above it."""
    order = np.argsort(values, kind="stable")
    ranked, ones = values[order], labels[order]
    before = np.cumsum(ones) / max(1, ones.sum()), np.cumsum(1 - ones) / max(1, (1 - ones).sum())
    gain = np.where(np.diff(ranked) > 0, (before[1] - before[0])[:-1], 0.0)
    place = int(np.argmax(np.abs(gain)))
    return float((ranked[place] + ranked[place + 1]) / 2), bool(gain[place] >= 0)
