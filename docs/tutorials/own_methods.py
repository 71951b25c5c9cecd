# %% [markdown]
# # Methods of your own
#
# A transform says *how* an activation changes, a regulator *when*, an objective *what training minimises*. Each is
# one class. You will write one of each, let the laws check them, give them a golden test, and use them.
#
# Everything here runs on a model of two layers that `dsas.testing` makes in code.

# %%
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

import dsas
from dsas.testing import check_regulator, check_steering, check_transform, tiny_model, tiny_tokenizer
from dsas.testing.laws import LawBroken

# %% [markdown]
# ## A transform
#
# `Approach` pulls a token part of the way to the target's mean: T(t) = t + share (mean_T - t). Unlike a constant vector
# it moves far tokens more.
#
# The contract: the constructor arguments define the transform completely and go through `keep`; `fit` is a classmethod
# that takes pooled source and target activations of shape (sample, dim); `edit` returns T(t) - t without writing into
# its input.


# %%
@final
class Approach(dsas.Transform):
    """Pulls every token part of the way to the target's mean: goal (dim,), share in [0, 1]."""

    name: ClassVar[str] = "approach"
    facts: ClassVar[dsas.Facts] = dsas.Facts(
        formula="t + share (mean_T - t)", paper="-", left_out="no covariances", flops="2 d"
    )
    goal: Tensor

    def __init__(self, goal: Tensor, share: float) -> None:
        super().__init__()
        self.keep(goal=goal, share=share)

    @classmethod
    def fit(cls, source: Tensor, target: Tensor, *, share: float = 0.5) -> "Approach":
        """Return the transform towards the mean of the target."""
        return cls(target.double().mean(0).float(), share)

    def edit(self, t: Tensor) -> Tensor:
        """Return share (goal - t), in float32 or better."""
        wide = t.to(torch.promote_types(t.dtype, self.goal.dtype))
        return float(self.share) * (self.goal.to(wide.dtype) - wide)


check_transform(Approach)

# %% [markdown]
# A golden test pins numbers that come from the formula, not from the code:


# %%
def test_half_way_to_the_mean() -> None:
    """Target mean (2, 4), share 1/2: (0, 0) goes to (1, 2), and the mean stays where it is."""
    approach = Approach.fit(torch.zeros(4, 2), torch.tensor([[1.0, 3.0], [3.0, 5.0]]))
    moved = approach(torch.tensor([[[0.0, 0.0], [2.0, 4.0]]]))
    assert moved.tolist() == [[[1.0, 2.0], [2.0, 4.0]]]


test_half_way_to_the_mean()

# %% [markdown]
# The laws catch what is easily overlooked. This one writes into its input:


# %%
class Careless(dsas.Transform):
    """Breaks a law on purpose."""

    name: ClassVar[str] = "careless"
    goal: Tensor

    def __init__(self, goal: Tensor) -> None:
        super().__init__()
        self.keep(goal=goal)

    @classmethod
    def fit(cls, source: Tensor, target: Tensor) -> "Careless":
        """Return the transform towards the mean of the target."""
        return cls(target.mean(0))

    def edit(self, t: Tensor) -> Tensor:
        """Return goal - t, and spoil t."""
        return t.neg_().add(self.goal)


try:
    check_transform(Careless)
except LawBroken as broken:
    print(broken)

# %% [markdown]
# ## A regulator
#
# `Nearest` steers a token more strongly the nearer it is to the source's mean than to the control's:
# h(t) = sigmoid((|t - c|^2 - |t - s|^2) / (2 v)), with v the mean variance of both sets.
#
# `fit` returns a `FittedRegulator` with the held-out accuracy, or None when it does not measure one; `forward` returns
# float32 values >= 0 of shape (batch, token, 1).


# %%
@final
class Nearest(dsas.Regulator):
    """Compares distances to two means: source, control (dim,), variance in units of the activation squared."""

    name: ClassVar[str] = "nearest"
    facts: ClassVar[dsas.Facts] = dsas.Facts(
        formula="sigmoid((|t - c|^2 - |t - s|^2) / (2 v))", paper="-", left_out="no covariances", flops="4 d"
    )
    source: Tensor
    control: Tensor
    variance: Tensor

    def __init__(self, source: Tensor, control: Tensor, variance: Tensor) -> None:
        super().__init__()
        self.keep(source=source, control=control, variance=variance)

    @classmethod
    def fit(cls, source: Tensor, control: Tensor, target: Tensor) -> dsas.FittedRegulator:
        """Return the regulator between the two means; target is not looked at."""
        variance = (source.double().var(0).sum() + control.double().var(0).sum()) / 2
        return dsas.FittedRegulator(cls(source.mean(0), control.mean(0), variance.float()), None)

    def forward(self, t: Tensor, forward_pass: dsas.ForwardPass) -> Tensor:
        """Return the values, one per token."""
        wide = t.to(torch.promote_types(t.dtype, self.source.dtype))
        to_source, to_control = ((wide - mean).square().sum(-1, keepdim=True) for mean in (self.source, self.control))
        return torch.sigmoid((to_control - to_source) / (2 * self.variance))


check_regulator(Nearest)


def test_nearest_on_a_line() -> None:
    """Means 1 and -1, variance 1: h(t) = sigmoid(2 t), so 1/2 in the middle."""
    nearest = Nearest(torch.tensor([1.0]), torch.tensor([-1.0]), torch.tensor(1.0))
    values = nearest(torch.tensor([[[0.0], [1.0]]]), dsas.ForwardPass(1, 2)).flatten()
    torch.testing.assert_close(values, torch.tensor([0.5, 1 / (1 + torch.e**-2)]))


test_nearest_on_a_line()

# %% [markdown]
# ## Use both
#
# A function with the signature of `fit` serves wherever a name does. The laws for whole Steerings (batches, padding,
# caches, storage, gradients) run on the result.

# %%
model, tokenizer = tiny_model(layers=2), tiny_tokenizer()
rude, plain, kind = ([f"{start} {n}" for n in range(12)] for start in ("SHUT UP", "the door", "thank you"))
steering = dsas.fit(
    model, tokenizer, source=rude, control=plain, target=kind, transform=Approach.fit, regulator=Nearest.fit,
    progress=False,
)  # fmt: skip
trace = dsas.explain(model, tokenizer, steering, ["SHUT UP 3", "the door 3"])
print("mean strength of the rude and the plain text:", [round(float(row.mean()), 2) for row in trace.strengths.mean(0)])

# %% [markdown]
# ## An objective
#
# `dsas.train` minimises an objective by gradient descent. `MeanMatching` moves the mean of the steered source to the
# mean of the target. It says what is learned (`learned`), where it starts (`first_rule`), and gives a `Learner`, which
# computes the loss from `self.passes` and fills in the gradients.

# %%
from dsas.training.learning import identity_rule


class MeanLearner(dsas.Learner):
    """Compares the mean of the source texts, which one batch holds, with the mean of the target."""

    def __init__(self, task: dsas.TrainingTask, weight: float) -> None:
        super().__init__(task.work, task.rules, task.target, task.plan, task.ranks)
        self.weight, self.goals = weight, [target.mean(0) for target in task.target]
        self.source, self.held = (task.batches(task.texts[name]) for name in ("source", "held_source"))

    def gradient(self, number: int = 0) -> dsas.Gradient:
        """Put the gradient into the leaves and return the terms of the loss."""
        self.descent.optimiser.zero_grad(set_to_none=True)
        loss, seen = self._loss(self.source)
        loss.backward()
        return dsas.Gradient(float(loss.detach()), 0.0, float(loss.detach()), self.dead(seen))

    @torch.no_grad()
    def look(self) -> dict[str, float]:
        """Return the loss on held-out texts."""
        return {"held_loss": float(self._loss(self.held)[0])}

    def _loss(self, batches: list[Any]) -> tuple[Tensor, list[Any]]:
        (seen,) = [self.passes.pooled(batch) for batch in batches]
        terms = [(one.value.mean(0) - goal).square().mean() for one, goal in zip(seen, self.goals, strict=True)]
        return self.weight * torch.stack(terms).sum(), [seen]


@final
@dataclass(frozen=True, kw_only=True)
class MeanMatching(dsas.Objective):
    """Brings the means together; weight > 0 scales the loss."""

    name: ClassVar[str] = "means"
    paired: ClassVar[bool] = False
    reads_logits: ClassVar[bool] = False

    weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a weight that is not positive."""
        self.require(self.weight > 0, "weight > 0")

    @property
    def needs_control(self) -> bool:
        """Control texts play no part."""
        return False

    def first_rule(self, site: dsas.Site, sets: Any, start: Any) -> dsas.Rule:
        """Start from the identity, at every token."""
        return identity_rule(site, sets["source"].shape[1], dsas.Constant())

    def learned(self, rules: Any) -> dsas.LearnedParts:
        """Learn the transforms alone."""
        return dsas.LearnedParts(regulators=False, vectors=False)

    def learner(self, task: dsas.TrainingTask) -> MeanLearner:
        """Return the learner, which computes the loss."""
        return MeanLearner(task, self.weight)

    def finish(self, rules: Any, sets: Any) -> list[dsas.Rule]:
        """Return the rules as they were learned."""
        return list(rules)


trained = dsas.train(
    model,
    tokenizer,
    source=rude,
    target=kind,
    objective=MeanMatching(),
    sites="model.layers.1",
    steps=60,
    optimiser=dsas.Optimiser(rate=0.05),
    running=dsas.Running(progress=False),
)
check_steering(trained, model, tokenizer)
trained.settings["training"]

# %% [markdown]
# ## Let others use them by name
#
# A package declares its methods as entry points; `dsas.fit(transform="approach")`, the command line, storage and
# `dsas methods` find them from there.
#
# ```toml
# [project.entry-points."dsas.transforms"]
# approach = "their_package.approach:Approach"
#
# [project.entry-points."dsas.regulators"]
# nearest = "their_package.nearest:Nearest"
#
# [project.entry-points."dsas.objectives"]
# means = "their_package.means:MeanMatching"
# ```
#
# Contracts: [Transforms](../reference/transforms.md), [Regulators](../reference/regulators.md),
# [Training](../reference/training.md), [Laws](../reference/testing.md).
