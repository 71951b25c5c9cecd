"""Guidance: which rows of a denoiser's pass belong to which branch of classifier-free guidance.

    stacked    Both branches are one batch, in the family's order (`PIPELINE_FAMILIES`). A further pass of one branch
               alone (guidance by skipped layers, self-attention) belongs to the half whose text it gets.
    apart      The conditional batch runs first, then the other, at the same place of the schedule.
    named      The pipeline names the branch before the pass (`cache_context`), or the guider of a modular one does.

Everything else counts as unknown: three branches, a third pass, rows that are not a multiple of the pictures.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dsas.model.foreign import Pipeline
from dsas.model.forward_pass import UNKNOWN

Order = Literal["unconditional first", "conditional first", "apart"]
Branch = Literal["conditional", "unconditional", "both"]
_NAMES: dict[str, Branch | None] = {  # the pass with skipped layers gets the prompt
    "cond": "conditional", "uncond": "unconditional",
    "pred_cond": "conditional", "pred_uncond": "unconditional", "pred_cond_skip": "conditional",
}  # fmt: skip
_ALL = "cond_uncond"  # one batch with both branches


class Call(NamedTuple):
    """A call of a denoiser, or of a ControlNet beside it.

    rows, images: number of rows in its batch, of images in the run. named: its name in the pipeline, "" without one.
    place: its place in the schedule. text: the prompt's embeddings per row, None where there are none.
    """

    name: str
    rows: int
    images: int
    named: str = ""
    place: int | None = None
    text: Tensor | list[Tensor] | None = None
    beside: bool = False


class Chosen(NamedTuple):
    """Which rows of a pass are steered and how often each picture is among them, or why this is unknown."""

    rows: slice
    copies: int = 1
    refusal: str = ""


class Guidance:
    """What is known of the branches of one run."""

    def __init__(self, pipeline: Pipeline, order: Order | None, branch: Branch, *, is_named: bool) -> None:
        """order: order of branches in the family. is_named: whether every pass is named, as by a guider."""
        self._pipeline, self._order, self._is_named = pipeline, order, is_named
        self._branch: Branch = branch
        self._halves: dict[Branch, list[Tensor]] = {}
        self._place: tuple[str, int | None] | None = None
        self._count = 0

    def chosen(self, call: Call) -> Chosen:
        """Return which rows of a call are steered."""
        runs, left = divmod(call.rows, call.images)
        whole = slice(0, call.rows)
        if self._branch == "both":
            return Chosen(whole, UNKNOWN if left else runs)
        refusal = f"the {call.name} got {call.rows} rows for {call.images} pictures: not known which are conditional"
        if left or runs > 2 or getattr(self._pipeline, "do_perturbed_attention_guidance", False):
            return Chosen(whole, UNKNOWN, refusal)
        if runs == 2 and self._order in ("unconditional first", "conditional first"):
            names: tuple[Branch, Branch] = ("conditional", "unconditional")
            first, second = names if self._order == "conditional first" else (names[1], names[0])
            halves: dict[Branch, slice] = {first: slice(0, call.images), second: slice(call.images, call.rows)}
            if call.text is not None and not call.beside:
                self._halves = {name: list(call.text[rows]) for name, rows in halves.items()}
            return Chosen(halves[self._branch])
        branch = self._alone(call) if runs == 1 else None
        if branch is None:
            return Chosen(whole, UNKNOWN, f"{refusal} in a run with guidance")
        return Chosen(slice(0, call.rows if branch == self._branch else 0))

    def _alone(self, call: Call) -> Branch | None:
        """Return the branch of a pass that has one row per picture, or None if unknown."""
        if call.named and call.named != _ALL:
            return _NAMES.get(call.named)
        if self._is_named:
            return None
        if self._order == "apart":
            return None if call.beside else self._turn(call)
        if self._halves and call.text is not None:
            fits: list[Branch] = [name for name, rows in self._halves.items() if _same(rows, call.text)]
            return fits[0] if len(fits) == 1 else None
        guided = call.named != _ALL and getattr(self._pipeline, "do_classifier_free_guidance", False)
        return None if guided or self._halves else "conditional"

    def _turn(self, call: Call) -> Branch | None:
        """Return the branch whose turn it is at a place of the schedule."""
        place = call.name, call.place
        self._count = self._count + 1 if place == self._place else 0
        self._place = place
        turns: tuple[Branch | None, ...] = ("conditional", "unconditional", None)
        return turns[min(self._count, 2)]


def _same(rows: list[Tensor], text: Any) -> bool:
    return len(rows) == len(text) and all(torch.equal(one, other) for one, other in zip(rows, text, strict=True))
