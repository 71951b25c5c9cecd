"""Tables: what Steerings do at one site, a row for each, so that every token of a batch can have its own.

    edit(t)  =  strength * h(t) * (slope * t + offset)      with the row of the token's slot
    h(t)     =  sigmoid(theta . t + bias),  or max(0, theta . t + bias) in a rectified row

    h(t_i)   =  sigmoid(e_i - cut),  e_i = S_i / (w_i + prior)
    S_i      =  theta . t_i + bias + m S_(i-1),   w_i = 1 + m w_(i-1),   S_0 = w_0 = 0

in a row of `evidence` with memory m, and 0 for a request's first token, number 0. The sums of a step begin with what
earlier steps left, and go over the ancestors of each token, which `carried` lays out.

A row is the `AffineEdit` of one rule, with the rule's weight folded in. Row 0 is all zeros, so slot 0 leaves a token as
it is. This is equation (1) of arXiv 2512.03661 in the form in which one graph of fixed shapes can compute it.

Limitations, each refused by name when a Steering is loaded: transforms that are not affine, regulators that look at
more than one projection (those of a prompt's mean, of a position, of single neurons, products), evidence that begins
anew at each turn, sites that are not a module's whole first output.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor, nn
from torch.nn.functional import pad

from dsas.errors import ModelMismatchError, OptionError
from dsas.methods.affine_edit import AffineEdit
from dsas.model.wrappers import plain
from dsas.regulators.constant import Constant
from dsas.regulators.evidence import Evidence
from dsas.runtime.edit import affine_edit
from dsas.runtime.rule import Rule
from dsas.steering.steering import Steering
from dsas.transforms.affine import EVERYWHERE, AffineTransform

# With theta = 0 this bias makes a sigmoid 1 to the bit: a row without regulator, in a table of regulators.
ALWAYS = 100.0

# Below this rate nothing fades over any sequence: the weight of n tokens is n.
UNFADING = 1e-9


class Adding(NamedTuple):
    """How the scores of a row add up to evidence: `prior` tokens of score 0 come first, and h is 1/2 at `cut`.

    memory: what is left of a score at the next token, 0 to 1.
    """

    prior: float
    cut: float
    memory: float

    @property
    def fade(self) -> float:
        """-ln(memory), from 0 to 90, and for a memory of 1 the least that counts as adding up."""
        return max(-math.log(max(self.memory, 1e-38)), 1e-3 * UNFADING)


class Row(NamedTuple):
    """A rule as a table has it: its affine edit, and how its scores add up over a request, None where they do not."""

    edit: AffineEdit
    adding: Adding | None = None


class Parts(NamedTuple):
    """Which columns a site's table has besides the offset; a graph computes only what is there.

    slope: some row multiplies. support: some row holds in a range only. gate: some row has a regulator that looks.
    evidence: the scores of some row add up.
    """

    slope: bool = False
    support: bool = False
    gate: bool = False
    evidence: bool = False

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Parts":
        """Return the columns that the table of these rows needs."""
        needed = [
            (edit.slope is not None, edit.low is not None, edit.theta is not None, adding is not None)
            for edit, adding in rows
        ]
        return cls(*map(any, zip(*needed, strict=True)))

    def check(self, row: Row) -> None:
        """Raise OptionError when a row needs a column that is not among these."""
        lacking = [name for name, has, needs in zip(self._fields, self, Parts.of([row]), strict=True) if needs > has]
        if lacking:
            raise OptionError(
                f"it needs a column that no Steering had when the server started ({', '.join(lacking)}): start the "
                "server with this Steering"
            )


class SoFar(NamedTuple):
    """What the evidence of a step's tokens begins with and comes to.

    ancestors: at [i, k, d] the place of the token d * reach^k before token i in its sequence, 0 where none of this step
    is; token i is at place i + 1. positions: of each token in its sequence, from 0. sums: at each request's first token
    what earlier steps have left, 0 elsewhere; each token's own sum is written over it.
    """

    ancestors: Int32[Tensor, "token level reach"]
    positions: Float[Tensor, " token"]
    sums: Float[Tensor, " token"]


def row_of(rule: Rule) -> Row:
    """Return a rule as a row. Raises OptionError, naming site and method, for what a server cannot do."""
    site, transform, regulator = rule.site, rule.transform, rule.regulator
    if site.side != "output" or site.index or site.parts > 1:
        raise OptionError(
            f"site {site} cannot be served: expected a module's whole first output, not an input or a part of it"
        )
    if not isinstance(transform, AffineTransform):
        raise OptionError(
            f"the transform {transform.name!r} at {site} cannot be served: expected an affine one (T(t) - t = slope * "
            "t + offset), such as 'caa', 'linear-act' or 'lineas'"
        )
    adding = None
    if isinstance(regulator, Evidence):
        adding = _adding(regulator, f"the regulator 'evidence' at {site} cannot be served")
    edit = affine_edit(transform, Constant() if adding else regulator, rule.weight)
    if edit is None:
        raise OptionError(
            f"the regulator {regulator.name!r} at {site} cannot be served: expected one that looks at one projection "
            "of each token: 'evidence', 'probe', 'constant', 'logistic', 'rectified' or 'mera'"
        )
    if isinstance(regulator, Evidence):
        edit = edit._replace(theta=regulator.theta[None], bias=regulator.bias.view(1))
    return Row(edit, adding)


def _adding(regulator: Evidence, problem: str) -> Adding:
    if regulator.by_turn:
        raise OptionError(
            f"{problem} with by_turn=True: a server does not know where the turns of a request begin; fit it with "
            "by_turn=False"
        )
    return Adding(regulator.prior, float(regulator.cut), regulator.memory)


def rows_of(steering: Steering) -> dict[str, Row]:
    """Return the rows of a Steering by the path of the site's module; those of weight 0 are left out.

    Raises OptionError for what a server cannot do.
    """
    wrapped = steering.model.wrapped
    return {plain(rule.site.path, wrapped): row_of(rule) for rule in steering.rules if rule.weight > 0}


def check_model(steering: Steering, model_class: str, width: int, depth: int) -> None:
    """Raise ModelMismatchError, naming every difference, unless a model is of the kind a Steering was fitted on.

    The weights are not compared: a server keeps them in another form, fused and sharded.
    """
    wanted = steering.model
    pairs = (
        ("class", wanted.model_class, model_class),
        ("width", wanted.width, width),
        ("depth", wanted.depth, depth),
    )
    differences = [f"{what} {fitted!r} here, {served!r} served" for what, fitted, served in pairs if fitted != served]
    if differences:
        raise ModelMismatchError(f"this Steering was fitted on another kind of model: {'; '.join(differences)}")


def check_width(path: str, row: Row, width: int) -> None:
    """Raise ModelMismatchError unless all vectors of the row for a module are `width` long."""
    edit = row.edit
    vectors = {"offset": edit.offset, "slope": edit.slope, "low": edit.low, "high": edit.high, "theta": edit.theta}
    for name, vector in vectors.items():
        if vector is not None and (vector.shape[-1:] != (width,) or vector.numel() != width):
            raise ModelMismatchError(f"at {path} its {name} has shape {tuple(vector.shape)}, the site is {width} wide")
    if edit.bias is not None and edit.bias.numel() != 1:
        raise ModelMismatchError(f"at {path} its bias has {edit.bias.numel()} numbers, expected 1")


def served_rows(steering: Steering, model_class: str, width: int, depth: int) -> dict[str, Row]:
    """Return the rows of a Steering for a model, checked to fit. Raises as `rows_of`, `check_model`, `check_width`."""
    check_model(steering, model_class, width, depth)
    rows = rows_of(steering)
    for path, row in rows.items():
        check_width(path, row, width)
    return rows


class SiteTable(nn.Module):
    """The rows of all Steerings at one site, (slot, columns) in float32; slot 0 does nothing.

    A row holds offset, slope, low, high and theta, dim numbers each, and factor, bias, rectified, fade, prior and cut,
    one each: what `parts` asks for. All is in one tensor, since each that a compiled graph reads costs it time at every
    call. Its shape and address never change, so that compiled code and CUDA graphs stay valid when a row is written.
    """

    rows: Tensor

    def __init__(self, slots: int, width: int, parts: Parts) -> None:
        super().__init__()
        self.parts, self.width = parts, width
        wide = ["offset", *["slope"] * parts.slope, *["low", "high"] * parts.support, *["theta"] * parts.gate]
        single = ["factor", *["bias", "rectified"] * parts.gate, *["fade", "prior", "cut"] * parts.evidence]
        self._columns = {name: slice(width * n, width * (n + 1)) for n, name in enumerate(wide)}
        self._columns |= {name: width * len(wide) + n for n, name in enumerate(single)}
        self.register_buffer("rows", torch.zeros(slots + 1, width * len(wide) + len(single)), persistent=False)

    def clear(self, slot: int) -> None:
        """Let a slot do nothing."""
        with torch.no_grad():
            self.rows[slot] = 0.0

    def put(self, slot: int, row: Row) -> None:
        """Write a row, of this width, into a slot >= 1, in place. Raises OptionError as `Parts`."""
        self.parts.check(row)
        edit, adding = row
        values: dict[str, Tensor | float] = {
            "offset": edit.offset,
            "slope": 0.0 if edit.slope is None else edit.slope,
            "low": -EVERYWHERE if edit.low is None else edit.low,
            "high": EVERYWHERE if edit.high is None else edit.high,
            "theta": 0.0 if edit.theta is None else edit.theta,
            "bias": ALWAYS if edit.bias is None else edit.bias,
            "rectified": float(edit.form == "relu"),
            "factor": edit.factor,
            "fade": 0.0 if adding is None else adding.fade,
            "prior": 0.0 if adding is None else adding.prior,
            "cut": 0.0 if adding is None else adding.cut,
        }
        with torch.no_grad():
            for name, column in self._columns.items():
                self.rows[slot, column] = values[name]

    def forward(
        self,
        t: Float[Tensor, "*batch token dim"],
        slots: Int[Tensor, " token"],
        strengths: Float[Tensor, " token"],
        so_far: SoFar | None = None,
    ) -> tuple[Float[Tensor, "*batch token dim"], Float[Tensor, "*batch token"]]:
        """Return what is to be added to float32 activations whose tokens have these slots and strengths.

        And what was applied to each token, as a report tells it: strength x weight x regulator. so_far: of the tokens'
        requests, where the scores of some row add up.
        """
        rows = self.rows[slots]
        gain = strengths
        if self.parts.gate:
            logit = (t * self._of(rows, "theta")).sum(-1) + self._of(rows, "bias")
            if self.parts.evidence:
                assert so_far is not None  # `modules` has it for every table with such rows
                logit = self._evidence(logit, rows, so_far)
            gain = gain * torch.where(self._of(rows, "rectified") > 0, torch.relu(logit), torch.sigmoid(logit))
        edit = self._of(rows, "offset")
        if self.parts.slope:
            edit = torch.addcmul(edit, t, self._of(rows, "slope"))
        if self.parts.support:
            edit = edit.masked_fill((t < self._of(rows, "low")) | (t > self._of(rows, "high")), 0.0)
        return gain.unsqueeze(-1) * edit, gain * self._of(rows, "factor")

    def _evidence(
        self, scores: Float[Tensor, "*batch token"], rows: Float[Tensor, "token columns"], so_far: SoFar
    ) -> Float[Tensor, "*batch token"]:
        """Return e - cut where scores add up, -inf at a request's first token, and the score itself in other rows.

        Each level adds up over `reach` times as many tokens as the one before it.
        """
        fade, counted = self._of(rows, "fade"), so_far.positions > 0
        totals = torch.where(counted, scores, 0.0) + torch.exp(-fade) * so_far.sums
        levels, reach = so_far.ancestors.shape[1:]
        for level in range(levels):
            apart = reach**level * torch.arange(reach, device=fade.device)
            found = pad(totals, (1, 0))[..., so_far.ancestors[:, level]]
            totals = (found * torch.exp(-fade.unsqueeze(1) * apart)).sum(-1)
        so_far.sums.copy_(totals.reshape(so_far.sums.shape))
        rate, counts = fade.double(), so_far.positions  # float64, since expm1 is 0 near 0 in compiled code
        weights = ((1 - torch.exp(-rate * counts)) / (1 - torch.exp(-rate))).float()
        weights = torch.where(fade < UNFADING, counts, weights)
        evidence = totals / (weights + self._of(rows, "prior")).clamp(min=1e-6)
        evidence = torch.where(counted, evidence - self._of(rows, "cut"), -torch.inf)
        return torch.where(fade > 0, evidence, scores)

    def _of(self, rows: Float[Tensor, "token columns"], name: str) -> Float[Tensor, "token *dim"]:
        return rows[:, self._columns[name]]
