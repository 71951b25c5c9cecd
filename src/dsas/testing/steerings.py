"""The laws as far as a Steering on a model can keep or break them: `check_steering`, and `check_compiled` apart.

Meant for small models: a few dozen forward passes, and copies of the model in other dtypes.
"""

import copy
import threading
import warnings
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from dsas.errors import DsasError
from dsas.methods.base import Fitted
from dsas.model.activations import read_sites
from dsas.model.forward_pass import ForwardPass
from dsas.model.sites import labels
from dsas.model.token_batches import pad_token
from dsas.runtime.rule import Rule
from dsas.steering.steering import Steering
from dsas.testing.laws import close, require
from dsas.testing.passes import (
    Pass,
    logits_of,
    one_row,
    padded,
    read_rows,
    require_same,
    state_of,
    steered_rows,
    strengths_of,
)

PROMPTS = ("The quick brown fox", "Hi", "Who goes there, friend or foe?")
NEW_TOKENS = 4


def check_steering(steering: Steering, model: nn.Module, tokenizer: Any, *, prompts: Sequence[str] = PROMPTS) -> None:
    """Raise AssertionError, naming the law, if a Steering breaks one of laws 1 to 7 on a causal language model.

    prompts: two or more, of different lengths in tokens.
    """
    ids = [torch.tensor(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    alone = [one_row(steering, model, row) for row in ids]
    check_identity(steering, model, ids[0])
    check_rows(steering, model, ids, alone, pad_token(tokenizer))
    check_dtypes(steering, model, ids[0], alone[0])
    check_exits(steering, model, ids[0])
    check_storage(steering, model, ids[0], alone[0])
    check_effect(steering, model, ids[0], alone[0])
    check_gradients(steering, model, ids[0])


def check_identity(steering: Steering, model: nn.Module, ids: Tensor) -> None:
    """Law 1: at strength 0, and after any other, the model is what it was, to the bit and to the hook."""
    before, plain = state_of(model), logits_of(model, ids[None])
    with steering.apply(model, 0.0):
        require(1, state_of(model) == before, "strength 0 put hooks on the model, or changed its modules")
        require(1, torch.equal(logits_of(model, ids[None]), plain), "strength 0 changed the logits")
    with steering.apply(model, torch.tensor([0.0, 1.0])):
        both = logits_of(model, ids.repeat(2, 1))[0]
    require(1, close(both, plain[0]), "a row at strength 0 changed beside a row at strength 1")
    require(1, state_of(model) == before, "hooks, modes, parameters or modules differ after steering from before it")
    require(1, torch.equal(logits_of(model, ids[None]), plain), "the logits differ after steering from before it")


def check_rows(steering: Steering, model: nn.Module, ids: list[Tensor], alone: list[Pass], padding: int) -> None:
    """Law 2: batched, padded on either side, cached, cut into chunks, in another thread: each row as if alone."""
    for side in ("left", "right"):
        inputs = padded(ids, side, padding)
        require_same(steered_rows(steering, model, inputs), alone, f"in a batch padded on the {side}")
        require_same(
            steered_rows(steering, model, inputs, use_cache=True),
            alone,
            f"in a batch padded on the {side}, with a cache",
        )
    require_same([one_row(steering, model, row, chunk=3) for row in ids], alone, "when prefilled in chunks of 3")
    require_same([one_row(steering, model, row, chunk=1) for row in ids], alone, "when run token by token over a cache")
    found: list[Pass] = []
    with steering.apply(model) as applied:
        read_rows(applied, model, padded(ids[:1], "left", padding))
        thread = threading.Thread(
            target=lambda: found.extend(read_rows(applied, model, padded(ids[1:], "left", padding)))
        )
        thread.start()
        thread.join()
        require(
            2, close(strengths_of(applied)[0], alone[0].strengths), "another thread's pass changed this one's trace"
        )
    require_same(found, alone[1:], "in another thread")
    greedy = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": padding, "eos_token_id": None}
    left = padded(ids, "left", padding)
    with steering.apply(model, prompt_tokens=list(map(len, ids))):
        together = model.generate(left["input_ids"], attention_mask=left["attention_mask"], **greedy)  # type: ignore
    for row, one in enumerate(ids):
        with steering.apply(model, prompt_tokens=len(one)):
            for use_cache in (True, False):
                by_itself = model.generate(  # type: ignore
                    one[None], attention_mask=torch.ones_like(one[None]), use_cache=use_cache, **greedy
                )
                same = torch.equal(by_itself[0, -NEW_TOKENS:], together[row, -NEW_TOKENS:])
                require(2, same, f"row {row} continues otherwise in a batch than alone with use_cache={use_cache}")


def check_dtypes(steering: Steering, model: nn.Module, ids: Tensor, alone: Pass) -> None:
    """Law 3: no site's output is written into, its dtype is kept, and autocast changes no strength."""
    with torch.autocast(ids.device.type, dtype=torch.bfloat16), steering.apply(model) as applied:
        logits = logits_of(model, ids[None])
        require(3, bool(torch.isfinite(logits).all()), "under autocast to bfloat16 the logits are not finite")
        require(
            3, close(strengths_of(applied)[0], alone.strengths, 0.1), "under autocast to bfloat16 other strengths apply"
        )
    for dtype in (torch.float32, torch.bfloat16):
        typed = copy.deepcopy(model).to(dtype)
        watch = _Watch(steering, typed)
        with warnings.catch_warnings(), steering.apply(typed) as applied:
            warnings.simplefilter("ignore")
            watch.look_after()
            logits_of(typed, ids[None])
        watch.check(dtype)
        require(3, applied.trace().strengths.dtype == torch.float32, "strengths are not recorded in float32")


def check_exits(steering: Steering, model: nn.Module, ids: Tensor) -> None:
    """Law 4: exceptions and interrupts, inside the block or inside the model, leave no hook behind."""
    before = state_of(model)

    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    for kind in (RuntimeError, KeyboardInterrupt):
        try:
            with steering.apply(model):
                raise kind
        except kind:
            require(4, state_of(model) == before, f"hooks are still on after a {kind.__name__}")
    handle = model.get_submodule(steering.rules[-1].site.path).register_forward_hook(interrupt)
    try:
        with warnings.catch_warnings(), steering.apply(model):
            warnings.simplefilter("ignore")
            logits_of(model, ids[None])
    except KeyboardInterrupt:
        handle.remove()
    require(4, state_of(model) == before, "hooks are still on after an interrupt inside the model")


def check_storage(steering: Steering, model: nn.Module, ids: Tensor, alone: Pass) -> None:
    """Law 5: a round trip through files changes no bit, and another kind of model is refused."""
    with TemporaryDirectory() as folder:
        steering.save_pretrained(folder)
        again = one_row(Steering.from_pretrained(folder), model, ids)
    exact = torch.equal(again.logits, alone.logits) and torch.equal(again.strengths, alone.strengths)
    require(5, exact, "after saving and loading, the steered logits or strengths differ")
    try:
        steering.apply(nn.Identity())
    except DsasError:
        return
    require(5, False, "it was applied to an Identity without an error")


def check_effect(steering: Steering, model: nn.Module, ids: Tensor, alone: Pass) -> None:
    """Law 6: every rule is reported, and a strength that was applied has changed the logits."""
    with steering.apply(model) as applied:
        logits_of(model, ids[None])
    lines = applied.report()
    require(
        6, [line.site for line in lines] == labels([rule.site for rule in steering.rules]), "report() leaves out sites"
    )
    silent = [line.site for line in lines if line.weight > 0 and line.mean_strength is None]
    require(6, not silent, f"report() has no strength for {silent}")
    changed = not torch.equal(alone.logits, logits_of(model, ids[None])[0])
    require(
        6, changed or not bool(alone.strengths.any()), "strengths were applied, but the logits are as without steering"
    )


def check_gradients(steering: Steering, model: nn.Module, ids: Tensor) -> None:
    """Law 7: the logits have a gradient by the strength and by the methods' tensors; parameters are left alone."""
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    copied = copy.deepcopy(steering)
    steered = [rule for rule in copied.rules if rule.weight > 0]
    batch = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids[None])}
    read = read_sites(model, batch, [rule.site for rule in steered], lambda t: t[0].clone().float())
    tensors = [tensor for rule in steered for tensor in _sloped(rule, read[rule.site][None])]
    strength = torch.tensor(1.0, requires_grad=True)
    with copied.apply(model, strength):
        logits = model(input_ids=ids[None]).logits
    if any(rule.weight > 0 for rule in steering.rules):
        gradients = torch.autograd.grad(logits.sum(), [strength, *tensors], allow_unused=True)
        require(7, gradients[0] is not None, "the strength gets no gradient")
        lost = sum(gradient is None for gradient in gradients[1:])
        require(7, lost == 0, f"{lost} of {len(tensors)} tensors of the methods get no gradient")
    now = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    require(7, now == wanted, "steering changed which of the model's parameters require gradients")


def _sloped(rule: Rule, t: Tensor) -> list[Tensor]:
    """Return the tensors of a rule that can have a gradient, made to ask for one: not those of thresholds."""
    methods = [part for part in (rule.transform, *rule.regulator.modules()) if isinstance(part, Fitted)]
    found = []
    for method in methods:
        own = [buffer.requires_grad_() for buffer in method.buffers(recurse=False) if buffer.is_floating_point()]
        value = method(t) if method is rule.transform else method(t, ForwardPass(*t.shape[:2]))
        if own and value.requires_grad:
            slopes = torch.autograd.grad(value.sum(), own, allow_unused=True)
            found += [buffer for buffer, slope in zip(own, slopes, strict=True) if slope is not None]
    return found


def check_compiled(steering: Steering, model: nn.Module, tokenizer: Any, *, backend: str = "inductor") -> None:
    """Raise AssertionError if law 8 is broken: steering applied before, after, and removed after torch.compile.

    Slow: it compiles the model several times. Run it without run-time type checks, which cannot be compiled.
    """
    ids = torch.tensor([tokenizer(PROMPTS[0])["input_ids"]])
    plain = logits_of(model, ids)
    with steering.apply(model):
        steered = logits_of(model, ids)
    torch.compiler.reset()
    compiled: Any = torch.compile(model, backend=backend)
    with steering.apply(model):
        require(8, close(logits_of(compiled, ids), steered), "steering applied before compiling is not compiled in")
    require(8, close(logits_of(compiled, ids), plain), "steering outlives its removal in compiled code")
    for target in (model, compiled):
        with steering.apply(target):
            require(8, close(logits_of(compiled, ids), steered), "steering applied after compiling is ignored")
    require(8, close(logits_of(compiled, ids), plain), "steering outlives its removal in code compiled without it")


class _Watch:
    """Sees each site's output before and after the steering hook, to tell whether it was written into."""

    def __init__(self, steering: Steering, model: nn.Module) -> None:
        self._model = model
        self._sites = [rule.site for rule in steering.rules if rule.weight > 0 and rule.site.side == "output"]
        self._before: dict[str, tuple[Tensor, Tensor]] = {}
        self._after: dict[str, Tensor] = {}
        for site in self._sites:
            module = model.get_submodule(site.path)
            forward = module.forward

            def watched(*args: Any, _forward: Any = forward, _site: Any = site, **kwargs: Any) -> Any:
                output = _forward(*args, **kwargs)
                value = _site.read(output)
                self._before[str(_site)] = (value, value.detach().clone())
                return output

            module.forward = watched  # type: ignore[method-assign]

    def look_after(self) -> None:
        for site in self._sites:

            def look(_module: nn.Module, _args: Any, output: Any, _site: Any = site) -> None:
                given, copied = self._before[str(_site)]
                require(3, torch.equal(given, copied), f"the output of {_site} was written into")
                self._after[str(_site)] = _site.read(output)

            self._model.get_submodule(site.path).register_forward_hook(look)

    def check(self, dtype: torch.dtype) -> None:
        for site, value in self._after.items():
            given, _ = self._before[site]
            same = value.dtype == given.dtype and value.shape == given.shape and value.device == given.device
            require(3, same, f"the output of {site} changed its dtype, shape or device ({dtype} in, {value.dtype} out)")
