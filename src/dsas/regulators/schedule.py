"""Schedule: h(t) = 1 for the tokens at some places of the row, 0 for all others.

A place is counted from the row's first real token, or, for the part "generated", from the first token after the prompt.
For the part "denoising" it is the denoising step of the pass, from 0, and the same for all positions of the picture.

Source: windows over positions as in CAA (arXiv 2312.06681, which steers after the prompt) and in prompt-only steering.
Limitations: no ramps.
"""

from typing import ClassVar, Literal, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from dsas.errors import OptionError, StateError
from dsas.methods.base import Facts, Samples
from dsas.methods.served_form import ServedGain
from dsas.model.forward_pass import ForwardPass
from dsas.regulators.base import FittedRegulator, Regulator

Part = Literal["all", "prompt", "generated", "denoising"]


@final
class Schedule(Regulator):
    """Steers tokens start to stop (not included; None is the end) of one part of the row."""

    name: ClassVar[str] = "schedule"
    facts: ClassVar[Facts] = Facts(
        formula="1 where start <= place < stop in the prompt, the generated tokens, all, or denoising steps, else 0",
        paper="CAA, arXiv 2312.06681",
        left_out="no ramps",
        flops="0",
    )
    reads_forward_pass = True
    part: Part
    start: int
    stop: int | None

    def __init__(self, part: Part = "generated", start: int = 0, stop: int | None = None) -> None:
        """Keep the window. Raises OptionError unless 0 <= start < stop, both whole, and the part exists."""
        super().__init__()
        whole = isinstance(start, int) and isinstance(stop, int | None)
        if part not in get_args(Part) or not whole or start < 0 or (stop is not None and stop <= start):
            raise OptionError(
                "a schedule needs part 'all', 'prompt', 'generated' or 'denoising' and whole numbers "
                f"0 <= start < stop, got {part!r}, {start!r}, {stop!r}"
            )
        self.keep(part=part, start=start, stop=stop)

    @classmethod
    def fit(
        cls,
        source: Samples,
        control: Samples,
        target: Samples,
        *,
        part: Part = "generated",
        start: int = 0,
        stop: int | None = None,
    ) -> FittedRegulator:
        """Return the schedule; nothing is learned, so there is no accuracy."""
        return FittedRegulator(cls(part, start, stop), accuracy=None)

    def forward(self, t: Float[Tensor, "batch token dim"], forward_pass: ForwardPass) -> Float[Tensor, "batch token 1"]:
        """Return 1 inside the window and 0 outside. Raises StateError for "denoising" outside a denoising pass."""
        if self.part == "denoising":
            if forward_pass.denoising is None:
                raise StateError("a schedule of denoising steps was called outside a denoising pass")
            number = forward_pass.denoising.number
            inside = number >= self.start and (self.stop is None or number < self.stop)
            return torch.full((*t.shape[:2], 1), float(inside), device=t.device)
        place, inside = forward_pass.positions, forward_pass.real
        if self.part == "prompt":
            inside = inside & forward_pass.prompt
        elif self.part == "generated":
            inside = inside & ~forward_pass.prompt
            place = place - forward_pass.prompt_lengths.unsqueeze(-1)
        inside = inside & (place >= self.start)
        if self.stop is not None:
            inside = inside & (place < self.stop)
        return inside.to(t.device).float().unsqueeze(-1)

    def served_form(self) -> ServedGain:
        """Return itself, which depends on places alone. Raises OptionError for denoising steps."""
        if self.part == "denoising":
            raise OptionError("a server of language models has no denoising steps")
        return ServedGain(places=(self,))
