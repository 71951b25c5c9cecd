"""Claim: state that follows the sequence keeps nothing of finished requests, and costs a decoding step next to nothing.

Part `memory`: requests over copies of one cached prefix, with recording on; prints the resident memory and how many
tensors and objects of dsas are alive after each tenth of them. Numbers that are bounded stay as they were after the
first tenth.

Part `decode`: one step of decoding, steered / unsteered, at every default site. Each pair is one token of two
sequences of equal length, run in turn, order alternating; the models share their weights, so that only hooks differ.
Prints the median ratio, its bootstrap 95 % interval over sequences, the number of pairs and the seed.
With --before, the same of another checkout of dsas in the same process, and the ratio now / before pair by pair.

    python benchmarks/sequences.py [memory|decode] [--requests 10000] [--model smollm2|gemma3|WIDTHxDEPTH]
        [--sequences 40] [--steps 32] [--ways logistic,cast] [--before ../old/src] [--seed 0] [--out out/sequences.json]
"""

import argparse
import copy
import gc
import importlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from overhead import load
from transformers import DynamicCache

import dsas
from dsas.model.identity import ModelIdentity
from dsas.testing import tiny_model

PROMPT_TOKENS, STRENGTH, RESAMPLED = 32, 0.1, 2000


def steering_of(library: ModuleType, model: Any, way: str) -> Any:
    """Return rules at every default site, with values that do not matter for the cost; library: which dsas."""
    width, draw = model.config.hidden_size, torch.Generator().manual_seed(0)
    regulator: dict[str, Callable[[], Any]] = {
        "logistic": lambda: library.Logistic(torch.randn(width, generator=draw) * 1e-3, torch.tensor(0.0)),
        "cast": lambda: library.Cast(torch.randn(width, generator=draw), torch.tensor(0.0)),
    }
    rules = [
        library.Rule(site, library.Addition(torch.randn(width, generator=draw) * 1e-3), regulator[way]())
        for site in library.find_sites(model)
    ]
    identity = importlib.import_module("dsas.model.identity").ModelIdentity
    return library.Steering(rules, identity.of(model))


def alive() -> dict[str, float]:
    """Return what this process holds: MiB that are resident, tensors, and objects whose class is one of dsas."""
    gc.collect()
    kinds = [type(thing) for thing in gc.get_objects()]  # the module of a class may be None or anything else
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "MiB": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1),
        "tensors": sum(issubclass(kind, torch.Tensor) for kind in kinds),
        "dsas objects": sum(str(kind.__module__).startswith("dsas.") for kind in kinds),
    }


def memory(requests: int, seed: int) -> dict[str, Any]:
    """Return what is alive after each tenth of the requests, one of two tokens and a step each."""
    model: Any = tiny_model(layers=1)
    steering = dsas.Steering(
        [dsas.Rule(dsas.find_sites(model)[0], dsas.Addition(torch.ones(32)), dsas.Schedule("generated"))],
        ModelIdentity.of(model),
    )
    draw, found = torch.Generator().manual_seed(seed), {}
    with steering.apply(model, STRENGTH) as applied:
        prefix = DynamicCache(config=model.config)
        model(input_ids=torch.arange(1, 33)[None], past_key_values=prefix, use_cache=True)
        for number in range(1, requests + 1):
            cache, ids = copy.deepcopy(prefix), torch.randint(1, 256, (1, 2), generator=draw)
            model(input_ids=ids, past_key_values=cache, use_cache=True)
            model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
            del cache
            if number == min(100, requests) or number % max(1, requests // 10) == 0:
                assert applied.trace().strengths[0, 0, -1] > 0
                found[str(number)] = alive()
                print(f"{number} requests: {found[str(number)]}", flush=True)
    return found


def other_dsas(source: Path) -> tuple[ModuleType, dict[str, ModuleType]]:
    """Import dsas from another checkout beside this one; return it and all its modules, which are then taken out."""
    own = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "dsas"}
    sys.path.insert(0, str(source))
    try:
        library = importlib.import_module("dsas")
        if not str(library.__file__).startswith(str(source)):
            raise SystemExit(f"no dsas in {source}")
        for name in ("Logistic", "Cast", "Rule", "Addition", "Steering", "find_sites"):
            getattr(library, name)
        importlib.import_module("dsas.model.identity")
    finally:
        sys.path.remove(str(source))
        theirs = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "dsas"}
        sys.modules.update(own)
    return library, theirs


def sharing(model: Any) -> Any:
    """Return a copy of the model, with hooks of its own, over the same weights."""
    return copy.deepcopy(model, {id(held): held for held in (*model.parameters(), *model.buffers())})


def steered_models(model: Any, ways: list[str], before: Path | None) -> dict[str, Any]:
    """Return steered copies of the model by name of the way, "recorded" where it records, "before" of the other."""
    versions: list[tuple[str, ModuleType, dict[str, ModuleType]]] = [("", dsas, {})]
    if before is not None:
        versions.append((" before", *other_dsas(before.resolve())))
    models: dict[str, Any] = {"unsteered": sharing(model)}
    for suffix, library, modules in versions:
        own = {name: held for name, held in sys.modules.items() if name.split(".")[0] == "dsas"} if modules else {}
        for name in own:
            del sys.modules[name]
        sys.modules.update(modules)
        for way in ways:
            for record in (False, True):
                steered = models[f"{way}{', recorded' if record else ''}{suffix}"] = sharing(model)
                steering_of(library, steered, way).apply(steered, STRENGTH, record=record).install()
        if modules:
            for name in [name for name in sys.modules if name.split(".")[0] == "dsas"]:
                del sys.modules[name]
            sys.modules.update(own)
    return models


def decode(models: dict[str, Any], sequences: int, steps: int, draw: torch.Generator) -> np.ndarray:
    """Return the seconds (model, sequence, step) of each step of decoding, all models at each step in a turning order.

    The first sequence is not counted.
    """
    seconds = np.zeros((len(models), sequences + 1, steps))
    for sequence in range(sequences + 1):
        ids = torch.randint(10, 1000, (1, PROMPT_TOKENS + steps), generator=draw)
        caches = []
        for model in models.values():
            caches.append(DynamicCache(config=model.config))
            model(input_ids=ids[:, :PROMPT_TOKENS], past_key_values=caches[-1], use_cache=True, logits_to_keep=1)
        runs = list(zip(range(len(models)), models.values(), caches, strict=True))
        for step in range(steps):
            token = ids[:, PROMPT_TOKENS + step, None]
            turn = torch.randperm(len(runs), generator=draw).tolist()
            for number, model, cache in (runs[place] for place in turn):
                start = time.perf_counter()
                model(input_ids=token, past_key_values=cache, use_cache=True)
                seconds[number, sequence, step] = time.perf_counter() - start
    return seconds[:, 1:]


def median_ratio(above: np.ndarray, below: np.ndarray, seed: int) -> dict[str, Any]:
    """Return the median over pairs of above / below, (sequence, step), and what sequences drawn again would give."""
    ratios, draw = above / below, np.random.default_rng(seed)
    again = [np.median(ratios[draw.integers(len(ratios), size=len(ratios))]) for _ in range(RESAMPLED)]
    low, high = np.quantile(again, [0.025, 0.975])
    return {
        "median": round(float(np.median(ratios)), 4),
        "interval": [round(float(low), 4), round(float(high), 4)],
        "n": ratios.size,
        "seed": seed,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="?", choices=["memory", "decode"], help="both by default")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--sequences", type=int, default=40)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--ways", default="logistic,cast")
    parser.add_argument("--before", type=Path, help="the folder src of another checkout of dsas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/sequences.json"))
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(asked.seed)
    torch.set_grad_enabled(False)
    result: dict[str, Any] = {"torch threads": torch.get_num_threads(), "load before": os.getloadavg()[0]}
    if asked.part != "decode":
        result["memory"] = memory(asked.requests, asked.seed)
    if asked.part != "memory":
        model = load(asked.model, torch.float32)
        models = steered_models(model, asked.ways.split(","), asked.before)
        taken = decode(models, asked.sequences, asked.steps, torch.Generator().manual_seed(asked.seed))
        seconds = dict(zip(models, taken, strict=True))
        result["decode"] = {
            "model": asked.model,
            "sites": len(dsas.find_sites(model)),
            "ms of an unsteered step": round(1000 * float(np.median(seconds["unsteered"])), 2),
            **{
                f"{name} / unsteered": median_ratio(value, seconds["unsteered"], asked.seed)
                for name, value in seconds.items()
            },
            **{
                f"{name} / before": median_ratio(value, seconds[f"{name} before"], asked.seed)
                for name, value in seconds.items()
                if f"{name} before" in seconds
            },
        }
        result["decode"].pop("unsteered / unsteered")
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=2))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
