"""Rows: the rules of a Steering as the numbers of a table, and whether they fit a served model.

A row is the served form of a rule's transform and regulator (`dsas.methods.served_form`), with the rule's weight and
every constant multiplied into the edit. Each method's own file says how it is served, or why not.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from dsas.errors import ModelMismatchError, OptionError
from dsas.methods.affine_edit import AffineEdit
from dsas.methods.base import Fitted, same
from dsas.methods.served_form import (
    Adding,
    Neurons,
    Projection,
    PromptCondition,
    ServedEdit,
    ServedGain,
    ServedRegulator,
    ServedTransform,
)
from dsas.model.identity import family_of
from dsas.model.wrappers import plain
from dsas.runtime.rule import Rule
from dsas.steering.steering import Steering


class Row(NamedTuple):
    """A rule as in a table: all vectors (dim,); `factor` is already multiplied into slope, offset and writes.

    places: regulators that depend only on places. place: number of this list among those of the Steering, from 1; 0 if
    it is empty (`numbered`).
    """

    affine: AffineEdit
    reads: tuple[Tensor, ...] = ()
    writes: tuple[Tensor, ...] = ()
    projections: tuple[Projection, ...] = ()
    neurons: tuple[Neurons, ...] = ()
    places: tuple[Fitted, ...] = ()
    prompt: PromptCondition | None = None
    factor: float = 1.0
    place: int = 0

    @property
    def adding(self) -> Adding | None:
        """How the scores of the first projection add up, or None if they do not."""
        return self.projections[0].adding if self.projections else None

    @property
    def by_prompt(self) -> bool:
        """Whether the prompt decides about the whole request, so that all of it has to be read."""
        return self.prompt is not None or (self.adding is not None and self.adding.held)

    def vectors(self) -> Iterator[tuple[str, Tensor]]:
        """Give every vector that must be as wide as the site, by name."""
        affine = self.affine
        named = {"offset": affine.offset, "slope": affine.slope, "low": affine.low, "high": affine.high}
        yield from ((name, vector) for name, vector in named.items() if vector is not None)
        yield from (("reads", vector) for vector in self.reads)
        yield from (("writes", vector) for vector in self.writes)
        yield from (("theta", projection.theta) for projection in self.projections)
        yield from (("neurons", vector) for one in self.neurons for vector in one)
        if self.prompt is not None:
            yield "condition", self.prompt.direction


def row_of(rule: Rule) -> Row:
    """Return a rule as a row. Raises OptionError, naming site, method and reason, for a rule that cannot be served."""
    site = rule.site
    if site.side != "output" or site.index or site.parts > 1:
        raise OptionError(
            f"site {site} cannot be served: expected a module's whole first output, not an input or a part of it"
        )
    edit, gain = _forms(rule)
    factor = rule.weight * gain.factor
    affine = edit.affine
    if factor != 1.0:
        slope = None if affine.slope is None else affine.slope * factor
        affine = affine._replace(slope=slope, offset=affine.offset * factor)
    projections = tuple(sorted(gain.projections, key=lambda projection: projection.adding is None))
    if sum(projection.adding is not None for projection in projections) > 1:
        raise OptionError(
            f"the regulator {rule.regulator.name!r} at {site} cannot be served: two of its factors "
            "accumulate evidence, and a server keeps one sum per site"
        )
    if len(gain.prompts) > 1:
        raise OptionError(
            f"the regulator {rule.regulator.name!r} at {site} cannot be served: two of its factors decide by the mean "
            "of the prompt, and a server keeps one decision per site"
        )
    prompt = gain.prompts[0] if gain.prompts else None
    writes = tuple(factor * vector for vector in edit.writes)
    return Row(affine, edit.reads, writes, projections, gain.neurons, gain.places, prompt, factor)


def _forms(rule: Rule) -> tuple[ServedEdit, ServedGain]:
    """Return the served forms of a rule's transform and regulator. Raises OptionError as `row_of` does."""
    found = []
    kinds = (("transform", rule.transform, ServedTransform), ("regulator", rule.regulator, ServedRegulator))
    for what, method, kind in kinds:
        problem = f"the {what} {method.name!r} at {rule.site} cannot be served"
        if not isinstance(method, kind):
            raise OptionError(f"{problem}: {method.not_served}")
        try:
            found.append(method.served_form())
        except OptionError as error:
            raise OptionError(f"{problem}: {error}") from error
    return found[0], found[1]


def rows_of(steering: Steering) -> dict[str, Row]:
    """Return the rows of a Steering by the path of the site's module, without those of weight 0.

    Raises OptionError for a rule that cannot be served.
    """
    wrapped = steering.model.wrapped
    found = {plain(rule.site.path, wrapped): row_of(rule) for rule in steering.rules if rule.weight > 0}
    return numbered(found)


def numbered(rows: dict[str, Row]) -> dict[str, Row]:
    """Return rows with a number for each different list of places."""
    lists: list[tuple[Fitted, ...]] = []
    found = {}
    for path, row in rows.items():
        if row.places:
            number = next((n for n, one in enumerate(lists, 1) if _alike(one, row.places)), len(lists) + 1)
            if number > len(lists):
                lists.append(row.places)
            found[path] = row._replace(place=number)
        else:
            found[path] = row
    return found


def places_of(rows: Mapping[str, Row]) -> tuple[tuple[Fitted, ...], ...]:
    """Return the lists of places of numbered rows, the first for number 1."""
    lists = {row.place: row.places for row in rows.values() if row.places}
    return tuple(lists[number] for number in sorted(lists))


def _alike(first: tuple[Fitted, ...], second: tuple[Fitted, ...]) -> bool:
    return len(first) == len(second) and all(map(same, first, second))


def check_model(steering: Steering, model_class: str, width: int, depth: int) -> None:
    """Raise ModelMismatchError, naming every difference, unless a model is of the kind that a Steering was fitted on.

    A multimodal model that contains the decoder is of its kind, as in `dsas.model.identity`. The weights are not
    compared: a server keeps them in another form, fused and sharded.
    """
    wanted = steering.model
    pairs = [("width", wanted.width, width), ("depth", wanted.depth, depth)]
    if not wanted.family or wanted.family != family_of(model_class):
        pairs = [("class", wanted.model_class, model_class), *pairs]
    differences = [f"{what} {fitted!r} here, {served!r} served" for what, fitted, served in pairs if fitted != served]
    if differences:
        raise ModelMismatchError(f"this Steering was fitted on another kind of model: {'; '.join(differences)}")


def check_width(path: str, row: Row, width: int) -> None:
    """Raise ModelMismatchError unless all vectors of the row for a module are `width` long."""
    for name, vector in row.vectors():
        if vector.shape[-1:] != (width,) or vector.numel() != width:
            raise ModelMismatchError(f"at {path} its {name} has shape {tuple(vector.shape)}, the site is {width} wide")
    for projection in row.projections:
        if torch.as_tensor(projection.bias).numel() != 1:
            raise ModelMismatchError(f"at {path} its bias has {projection.bias.numel()} numbers, expected 1")


def served_rows(steering: Steering, model_class: str, width: int, depth: int) -> dict[str, Row]:
    """Return the rows of a Steering for a model, checked to fit. Raises as `rows_of`, `check_model`, `check_width`."""
    check_model(steering, model_class, width, depth)
    rows = rows_of(steering)
    for path, row in rows.items():
        check_width(path, row, width)
    return rows
