"""Tables: what Steerings do at one site, one row per Steering, so that every token of a batch can have its own.

    edit(t)  =  strength * h(t) * (slope * t + offset + sum_k (reads_k . t) writes_k)    in the row of the token's slot
    h(t)     =  prod of  sigmoid(theta . t + bias),  max(0, theta . t + bias)  or  1[theta . t + bias > 0]
                x  1[curve t^2 + incline t + level > 0]  per neuron  x  what the token's place says

    h(t_i)   =  sigmoid(e_i - cut),  e_i = S_i / (w_i + prior)
    S_i      =  theta . t_i + bias + m S_(i-1),   w_i = 1 + m w_(i-1),   S_0 = w_0 = 0

for the first factor in a row of `evidence` with memory m, and 0 for a request's first token, number 0. The sums of a
step begin with those of earlier steps, and run over the ancestors of each token, which `carried` provides. Where the
evidence is held, tokens after the prompt have no score and do not fade what was there before.

`rule_rows` says what a row holds. Row 0 is all zeros, so slot 0 does not change a token. This is equation (1) of arXiv
2512.03661 in the form in which one graph of fixed shapes can compute it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor, nn
from torch.nn.functional import pad

from dsas.methods.served_form import UNFADING
from dsas.regulators.cast import similarity
from dsas.serving.parts import Parts
from dsas.serving.rule_rows import Row
from dsas.transforms.affine import EVERYWHERE

# With theta = 0 this bias makes a sigmoid 1 to the bit, for a row without regulator in a table with regulators.
ALWAYS = 100.0

FORMS = {"sigmoid": 0.0, "relu": 1.0, "step": 2.0}


class SoFar(NamedTuple):
    """The sums of evidence before and after a step's tokens.

    ancestors: at [i, k, d] the place of the token d * reach^k before token i in its sequence, or 0 if it is not in this
    step; token i is at place i + 1. positions: position of each token in its sequence, from 0. held: the same, or that
    of the prompt's last token after the prompt. sums: at each request's
    first token the sum of earlier steps, 0 elsewhere; each token's own sum is written over it.
    """

    ancestors: Int32[Tensor, "token level reach"]
    positions: Float[Tensor, " token"]
    held: Float[Tensor, " token"]
    sums: Float[Tensor, " token"]


class ReadPrompts(NamedTuple):
    """The prompts of a step's requests, each of which has a row in `sums`; row 0 belongs to no request.

    rows: row of each token's request. counted: which tokens count: those of a prompt but its first. counts: number of
    counted tokens up to each token. last: the place of each request's last token in the step, from 1, or 0 if it has
    none. sums: over the counted tokens of each request before the step; the sums after it are written over them.
    """

    rows: Int[Tensor, " token"]
    counted: Bool[Tensor, " token"]
    counts: Float[Tensor, " token"]
    last: Int[Tensor, " request"]
    sums: Float[Tensor, "request dim"]


class SiteTable(nn.Module):
    """The rows of all Steerings at one site, (slot, columns) in float32; slot 0 does nothing.

    A row holds, as far as `parts` has them: offset, slope, low, high, the vectors that it reads and writes along, its
    thetas, and the three coefficients of each condition on neurons, dim numbers each; and factor, the biases and forms
    of its projections, the number of its places, and fade, prior and cut, one number each. All are in one tensor,
    because each tensor that a compiled graph reads costs time at every call. Its shape and address never change, so
    that compiled code and CUDA graphs stay valid when a row is written.
    """

    rows: Tensor

    def __init__(self, slots: int, width: int, parts: Parts) -> None:
        super().__init__()
        self.parts, self.width = parts, width
        wide = ["offset", *["slope"] * parts.slope, *["low", "high"] * parts.support]
        wide += [f"{name}{number}" for number in range(parts.reads) for name in ("reads", "writes")]
        wide += [f"theta{number}" for number in range(parts.projections)]
        wide += [f"{name}{number}" for number in range(parts.neurons) for name in ("curve", "incline", "level")]
        single = ["factor", *(f"{name}{number}" for number in range(parts.projections) for name in ("bias", "form"))]
        single += ["place"] * parts.places + ["fade", "prior", "cut"] * parts.evidence
        single += ["held"] * parts.held
        wide += ["condition"] * parts.prompt
        single += ["threshold", "above"] * parts.prompt
        self._columns = {name: slice(width * n, width * (n + 1)) for n, name in enumerate(wide)}
        self._columns |= {name: width * len(wide) + n for n, name in enumerate(single)}
        self.register_buffer("rows", torch.zeros(slots + 1, width * len(wide) + len(single)), persistent=False)

    def clear(self, slot: int) -> None:
        """Make a slot do nothing."""
        with torch.no_grad():
            self.rows[slot] = 0.0

    def put(self, slot: int, row: Row) -> None:
        """Write a row of this width into a slot >= 1, in place. Raises OptionError as `Parts.check` does."""
        self.parts.check(row)
        affine, adding = row.affine, row.adding
        values: dict[str, Tensor | float] = {
            "offset": affine.offset,
            "slope": 0.0 if affine.slope is None else affine.slope,
            "low": -EVERYWHERE if affine.low is None else affine.low,
            "high": EVERYWHERE if affine.high is None else affine.high,
            "factor": row.factor,
            "place": float(row.place),
            "fade": 0.0 if adding is None else adding.fade,
            "prior": 0.0 if adding is None else adding.prior,
            "cut": 0.0 if adding is None else adding.cut,
            "held": 0.0 if adding is None else float(adding.held),
        }
        if row.prompt is not None:
            values |= {"condition": row.prompt.direction, "threshold": row.prompt.threshold}
            values["above"] = 1.0 if row.prompt.above else -1.0
        for number, pair in enumerate(zip(row.reads, row.writes, strict=True)):
            values |= {f"reads{number}": pair[0], f"writes{number}": pair[1]}
        for number in range(self.parts.projections):
            projection = row.projections[number] if number < len(row.projections) else None
            values |= {f"theta{number}": 0.0, f"bias{number}": ALWAYS, f"form{number}": 0.0}
            if projection is not None:
                form = FORMS[projection.form]
                values |= {f"theta{number}": projection.theta, f"bias{number}": projection.bias, f"form{number}": form}
        for number in range(self.parts.neurons):
            own = row.neurons[number] if number < len(row.neurons) else (0.0, 0.0, 1.0)
            values |= {f"curve{number}": own[0], f"incline{number}": own[1], f"level{number}": own[2]}
        with torch.no_grad():
            for name, column in self._columns.items():
                self.rows[slot, column] = values.get(name, 0.0)

    def forward(
        self,
        t: Float[Tensor, "*batch token dim"],
        slots: Int[Tensor, " token"],
        strengths: Float[Tensor, " token"],
        so_far: SoFar | None = None,
        places: Sequence[Float[Tensor, " token"]] | None = None,
        prompts: ReadPrompts | None = None,
    ) -> tuple[Float[Tensor, "*batch token dim"], Float[Tensor, "*batch token"]]:
        """Return the edit of float32 activations whose tokens have these slots and strengths.

        Also return weight x regulator per token, averaged over neurons, as a trace records it at strength 1. so_far:
        sums of the tokens' requests, if the scores of a row add up. places: values of the token's place, by number.
        prompts: those of the tokens' requests, if a row decides by them.
        """
        rows = self.rows[slots]
        value: Tensor | None = None
        for number in range(self.parts.projections):
            projection = self._projected(number, t, rows, so_far)
            value = projection if value is None else value * projection
        if self.parts.places:
            assert places is not None  # `modules` passes them for every table with such rows
            own, numbers = places[0], self._of(rows, "place")
            for number in range(1, len(places)):
                own = torch.where(numbers == number, places[number], own)
            value = own if value is None else value * own
        if self.parts.prompt:
            assert prompts is not None  # as above
            decided = self._decided(t, rows, prompts)
            value = decided if value is None else value * decided
        gain = strengths if value is None else strengths * value
        edit = self._of(rows, "offset")
        if self.parts.slope:
            edit = torch.addcmul(edit, t, self._of(rows, "slope"))
        for number in range(self.parts.reads):
            along = (t * self._of(rows, f"reads{number}")).sum(-1, keepdim=True)
            edit = torch.addcmul(edit, along, self._of(rows, f"writes{number}"))
        if self.parts.support:
            edit = edit.masked_fill((t < self._of(rows, "low")) | (t > self._of(rows, "high")), 0.0)
        told = self._of(rows, "factor") if value is None else value * self._of(rows, "factor")
        every: Tensor | None = None
        for number in range(self.parts.neurons):
            line = torch.addcmul(self._of(rows, f"incline{number}"), t, self._of(rows, f"curve{number}"))
            chosen = torch.addcmul(self._of(rows, f"level{number}"), line, t) > 0
            edit = torch.where(chosen, edit, 0.0)
            every = chosen if every is None else every & chosen
        if every is not None:
            told = told * every.float().mean(-1)
        return gain.unsqueeze(-1) * edit, told

    def _projected(
        self, number: int, t: Float[Tensor, "*batch token dim"], rows: Float[Tensor, "token columns"],
        so_far: SoFar | None,
    ) -> Float[Tensor, "*batch token"]:  # fmt: skip
        logit = (t * self._of(rows, f"theta{number}")).sum(-1) + self._of(rows, f"bias{number}")
        if self.parts.evidence and number == 0:
            assert so_far is not None  # `modules` passes it for every table with such rows
            logit = self._evidence(logit, rows, so_far)
        form = self._of(rows, f"form{number}")
        value = torch.where(form > 0, torch.relu(logit), torch.sigmoid(logit))
        return torch.where(form > FORMS["relu"], (logit > 0).float(), value) if self.parts.step else value

    def _evidence(
        self, scores: Float[Tensor, "*batch token"], rows: Float[Tensor, "token columns"], so_far: SoFar
    ) -> Float[Tensor, "*batch token"]:
        """Return e - cut where scores add up, -inf at a request's first token, and the score itself in other rows.

        Each level sums over `reach` times as many tokens as the one before it.
        """
        fade, counts = self._of(rows, "fade"), so_far.positions
        if self.parts.held:
            counts = torch.where(self._of(rows, "held") > 0, so_far.held, counts)
        known = counts > 0
        counted = known & (counts == so_far.positions)
        totals = torch.where(counted, scores, 0.0) + torch.exp(-fade * counted) * so_far.sums
        levels, reach = so_far.ancestors.shape[1:]
        for level in range(levels):
            ancestors = so_far.ancestors[:, level]
            apart: Tensor = reach**level * torch.arange(reach, device=fade.device)
            if self.parts.held:
                apart = torch.where(ancestors > 0, counts.unsqueeze(1) - pad(counts, (1, 0))[ancestors], 0.0)
            found = pad(totals, (1, 0))[..., ancestors]
            totals = (found * torch.exp(-fade.unsqueeze(1) * apart)).sum(-1)
        so_far.sums.copy_(totals.reshape(so_far.sums.shape))
        rate = fade.double()  # float64, because expm1 is 0 near 0 in compiled code
        weights = ((1 - torch.exp(-rate * counts)) / (1 - torch.exp(-rate))).float()
        weights = torch.where(fade < UNFADING, counts, weights)
        evidence = totals / (weights + self._of(rows, "prior")).clamp(min=1e-6)
        evidence = torch.where(known, evidence - self._of(rows, "cut"), -torch.inf)
        return torch.where(fade > 0, evidence, scores)

    def _decided(
        self, t: Float[Tensor, "*batch token dim"], rows: Float[Tensor, "token columns"], prompts: ReadPrompts
    ) -> Float[Tensor, " token"]:
        """Return 1 or 0 by the mean of the prompt so far, and 1 in rows without a condition on it.

        The sums are a product with a matrix of ones for earlier tokens of the same request, so that they never contain
        another request's numbers, not even infinite ones.
        """
        order = torch.arange(t.shape[-2], device=t.device)  # `len` would be a constant in compiled code
        before = (prompts.rows.unsqueeze(1) == prompts.rows) & (order <= order.unsqueeze(1)) & prompts.counted
        own = torch.where(prompts.counted.unsqueeze(1), t.reshape(-1, self.width).nan_to_num(), 0.0)
        sums = before.to(own.dtype) @ own + prompts.sums[prompts.rows]
        at = prompts.last.unsqueeze(1)
        prompts.sums.copy_(torch.where(at > 0, sums[(prompts.last - 1).clamp(min=0)], prompts.sums))
        mean = sums / prompts.counts.clamp(min=1).unsqueeze(1)
        alike = similarity(mean, self._of(rows, "condition"))
        above = self._of(rows, "above")
        holds = ((alike > self._of(rows, "threshold")) == (above > 0)) & (prompts.counts > 0)
        return torch.where(above == 0, 1.0, holds.float())

    def _of(self, rows: Float[Tensor, "token columns"], name: str) -> Float[Tensor, "token *dim"]:
        return rows[:, self._columns[name]]
