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
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dsas.errors import DsasWarning, OptionError, StateError
from dsas.model.forward_pass import ForwardPass, StepReader
from dsas.model.hooks import Hooks
from dsas.model.image_pipeline import Branch, Parts, PassReader
from dsas.model.image_trace import MapRecorder, Maps
from dsas.model.sites import Site
from dsas.model.strength import PromptTokens, Strength, per_row, read_prompt_tokens, read_strength
from dsas.model.token_trace import Recorder, Trace
from dsas.runtime.edit import Fused, General, edit_with, shortened, way_of
from dsas.runtime.rule import Rule

Record = bool | Literal["doses"]


class SiteSummary(NamedTuple):
    """What happened at a site in the last sequence or run; hits: tokens or positions whose regulator was above 1/2."""

    mean_strength: float
    hits: int


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
        branch: Branch = "conditional",
    ) -> None:
        """Prepare, without touching the model; see `Steering.apply` for the arguments."""
        self.strength = read_strength(strength)
        self.rules = [rule for rule in rules if rule.weight > 0]
        self._model = model
        self._hooks = Hooks()
        self._reader: StepReader | PassReader
        if isinstance(model, Parts):
            self._reader = PassReader(model, branch)
            if skip_sinks or prompt_tokens is not None:
                raise OptionError("skip_sinks and prompt_tokens are for the tokens of texts, not for pipelines")
        else:
            self._reader = StepReader(model, read_prompt_tokens(prompt_tokens))
        self._recorder = None
        if record:
            self._recorder = (MapRecorder if isinstance(model, Parts) else Recorder)([str(r.site) for r in self.rules])
        self._keep_doses = record == "doses"
        self._skip_sinks = skip_sinks
        asked = skip_sinks or any(rule.regulator.reads_step for rule in self.rules)
        self._needs_step = asked or isinstance(model, Parts)
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
                for module, read in self._reader.calls:
                    self._hooks.on_call(module, partial(self._begin, read))
                if isinstance(self._reader, PassReader) and self._reader.watches_latents:
                    self._hooks.on_result(self._reader.pipeline, "prepare_latents", self._restart)
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
        """Whether this thread has recorded anything that `trace` could return."""
        return self._recorder is not None and self._recorder.has_passes

    def trace(self, *, start: int = 0) -> Trace:
        """Return the strengths applied since this thread's last sequence began, per site, row and token.

        start: leave out the passes before this cache position, as one does who reads along while a model generates.
        Raises StateError when nothing was recorded: no pass yet, strength 0, or applied with record=False; or when the
        model is a pipeline, which has `maps`.
        """
        if isinstance(self._recorder, MapRecorder):
            raise StateError("a pipeline draws pictures and has no tokens: use maps() instead of trace()")
        if self._recorder is None:
            raise StateError("recording is off: apply the steering with record=True")
        trace = self._recorder.trace(start=start)
        return trace._replace(strength=per_row(self.strength.detach().cpu().reshape(-1), len(trace.real)))

    def maps(self) -> Maps:
        """Return the strengths applied in this thread's last run of a pipeline, per site, picture, step and position.

        Raises StateError when nothing was recorded, as `trace`, or when the model is no pipeline.
        """
        if self._recorder is None:
            raise StateError("recording is off: apply the steering with record=True")
        if not isinstance(self._recorder, MapRecorder):
            raise StateError("a model of texts draws no pictures: use trace() instead of maps()")
        return self._recorder.maps(self.strength.detach().cpu().reshape(-1))

    def summary(self) -> dict[str, SiteSummary]:
        """Return of each site the mean applied strength, and at how many tokens its regulator was above one half.

        Raises StateError as `trace` and `maps`.
        """
        record = self.maps() if isinstance(self._recorder, MapRecorder) else self.trace()
        assert record.strength is not None
        means, sites = record.mean(), range(len(self.rules))
        hits = [record.hits(0.5 * rule.weight * record.strength)[site] for site, rule in enumerate(self.rules)]
        return {record.sites[site]: SiteSummary(float(means[site]), int(hits[site])) for site in sites}

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

    def _begin(self, read: Callable[..., ForwardPass | None], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
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

    def _restart(self, prepared: Any) -> None:
        """Take note that a pipeline begins a run."""
        if isinstance(self._reader, PassReader):
            self._reader.begin(prepared)
        if isinstance(self._recorder, MapRecorder):
            self._recorder.restart()

    def _hook(self, number: int, rule: Rule) -> None:
        """Put the hook of one rule on, by which its site does equation (1)."""
        strengths, doses = self.strength * rule.weight, self._keep_doses
        way = way_of(rule.transform, rule.regulator, strengths, skip_sinks=self._skip_sinks, detail=doses)
        needs_step = rule.regulator.reads_step or self._skip_sinks or isinstance(self._reader, PassReader)
        edit = self._editor(number, rule.site, way, needs_step)
        plain = rule.site.is_plain and rule.site.side == "output" and not needs_step
        if not (plain and isinstance(way, Fused) and way.same_for_all_rows):
            self._hooks.at_site(self._model, rule.site, edit)
            return
        recorder = self._recorder
        record = partial(recorder.add_gain, number, way.factor) if isinstance(recorder, Recorder) else None
        self._hooks.on_output(self._model.get_submodule(rule.site.path), shortened(way, edit, record))

    def _editor(self, number: int, site: Site, way: Fused | General, needs_step: bool) -> Callable[[Any], Any]:
        """Return what is done to what the module of a site gives or takes, and the record of it."""
        doses = self._keep_doses

        def edit(output: Any) -> Any:
            whole = site.read(output)
            step = self._step(site, whole, output, number) if needs_step else None
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

    def _step(self, site: Site, t: Tensor, given: Any, number: int) -> ForwardPass:
        if torch.compiler.is_compiling():
            raise _unknown_positions()
        step = self._reader.at(site, t, given)
        step.site = number
        return step


def _unknown_positions() -> StateError:
    """Return what stops tracing where token positions are needed: torch then runs this part uncompiled, or fails."""
    return StateError("inside torch.compile, sinks cannot be skipped and no regulator can read token positions")
