"""Applied: a Steering at work on one model, from the moment its hooks go on until they come off.

At every site, every token t becomes

    t' = t + strength * weight * regulator(t) * (transform(t) - t)          (arXiv 2512.03661, equation 1)

with `strength` one number or one per row, and `weight` the site's own (0 or 1 under a threshold, between under smooth
selection). Nothing here outlives the hooks, and nothing is shared between threads or rows.
"""

import threading
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dsas.errors import DsasWarning, StateError
from dsas.model.foreign import Arguments, Foreign, Given, Options
from dsas.model.forward_pass import ForwardPass
from dsas.model.hooks import Hooks
from dsas.model.image_trace import Maps
from dsas.model.pipeline_modules import Branch
from dsas.model.site_summary import NOT_RECORDED, SiteSummary
from dsas.model.sites import Site, labels
from dsas.model.strength import PromptTokens, Strength, read_strength
from dsas.model.subject import Subject
from dsas.model.token_trace import Trace
from dsas.runtime.edit import Fused, General, edit_with, shortened, way_of
from dsas.runtime.rule import Rule
from dsas.runtime.site_report import AppliedSite, applied_report

Record = bool | Literal["doses"]


class ApplyOptions(NamedTuple):
    """How a Steering is applied; see `Steering.apply`."""

    record: Record = True
    skip_sinks: bool = False
    prompt_tokens: PromptTokens = None
    branch: Branch = "conditional"


class Applied:
    """The hooks of one Steering on one model: a context manager, or installed until `remove`."""

    def __init__(self, rules: Sequence[Rule], subject: Subject, strength: Strength, options: ApplyOptions) -> None:
        self.strength = read_strength(strength)
        self.rules = [rule for rule in rules if rule.weight > 0]
        self._all_rules = tuple(rules)
        self._model = subject.module
        self._hooks = Hooks()
        self._passes = subject.passes(
            branch=options.branch, prompt_tokens=options.prompt_tokens, skip_sinks=options.skip_sinks
        )
        self._names = labels([rule.site for rule in self.rules])
        self._recorder = subject.recorder(self._names) if options.record else None
        self._keep_doses = options.record == "doses"
        self._skip_sinks = options.skip_sinks
        asked = options.skip_sinks or any(rule.regulator.reads_forward_pass for rule in self.rules)
        self._needs_step = asked or self._passes.always
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
                for module, read in self._passes.calls:
                    self._hooks.on_call(module, partial(self._begin, read))
                restarted = self._recorder.restart if self._recorder is not None else lambda: None
                self._passes.watch_runs(self._hooks, restarted)
                for number, rule in enumerate(self.rules):
                    self._hook(number, rule)
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
        """Whether this thread has recorded anything that `trace` or `maps` could return."""
        return self._recorder is not None and self._recorder.has_passes

    def trace(self, *, start: int = 0) -> Trace:
        """Return the strengths applied since this thread's last sequence began, per site, row and token.

        start: leave out the passes before this cache position, as one does who reads along while a model generates.
        Raises StateError when nothing was recorded: no pass yet, strength 0, or applied with record=False; or when the
        model is a pipeline, which has `maps`.
        """
        return self._recording.trace(self._asked, start=start)

    def maps(self) -> Maps:
        """Return the strengths applied in this thread's last run of a pipeline, per site, picture, step and position.

        Raises StateError when nothing was recorded, as `trace`, or when the model is no pipeline.
        """
        return self._recording.maps(self._asked)

    def report(self) -> list[AppliedSite]:
        """Return one line per site of the Steering: what happened there in this thread's last sequence or run.

        A site that was not selected is reported with the reason. Where nothing is known, because recording is off,
        nothing ran yet, or the site never fired, `mean_strength` and `hits` are None and `status` says why.
        """
        found: list[SiteSummary] = [NOT_RECORDED] * len(self.rules)
        if self._recorder is not None and self._recorder.has_passes:
            found = self._recorder.summaries(self._asked, [rule.weight for rule in self.rules])
        return applied_report(self._all_rules, found, recording=self._recorder is not None, ran=self.has_trace)

    def __enter__(self) -> "Applied":
        return self.install()

    def __exit__(self, kind: type[BaseException] | None, *_exception: object) -> None:
        if kind is None:
            self.remove()
        else:
            self._take_off()  # a pass that was cut short says nothing about its later sites

    @property
    def _asked(self) -> Tensor:
        return self.strength.detach().cpu().reshape(-1)

    @property
    def _recording(self) -> Foreign:
        if self._recorder is None:
            raise StateError("recording is off: apply the steering with record=True")
        return self._recorder

    def _take_off(self) -> list[str]:
        """Take the hooks off and return the sites that never fired, if the model ran and anybody could tell."""
        with self._lock:
            was_active = self._hooks.active
            unwatched = self._hooks.remove()
        if unwatched or not (was_active and self._called):
            return []
        return [name for name, fired in zip(self._names, self._fired, strict=True) if not fired]

    def _begin(self, read: Callable[..., ForwardPass | None], args: Arguments, kwargs: Options) -> None:
        if torch.compiler.is_compiling():
            if self._needs_step:
                raise _unknown_positions()
            return
        if self._recorder is None and not self._needs_step:
            self._called = True
            return
        step = read(args, kwargs)
        if step is None:  # a part that runs before the model proper
            return
        self._called = True
        if self._recorder is not None:
            self._recorder.begin(step)

    def _hook(self, number: int, rule: Rule) -> None:
        strengths, doses = self.strength * rule.weight, self._keep_doses
        way = way_of(rule.transform, rule.regulator, strengths, skip_sinks=self._skip_sinks, detail=doses)
        needs_step = rule.regulator.reads_forward_pass or self._skip_sinks or self._passes.always
        edit = self._editor(number, rule.site, way, needs_step)
        plain = rule.site.is_plain and rule.site.side == "output" and not needs_step
        if not (plain and isinstance(way, Fused) and way.same_for_all_rows):
            self._hooks.at_site(self._model, rule.site, edit)
            return
        record = partial(self._recorder.add_gain, number, way.factor) if self._recorder is not None else None
        self._hooks.on_output(self._model.get_submodule(rule.site.path), shortened(way, edit, record))

    def _editor(self, number: int, site: Site, way: Fused | General, needs_step: bool) -> Callable[[Given], Given]:
        doses = self._keep_doses

        def edit(output: Given) -> Foreign:
            whole = site.read(output)
            step = None
            if needs_step:
                if torch.compiler.is_compiling():
                    raise _unknown_positions()
                step = self._passes.at(site, whole, output)
                step.site = number
            t = whole if step is None else step.take(whole)
            if len(t) == 0:  # another branch of guidance than the one that is steered
                return None
            edited = edit_with(way, t, step)
            if not torch.compiler.is_compiling():
                self._fired[number] = True
                if self._recorder is not None:
                    detail = way.detail(t, edited) if doses and isinstance(way, General) else ()
                    self._recorder.add(number, step, way.applied(t, edited), *detail)
            return site.write(output, edited.t if step is None else step.put(whole, edited.t))

        return edit


def _unknown_positions() -> StateError:
    """Return what stops tracing where token positions are needed: torch then runs this part uncompiled, or fails."""
    return StateError("inside torch.compile, sinks cannot be skipped and no regulator can read token positions")
