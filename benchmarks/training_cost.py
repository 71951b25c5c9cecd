"""Claim: a step of training costs at most 1.2 x a bare forward and backward pass through the activations it needs.

The bare pass reads the same sites of the same frozen model on the same batches, pools them, and sends a gradient back
to the embeddings: as any method that learns end to end must do. Times are paired, one step with one bare pass; peaks
are from fresh processes, the median of three each, less that of one that only loads the model and the texts.

    python benchmarks/training_cost.py [--model smollm2|gemma3] [--texts 32] [--pairs 5]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

import dsas
from dsas.demo.data import openwebtext_sentences, toxic_prompts
from dsas.demo.models import real_model
from dsas.model.hooks import Hooks, StopForward
from dsas.model.loading import LoadedModel, load_model
from dsas.model.subject import subject_of
from dsas.training.learning import LearnedParts, half_everywhere, identity_rule, learnable
from dsas.training.passes import Work
from dsas.training.plan import HeldOut, Plan
from dsas.training.trainer import Data, Trainer


class Variant(NamedTuple):
    """One way to train: with a control term or without, in micro-batches of a given size, checkpointed or not."""

    control: bool = False
    batch_size: int = 1_000_000
    checkpointing: bool = False


VARIANTS = {
    "lineas": Variant(),
    "e2e-dsas": Variant(control=True),
    "lineas, micro-batches of 8": Variant(batch_size=8),
    "lineas, checkpointing": Variant(checkpointing=True),
}


def texts_of(count: int) -> dict[str, list[str]]:
    return {"source": toxic_prompts()[:count], "control": openwebtext_sentences()[:count]}


def trainer_of(loaded: LoadedModel, texts: dict[str, list[str]], variant: Variant) -> Trainer:
    model, sites = loaded.model, dsas.find_sites(loaded.model, "norm")
    reading = dsas.Reading(batch_size=variant.batch_size, max_tokens=64)
    one = subject_of(*loaded).examples(reading)
    batches = {name: one.batches(members, range(len(members)), one.batch_size) for name, members in texts.items()}
    dim = loaded.model.config.hidden_size
    rules = [
        learnable(
            identity_rule(site, dim, half_everywhere("sigmoid", dim) if variant.control else dsas.Constant()),
            torch.device("cpu"),
            LearnedParts(regulators=variant.control, vectors=False),
        )
        for site in sites
    ]
    work = Work(model, one.run, one.real, one.counted, one.pool, variant.checkpointing)
    data = Data(batches["source"], batches["control"], [torch.randn(len(texts["source"]), dim) for _ in sites])
    plan = Plan(1000, held_out=HeldOut(0.0))
    return Trainer(work, rules, data, plan, control_weight=0.01 * variant.control)


def bare_pass(loaded: LoadedModel, texts: list[str]) -> float:
    """Run all texts at once, forward to the last site and back to the embeddings, and return the seconds."""
    model, sites = loaded.model, dsas.find_sites(loaded.model, "norm")
    one = subject_of(*loaded).examples(dsas.Reading(batch_size=1_000_000, max_tokens=64))
    (batch,) = one.batches(texts, range(len(texts)), one.batch_size)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    began, seen = time.perf_counter(), []
    embedded = model.get_input_embeddings()(batch.tokens).requires_grad_()

    def look(site: dsas.Site) -> Callable[[Any], None]:
        def read(output: Any) -> None:
            seen.append(one.pool(site.read(output), batch))
            if len(seen) == len(sites):
                raise StopForward

        return read

    with Hooks() as hooks:
        for site in sites:
            hooks.at_site(model, site, look(site))
        with suppress(StopForward):
            model(inputs_embeds=embedded, attention_mask=batch.mask.long(), use_cache=False)
    torch.stack([value.square().mean() for value in seen]).mean().backward()
    seconds = time.perf_counter() - began
    for parameter, flag in zip(model.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)
    return seconds


def high_water() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def only(name: str, loaded: LoadedModel, texts: dict[str, list[str]]) -> None:
    """Do one thing twice and print the peak of this process."""
    for _ in range(2):
        if name.startswith("bare"):
            for kind in ("source", "control")[: 1 + name.endswith("control")]:
                bare_pass(loaded, texts[kind])
    if name in VARIANTS:
        trainer = trainer_of(loaded, texts, VARIANTS[name])
        trainer.step(0)
        trainer.step(1)
    print(high_water())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", default="", help="do one thing and print this process's peak memory")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    loaded, texts = load_model(str(real_model(arguments.model)), device="cpu"), texts_of(arguments.texts)
    if arguments.only:
        only(arguments.only, loaded, texts)
        return

    def peak(name: str) -> int:
        command = [sys.executable, __file__, "--model", arguments.model, "--texts", str(arguments.texts)]
        done = [
            subprocess.run([*command, "--only", name], check=True, capture_output=True, text=True) for _ in range(3)
        ]
        return statistics.median(int(one.stdout.split()[-1]) for one in done)

    base = peak("load")
    bare = {control: peak("bare with control" if control else "bare") - base for control in (False, True)}
    found: dict[str, Any] = {"model": arguments.model, "texts": arguments.texts, "loaded": base}
    found |= {"bare": bare[False], "bare with control": bare[True]}
    for name, variant in VARIANTS.items():
        trainer, ratios, seconds = trainer_of(loaded, texts, variant), [], []
        trainer.step(0)
        for number in range(1, 1 + arguments.pairs):
            began = time.perf_counter()
            trainer.step(number)
            seconds.append(time.perf_counter() - began)
            trainer.close()
            kinds = ("source", "control") if variant.control else ("source",)
            ratios.append(seconds[-1] / sum(bare_pass(loaded, texts[kind]) for kind in kinds))
            trainer = trainer_of(loaded, texts, variant)
            trainer.step(0)
        trainer.close()
        memory = (peak(name) - base) / bare[variant.control]
        found[name] = {"time over bare": statistics.median(ratios), "all": ratios, "seconds": seconds, "peak": memory}
        print(name, json.dumps(found[name]), flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
