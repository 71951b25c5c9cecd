"""Races: eight threads that apply and remove Steerings, on one model, on a model each, and beside compiled code.

python -m campaigns.races --rounds 10000          (from tests/; rounds are per thread)
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from campaigns.rounds import among, begun
from makers import logits_of, random_steering

from dsas.testing import tiny_model

IDS = torch.arange(16)[None] + 60
THREADS = 8


def together(work: Callable[[int], None]) -> None:
    """Run `work` in all threads at once."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()


def left_on(*models: Any) -> int:
    """Return how many hooks and marks are on the modules of some models."""
    modules = [module for model in models for module in model.modules()]
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) + ("forward" in vars(one)) for one in modules)


def on_one_model(rounds: int) -> Counter[str]:
    """All threads steer one model, each through its own context, and a bystander runs it meanwhile."""
    model, found, ended = tiny_model("llama", layers=2), Counter[str](), threading.Event()
    steerings = [random_steering(model, seed=seed) for seed in range(THREADS)]
    plain, expected = logits_of(model, IDS), []
    for steering in steerings:
        with steering.apply(model, 0.1):
            expected.append(logits_of(model, IDS))

    def steer(number: int) -> None:
        for _ in among(rounds):
            try:
                with steerings[number].apply(model, 0.1, record=False, scope="context"):
                    right = torch.allclose(logits_of(model, IDS), expected[number], atol=1e-5)
                found["right" if right else "WRONG"] += 1
            except Exception as error:
                found[f"WRONG {type(error).__name__}: {error}"[:90]] += 1

    def look() -> None:
        while not ended.is_set():
            try:
                right = torch.allclose(logits_of(model, IDS), plain, atol=1e-5)
                found["bystander right" if right else "WRONG for a bystander"] += 1
            except Exception as error:
                found[f"WRONG for a bystander {type(error).__name__}: {error}"[:90]] += 1

    bystander = threading.Thread(target=look)
    bystander.start()
    together(steer)
    ended.set()
    bystander.join()
    found["WRONG: left on"] += left_on(model)
    return +found


def joined_and_parted(rounds: int) -> Counter[str]:
    """All threads steer one model for everybody, so that hooks are joined and parted while passes run through them."""
    model, found = tiny_model("llama", layers=2), Counter[str]()
    steerings, plain = [random_steering(model, seed=seed) for seed in range(THREADS)], logits_of(model, IDS)

    def steer(number: int) -> None:
        for _ in among(rounds):
            try:
                with steerings[number].apply(model, 0.1, record=number % 2 == 0):
                    right = bool(logits_of(model, IDS).isfinite().all())
                found["right" if right else "WRONG"] += 1
            except Exception as error:
                found[f"WRONG {type(error).__name__}: {error}"[:90]] += 1

    together(steer)
    found["WRONG: left on"] += left_on(model)
    found["WRONG: another model than before"] += not torch.equal(logits_of(model, IDS), plain)
    return +found


def on_a_model_each(rounds: int) -> Counter[str]:
    """Every thread steers its own copy with the same Steering, at its own strength."""
    models, found = [tiny_model("llama", layers=2) for _ in range(THREADS)], Counter[str]()
    steering, expected = random_steering(models[0]), []
    for number, model in enumerate(models):
        with steering.apply(model, 0.1 * (number + 1)):
            expected.append(logits_of(model, IDS))

    def steer(number: int) -> None:
        for _ in among(rounds):
            try:
                with steering.apply(models[number], 0.1 * (number + 1)):
                    right = torch.equal(logits_of(models[number], IDS), expected[number])
                found["right" if right else "WRONG"] += 1
            except Exception as error:
                found[f"WRONG {type(error).__name__}: {error}"[:90]] += 1

    together(steer)
    found["WRONG: left on"] += left_on(*models)
    return +found


def beside_compiled_code(rounds: int) -> Counter[str]:
    """Every thread steers its own model while another thread runs compiled code of an unrelated module."""
    made, found, ended = Counter[str](), Counter[str](), threading.Event()

    def compiler(graph: Any, _inputs: object) -> Any:
        made["compiled"] += 1
        return graph.forward

    layers = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 8))
    other, given = torch.compile(layers, backend=compiler), torch.randn(4, 8)
    expected = other(given)

    def run() -> None:
        while not ended.is_set():
            found["bystander right" if torch.equal(other(given), expected) else "WRONG for a bystander"] += 1

    bystander = threading.Thread(target=run)
    bystander.start()
    found += on_a_model_each(rounds)
    ended.set()
    bystander.join()
    found["WRONG: compiled again"] += made["compiled"] - 1
    return +found


KINDS = (on_one_model, joined_and_parted, on_a_model_each, beside_compiled_code)

if __name__ == "__main__":
    asked, wrong = begun(__doc__, 1000, parts="kind", names=[kind.__name__ for kind in KINDS]), False
    for campaign in KINDS:
        if campaign.__name__ not in (asked.kind or [campaign.__name__]):
            continue
        start = time.monotonic()
        ends = campaign(asked.rounds)
        print(f"{campaign.__name__}: {dict(ends)} ({time.monotonic() - start:.0f} s)", flush=True)
        wrong |= any("WRONG" in what for what in ends)
    raise SystemExit(wrong)
