"""Claim: steering at every default site costs little beside the model itself.

Prints steered / unsteered time for prefill and decode, all default sites active with a transform and a logistic
regulator, as the median of paired runs with their spread. Pairs alternate, so a drift of the machine hits both sides.

    python benchmarks/overhead.py [--model smollm2|gemma3] [--pairs 7] [--precision float32|bfloat16]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from dsas import Addition, Logistic, Rule, Steering, find_sites
from dsas.demo.models import real_model
from dsas.identity import ModelIdentity

PREFILL_TOKENS, PROMPT_TOKENS, NEW_TOKENS = 128, 16, 24


def random_steering(model) -> Steering:
    """Return rules at every default site whose values do not matter for the cost."""
    width = model.config.hidden_size
    rules = [
        Rule(site, Addition(torch.randn(width) * 1e-3), Logistic(torch.randn(width) * 1e-3, torch.tensor(0.0)))
        for site in find_sites(model)
    ]
    return Steering(rules, ModelIdentity.of(model))


def prefill(model, rows: int) -> Callable[[], float]:
    ids = torch.randint(10, 1000, (rows, PREFILL_TOKENS))

    def run() -> float:
        start = time.perf_counter()
        model(input_ids=ids, use_cache=False)
        return time.perf_counter() - start

    return run


def decode(model, rows: int) -> Callable[[], float]:
    ids = torch.randint(10, 1000, (rows, PROMPT_TOKENS))

    def run() -> float:
        cache = DynamicCache(config=model.config)
        model(input_ids=ids, past_key_values=cache)
        start = time.perf_counter()
        for _ in range(NEW_TOKENS):
            model(input_ids=ids[:, :1], past_key_values=cache)
        return time.perf_counter() - start

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--precision", default="float32")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    dtype = getattr(torch, arguments.precision)
    model = AutoModelForCausalLM.from_pretrained(real_model(arguments.model), dtype=dtype).eval()
    steering = random_steering(model)
    result = {"model": arguments.model, "precision": arguments.precision, "sites": len(steering.rules)}
    for name, workload in (("prefill", prefill), ("decode", decode)):
        for rows in (1, 16):
            run = workload(model, rows)
            run()
            for record in (False, True):
                ratios = []
                for _ in range(arguments.pairs):
                    times = []
                    for steered in (True, False):
                        with steering.apply(model, 0.1, record=record) if steered else nullcontext():
                            times.append(run())
                    ratios.append(times[0] / times[1])
                spread = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
                result[f"{name} batch {rows}{' recorded' if record else ''}"] = spread
    result["threads"] = torch.get_num_threads()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
