"""Evidence: h = sigmoid(e - cut), e the evidence of the row so far: a linear score, averaged over its tokens.

    s_i = theta . t_i + bias,    e_i = (sum_{j <= i} m^(i-j) s_j) / (sum_{j <= i} m^(i-j) + prior)

One token says little about what a text is; ten say a lot, so clean text is seldom mistaken for the behaviour. Old
tokens fade, so that the end of a row counts as much as its beginning: a memory of 0.9 is a window of ten tokens. The
sum is one number per row and site, kept with the sequence, so caches, chunks, padding and packed rows do not change it.
The first token of a row, an attention sink, does not count and is not steered.

`dsas.methods.tuned_boundary` fits theta and the cut.

Source: this project (docs/lab/findings.md). Limitations: text after source text is steered until the evidence has
faded; with a memory of 1 (the mean of the whole row), forty clean tokens before a behaviour hide it.
"""

from functools import partial
from typing import ClassVar, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import linear

from dsas.errors import OptionError
from dsas.methods.base import Facts, Samples
from dsas.methods.served_form import Adding, Projection, ServedGain
from dsas.methods.tuned_boundary import TokenScores, TunedBoundary, Tuning, tuned_boundary
from dsas.model.forward_pass import ForwardPass
from dsas.regulators.base import Regulator, TunableRegulator, Tuned, Untuned

BLOCK = 64  # number of tokens whose fading weights are computed at once


@final
class Evidence(Regulator):
    """A sigmoid of the mean score so far: theta (dim,) in units of one over the activation, bias and cut scalars.

    prior: tokens of score 0 that every row begins with. memory: share of a token's weight that is left at the next one,
    0 to 1. by_turn: whether to begin anew at each prompt of a conversation.
    """

    name: ClassVar[str] = "evidence"
    facts: ClassVar[Facts] = Facts(
        formula="sigmoid(e - cut), e = mean over the row's tokens so far of theta . t + bias",
        paper="-",
        left_out="-",
        flops="2 d",
    )
    reads_forward_pass = True
    theta: Tensor
    bias: Tensor
    cut: Tensor
    prior: float
    memory: float
    by_turn: bool

    def __init__(
        self,
        theta: Float[Tensor, " dim"],
        bias: Float[Tensor, ""],
        cut: Float[Tensor, ""],
        prior: float = 8.0,
        memory: float = 0.9,
        by_turn: bool = False,
    ) -> None:
        """Keep the numbers. Raises OptionError for a prior below 0 or a memory outside of 0 to 1."""
        super().__init__()
        if not (prior >= 0 and 0 <= memory <= 1):
            raise OptionError(f"expected prior >= 0 and 0 <= memory <= 1, got {prior} and {memory}")
        self.keep(theta=theta, bias=bias, cut=cut, prior=prior, memory=memory, by_turn=by_turn)
        self.key = "evidence", prior, memory, by_turn

    @classmethod
    def fit(
        cls,
        source: Samples,
        control: Samples,
        target: Samples,
        *,
        false_positives: float = 0.02,
        sharpness: float = 2.0,
        prior: float = 8.0,
        memory: float = 0.9,
        by_turn: bool = False,
        inverse_penalty: float = 0.01,
        seed: int = 0,
        groups: Int[Tensor, " all_samples"] | None = None,
    ) -> TunableRegulator:
        """Return the regulator and its balanced accuracy over 5 stratified folds; target is not looked at.

        false_positives: mean value on held-out control, in (0, 1). sharpness: sharpness of the sigmoid, in standard
        deviations of held-out control, > 0. prior, memory, by_turn: as in the class. inverse_penalty: sklearn's
        C, > 0. seed: seed of the folds. groups: the text of each sample, source then control, where samples are tokens.
        Raises OptionError outside these ranges.
        """
        tuning = Tuning(false_positives, sharpness, prior, memory)
        found = tuned_boundary(source, control, tuning, inverse_penalty=inverse_penalty, seed=seed, groups=groups)
        of = partial(cls._of, prior=prior, memory=memory, by_turn=by_turn)

        def tune(scores: TokenScores) -> Tuned:
            boundary = found.tune(scores)
            return Tuned(of(boundary), boundary.values)

        return TunableRegulator(of(found.boundary), found.held_out.accuracy, Untuned(found.held_out, tune))

    @classmethod
    def _of(cls, found: TunedBoundary, *, prior: float, memory: float, by_turn: bool) -> "Evidence":
        theta, bias, cut = (torch.as_tensor(x).float() for x in (*found.boundary, found.cut))
        return cls(theta, bias, cut, prior, memory, by_turn)

    def forward(self, t: Float[Tensor, "batch token dim"], forward_pass: ForwardPass) -> Float[Tensor, "batch token 1"]:
        """Return sigmoid(e - cut), computed in float32 or better; 0 before the first token that counts."""
        scores = linear(t.to(self.theta.dtype), self.theta[None], self.bias.view(1))
        return self.of_scores(scores, -self.cut, forward_pass)

    def of_scores(
        self, scores: Float[Tensor, "batch token 1"], shift: Float[Tensor, ""], forward_pass: ForwardPass
    ) -> Float[Tensor, "batch token 1"]:
        """Return the value of each token from the scores of this pass and the state of the rows; shift: - cut.

        It runs at every site for every generated token, so it must take few kernel launches.
        """
        weighed = forward_pass.once(self.key, self._weighed)
        if scores.dtype is not shift.dtype:
            scores = scores.to(shift.dtype)
        if weighed.counted is not None:
            scores = scores.where(weighed.counted, 0.0)
        total = self._so_far(scores, weighed.ages, weighed.fade, forward_pass.carried("evidence", anew=self.by_turn))
        forward_pass.carry("evidence", total)
        value = torch.addcmul(shift, total, weighed.share).sigmoid_()
        return value if weighed.counted is None else value.where(weighed.counted, 0.0)

    def served_form(self) -> ServedGain:
        """Return the scores and how they add up. Raises OptionError with by_turn."""
        if self.by_turn:
            raise OptionError(
                "a server does not know where the turns of a request begin (by_turn=True); fit it with by_turn=False"
            )
        adding = Adding(self.prior, float(self.cut), self.memory)
        return ServedGain(projections=(Projection(self.theta, self.bias, "sigmoid", adding),))

    def alone(self, t: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token 1"]:
        """Return the evidence of each token by itself: the value after many tokens like it."""
        return (linear(t.to(self.theta.dtype), self.theta[None], self.bias.view(1)) - self.cut).sigmoid()

    def _weighed(self, forward_pass: ForwardPass) -> "Weighed":
        counted = forward_pass.counted.unsqueeze(-1)
        ages = counted.to(self.theta.dtype).cumsum(1)
        known = not torch.compiler.is_compiling() and counted.device.type == "cpu"  # else it stalls the GPU
        every = known and bool(counted.all())
        fade = None if forward_pass.tokens > 1 else self.memory if every else self.memory**ages
        before = forward_pass.carried("weight", anew=self.by_turn)
        weights = self._so_far(counted.to(self.theta.dtype), ages, fade, before)
        forward_pass.carry("weight", weights)
        return Weighed(None if every else counted, ages, fade, 1 / (weights + self.prior).clamp(min=1e-6))

    def _so_far(
        self,
        values: Float[Tensor, "batch token 1"],
        ages: Float[Tensor, "batch token 1"],
        fade: Float[Tensor, "batch 1 1"] | float | None,
        before: Float[Tensor, "batch 1"] | None,
    ) -> Float[Tensor, "batch token 1"]:
        """Return the sums up to each token; `before`: the sums before the first. ages, fade: as in `Weighed`."""
        if fade is not None:
            if before is None:
                return values
            past = before.unsqueeze(1)
            if isinstance(fade, Tensor):
                return torch.addcmul(values, fade.to(values.dtype), past)
            return torch.add(values, past, alpha=fade)
        if self.memory == 1:
            sums = values.cumsum(1)
            return sums if before is None else sums + before.unsqueeze(1)
        ages = ages.to(values.dtype)  # shared values of a pass may have another dtype
        found, past, passed = (
            [],
            torch.zeros_like(values[:, 0]) if before is None else before,
            torch.zeros_like(ages[:, 0]),
        )
        for block, age in zip(values.split(BLOCK, 1), ages.split(BLOCK, 1), strict=True):
            apart = age - age.transpose(1, 2)
            weights = (self.memory ** apart.clamp(min=0)).tril()
            since = age - passed.unsqueeze(1)
            found.append(weights @ block + self.memory**since * past.unsqueeze(1))
            past, passed = found[-1][:, -1], age[:, -1]
        return torch.cat(found, dim=1)


class Weighed(NamedTuple):
    """Values that all sites of a pass share.

    counted: which tokens count, None for all. ages: how many tokens have counted so far. fade: factor on the earlier
    sums in a pass of one token, None in longer passes. share: 1 / (weight + prior).
    """

    counted: Bool[Tensor, "batch token 1"] | None
    ages: Float[Tensor, "batch token 1"]
    fade: Float[Tensor, "batch 1 1"] | float | None
    share: Float[Tensor, "batch token 1"]
