"""Passes: forward passes through a model in which every site is steered by rules that are being learned.

The model is anything that `Work.run` can run: the trainer only passes batches to it. Its weights are
frozen while a pass is open, so gradients reach activations and the rules' vectors and nothing else; no copy is made.

For a pipeline a pass is a whole run, in which a site may fire at every denoising step; their mean is pooled.

A pass ends at the last site, unless the model's output is needed; a run ends at its end, or before denoising if all
sites are in text encoders. With checkpointing a pass continues to the model's vocabulary projection, because a layer
whose activations will be recomputed cannot be left in the middle. Dropout stays off: only the layers' own flag is set.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dsas.errors import OptionError, SiteError, closest
from dsas.model.evaluation_mode import evaluation_mode
from dsas.model.foreign import Foreign, Given
from dsas.model.forward_pass import ForwardPass
from dsas.model.hooks import Hooks, StopForward
from dsas.model.sequence import Sequences
from dsas.model.sites import Site
from dsas.parallel.interruption import Leaving, surely, to_the_end
from dsas.runtime.rule import Rule
from dsas.transforms.affine import steer


def _no_prompts(_batch: Foreign) -> Sequence[int]:
    """Return nothing: it is not known where answers begin, so no token belongs to one."""
    return ()


def _all_rows(_hooks: Hooks, _sites: Sequence[Site]) -> None:
    """Return None: every site fires once per batch, and all its rows are read."""


class Work(NamedTuple):
    """A model and how to run it.

    run: runs the model on one batch. real: which tokens of a batch are real, Bool (batch, token). counted: which of
    them count, the same shape. pool: turns activations (batch, token, dim) and the batch into one vector per row
    (batch, dim), each from its own row alone; gradients must flow through. checkpointing: whether to recompute
    activations in the backward pass instead of keeping them, in models that offer it, as those of transformers do.
    follow: as in `Examples.follow`; if it chooses rows, all tokens of a site are real and a site may fire several times
    per batch. prompts: as in `Examples.prompt_lengths`.
    """

    model: nn.Module
    run: Callable[[Given], object]
    real: Callable[[Any], Bool[Tensor, "batch token"]]
    counted: Callable[[Any], Bool[Tensor, "batch token"]]
    pool: Callable[[Tensor, Any], Tensor]
    checkpointing: bool = False
    follow: Callable[[Hooks, Sequence[Site]], Callable[[Site, Tensor, Any], ForwardPass] | None] = _all_rows
    prompts: Callable[[Any], Sequence[int]] = _no_prompts


class Seen(NamedTuple):
    """What one site saw in one pass.

    value: what was read of the steered activation. strength: mean over tokens that count of the regulator, (batch,).
    alive: whether the regulator was above 0 at any real token, of the prompt too where the answer counts.
    """

    value: Tensor
    strength: Float[Tensor, " batch"]
    alive: bool


def plain(seen: Seen, *, on_cpu: bool) -> Seen:
    """Return what a site saw without its graph, and on the CPU if requested."""
    value = seen.value.detach()
    return Seen(value.cpu(), seen.strength.cpu(), seen.alive) if on_cpu else seen._replace(value=value)


def strengths_of(seen: Sequence[Sequence[Seen]]) -> Float[Tensor, "row site"]:
    """Return the mean strength of each row of some batches at each site, on the CPU."""
    return torch.stack([torch.cat([one.strength.cpu() for one in site]) for site in zip(*seen, strict=True)], dim=1)


class Passes(Leaving):
    """Steered passes over one model; open it as a context manager."""

    def __init__(self, work: Work, rules: Sequence[Rule]) -> None:
        """Use these rules; their vectors are read anew in every pass."""
        self._work, self._rules = work, list(rules)
        self._hooks, self._left = Hooks(), ExitStack()
        self._read: Callable[[Tensor], Tensor] | None = None
        self._real = self._counted = torch.ones(1, 1, dtype=torch.bool)
        self._prompts: Tensor | None = None
        self._seen: dict[int, list[Seen]] = {}
        self._steering, self._looking, self._to_the_end = True, False, False
        self._at: Callable[[Site, Tensor, Any], ForwardPass] | None = None

    def pooled(self, batch: Foreign) -> list[Seen]:
        """Run a batch and return for each rule its site's pooled steered activations, (batch, dim) float32."""
        return self._run(batch, lambda t: self._work.pool(t, batch), _mean)[1]

    def tokens(self, batch: Foreign, *, steered: bool = True) -> list[Seen]:
        """Run a batch and return for each rule its site's tokens that count (token, dim), steered or unsteered."""
        return self._run(batch, lambda t: t[self._those(t)], torch.cat, steered=steered)[1]

    def outputs(self, batch: Foreign, *, steered: bool = True) -> tuple[Any, list[Seen]]:
        """Run a batch to the model's end and return its output, and for each rule its strengths; no value is read."""
        return self._run(batch, lambda t: t[:0], _mean, steered=steered, to_the_end=True)

    def __enter__(self) -> "Passes":
        self.entered()
        try:
            # For as long as it is open: a backward pass may run layers again.
            self._left.enter_context(_frozen(self._work.model))
            self._left.enter_context(evaluation_mode(self._work.model))
            self._at = self._work.follow(self._hooks, [rule.site for rule in self._rules])
            for number, rule in enumerate(self._rules):
                self._hooks.at_site(self._work.model, rule.site, self._editor(number, rule))
            if self._work.checkpointing:
                self._hooks.on_call(_projection(self._work.model), self._stop)
        except BaseException:
            self.__exit__()
            raise
        return self

    @surely
    def __exit__(self, *_exception: object) -> None:
        self._hooks.remove()
        self._left.close()

    def _run(
        self,
        batch: Foreign,
        read: Callable[[Tensor], Tensor],
        join: Callable[[list[Tensor]], Tensor],
        *,
        steered: bool = True,
        to_the_end: bool = False,
    ) -> tuple[Any, list[Seen]]:
        self._real, self._counted = self._work.real(batch).bool(), self._work.counted(batch).bool()
        prompts = self._work.prompts(batch)
        self._prompts = torch.tensor(prompts) if prompts else None
        self._seen, self._read, given = {}, read, None
        self._looking, self._steering, self._to_the_end = True, steered, to_the_end
        try:
            with _checkpointing(self._work), suppress(StopForward):
                given = self._work.run(batch)
        finally:  # a backward pass may run layers again, steered
            self._looking, self._steering, self._to_the_end = False, True, False
        found, self._seen = self._seen, {}
        missing = [str(rule.site) for number, rule in enumerate(self._rules) if number not in found]
        if missing:
            fired = [str(self._rules[number].site) for number in found]
            raise SiteError(
                f"these sites never ran in the forward pass: {', '.join(missing)}; closest that fired: "
                f"{closest(missing[0], fired)}"
            )
        return given, [_joined(found[number], join) for number in range(len(self._rules))]

    def _those(self, t: Tensor) -> Tensor:
        """Return which tokens of `t` count."""
        if self._at is None:
            ahead = t.shape[1] - self._counted.shape[1]  # tokens that the model itself puts before the text
            return torch.nn.functional.pad(self._counted, (ahead, 0)).to(t.device)
        return torch.ones(t.shape[:2], dtype=torch.bool, device=t.device)

    def _of_rows(self, t: Tensor) -> Tensor | None:
        """Return which tokens are real, where that is known of the rows of `t`."""
        return self._real if self._real.shape == t.shape[:2] else None

    def _unfollowed(self, t: Tensor) -> ForwardPass:
        """Return the pass of a whole batch, with the ends of its prompts where the site has the batch's own tokens."""
        mask = self._of_rows(t)
        history = Sequences(len(t), prompt_tokens=None if mask is None else self._prompts)
        history.begin(0, t.shape[1])
        return ForwardPass(*t.shape[:2], mask=mask, device=t.device, history=history)

    def _noted(self, value: Tensor, gain: Tensor, t: Tensor) -> Seen:
        real = self._of_rows(t) if self._at is None else None
        anywhere = gain if real is None else gain[real.to(gain.device)]
        return Seen(value, _summary(gain, self._those(t)), bool((anywhere > 0).any()))

    def _editor(self, number: int, rule: Rule) -> Callable[[Given], Given]:
        def edit(given: Given) -> Foreign:
            whole = rule.site.read(given, rule.site.rows(given, self._counted.shape))
            step = self._unfollowed(whole) if self._at is None else self._at(rule.site, whole, given)
            t = step.take(whole)
            if len(t) == 0:  # another branch of guidance
                return None
            # It runs twice in a checkpointed layer: the second run must do the same, and its result is not used.
            gain, steered = cheaply(_steered, rule, t, step) if self._steering else (t.new_zeros(*t.shape[:2], 1), t)
            value = self._read(steered) if self._read is not None else steered
            if self._looking and (self._at is not None or number not in self._seen):
                self._seen.setdefault(number, []).append(self._noted(value, gain.detach(), t))
                ends_here = not (self._to_the_end or self._work.checkpointing or self._at is not None)
                if len(self._seen) == len(self._rules) and ends_here:
                    raise StopForward
            return rule.site.write(given, step.put(whole, steered))

        return edit

    def _stop(self, _args: Any, _kwargs: Any) -> None:
        if not self._to_the_end:
            raise StopForward


def cheaply(function: Callable[..., Foreign], *arguments: Given) -> Foreign:
    """Return a function of tensors, recomputed in the backward pass instead of keeping its intermediate results.

    For elementwise work, whose float32 intermediates would take more memory than the layers' own bfloat16 ones, and
    which is fast.
    """
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean(0)


def _joined(seen: list[Seen], join: Callable[[list[Tensor]], Tensor]) -> Seen:
    if len(seen) == 1:
        return seen[0]
    values, strengths, alive = zip(*seen, strict=True)
    return Seen(join(list(values)), _mean(list(strengths)), any(alive))


def _steered(rule: Rule, t: Tensor, step: ForwardPass) -> tuple[Tensor, Tensor]:
    """Return the regulator's values and the steered activation, as `dsas.runtime.applied` computes them."""
    with torch.autocast(t.device.type, enabled=False):
        gain = rule.regulator(t, step)
        return gain, steer(t, gain, rule.transform)


def _summary(gain: Tensor, counted: Tensor) -> Tensor:
    return gain.mean(-1).masked_fill(~counted, 0.0).sum(-1) / counted.sum(-1)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    def learn(*, on: bool) -> None:
        for name in learning:  # by name: weights on disk are a new parameter after every pass
            model.get_parameter(name).requires_grad_(on)

    try:
        learn(on=False)
        yield
    finally:
        to_the_end(partial(learn, on=True))


def _projection(model: nn.Module) -> nn.Module:
    find = getattr(model, "get_output_embeddings", None)
    module = find() if callable(find) else None
    if not isinstance(module, nn.Module) or not getattr(model, "supports_gradient_checkpointing", False):
        raise OptionError(f"a {type(model).__name__} does not offer gradient checkpointing: train without it")
    return module


@contextmanager
def _checkpointing(work: Work) -> Iterator[None]:
    """Turn the layers' checkpointing on inside the block, if it is wanted and gradients are recorded.

    It sets the flags that transformers' layers read: the model's own method would also hook the embeddings permanently.
    """
    if not work.checkpointing or not torch.is_grad_enabled():
        yield
        return
    again = partial(checkpoint, use_reentrant=False)
    wanted = {"gradient_checkpointing": True, "_gradient_checkpointing_func": again, "training": True}
    layers: list[Foreign] = [module for module in work.model.modules() if hasattr(module, "gradient_checkpointing")]
    before = [{key: layer.__dict__.get(key, _ABSENT) for key in wanted} for layer in layers]

    def restore() -> None:
        for layer, values in zip(layers, before, strict=True):
            layer.__dict__.update({key: value for key, value in values.items() if value is not _ABSENT})
            for key in [key for key, value in values.items() if value is _ABSENT]:
                layer.__dict__.pop(key, None)

    try:
        for layer in layers:
            layer.__dict__.update(wanted)  # "training" of the layer alone, not of its submodules
        yield
    finally:
        to_the_end(restore)


_ABSENT = object()
