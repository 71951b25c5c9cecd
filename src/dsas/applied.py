"""Applied: a Steering at work on one model, from the moment its hooks go on until they come off.

At every site, every token t becomes

    t' = t + strength * weight * regulator(t) * (transform(t) - t)          (arXiv 2512.03661, equation 1)

with `strength` one number or one per row, and `weight` the site's own (0 or 1 under a threshold, between under smooth
selection). Nothing here outlives the hooks, and nothing is shared between threads or rows.
"""

import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dsas.editing import General, edit_with, way_of
from dsas.errors import DsasWarning, OptionError, StateError, StrengthError
from dsas.hooks import Hooks
from dsas.regulators import Regulator
from dsas.sites import Site
from dsas.step import Step, StepReader, per_row
from dsas.trace import Recorder, Trace
from dsas.transforms import Transform

Strength = float | Sequence[float] | Tensor
PromptTokens = int | Sequence[int] | Tensor | None
Record = bool | Literal["doses"]


class Rule(NamedTuple):
    """What happens at one site.

    weight: factor in [0, 1] on the strength; 0 means the site was not selected and is left alone.
    accuracy: held-out balanced accuracy in [0, 1] of telling source from control here; None when not measured.
    """

    site: Site
    transform: Transform
    regulator: Regulator
    weight: float = 1.0
    accuracy: float | None = None


class Applied:
    """The hooks of one Steering on one model: a context manager, or installed until `remove`."""

    def __init__(
        self,
        rules: Sequence[Rule],
        model: nn.Module,
        strength: Strength,
        *,
        record: Record,
        skip_sinks: bool,
        prompt_tokens: PromptTokens = None,
    ) -> None:
        """Prepare, without touching the model; see `Steering.apply` for the arguments."""
        self.strength = read_strength(strength)
        self.rules = [rule for rule in rules if rule.weight > 0]
        self._model = model
        self._hooks = Hooks()
        self._reader = StepReader(model, read_prompt_tokens(prompt_tokens))
        self._recorder = Recorder([str(rule.site) for rule in self.rules]) if record else None
        self._keep_doses = record == "doses"
        self._skip_sinks = skip_sinks
        self._needs_step = skip_sinks or any(rule.regulator.reads_step for rule in self.rules)
        self._fired = [False] * len(self.rules)
        self._called = False
        self._lock = threading.Lock()

    def install(self) -> "Applied":
        """Put the hooks on and return self; at strength 0 there is nothing to put on. Raises StateError if they are."""
        with self._lock:
            if self._hooks.active:
                raise StateError("this Applied is already installed; call steering.apply() again for a second one")
            if float(self.strength.detach().max()) == 0.0 and not self.strength.requires_grad:
                return self
            try:
                self._hooks.on_call(self._reader.module, self._begin)
                for number, rule in enumerate(self.rules):
                    self._hooks.at_site(self._model, rule.site, self._editor(number, rule))
            except BaseException:
                self._hooks.remove()
                raise
        return self

    def remove(self) -> None:
        """Take the hooks off. Removing twice is harmless.

        Warns when a site never fired although the model ran; of code that torch.compile made, nobody can tell.
        """
        idle = self._take_off()
        if idle:
            warnings.warn(f"these sites never fired, so nothing was steered there: {idle}", DsasWarning, stacklevel=2)

    @property
    def has_trace(self) -> bool:
        """Whether this thread has recorded anything that `trace` could return."""
        return self._recorder is not None and self._recorder.has_passes

    def trace(self, *, start: int = 0) -> Trace:
        """Return the strengths applied since this thread's last sequence began, per site, row and token.

        start: leave out the passes before this cache position, as one does who reads along while a model generates.
        Raises StateError when nothing was recorded: no pass yet, strength 0, or applied with record=False.
        """
        if self._recorder is None:
            raise StateError("recording is off: apply the steering with record=True")
        trace = self._recorder.trace(start=start)
        return trace._replace(strength=per_row(self.strength.detach().cpu().reshape(-1), len(trace.real)))

    def __enter__(self) -> "Applied":
        return self.install()

    def __exit__(self, kind: type[BaseException] | None, *_exception: object) -> None:
        if kind is None:
            self.remove()
        else:
            self._take_off()  # a pass that was cut short says nothing about its later sites

    def _take_off(self) -> list[str]:
        """Take the hooks off and return the sites that never fired, if the model ran and anybody could tell."""
        with self._lock:
            was_active = self._hooks.active
            unwatched = self._hooks.remove()
        if unwatched or not (was_active and self._called):
            return []
        return [str(rule.site) for rule, fired in zip(self.rules, self._fired, strict=True) if not fired]

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            if self._needs_step:
                raise _unknown_positions()
            return
        self._called = True
        if self._recorder is not None or self._needs_step:
            step = self._reader.read(args, kwargs)
            if self._recorder is not None:
                self._recorder.begin(step)

    def _editor(self, number: int, rule: Rule) -> Callable[[Any], Any]:
        """Return what the hook at a rule's site does: equation (1), and the record of it."""
        strengths, site, doses = self.strength * rule.weight, rule.site, self._keep_doses
        way = way_of(rule.transform, rule.regulator, strengths, skip_sinks=self._skip_sinks, detail=doses)
        needs_step = rule.regulator.reads_step or self._skip_sinks

        def edit(output: Any) -> Any:
            t = site.read(output)
            edited = edit_with(way, t, self._step(t, number) if needs_step else None)
            if not torch.compiler.is_compiling():
                self._fired[number] = True
                if self._recorder is not None:
                    detail = way.detail(t, edited) if doses and isinstance(way, General) else ()
                    self._recorder.add(number, way.applied(t, edited), *detail)
            return site.write(output, edited.t)

        return edit

    def _step(self, t: Tensor, number: int) -> Step:
        if torch.compiler.is_compiling():
            raise _unknown_positions()
        step = self._reader.current(*t.shape[:2], device=t.device)
        step.site = number
        return step


def _unknown_positions() -> StateError:
    """Return what stops tracing where token positions are needed: torch then runs this part uncompiled, or fails."""
    return StateError("inside torch.compile, sinks cannot be skipped and no regulator can read token positions")


def read_strength(strength: Strength) -> Float[Tensor, "*row"]:
    """Return a strength as a float32 scalar or one value per row. Raises StrengthError unless finite and >= 0."""
    try:
        value = torch.as_tensor(strength, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise StrengthError(f"strength must be one number or one per row, got {strength!r:.60}") from error
    if value.ndim > 1 or value.numel() == 0:
        raise StrengthError(f"strength must be one number or one per row, got shape {tuple(value.shape)}")
    if not torch.isfinite(value).all() or (value < 0).any():
        raise StrengthError(f"strength must be finite and >= 0, got {strength}; to push the other way swap the sets")
    return value


def read_prompt_tokens(prompt_tokens: PromptTokens) -> Int[Tensor, " row"] | None:
    """Return prompt lengths as one value per row, or None when not given. Raises OptionError unless whole and >= 1."""
    if prompt_tokens is None:
        return None
    value = torch.as_tensor(prompt_tokens).reshape(-1)
    if value.is_floating_point() or value.numel() == 0 or bool((value < 1).any()):
        raise OptionError(f"prompt_tokens must be a number of tokens >= 1, or one per row, got {prompt_tokens!r:.60}")
    return value.long()
