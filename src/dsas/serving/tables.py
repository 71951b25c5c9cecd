"""Tables: what Steerings do at one site, a row for each, so that every token of a batch can have its own.

    edit(t)  =  strength * h(t) * (slope * t + offset)      with the row of the token's slot
    h(t)     =  sigmoid(theta . t + bias),  or max(0, theta . t + bias) in a rectified row

Row 0 is all zeros, so slot 0 leaves a token as it is. A rule's weight and a constant regulator are folded into slope
and offset. This is equation (1) of arXiv 2512.03661 in the form in which one graph of fixed shapes can compute it.

Left out, and refused by name when a Steering is loaded: transforms that are not affine, regulators that look at more
than one projection of one token (those of a row, of a position, of single neurons, products), sites that are not a
module's whole first output.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dsas.applied import Rule
from dsas.errors import ModelMismatchError, OptionError
from dsas.regulators import Constant, Logistic, Mera, Rectified
from dsas.steering import Steering
from dsas.transforms import AffineTransform
from dsas.transforms.affine import EVERYWHERE

# With theta = 0 this bias makes a sigmoid 1 to the bit: a row without regulator, in a table of regulators.
ALWAYS = 100.0


class Parts(NamedTuple):
    """Which columns a site's table has besides the offset; a graph computes only what is there.

    slope: some row multiplies. support: some row holds in a range only. gate: some row has a regulator that looks.
    """

    slope: bool = False
    support: bool = False
    gate: bool = False


class Row(NamedTuple):
    """One Steering at one site: vectors (dim,), bias and rectified scalars; None where the row needs no such column.

    factor: what is folded into slope and offset and belongs to the strength applied: weight and constant regulator.
    """

    slope: Tensor | None
    offset: Tensor
    low: Tensor | None
    high: Tensor | None
    theta: Tensor | None
    bias: float
    rectified: bool
    factor: float = 1.0

    def parts(self) -> Parts:
        """Return the columns that this row needs."""
        return Parts(self.slope is not None, self.low is not None, self.theta is not None)


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
    if not isinstance(regulator, (Constant, Logistic, Rectified, Mera)):
        raise OptionError(
            f"the regulator {regulator.name!r} at {site} cannot be served: expected one that looks at one projection "
            "of one token: 'constant', 'logistic', 'rectified' or 'mera'"
        )
    slope, offset, low, high = transform.coefficients()
    factor, theta, bias, rectified = rule.weight, None, ALWAYS, False
    if isinstance(regulator, Constant):
        factor *= regulator.value
    else:
        theta, bias, rectified = regulator.theta, float(regulator.bias), not isinstance(regulator, Logistic)
    slope = None if slope is None else factor * slope
    return Row(slope, factor * offset, low, high, theta, bias, rectified, factor)


def rows_of(steering: Steering) -> dict[str, Row]:
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
    """The rows of all Steerings at one site, (slot, dim) and (slot,), in float32; slot 0 does nothing.

    The shapes and addresses of the columns never change, so that compiled code and CUDA graphs stay valid when a row is
    written.
    """

    slope: Tensor
    offset: Tensor
    low: Tensor
    high: Tensor
    theta: Tensor
    bias: Tensor
    rectified: Tensor
    factor: Tensor

    def __init__(self, slots: int, width: int, parts: Parts, *, reports: bool = False) -> None:
        """Make room for `slots` Steerings beside the identity, which do nothing so far; reports: keep their factors."""
        super().__init__()
        self.parts, self.reports = parts, reports
        if reports:
            self.register_buffer("factor", torch.zeros(slots + 1), persistent=False)
        wide = ["offset", *["slope"] * parts.slope, *["low", "high"] * parts.support, *["theta"] * parts.gate]
        for name in wide:
            self.register_buffer(name, torch.zeros(slots + 1, width), persistent=False)
        if parts.gate:
            self.register_buffer("bias", torch.zeros(slots + 1), persistent=False)
            self.register_buffer("rectified", torch.zeros(slots + 1, dtype=torch.bool), persistent=False)

    def check(self, row: Row) -> None:
        """Raise OptionError when a row needs a column that this table lacks, ModelMismatchError for another width."""
        lacking = [name for name, has, needs in zip(Parts._fields, self.parts, row.parts(), strict=True) if needs > has]
        if lacking:
            raise OptionError(
                f"it needs a column that no Steering had when the server started ({', '.join(lacking)}): start the "
                "server with this Steering"
            )
        if len(row.offset) != self.offset.shape[1]:
            raise ModelMismatchError(f"its vectors are {len(row.offset)} wide, the site is {self.offset.shape[1]}")

    def put(self, slot: int, row: Row) -> None:
        """Write a row into a slot >= 1, in place."""
        self.check(row)
        values: dict[str, Tensor | float] = {"offset": row.offset}
        if self.parts.slope:
            values["slope"] = 0.0 if row.slope is None else row.slope
        if self.parts.support:
            values["low"] = -EVERYWHERE if row.low is None else row.low
            values["high"] = EVERYWHERE if row.high is None else row.high
        if self.parts.gate:
            values["theta"] = 0.0 if row.theta is None else row.theta
            values["bias"], values["rectified"] = row.bias, row.rectified
        if self.reports:
            values["factor"] = row.factor
        with torch.no_grad():
            for name, value in values.items():
                self.get_buffer(name)[slot] = value

    def forward(
        self, t: Float[Tensor, "*batch token dim"], slots: Int[Tensor, " token"], strengths: Float[Tensor, " token"]
    ) -> Float[Tensor, "*batch token dim"]:
        """Return what is to be added to float32 activations whose tokens have these slots and strengths."""
        return self.gain(t, slots, strengths).unsqueeze(-1) * self.edit(t, slots)

    def gain(
        self, t: Float[Tensor, "*batch token dim"], slots: Int[Tensor, " token"], strengths: Float[Tensor, " token"]
    ) -> Float[Tensor, "*batch token"]:
        """Return strength times regulator of every token, without what is folded into the edit."""
        if not self.parts.gate:
            return strengths
        logit = (t * self.theta[slots]).sum(-1) + self.bias[slots]
        return strengths * torch.where(self.rectified[slots], torch.relu(logit), torch.sigmoid(logit))

    def edit(
        self, t: Float[Tensor, "*batch token dim"], slots: Int[Tensor, " token"]
    ) -> Float[Tensor, "*batch token dim"]:
        """Return slope times t plus offset, 0 outside of the support."""
        edit = self.offset[slots]
        if self.parts.slope:
            edit = torch.addcmul(edit, t, self.slope[slots])
        if self.parts.support:
            edit = edit.masked_fill((t < self.low[slots]) | (t > self.high[slots]), 0.0)
        return edit

    def bytes_per_slot(self) -> int:
        """Return the memory of one row."""
        return sum(column[0].numel() * column.element_size() for column in self.buffers())


def union(rows: list[Row]) -> Parts:
    """Return the columns that the table of these rows needs."""
    return Parts(*(any(flags) for flags in zip(*(row.parts() for row in rows), strict=True)))
