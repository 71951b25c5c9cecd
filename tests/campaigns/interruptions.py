"""Interruptions: public verbs cut short by an exception at a random moment leave the model as it was.

python -m campaigns.interruptions --rounds 1000 --seed 0          (from tests/; rounds are per verb)
"""

import inspect
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from campaigns.rounds import among, begun
from torch import nn

import dsas
from dsas.evaluation.perplexity import perplexity
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.training.plan import Running

SOURCE, TARGET, CONTROL = ([f"{what} {n}" for n in range(8)] for what in ("you fool", "thanks", "the sun"))
STATE = ("hooks, modes or attributes", "requires_grad", "weights", "threads of torch", "gradients recorded")
VERBS = ("apply", "fit", "incremental fit", "train", "perplexity", "explain", "fuse", "calibrate")


class Cut(KeyboardInterrupt):
    """What is raised where a verb is cut."""


def kind_of(module: nn.Module) -> tuple[str, bool]:
    """Return the name of a module's class, and whether fusion made it."""
    return type(module).__name__, "_dsas_made" in vars(type(module))


def state_of(model: nn.Module) -> list[Any]:
    """Return what a verb has to leave as it was: hooks, modes, attributes, classes, weights, gradients, threads."""
    modules = [
        (len(one._forward_hooks), len(one._forward_pre_hooks), one.training, sorted(vars(one)), kind_of(one))
        for one in model.modules()
    ]
    learning = [parameter.requires_grad for parameter in model.parameters()]
    weights = [(id(parameter), parameter._version) for parameter in model.parameters()]
    return [modules, learning, weights, torch.get_num_threads(), torch.is_grad_enabled()]


def changed(state: list[Any], before: list[Any]) -> tuple[Any, ...]:
    """Return the modules of a state, and which weights are others than before."""
    return state[0], [one != other for one, other in zip(state[2], before[2], strict=False)]


def owned(model: nn.Module) -> list[tuple[nn.Module, type, dict[str, Any], dict[str, Any]]]:
    """Return of each module what `give_back` gives it back: its class, its attributes and its parameters."""
    return [(one, type(one), dict(vars(one)), dict(one._parameters)) for one in model.modules()]


def give_back(kept: list[tuple[nn.Module, type, dict[str, Any], dict[str, Any]]]) -> None:
    """Give modules back what they owned, after something was left on them."""
    for module, kind, attributes, parameters in kept:
        module.__class__ = kind
        for name in [name for name in vars(module) if name not in attributes]:
            delattr(module, name)
        module._parameters.update(parameters)


def folding(model: nn.Module, tokenizer: Any) -> dsas.Steering:
    """Return a Steering of which some sites are folded into weights, and others get a class of their own."""
    sets: dict[str, Any] = {"source": SOURCE, "target": TARGET, "control": CONTROL, "selection": "all"}
    told = dsas.fit(model, tokenizer, **sets, regulator="logistic", progress=False)
    constant = dsas.fit(model, tokenizer, **sets, regulator="constant", sites="mlp", progress=False)
    return dsas.Steering([*told.rules, *constant.rules], told.model)


def without_foreign_no_grad(model: Any) -> nn.Module:
    """Return a Llama whose own code does not turn gradients off: torch's no_grad, cut as it leaves, forgets them."""
    rotary = model.model.rotary_emb
    rotary.forward = MethodType(inspect.unwrap(type(rotary).forward), rotary)
    return model


def verbs(model: nn.Module, tokenizer: Any) -> dict[str, Callable[[], object]]:
    """Return the verbs by name."""
    sets = {"source": SOURCE, "target": TARGET, "control": CONTROL, "progress": False}
    steering = dsas.fit(model, tokenizer, **sets, selection="all", regulator="logistic")
    ids = torch.arange(12).reshape(2, 6) + 60

    learning = {"objective": "e2e-dsas", "steps": 2, "running": Running(progress=False)}
    texts = {name: those for name, those in sets.items() if name != "progress"}

    def apply() -> None:
        with steering.apply(model, 0.2):
            model(input_ids=ids)

    both = folding(model, tokenizer)

    def fuse() -> None:
        with both.fuse(model, 0.1):
            model(input_ids=ids)

    def calibrate() -> None:
        held = {"tune": CONTROL[:4], "held_out": CONTROL[4:], "limit": 0.02, "progress": False}
        dsas.calibrate(model, tokenizer, steering, **held, budget=dsas.Budget("kl", 0.001))

    return {
        "apply": apply,
        "fit": lambda: dsas.fit(model, tokenizer, **sets),
        "incremental fit": lambda: dsas.fit(model, tokenizer, **sets, reading=dsas.Reading(incremental=True)),
        "train": lambda: dsas.train(model, tokenizer, **texts, **learning),
        "perplexity": lambda: perplexity(model, tokenizer, CONTROL),
        "explain": lambda: dsas.explain(model, tokenizer, steering, SOURCE[0]),
        "fuse": fuse,
        "calibrate": calibrate,
    }


def run(rounds: int, seed: int, chosen: tuple[str, ...] = VERBS) -> dict[str, Counter[str]]:
    """Cut every verb so often; returns by verb how often it ended, was cut, and left something behind."""
    drawn, found = random.Random(seed), dict[str, Counter[str]]()
    model, tokenizer = without_foreign_no_grad(tiny_model("llama")), tiny_tokenizer()
    model.train()

    def cut(*_: object) -> None:
        raise Cut

    before_handler = signal.signal(signal.SIGALRM, cut)
    try:
        every, kept, before = verbs(model, tokenizer), owned(model), state_of(model)
        with folding(model, tokenizer).fuse(model, 0.1):
            fused = changed(state_of(model), before)
        for name in chosen:
            verb = every[name]
            verb()
            start, counts = time.perf_counter(), Counter[str]()
            verb()
            whole, before, threads = time.perf_counter() - start, state_of(model), threading.active_count()
            for _ in among(rounds):
                try:
                    signal.setitimer(signal.ITIMER_REAL, drawn.uniform(1e-5, whole))
                    verb()
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    counts["ended"] += 1
                except Cut:
                    counts["cut"] += 1
                except Exception as error:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    counts[f"{type(error).__name__}: {error}"[:90]] += 1
                after = state_of(model)
                if after != before:
                    left = ", ".join(what for what, a, b in zip(STATE, after, before, strict=True) if a != b)
                    block = name == "fuse" and changed(after, before) == fused
                    counts["(fused whole, for the cut came before its block)" if block else f"LEFT {left}"] += 1
                    give_back(kept)
                    before = state_of(model)
                ends = time.monotonic() + 2
                while threading.active_count() > threads and time.monotonic() < ends:  # one that was told to end
                    time.sleep(0.01)
                if threading.active_count() > threads:
                    counts["LEFT a thread"] += 1
                    threads = threading.active_count()
            found[name] = counts
            print(f"{name}: {dict(counts)} ({whole:.2f} s a time)", flush=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # its signal would end the process
        signal.signal(signal.SIGALRM, before_handler)
    return found


if __name__ == "__main__":
    asked = begun(__doc__, 1000, parts="verb", names=VERBS)
    ends = run(asked.rounds, asked.seed, tuple(asked.verb or VERBS))
    raise SystemExit(any("LEFT" in what for counts in ends.values() for what in counts))
