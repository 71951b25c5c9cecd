"""Tables: what Steerings do at one site, a row for each, so that every token of a batch can have its own.

    edit(t)  =  strength * h(t) * (slope * t + offset)      with the row of the token's slot
    h(t)     =  sigmoid(theta . t + bias),  or max(0, theta . t + bias) in a rectified row

A row is the `AffineEdit` of one rule, with the rule's weight folded in. Row 0 is all zeros, so slot 0 leaves a token as
it is. This is equation (1) of arXiv 2512.03661 in the form in which one graph of fixed shapes can compute it.

Limitations, each refused by name when a Steering is loaded: transforms that are not affine, regulators that look at
more than one projection of one token (those of a row, of a position, of single neurons, products), sites that are not
a module's whole first output.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dsas.errors import ModelMismatchError, OptionError
from dsas.methods.affine_edit import AffineEdit
from dsas.runtime.edit import affine_edit
from dsas.runtime.rule import Rule
from dsas.steering.steering import Steering
from dsas.transforms.affine import EVERYWHERE, AffineTransform

# With theta = 0 this bias makes a sigmoid 1 to the bit: a row without regulator, in a table of regulators.
ALWAYS = 100.0


class Parts(NamedTuple):
    """Which columns a site's table has besides the offset; a graph computes only what is there.

    slope: some row multiplies. support: some row holds in a range only. gate: some row has a regulator that looks.
    """

    slope: bool = False
    support: bool = False
    gate: bool = False

    @classmethod
    def of(cls, rows: Iterable[AffineEdit]) -> "Parts":
        """Return the columns that the table of these rows needs."""
        needed = [(row.slope is not None, row.low is not None, row.theta is not None) for row in rows]
        return cls(*map(any, zip(*needed, strict=True)))


def row_of(rule: Rule) -> AffineEdit:
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
    row = affine_edit(transform, regulator, rule.weight)
    if row is None:
        raise OptionError(
            f"the regulator {regulator.name!r} at {site} cannot be served: expected one that looks at one projection "
            "of one token: 'constant', 'logistic', 'rectified' or 'mera'"
        )
    return row


def rows_of(steering: Steering) -> dict[str, AffineEdit]:
    """Return the rows of a Steering by the path of the site's module; those of weight 0 are left out.

    Raises OptionError for what a server cannot do.
    """
    return {rule.site.path: row_of(rule) for rule in steering.rules if rule.weight > 0}


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


class SiteTable(nn.Module):
    """The rows of all Steerings at one site, (slot, columns) in float32; slot 0 does nothing.

    A row holds offset, slope, low, high and theta, dim numbers each, and factor, bias and rectified, one each:
    what `parts` asks for. All is in one tensor, since each that a compiled graph reads costs it time at every call. Its
    shape and address never change, so that compiled code and CUDA graphs stay valid when a row is written.
    """

    rows: Tensor

    def __init__(self, slots: int, width: int, parts: Parts) -> None:
        super().__init__()
        self.parts, self.width = parts, width
        wide = ["offset", *["slope"] * parts.slope, *["low", "high"] * parts.support, *["theta"] * parts.gate]
        single = ["factor", *["bias", "rectified"] * parts.gate]
        self._columns = {name: slice(width * n, width * (n + 1)) for n, name in enumerate(wide)}
        self._columns |= {name: width * len(wide) + n for n, name in enumerate(single)}
        self.register_buffer("rows", torch.zeros(slots + 1, width * len(wide) + len(single)), persistent=False)

    def check(self, row: AffineEdit) -> None:
        """Raise OptionError when a row needs a column that this table lacks, ModelMismatchError for another width."""
        needed = Parts.of([row])
        lacking = [name for name, has, needs in zip(Parts._fields, self.parts, needed, strict=True) if needs > has]
        if lacking:
            raise OptionError(
                f"it needs a column that no Steering had when the server started ({', '.join(lacking)}): start the "
                "server with this Steering"
            )
        if len(row.offset) != self.width:
            raise ModelMismatchError(f"its vectors are {len(row.offset)} wide, the site is {self.width}")

    def put(self, slot: int, row: AffineEdit) -> None:
        """Write a row into a slot >= 1, in place."""
        self.check(row)
        values: dict[str, Tensor | float] = {
            "offset": row.offset,
            "slope": 0.0 if row.slope is None else row.slope,
            "low": -EVERYWHERE if row.low is None else row.low,
            "high": EVERYWHERE if row.high is None else row.high,
            "theta": 0.0 if row.theta is None else row.theta,
            "bias": ALWAYS if row.bias is None else row.bias,
            "rectified": float(row.form == "relu"),
            "factor": row.factor,
        }
        with torch.no_grad():
            for name, column in self._columns.items():
                self.rows[slot, column] = values[name]

    def forward(
        self, t: Float[Tensor, "*batch token dim"], slots: Int[Tensor, " token"], strengths: Float[Tensor, " token"]
    ) -> tuple[Float[Tensor, "*batch token dim"], Float[Tensor, "*batch token"]]:
        """Return what is to be added to float32 activations whose tokens have these slots and strengths.

        And what was applied to each token, as a report tells it: strength x weight x regulator.
        """
        rows = self.rows[slots]
        gain = strengths
        if self.parts.gate:
            logit = (t * self._of(rows, "theta")).sum(-1) + self._of(rows, "bias")
            gain = gain * torch.where(self._of(rows, "rectified") > 0, torch.relu(logit), torch.sigmoid(logit))
        edit = self._of(rows, "offset")
        if self.parts.slope:
            edit = torch.addcmul(edit, t, self._of(rows, "slope"))
        if self.parts.support:
            edit = edit.masked_fill((t < self._of(rows, "low")) | (t > self._of(rows, "high")), 0.0)
        return gain.unsqueeze(-1) * edit, gain * self._of(rows, "factor")

    def _of(self, rows: Float[Tensor, "token columns"], name: str) -> Float[Tensor, "token *dim"]:
        return rows[:, self._columns[name]]
