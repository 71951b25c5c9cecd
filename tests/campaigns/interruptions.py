"""Interruptions: public verbs cut short by an exception at a random moment leave the model as it was.

python -m campaigns.interruptions --rounds 1000 --seed 0          (from tests/; rounds are per verb)
"""

import argparse
import inspect
import random
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn

import dsas
from dsas.evaluation.perplexity import perplexity
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.training.plan import Running

SOURCE, TARGET, CONTROL = ([f"{what} {n}" for n in range(8)] for what in ("you fool", "thanks", "the sun"))


class Cut(KeyboardInterrupt):
    """What is raised where a verb is cut."""


def state_of(model: nn.Module) -> list[Any]:
    """Return all that a verb has to leave as it was: hooks, modes, own attributes, gradients, threads."""
    modules = [
        (len(module._forward_hooks), len(module._forward_pre_hooks), module.training, sorted(vars(module)))
        for module in model.modules()
    ]
    learning = [parameter.requires_grad for parameter in model.parameters()]
    return [modules, learning, torch.get_num_threads(), torch.is_grad_enabled()]


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

    def fuse() -> None:
        with steering.fuse(model, 0.1):
            model(input_ids=ids)

    return {
        "apply": apply,
        "fit": lambda: dsas.fit(model, tokenizer, **sets),
        "incremental fit": lambda: dsas.fit(model, tokenizer, **sets, reading=dsas.Reading(incremental=True)),
        "train": lambda: dsas.train(model, tokenizer, **texts, **learning),
        "perplexity": lambda: perplexity(model, tokenizer, CONTROL),
        "explain": lambda: dsas.explain(model, tokenizer, steering, SOURCE[0]),
        "fuse": fuse,
    }


def run(rounds: int, seed: int) -> dict[str, Counter[str]]:
    """Cut every verb so often; returns by verb how often it ended, was cut, and left something behind."""
    drawn, found = random.Random(seed), dict[str, Counter[str]]()
    model, tokenizer = without_foreign_no_grad(tiny_model("llama")), tiny_tokenizer()
    model.train()

    def cut(*_: object) -> None:
        raise Cut

    before_handler = signal.signal(signal.SIGALRM, cut)
    try:
        for name, verb in verbs(model, tokenizer).items():
            verb()
            begun, counts = time.perf_counter(), Counter[str]()
            verb()
            whole, before, threads = time.perf_counter() - begun, state_of(model), threading.active_count()
            for _ in range(rounds):
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
                    names = ("hooks, modes or attributes", "requires_grad", "threads of torch", "gradients recorded")
                    counts["LEFT " + ", ".join(n for n, a, b in zip(names, after, before, strict=True) if a != b)] += 1
                    before = after
                ends = time.monotonic() + 2
                while threading.active_count() > threads and time.monotonic() < ends:  # one that was told to end
                    time.sleep(0.01)
                if threading.active_count() > threads:
                    counts["LEFT a thread"] += 1
                    threads = threading.active_count()
            found[name] = counts
            print(f"{name}: {dict(counts)} ({whole:.2f} s a time)", flush=True)
    finally:
        signal.signal(signal.SIGALRM, before_handler)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    asked = parser.parse_args()
    print(f"seed {asked.seed}")
    raise SystemExit(any("LEFT" in what for counts in run(asked.rounds, asked.seed).values() for what in counts))
