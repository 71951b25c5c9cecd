"""Held: h(t) = h0(t) in a prompt, and after it what h0 was at the prompt's last token.

Whether a request is one to refuse is decided while it is read, and the whole answer is then steered by that decision.
Read on the answer, too, a regulator that was fitted on requests judges what it was never shown: words of a harmless
answer add to the evidence, and steering takes the answer apart in which it would go on to refuse.

    dsas.fit(..., regulator="held")                                                  of evidence, fitted on requests
    dsas.fit(..., regulator=functools.partial(dsas.Held.fit, of=dsas.Logistic.fit))  of another regulator
    rule._replace(regulator=dsas.Held(rule.regulator))                               around one that exists

A prompt may come in pieces, and a conversation over one cache decides anew at each prompt. Where no prompt is known, as
in plain texts, every token belongs to it, and h is h0.

Source: CAST (arXiv 2409.05907) holds its condition on the prompt in the same way; this project for other regulators.
Limitations: a behaviour that only begins in the answer is not seen.
"""

from collections.abc import Callable
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from dsas.errors import OptionError
from dsas.methods.base import Facts, Samples
from dsas.methods.served_form import ServedGain, ServedRegulator
from dsas.model.forward_pass import ForwardPass
from dsas.regulators import REGULATORS
from dsas.regulators.base import FittedRegulator, Regulator, wrapped


@final
class Held(Regulator):
    """Applies a regulator to prompts, and holds its value at a prompt's last token for the answer."""

    name: ClassVar[str] = "held"
    facts: ClassVar[Facts] = Facts(
        formula="h(t) in the prompt; after it, h of the prompt's last token",
        paper="CAST, arXiv 2409.05907",
        left_out="-",
        flops="those of h",
    )
    reads_forward_pass = True
    regulator: Regulator

    def __init__(self, regulator: Regulator) -> None:
        """Keep the regulator whose value is held."""
        super().__init__()
        self.keep(regulator=regulator)
        self.reads_additions = regulator.reads_additions

    @classmethod
    def fit(
        cls,
        source: Samples,
        control: Samples,
        target: Samples,
        *,
        of: Callable[[Samples, Samples, Samples], FittedRegulator] | None = None,
    ) -> FittedRegulator:
        """Fit the regulator with its own `fit`; of: that of evidence where it is not given."""
        return wrapped((of or REGULATORS["evidence"].fit)(source, control, target), cls)

    def forward(
        self, t: Float[Tensor, "batch token dim"], forward_pass: ForwardPass
    ) -> Float[Tensor, "batch token gain"]:
        """Return the regulator's values in the prompt, and the one held for every token after it."""
        own = self.regulator(t, forward_pass.part(0))
        before = forward_pass.carried("held", anew=True)
        first = torch.zeros_like(own[:, 0]) if before is None else before.to(own.dtype)
        prompt = forward_pass.prompt.unsqueeze(-1).to(own.device)
        places = torch.arange(own.shape[1], device=own.device).view(1, -1, 1)
        last = torch.where(prompt, places, -1).cummax(1).values  # the latest token of the prompt up to each
        seen = own.gather(1, last.clamp(min=0).expand_as(own))
        held = torch.where(last >= 0, seen, first.unsqueeze(1))
        forward_pass.carry("held", held)
        return held.where(forward_pass.real.unsqueeze(-1).to(own.device), 0.0)

    def served_form(self) -> ServedGain:
        """Return the form of the evidence that is held. Raises OptionError around anything else."""
        form = self.regulator.served_form() if isinstance(self.regulator, ServedRegulator) else ServedGain()
        (one,) = form.projections if len(form.projections) == 1 else (None,)
        if one is None or one.adding is None or form._replace(projections=()) != ServedGain():
            raise OptionError(
                f"a server holds the value of 'evidence' alone, not of {self.regulator.name!r}: fit with "
                "regulator='held'"
            )
        return form._replace(projections=(one._replace(adding=one.adding._replace(held=True)),))
