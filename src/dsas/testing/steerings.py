"""The laws as far as a Steering on a language model can keep or break them: `check_steering` and `check_compiled`.

Each is checked for every way in which a Steering can act (`dsas.testing.ways`). They are meant for small models: they
take a few dozen forward passes, and copies of the model in other dtypes.
"""

import copy
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsas.errors import DsasError
from dsas.methods.base import Fitted
from dsas.model.activations import read_sites
from dsas.model.foreign import Foreign, Model, Tokenizer
from dsas.model.forward_pass import ForwardPass
from dsas.model.sites import labels
from dsas.model.tokenizing import pad_token
from dsas.runtime.rule import Rule
from dsas.steering.composition import Composition
from dsas.steering.steering import Steering
from dsas.testing.laws import close, require
from dsas.testing.passes import Pass, logits_of, one_row, padded, read_rows, require_same, state_of, steered_rows
from dsas.testing.sequences import check_sequences
from dsas.testing.watch import Watch
from dsas.testing.ways import Kind, Way, applied_of, strengths_of

PROMPTS = ("The quick brown fox", "Hi", "Who goes there, friend or foe?")
NEW_TOKENS = 4


def check_steering(
    steering: Steering | Composition,
    model: nn.Module,
    tokenizer: Tokenizer,
    *,
    prompts: Sequence[str] = PROMPTS,
    way: Kind = "apply",
) -> None:
    """Raise AssertionError, naming the law, if a Steering breaks one of laws 1 to 7 or 9 on a causal language model.

    prompts: two or more, of different lengths in tokens. way: how it acts; "fuse" is not possible for a composition.
    """
    ids, acting = [torch.tensor(tokenizer(prompt)["input_ids"]) for prompt in prompts], Way(steering, way)
    check_identity(acting, model, ids[0])
    alone = [one_row(acting, model, row) for row in ids]
    check_rows(acting, model, ids, alone, pad_token(tokenizer))
    check_threads(acting, model, ids, alone, pad_token(tokenizer))
    check_generation(acting, model, ids, pad_token(tokenizer))
    check_sequences(acting, model, ids, alone)
    check_dtypes(acting, model, ids[0], alone[0])
    check_exits(acting, model, model, lambda: state_of(model), lambda: logits_of(model, ids[0][None]))
    check_storage(acting, model, ids[0], alone[0])
    check_effect(acting, model, ids[0], alone[0])
    check_gradients(acting, model, ids[0])


def check_identity(way: Way, model: nn.Module, ids: Tensor) -> None:
    """Law 1: at strength 0, and after any other, the model is what it was, to the bit and to the hook."""
    before, plain = state_of(model), logits_of(model, ids[None])
    with way.on(model, 0.0):
        require(1, state_of(model) == before, "strength 0 put hooks on the model, or changed its modules")
        require(1, torch.equal(logits_of(model, ids[None]), plain), "strength 0 changed the logits")
    with way.on(model):
        logits_of(model, ids[None])
    require(1, state_of(model) == before, "hooks, modes, parameters or modules differ after steering from before it")
    require(1, torch.equal(logits_of(model, ids[None]), plain), "the logits differ after steering from before it")
    if not way.is_fused:
        with way.on(model, way.by_row(torch.tensor([0.0, 1.0]))):
            both = logits_of(model, ids.repeat(2, 1))[0]
        require(1, close(both, plain[0]), "a row at strength 0 changed beside a row at strength 1")


def check_rows(way: Way, model: nn.Module, ids: list[Tensor], alone: list[Pass], padding: int) -> None:
    """Law 2: batched, padded on either side, cached, cut into chunks: each row as if alone."""
    for side in ("left", "right"):
        inputs = padded(ids, side, padding)
        for use_cache, how in ((False, ""), (True, ", with a cache")):
            found = steered_rows(way, model, inputs, use_cache=use_cache)
            require_same(found, alone, f"in a batch padded on the {side}{how}")
    require_same([one_row(way, model, row, chunk=3) for row in ids], alone, "when prefilled in chunks of 3")
    require_same([one_row(way, model, row, chunk=1) for row in ids], alone, "when run token by token over a cache")


def check_threads(way: Way, model: nn.Module, ids: list[Tensor], alone: list[Pass], padding: int) -> None:
    """Law 2: in another thread each row is as if alone, and does not change this thread's records."""
    found: list[Pass] = []
    with way.on(model) as acting:
        read_rows(acting, model, padded(ids[:1], "left", padding))
        thread = threading.Thread(
            target=lambda: found.extend(read_rows(acting, model, padded(ids[1:], "left", padding)))
        )
        thread.start()
        thread.join()
        kept = [close(strengths, alone[0].strengths) for strengths in strengths_of(acting)]
        require(2, all(kept), "another thread's pass changed this one's trace")
    require_same(found, alone[1:], "in another thread")


def check_generation(way: Way, model: Model, ids: list[Tensor], padding: int) -> None:
    """Law 2: the greedy continuation of each row in a batch is that of the row alone, with a cache and without."""
    greedy = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": padding, "eos_token_id": None}
    left = padded(ids, "left", padding)
    with way.on(model, prompt_tokens=list(map(len, ids))):
        together = model.generate(left["input_ids"], attention_mask=left["attention_mask"], **greedy)
    for row, one in enumerate(ids):
        with way.on(model, prompt_tokens=len(one)):
            for use_cache in (True, False):
                by_itself = model.generate(
                    one[None], attention_mask=torch.ones_like(one[None]), use_cache=use_cache, **greedy
                )
                same = torch.equal(by_itself[0, -NEW_TOKENS:], together[row, -NEW_TOKENS:])
                require(2, same, f"row {row} has another continuation in a batch than alone with use_cache={use_cache}")


def check_dtypes(way: Way, model: nn.Module, ids: Tensor, alone: Pass) -> None:
    """Law 3: nothing given is written into, dtypes are kept, and autocast changes no strength."""
    with torch.autocast(ids.device.type, dtype=torch.bfloat16), way.on(model) as acting:
        logits = logits_of(model, ids[None])
        require(3, bool(torch.isfinite(logits).all()), "under autocast to bfloat16 the logits are not finite")
        near = [close(strengths, alone.strengths, 0.1) for strengths in strengths_of(acting)]
        require(3, all(near), "under autocast to bfloat16 other strengths apply")
    for dtype in (torch.float32, torch.bfloat16):
        typed = copy.deepcopy(model).to(dtype)
        given = [(parameter, parameter.detach().clone()) for parameter in typed.parameters()]
        watch = Watch([] if way.is_fused else [rule.site for rule in way.rules], typed)
        with warnings.catch_warnings(), way.on(typed) as acting:
            warnings.simplefilter("ignore")
            watch.look_after()
            require(3, logits_of(typed, ids[None]).dtype == dtype, f"the logits of a model in {dtype} are not")
            kinds = {parameter.dtype for parameter in typed.parameters()}
            require(3, kinds == {dtype}, f"the parameters of a model in {dtype} have other dtypes: {kinds}")
        watch.check()
        require(3, all(torch.equal(one, copied) for one, copied in given), "a parameter was written into")
        wide = [strengths.dtype == torch.float32 for strengths in strengths_of(acting)]
        require(3, all(wide), "strengths are not recorded in float32")


def check_exits(
    way: Way, target: Foreign, module: nn.Module, state: Callable[[], Foreign], run: Callable[[], object]
) -> None:
    """Law 4: exceptions and interrupts, inside the block or inside the model, leave no hook behind.

    target: the steered model or pipeline. module: its module with the sites. state: returns what must not change. run:
    runs the target once.
    """
    before = state()

    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    for kind in (RuntimeError, KeyboardInterrupt):
        try:
            with way.on(target):
                raise kind
        except kind:
            require(4, state() == before, f"hooks are still on after a {kind.__name__}")
    handle = module.get_submodule(way.rules[-1].site.path).register_forward_hook(interrupt)
    try:
        with warnings.catch_warnings(), way.on(target):
            warnings.simplefilter("ignore")
            run()
    except KeyboardInterrupt:
        handle.remove()
    require(4, state() == before, "hooks are still on after an interrupt inside the model")


def check_storage(way: Way, model: nn.Module, ids: Tensor, alone: Pass) -> None:
    """Law 5: a round trip through files changes no bit, and another kind of model is refused."""
    again = one_row(way.stored(), model, ids)
    exact = torch.equal(again.logits, alone.logits) and torch.equal(again.strengths, alone.strengths)
    require(5, exact, "after saving and loading, the steered logits or strengths differ")
    require_refused(way)


def require_refused(way: Way) -> None:
    """Law 5: no Steering acts on a model of another kind."""
    try:
        with way.on(nn.Identity()):
            pass
    except DsasError:
        return
    require(5, False, "it was applied to an Identity without an error")


def check_effect(way: Way, model: nn.Module, ids: Tensor, alone: Pass) -> None:
    """Law 6: every rule is reported and recorded; applied strengths change the logits, fused ones as applied ones."""
    plain = logits_of(model, ids[None])[0]
    with way.on(model) as acting:
        logits_of(model, ids[None])
    require_reported(way, acting)
    changed = not torch.equal(alone.logits, plain)
    require(
        6, changed or not bool(alone.strengths.any()), "strengths were applied, but the logits are as without steering"
    )
    if way.is_fused:
        applied = one_row(Way(way.steering), model, ids)
        require(6, close(alone.logits, applied.logits, 1e-3), "fused, it gives other logits than applied")


def require_reported(way: Way, acting: Any) -> None:
    """Law 6: each member reports all of its rules, and each rule that steers has a record or a stated reason."""
    reports = [member.report() for member in way.members] + [one.report() for one in applied_of(acting)]
    names = [labels([rule.site for rule in member.rules]) for member in way.members]
    for report, sites in zip(reports, names * 2, strict=False):
        require(6, [line.site for line in report] == sites, "report() leaves out sites")
    silent = [
        line.site
        for one in applied_of(acting)
        for line in one.report()
        if (line.weight > 0) != (line.mean_strength is not None)
    ]
    require(6, not silent, f"report() has no strength, or one too many, for {silent}")
    if way.is_fused:
        told = [line.site for line in acting.report()]
        require(6, told == [str(rule.site) for rule in way.rules], f"report() has only {told} of the rules that steer")


def check_gradients(way: Way, model: nn.Module, ids: Tensor) -> None:
    """Law 7: the logits have gradients by the strength and the methods' tensors; parameters are not touched."""
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    if way.is_fused:
        fused, applied = (_gradient_by_tokens(each, model, ids) for each in (way, Way(way.steering)))
        require(7, close(fused, applied, 1e-2), "fused, the logits have another gradient by the tokens than applied")
    elif way.rules:
        copied = way.with_steering(copy.deepcopy(way.steering))
        batch = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids[None])}
        read = read_sites(
            model, batch, [rule.site for rule in copied.rules], lambda _, t, _frames: t[0].clone().float()
        )
        tensors = [tensor for rule in copied.rules for tensor in _sloped(rule, read[rule.site][None])]
        strength = torch.tensor(1.0, requires_grad=True)
        with copied.on(model, strength):
            logits = model(input_ids=ids[None]).logits
        gradients = torch.autograd.grad(logits.sum(), [strength, *tensors], allow_unused=True)
        require(7, gradients[0] is not None, "the strength gets no gradient")
        lost = sum(gradient is None for gradient in gradients[1:])
        require(7, lost == 0, f"{lost} of {len(tensors)} tensors of the methods get no gradient")
    now = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    require(7, now == wanted, "steering changed which of the model's parameters require gradients")


def _gradient_by_tokens(way: Way, model: Model, ids: Tensor) -> Tensor:
    tokens = model.get_input_embeddings()(ids[None]).detach().requires_grad_()
    with way.on(model):
        logits = model(inputs_embeds=tokens).logits
    (gradient,) = torch.autograd.grad(logits.sum(), tokens)
    return gradient


def _sloped(rule: Rule, t: Tensor) -> list[Tensor]:
    """Return the tensors of a rule that can have a gradient, with requires_grad set; thresholds have none."""
    methods = [part for part in (rule.transform, *rule.regulator.modules()) if isinstance(part, Fitted)]
    found = []
    for method in methods:
        own = [buffer.requires_grad_() for buffer in method.buffers(recurse=False) if buffer.is_floating_point()]
        value = method(t) if method is rule.transform else method(t, ForwardPass(*t.shape[:2]))
        if own and value.requires_grad:
            slopes = torch.autograd.grad(value.sum(), own, allow_unused=True)
            found += [buffer for buffer, slope in zip(own, slopes, strict=True) if slope is not None]
    return found


def check_compiled(
    steering: Steering | Composition,
    model: nn.Module,
    tokenizer: Tokenizer,
    *,
    backend: str = "inductor",
    way: Kind = "apply",
) -> None:
    """Raise AssertionError if law 8 is broken: steering that begins before, after, and ends after torch.compile.

    Slow: it compiles the model several times. Run it without run-time type checks, which cannot be compiled.
    """
    ids, acting = torch.tensor([tokenizer(PROMPTS[0])["input_ids"]]), Way(steering, way)
    plain = logits_of(model, ids)
    with acting.on(model):
        steered = logits_of(model, ids)
    torch.compiler.reset()
    compiled: Any = torch.compile(model, backend=backend)
    with acting.on(model):
        require(8, close(logits_of(compiled, ids), steered), "steering applied before compiling is not compiled in")
    require(8, close(logits_of(compiled, ids), plain), "steering outlives its removal in compiled code")
    for target in (model, compiled):
        with acting.on(target):
            require(8, close(logits_of(compiled, ids), steered), "steering applied after compiling is ignored")
    require(8, close(logits_of(compiled, ids), plain), "steering outlives its removal in code compiled without it")
