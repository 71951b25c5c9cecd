"""Applied: a Steering applied to one model, from the moment its hooks go on until they come off.

At every site, every token t becomes

    t' = t + strength * weight * regulator(t) * (transform(t) - t)          (arXiv 2512.03661, equation 1)

with `strength` one number or one per row, and `weight` the site's own, in [0, 1]. State between passes belongs to the
sequences that run (`dsas.model.sequence`); nothing is shared between threads or rows.
"""

import threading
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from dsas.errors import ActivationError, DsasWarning, StateError
from dsas.methods.schema import width_of
from dsas.model.caches import reader_ended
from dsas.model.compiled_code import gives_way
from dsas.model.foreign import Arguments, Foreign, Given, Options
from dsas.model.hooks import Hooks, Joint
from dsas.model.image_trace import Maps
from dsas.model.pipeline_modules import Branch
from dsas.model.site_summary import NOT_RECORDED, SiteSummary
from dsas.model.sites import labels
from dsas.model.strength import PromptTokens, Strength
from dsas.model.subject import Subject
from dsas.model.token_trace import Trace
from dsas.parallel.interruption import Leaving, surely, to_the_end
from dsas.runtime.adding import Part, added_up
from dsas.runtime.edit import Fused, General, edit_with, shortened
from dsas.runtime.module_places import Places
from dsas.runtime.rule import Rule, strength_for
from dsas.runtime.scope import Entered, Scope
from dsas.runtime.site_report import AppliedSite, applied_report
from dsas.runtime.summing import Summing, shortened_sum
from dsas.runtime.ways import Ways

Record = bool | Literal["doses"]


class ApplyOptions(NamedTuple):
    """How a Steering is applied; see `Steering.apply`."""

    record: Record = True
    skip_sinks: bool = False
    prompt_tokens: PromptTokens = None
    branch: Branch = "conditional"
    scope: Scope = "process"


class Applied(Leaving):
    """The hooks of one Steering on one model: a context manager, or installed until `remove`."""

    def __init__(self, rules: Sequence[Rule], subject: Subject, strength: Strength, options: ApplyOptions) -> None:
        value = strength_for(rules, strength)
        self.rules = [rule for rule in rules if rule.weight > 0]
        self._all_rules, self._keep_doses = tuple(rules), options.record == "doses"
        self._ways = Ways(self.rules, value, skip_sinks=options.skip_sinks, detail=self._keep_doses)
        self._model, self._skip_sinks = subject.module, options.skip_sinks
        self._hooks, self._scope = Hooks(steering=self), Entered(options.scope)
        self._passes = subject.passes(
            branch=options.branch,
            prompt_tokens=options.prompt_tokens,
            skip_sinks=options.skip_sinks,
            by=self._ways.filling,
        )
        self._names = labels([rule.site for rule in self.rules])
        self._recorder = subject.recorder(self._names) if options.record else None
        self._exact, self._installed = bool(options.record) or any(map(self._asks, self.rules)), False
        self._passes.exact = self._exact or value.numel() > 1
        # Whether the running pass is steered; called at every site, so it must be short.
        self._acts = self._passes.acts if self._scope.is_everywhere else self._in_scope
        self._unsteered = self._passes.unsteered if self._scope.is_everywhere else ("context",)
        self._refusals = [found for found in map(self._refusal, self.rules) if found]
        self._fired = [False] * len(self.rules)
        self._places = Places(self._model, self.rules)
        self._called, self._local, self._lock = False, threading.local(), threading.Lock()

    @property
    def strength(self) -> Tensor:
        """The strength, one number or one per row, which holds from the next site on. May raise StrengthError."""
        return self._ways.strength

    @strength.setter
    def strength(self, strength: Strength) -> None:
        value = strength_for(self._all_rules, strength)
        with self._lock:
            self._passes.exact = self._exact or value.numel() > 1
            self._ways.at(value)
            if self._installed and not self._hooks.active:
                self._put_on()

    def install(self) -> "Applied":
        """Put the hooks on and return self; at strength 0 there are none. Raises StateError if already installed."""
        with self._lock:
            if self._hooks.active:
                raise StateError("this Applied is already installed; call steering.apply() again for a second one")
            self._put_on()
        return self

    def _put_on(self) -> None:
        try:
            self._installed = True
            if self._ways.are_off:
                return
            for module, read in self._passes.calls:
                self._hooks.on_call(module, self._uncompiled(partial(self._begin, read), self._refusals))
                self._hooks.on_output(module, self._uncompiled(self._finish, self._refusals))
            self._places.note()
            self._passes.watch_runs(self._hooks, self._restart)
            for number, rule in enumerate(self.rules):
                self._hook(number, rule)
            self._passes.active = True
            self._scope.enter()
        except BaseException:
            to_the_end(self._put_away)
            raise

    def remove(self) -> None:
        """Take the hooks off; twice is harmless. Warns when a site never fired though the model ran uncompiled."""
        if idle := self._take_off():
            warnings.warn(f"these sites never fired, so nothing was steered there: {idle}", DsasWarning, stacklevel=2)

    @property
    def has_trace(self) -> bool:
        """Whether anything was recorded that `trace` or `maps` would return."""
        return self._recorder is not None and self._recorder.has_passes()

    def trace(self, *, start: int = 0, thread: threading.Thread | None = None) -> Trace:
        """Return the strengths applied to the last sequences, since they began, per site, row and token.

        thread: whose sequences; without it those that this thread ran, or else that ran last in any, as a streamer's.
        start: leave out the passes before this cache position, as one does who reads along while a model generates.
        Tokens of a cache that was filled otherwise are not in it. Raises StateError when nothing was recorded (no pass
        yet, strength 0, or record=False), steered modules were replaced, or for a pipeline, which has `maps`.
        """
        self._places.check(self._hooks)
        return self._recording.trace(self._asked, start=start, thread=thread)

    def prompt_end(self) -> int:
        """Return the cache position where the prompt of the last sequences ends. Raises StateError as `trace` does."""
        return self._recording.prompt_end()

    def read_end(self) -> int:
        """Return the cache position after the last token that was read. Raises StateError as `trace` does."""
        return self._recording.read_end()

    def maps(self, *, thread: threading.Thread | None = None) -> Maps:
        """Return the strengths applied in the last run of a pipeline, per site, picture, step and position.

        thread, StateError: as in `trace`; StateError also when the model is not a pipeline.
        """
        return self._recording.maps(self._asked, thread=thread)

    def report(self, *, thread: threading.Thread | None = None) -> list[AppliedSite]:
        """Return one line per site of the Steering: what happened there in the last sequences or run.

        thread: as `trace`. A site that was not selected is reported with the reason. Where nothing is known (recording
        is off, nothing ran, the site never fired, or it has other tokens), `mean_strength` and `hits` are None and
        `status` says why. Outside the decoder, tokens are the module's own, such as patches.
        """
        self._places.check(self._hooks)
        found: list[SiteSummary] = [NOT_RECORDED] * len(self.rules)
        ran = self._recorder is not None and self._recorder.has_passes(thread)
        if self._recorder is not None and ran:
            found = self._recorder.summaries(self._asked, [rule.weight for rule in self.rules], thread)
        return applied_report(self._all_rules, found, self._fired, recording=self._recorder is not None, ran=ran)

    def __enter__(self) -> "Applied":
        self.entered()
        return self.install()

    @surely
    def __exit__(self, kind: type[BaseException] | None, *_exception: object) -> None:
        if kind is None:
            self.remove()
        else:
            self._take_off()  # an interrupted pass says nothing about its later sites

    @property
    def _asked(self) -> Tensor:
        return self.strength.detach().cpu().reshape(-1)

    @property
    def _recording(self) -> Foreign:
        if self._recorder is None:
            raise StateError("recording is off: apply the steering with record=True")
        return self._recorder

    def _take_off(self) -> list[str]:
        """Take the hooks off and return the sites that never fired, if the model ran and this is known."""
        with self._lock:
            was_active, unwatched = self._hooks.active, to_the_end(self._put_away)
        known = was_active and self._called and not unwatched
        return [name for name, fired in zip(self._names, self._fired, strict=True) if known and not fired]

    def _put_away(self) -> bool:
        self._installed = self._passes.active = False
        reader_ended()
        unwatched = self._hooks.remove()
        self._scope.leave()
        return unwatched

    def _asks(self, rule: Rule) -> bool:
        """Whether a rule needs to know where tokens are."""
        return rule.regulator.reads_forward_pass or self._skip_sinks or self._passes.always

    def _refusal(self, rule: Rule) -> str:
        """Return what a rule needs that a compiled graph cannot know; empty if nothing."""
        if not self._scope.is_everywhere:
            return "scope='context' inside torch.compile: a compiled graph cannot know who runs it"
        if not self._asks(rule):
            return ""
        what = "skip_sinks" if self._skip_sinks else type(rule.regulator).__name__
        return f"{what} at {rule.site} inside torch.compile: a compiled graph cannot know {self._passes.unseen}"

    def _uncompiled(self, hook: Callable[..., Foreign], refusals: Sequence[str]) -> Callable[..., Foreign]:
        return gives_way(hook, refusals[0]) if refusals else hook

    def _in_scope(self) -> bool:
        return self._scope.here() and self._passes.acts()

    def _begin(self, read: Callable[..., Foreign], args: Arguments, kwargs: Options) -> None:
        if torch.compiler.is_compiling() or not self._passes.active or not self._scope.here():
            return
        step = read(args, kwargs)
        if step is not None or not self._passes.always:  # otherwise a part that runs before the model itself
            self._local.running = True
            if step is not None and step.tokens > 1:
                self._places.check_sites()
            if self._recorder is not None:
                self._recorder.begin(step)

    def _restart(self) -> None:
        self._places.check(self._hooks)
        if self._recorder is not None and self._scope.here():
            self._recorder.restart()

    def _finish(self, module: nn.Module, _args: Arguments, output: Given) -> None:
        """Note that the model ran: only then can a site be reported as never fired."""
        if torch.compiler.is_compiling() or not getattr(self._local, "running", False):
            return
        self._local.running = False
        # If it is not active, hooks are being removed during the pass, one after another.
        if self._passes.end(module, output) and self._passes.active:
            self._called = True

    def _hook(self, number: int, rule: Rule) -> None:
        edit, refusals = self._editor(number, rule), list(filter(None, [self._refusal(rule)]))
        way, plain = self._ways.now[number], rule.site.is_plain and rule.site.side == "output"
        plain = plain and not self._passes.always and self._passes.records(rule.site)
        if not (plain and isinstance(way, Fused | Summing)):
            self._hooks.at_site(self._model, rule.site, self._uncompiled(edit, refusals))
            return
        record = partial(self._recorder.add_gain, number) if self._recorder is not None else None
        part = Part(self._ways.now, number, record, self._unsteered, self._acts)
        hook = (shortened if isinstance(way, Fused) else shortened_sum)(*part, edit, self._passes.running)
        joint = Joint(added_up, part) if isinstance(way, Fused) and way.addition and not refusals else None
        self._hooks.on_output(self._model.get_submodule(rule.site.path), self._uncompiled(hook, refusals), joint)

    def _editor(self, number: int, rule: Rule) -> Callable[[Given], Given]:
        site, asks, ways = rule.site, self._asks(rule), self._ways
        recorder, inside, flat = self._recorder, self._passes.records(site), site.layout == "flat"
        doses, width = self._keep_doses, width_of(rule.transform, rule.regulator)

        def edit(output: Given) -> Foreign:
            compiling = torch.compiler.is_compiling()
            way = ways.now[number]
            if way is None or (not compiling and not self._acts()):
                return None
            whole = site.read(output, self._passes.rows_at(site, output) if flat else 1)
            if width is not None and whole.shape[-1] != width:
                got = f"got {whole.shape[-1]}; fit a Steering on this model and site"
                raise ActivationError(f"{site}: this rule is made for activations of width {width}, {got}")
            step = None
            if asks or (not compiling and ways.strength.numel() > 1):
                step = self._passes.at(site, whole, output)
                if asks:
                    step.ask(number)
                elif step.packing is None:
                    step = None
            t = whole if step is None else step.take(whole)
            if len(t) == 0:  # a branch of guidance that is not steered
                return None
            edited = edit_with(way, t, step)
            if not compiling:
                self._fired[number] = True
                if recorder is not None and not inside:
                    recorder.add_outside(number, way.applied(t, edited), self._passes.at(site, whole, output).real)
                elif recorder is not None:
                    detail = way.detail(t, edited) if doses and isinstance(way, General) else ()
                    recorder.add(number, step, way.applied(t, edited), *detail)
            return site.write(output, edited.t if step is None else step.put(whole, edited.t))

        return edit
