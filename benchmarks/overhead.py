"""Claim: steering at every default site costs next to nothing compared with the model itself.

Prints steered / unsteered time of the same passes, run in turn in one process, so that a drift of the machine hits
both: median, quartiles and range of the ratio over pairs. Of one run of decoding the fastest pass counts, which is the
one that other programs disturbed least. Ways to steer: `logistic` (CAA with a logistic regulator), `recorded` (the
same, with a trace), `evidence` (with fit's default regulator), `constant` (CAA alone), `rows` (one strength per row),
`fused` (CAA alone, folded into weights), and, where they are installed, other libraries adding the same vectors at the
same layers:

    pip install --no-deps repeng==0.4.0 steering-vectors==0.12.2

    python benchmarks/overhead.py [--model smollm2|gemma3|WIDTHxDEPTH] [--precision float32|bfloat16] [--pairs 15]
        [--batches 1,16,64] [--workloads prefill,decode] [--ways ...] [--compiled]
        [--composed 1,4,16] [--cpu-time] [--out results.json]
"""

import argparse
import copy
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, StaticCache

from dsas import Addition, Constant, Evidence, Logistic, Regulator, Rule, Steering, find_sites
from dsas.demo.models import real_model
from dsas.model.identity import ModelIdentity
from dsas.runtime.edit import fused_edit

PREFILL_TOKENS, PROMPT_TOKENS, NEW_TOKENS, STRENGTH = 512, 16, 8, 0.1
Way = Callable[[Any], Any]
CLOCK = {"clock": time.perf_counter}


def load(name: str, dtype: torch.dtype) -> Any:
    """Return a real model by name, or a random Llama of WIDTHxDEPTH."""
    if "x" not in name:
        return AutoModelForCausalLM.from_pretrained(real_model(name), dtype=dtype).eval()
    width, depth = map(int, name.split("x"))
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": depth, "vocab_size": 8192}
    config = LlamaConfig(**sizes, num_attention_heads=width // 64, num_key_value_heads=width // 64)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def random_steering(model: Any, kind: str = "logistic") -> Steering:
    """Return rules at every default site whose values do not matter for the cost."""
    width = model.config.hidden_size

    def regulator() -> Regulator:
        theta, zero = torch.randn(width) * 1e-3, torch.tensor(0.0)
        return {"constant": Constant(), "logistic": Logistic(theta, zero), "evidence": Evidence(theta, zero, zero)}[
            kind
        ]

    rules = [Rule(site, Addition(torch.randn(width) * 1e-3), regulator()) for site in find_sites(model)]
    return Steering(rules, ModelIdentity.of(model))


@contextmanager
def repeng(model: Any) -> Iterator[None]:
    np.float_ = np.float64  # type: ignore  # NumPy 2 has lost the name, which repeng looks up when imported
    from repeng import ControlModel

    layers = range(model.config.num_hidden_layers)
    control = ControlModel(model, layers)
    control.set_raw_control({layer: torch.randn(model.config.hidden_size).to(model.dtype) * 1e-3 for layer in layers})
    try:
        yield
    finally:
        control.unwrap()


def steering_vectors(model: Any) -> Any:
    from steering_vectors import SteeringVector

    width, layers = model.config.hidden_size, range(model.config.num_hidden_layers)
    return SteeringVector({layer: torch.randn(width).to(model.dtype) * 1e-3 for layer in layers}).apply(model)


def composed(model: Any, steering: Steering, count: int) -> ExitStack:
    stack = ExitStack()
    for _ in range(count):
        stack.enter_context(steering.apply(model, STRENGTH, record=False))
    return stack


def ways_of(model: Any, rows: int, counts: list[int]) -> dict[str, Way]:
    logistic, evidence, constant = (random_steering(model, kind) for kind in ("logistic", "evidence", "constant"))
    ways: dict[str, Way] = {
        "nothing": lambda _: nullcontext(),
        "logistic": lambda m: logistic.apply(m, STRENGTH, record=False),
        "recorded": lambda m: logistic.apply(m, STRENGTH),
        "evidence": lambda m: evidence.apply(m, STRENGTH, record=False),
        "constant": lambda m: constant.apply(m, STRENGTH, record=False),
        "fused": lambda m: constant.fuse(m, STRENGTH),
    }
    if rows > 1:
        ways["rows"] = lambda m: logistic.apply(m, [STRENGTH * (1 + row) for row in range(rows)], record=False)
    for count in counts:
        ways[f"{count} composed"] = lambda m, count=count: composed(m, logistic, count)
    peers: dict[str, Way] = {"steering_vectors": steering_vectors}
    if rows == 1:
        peers["repeng"] = repeng  # with more it fails: it treats transformers' single row of positions as one per row
    return ways | {name: way for name, way in peers.items() if find_spec(name) is not None}


def prefill(model: Any, rows: int) -> Callable[[], list[float]]:
    ids = torch.randint(10, 1000, (rows, PREFILL_TOKENS))

    def run() -> list[float]:
        start = CLOCK["clock"]()
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
        return [CLOCK["clock"]() - start]

    return run


def decode(model: Any, rows: int, compiled: bool = False) -> Callable[[], list[float]]:
    ids = torch.randint(10, 1000, (rows, PROMPT_TOKENS))
    forward = torch.compile(model.forward) if compiled else model

    def run() -> list[float]:
        room = {"max_cache_len": PROMPT_TOKENS + NEW_TOKENS}
        cache = StaticCache(config=model.config, **room) if compiled else DynamicCache(config=model.config)
        model(input_ids=ids, past_key_values=cache)
        seconds = []
        for place in range(NEW_TOKENS):
            position = torch.full((rows, 1), PROMPT_TOKENS + place)
            start = CLOCK["clock"]()
            forward(input_ids=ids[:, :1], past_key_values=cache, position_ids=position)
            seconds.append(CLOCK["clock"]() - start)
        return seconds

    return run


def spread(ratios: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(ratios, n=4)
    found = {"median": median, "quartiles": (low, high), "range": (min(ratios), max(ratios)), "n": len(ratios)}
    return json.loads(json.dumps(found), parse_float=lambda text: round(float(text), 4))


def eager(model: Any, workload: Callable[..., Any], rows: int, ways: dict[str, Way], pairs: int) -> dict[str, Any]:
    """Return the spread of every way's ratio."""
    run = workload(model, rows)
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    run()
    for pair in range(pairs):
        for name, way in ways.items():
            times = {}
            for steered in (True, False) if pair % 2 else (False, True):
                with way(model) if steered else nullcontext():
                    times[steered] = min(run())
            ratios[name].append(times[True] / times[False])
    return {name: spread(found) for name, found in ratios.items()}


def compiled(model: Any, rows: int, pairs: int) -> dict[str, float]:
    """Return the spread of compiled steered / compiled unsteered decoding: of two copies, as hooks are compiled in."""
    steered = copy.deepcopy(model)
    with random_steering(model).apply(steered, STRENGTH, record=False):
        runs = {True: decode(steered, rows, compiled=True), False: decode(model, rows, compiled=True)}
        for run in runs.values():
            run()
        ratios = []
        for pair in range(pairs):
            order = (True, False) if pair % 2 else (False, True)
            times = {which: min(runs[which]()) for which in order}
            ratios.append(times[True] / times[False])
    return spread(ratios)


def kept(model: Any) -> float:
    """Return how many numbers an apply keeps per site in addition to the Steering's own, in units of its width."""
    rule = random_steering(model).rules[0]
    own = {value.data_ptr() for method in (rule.transform, rule.regulator) for value in method.buffers()}
    edit = fused_edit(rule.transform, rule.regulator, STRENGTH)
    assert edit is not None
    new = [value for value in edit if isinstance(value, torch.Tensor) and value.data_ptr() not in own]
    return sum(value.numel() for value in new) / model.config.hidden_size


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--batches", default="1,16,64")
    parser.add_argument("--workloads", default="prefill,decode")
    parser.add_argument("--composed", default="")
    parser.add_argument("--ways", default="", help="comma-separated; all by default")
    parser.add_argument("--compiled", action="store_true", help="compiled decoding instead of eager passes")
    parser.add_argument("--cpu-time", action="store_true", help="of this process, for a machine that is busy")
    parser.add_argument("--out", type=Path, default=Path("out/overhead.json"))
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    CLOCK["clock"] = time.process_time if asked.cpu_time else time.perf_counter
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    asked.ways = [name for name in asked.ways.split(",") if name]
    model = load(asked.model, getattr(torch, asked.precision))
    counts = [int(count) for count in asked.composed.split(",") if count]
    result: dict[str, Any] = {
        "model": asked.model,
        "precision": asked.precision,
        "sites": len(find_sites(model)),
        "new numbers per site, in widths": kept(model),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads",
        "load before": os.getloadavg()[0],
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    for rows in map(int, asked.batches.split(",")):
        if asked.compiled:
            result[f"compiled decode, batch {rows}"] = compiled(model, rows, asked.pairs)
            continue
        for workload in ({"prefill": prefill, "decode": decode}[name] for name in asked.workloads.split(",")):
            every = ways_of(model, rows, counts)
            ways = {name: every[name] for name in asked.ways or every}
            found = eager(model, workload, rows, ways, asked.pairs)
            result[f"{workload.__name__}, batch {rows}"] = found
            for name, value in found.items():
                print(f"{workload.__name__}, batch {rows}, {name}: {value}", flush=True)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=2))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
