"""Across sites: a prototype of evidence that adds up over the sites read so far, not only over tokens.

    e_l   = evidence at site l, as in `dsas.Evidence`
    h_l   = sigmoid(scale_l * mean_{k <= l} e_k + shift_l)

Each site's scale and shift are tuned as in `fit`, on held-out control tokens, after the average. It is not in the
library, because a regulator there knows only its own site (docs/lab/findings.md has the results).
"""

from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

import dsas
from dsas.methods.base import Facts
from dsas.methods.linear_boundary import Boundary
from dsas.methods.tuned_boundary import TokenScores, Tuning, tuned_boundary
from dsas.model.forward_pass import ForwardPass
from dsas.regulators.base import Regulator, TunableRegulator, Tuned, Untuned

BY_ITSELF = Tuning(prior=0.0, memory=0.0)


@final
class AcrossSites(Regulator):
    """A sigmoid of the mean evidence of this site and those before it."""

    name: ClassVar[str] = "across-sites"
    facts: ClassVar[Facts] = Facts("sigmoid(scale mean e + shift)", "-", "-", "2 d")
    reads_forward_pass = True

    def __init__(self, evidence: dsas.Evidence, scale: float, shift: float) -> None:
        super().__init__()
        self.keep(evidence=evidence, scale=scale, shift=shift)

    @classmethod
    def fit(cls, source: Tensor, control: Tensor, target: Tensor) -> TunableRegulator:
        raise NotImplementedError("use across_sites(), which knows the sites before")

    def forward(self, t: Tensor, forward_pass: ForwardPass) -> Tensor:
        own = torch.logit(self.evidence(t, forward_pass).double(), eps=1e-7)  # its cut is 0
        sites = forward_pass.once("across sites", lambda _: list[Tensor]())
        sites.append(own)
        value = torch.sigmoid(self.scale * torch.stack(sites).mean(0) + self.shift).float()
        return value.where(forward_pass.counted.unsqueeze(-1), 0.0)


class AcrossFit:
    """Fits one site after another, in the order of the model, and remembers the evidence of those before."""

    def __init__(self) -> None:
        self._tuning, self._before = Tuning(), list[TokenScores]()

    def __call__(self, source: Tensor, control: Tensor, target: Tensor) -> TunableRegulator:
        found = tuned_boundary(source, control, self._tuning, inverse_penalty=0.01, seed=0)

        def tune(scores: TokenScores) -> Tuned:
            boundary = found.tune(scores).boundary
            evidence = self._evidence(boundary)
            own = self._standardised(scores)
            self._before.append(own)
            mean = TokenScores(
                [np.mean(each, axis=0) for each in zip(*(one.source for one in self._before), strict=True)],
                [np.mean(each, axis=0) for each in zip(*(one.control for one in self._before), strict=True)],
                scores.counted,
            )
            again = BY_ITSELF._replace(
                false_positives=self._tuning.false_positives, sharpness=self._tuning.sharpness
            ).of(Boundary(np.ones(1), 0.0), mean)
            scale, shift = float(again.boundary.theta[0]), again.boundary.bias - again.cut
            return Tuned(AcrossSites(evidence, scale, shift), again.values)

        start = AcrossSites(self._evidence(found.boundary.boundary), 1.0, 0.0)
        return TunableRegulator(start, found.held_out.accuracy, Untuned(found.held_out, tune))

    def _evidence(self, boundary: Boundary) -> dsas.Evidence:
        theta, bias = torch.from_numpy(boundary.theta).float(), torch.tensor(boundary.bias).float()
        return dsas.Evidence(theta, bias, torch.tensor(0.0), self._tuning.prior, self._tuning.memory)

    def _standardised(self, scores: TokenScores) -> TokenScores:
        """Return the evidence at every token, as the regulator has it."""
        tuning = self._tuning
        centre = float(np.concatenate(scores.of_counted().control).mean())
        evidence = scores.mapped(lambda own: tuning.so_far(own - centre))
        spread = float(np.concatenate(evidence.of_counted().control).std())
        return evidence.mapped(lambda own: own * tuning.sharpness / spread)
