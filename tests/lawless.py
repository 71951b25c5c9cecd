"""Methods of which each breaks one law, to show that the laws can be broken."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import dsas
from dsas.methods.moments import Moments
from dsas.model.forward_pass import ForwardPass
from dsas.regulators.base import FittedRegulator


class Half(dsas.Addition):
    """A transform that keeps every law; each class below breaks one."""

    @classmethod
    def fit(cls, source: Tensor, target: Tensor) -> dsas.Transform:
        return cls(target.mean(0) - source.mean(0))


class InPlace(Half):
    def edit(self, t: Tensor) -> Tensor:
        return t.mul_(2.0) + self.vector


class LooksAround(Half):
    def edit(self, t: Tensor) -> Tensor:
        return self.vector + 0.0 * t.float() + t.float().mean(1, keepdim=True)


class Narrow(Half):
    def edit(self, t: Tensor) -> Tensor:
        return t * self.vector.to(t.dtype)


class Detached(Half):
    def edit(self, t: Tensor) -> Tensor:
        return t * self.vector.detach()


class WrongShape(Half):
    def edit(self, t: Tensor) -> Tensor:
        return self.vector.expand(1, 1, -1)


class NanAtZero(Half):
    def edit(self, t: Tensor) -> Tensor:
        return t.float() / t.float().norm(dim=-1, keepdim=True) + self.vector


class Forgets(Half):
    def __init__(self, vector: Tensor) -> None:
        nn.Module.__init__(self)
        self.keep(vector=2 * vector)


class OtherwiseOfMoments(Half):
    @classmethod
    def fit_moments(cls, source: Moments, target: Moments) -> dsas.Transform:
        return cls((2 * target.mean - source.mean).float())


class Gate(dsas.Regulator):
    """A regulator that keeps every law; each class below breaks one."""

    name: ClassVar[str] = "gate"
    theta: Tensor

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.keep(theta=theta)

    @classmethod
    def fit(cls, source: Tensor, control: Tensor, target: Tensor) -> FittedRegulator:
        return FittedRegulator(cls(source.mean(0) - control.mean(0)), accuracy=0.9)

    def score(self, t: Tensor) -> Tensor:
        return torch.sigmoid(t.to(self.theta.dtype) @ self.theta).unsqueeze(-1)

    def forward(self, t: Tensor, forward_pass: ForwardPass) -> Tensor:
        return self.score(t)


class FirstRow(Gate):
    def forward(self, t: Tensor, forward_pass: ForwardPass) -> Tensor:
        return self.score(t[:1]).expand(len(t), -1, -1)


class Counts(Gate):
    def forward(self, t: Tensor, forward_pass: ForwardPass) -> Tensor:
        index = torch.arange(t.shape[1]).view(1, -1, 1)
        return self.score(t) * (index > 0)


class SeesPadding(Gate):
    def forward(self, t: Tensor, forward_pass: ForwardPass) -> Tensor:
        return self.score(t.float().mean(1, keepdim=True)).expand(-1, t.shape[1], -1)


class OnItself(Gate):
    """Keeps what it has read on itself, from the last pass without a past on, and not with the sequence."""

    reads_forward_pass = True

    def forward(self, t: Tensor, forward_pass: ForwardPass) -> Tensor:
        read = (t.float() * forward_pass.real.unsqueeze(-1)).cumsum(1)
        if forward_pass.past > 0:
            read = read + self.__dict__["kept"][:, -1:]
        self.__dict__["kept"] = read
        return self.score(read)


class Negative(Gate):
    def forward(self, t: Tensor, forward_pass: ForwardPass) -> Tensor:
        return self.score(t) - 0.9


class HalfPrecision(Gate):
    def forward(self, t: Tensor, forward_pass: ForwardPass) -> Tensor:
        return self.score(t).to(t.dtype)


class GateDetached(Gate):
    def forward(self, t: Tensor, forward_pass: ForwardPass) -> Tensor:
        return self.score(t.detach())


class Boasts(Gate):
    @classmethod
    def fit(cls, source: Tensor, control: Tensor, target: Tensor) -> FittedRegulator:
        return FittedRegulator(cls(source.mean(0) - control.mean(0)), accuracy=90.0)


class BareFit(Gate):
    @classmethod
    def fit(cls, source: Tensor, control: Tensor, target: Tensor) -> Any:
        return cls(source.mean(0) - control.mean(0))


class Remembers(Gate):
    def forward(self, t: Tensor, forward_pass: ForwardPass) -> Tensor:
        self.theta.mul_(0.5)
        return self.score(t)
