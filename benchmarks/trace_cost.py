"""Claim: recording what is applied costs little beside generating; the doses, which are optional, cost more.

Prints the time of greedy generation steered and recorded over that of the same generation steered and not recorded, as
the median of paired runs with their spread. The three ways take turns, so a drift of the machine hits all of them.

    python benchmarks/trace_cost.py [--model smollm2|gemma3] [--pairs 7] [--precision bfloat16|float32]
"""

import argparse
import json
import statistics
import time

import torch

from dsas import Addition, Logistic, Rule, Steering, find_sites
from dsas.demo.models import real_model
from dsas.model.identity import ModelIdentity
from dsas.model.loading import load_model

PROMPT_TOKENS, NEW_TOKENS = 64, 64
WAYS = {"unrecorded": False, "recorded": True, "recorded with doses": "doses"}


def random_steering(model) -> Steering:
    """Return rules at every default site, so faint that all ways generate the same text."""
    width = model.config.hidden_size
    rules = [
        Rule(site, Addition(torch.randn(width) * 1e-6), Logistic(torch.randn(width) * 1e-3, torch.tensor(0.0)))
        for site in find_sites(model)
    ]
    return Steering(rules, ModelIdentity.of(model))


def seconds(model, steering: Steering, ids: torch.Tensor, record) -> float:
    with steering.apply(model, 0.1, record=record) as applied:
        start = time.perf_counter()
        model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS, pad_token_id=0,
        )  # fmt: skip
        if record:
            applied.trace()
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--precision", default="bfloat16")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    model = load_model(str(real_model(arguments.model)), precision=arguments.precision).model
    steering = random_steering(model)
    result = {"model": arguments.model, "precision": arguments.precision, "sites": len(steering.rules)}
    for rows in (1, 8):
        ids = torch.randint(10, 1000, (rows, PROMPT_TOKENS), device=model.device)
        seconds(model, steering, ids, record=False)
        times = {way: [] for way in WAYS}
        for _ in range(arguments.pairs):
            for way, record in WAYS.items():
                times[way].append(seconds(model, steering, ids, record))
        for way in list(WAYS)[1:]:
            ratios = [one / other for one, other in zip(times[way], times["unrecorded"], strict=True)]
            spread = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
            result[f"batch {rows}, {way} / unrecorded"] = {name: round(ratio, 3) for name, ratio in spread.items()}
    result["threads"] = torch.get_num_threads()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
