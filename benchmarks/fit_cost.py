"""Claim: fitting costs the forward pass and little more, and its memory does not grow with the number of texts.

Prints the wall time of `dsas.fit` over a bare forward pass on the same batches, and that of an incremental fit over one
at once, as paired ratios; the number of forward passes of both; and the peak memory of a process that fits on N texts
per set, at once and incrementally, beside the size of the pooled vectors that it has to keep.

    python benchmarks/fit_cost.py [--model smollm2|gemma3] [--texts 256] [--pairs 3]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import dsas
from dsas.demo.data import openwebtext_sentences, toxic_prompts, wikipedia_sentences
from dsas.demo.models import real_model
from dsas.model.token_batches import batches
from dsas.model.tokenizing import pad_token, tokenize


def sets(texts: int) -> dict[str, list[str]]:
    """Return three sets of real sentences; how they differ does not matter for the cost."""
    kinds = {"source": toxic_prompts(), "control": openwebtext_sentences(), "target": wikipedia_sentences()}
    return {name: (kind * (texts // len(kind) + 1))[:texts] for name, kind in kinds.items()}


def load(name: str):
    folder = real_model(name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    return model, AutoTokenizer.from_pretrained(folder)


def bare_forward(model, tokenizer, texts: list[str]) -> float:
    start = time.perf_counter()
    rows = tokenize(tokenizer, texts)
    with torch.no_grad():
        for batch in batches(rows, dsas.Reading().batch_size, pad=pad_token(tokenizer), side="right"):
            model(input_ids=batch.tokens, attention_mask=batch.mask.long(), use_cache=False)
    return time.perf_counter() - start


def timed_fit(model, tokenizer, of_set: dict[str, list[str]], *, incremental: bool = False) -> float:
    start = time.perf_counter()
    dsas.fit(
        model, tokenizer, **of_set, regulator="logistic", reading=dsas.Reading(incremental=incremental), progress=False
    )
    return time.perf_counter() - start


def rows_run(model, tokenizer, of_set: dict[str, list[str]], *, incremental: bool) -> int:
    """Return how many texts begin a forward pass while a Steering is fitted."""
    rows = []
    handle = model.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    timed_fit(model, tokenizer, of_set, incremental=incremental)
    handle.remove()
    return sum(rows)


def peak_of_process(name: str, texts: int, *, incremental: bool = False) -> int:
    """Return the peak resident bytes of a fresh process that fits on `texts` texts per set (0: only loads)."""
    command = [sys.executable, __file__, "--model", name, "--texts", str(texts), "--peak"]
    command += ["--incremental"] if incremental else []
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def high_water() -> int:
    """Return the peak resident bytes of this process; ru_maxrss would start from those of the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--incremental", action="store_true", help="with --peak: fit incrementally")
    parser.add_argument("--peak", action="store_true", help="only fit, and print this process's peak memory")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    model, tokenizer = load(arguments.model)
    if arguments.peak:
        if arguments.texts:
            timed_fit(model, tokenizer, sets(arguments.texts), incremental=arguments.incremental)
        print(high_water())
        return
    of_set = sets(arguments.texts)
    every = [text for texts in of_set.values() for text in dict.fromkeys(texts)]
    timed_fit(model, tokenizer, {name: texts[:16] for name, texts in of_set.items()})
    pairs = [
        (timed_fit(model, tokenizer, of_set), bare_forward(model, tokenizer, every)) for _ in range(arguments.pairs)
    ]
    ratios = [fitting / forward for fitting, forward in pairs]
    further = [
        timed_fit(model, tokenizer, of_set, incremental=True) / timed_fit(model, tokenizer, of_set)
        for _ in range(arguments.pairs)
    ]
    passes = {
        name: rows_run(model, tokenizer, of_set, incremental=incremental)
        for name, incremental in (("at once", False), ("incremental", True))
    }
    width, depth = model.config.hidden_size, model.config.num_hidden_layers
    peaks = {n: peak_of_process(arguments.model, n) for n in (0, 32, arguments.texts)}
    held = {n: peak_of_process(arguments.model, n, incremental=True) for n in (32, arguments.texts)}
    print(
        json.dumps(
            {
                "model": arguments.model,
                "texts": 3 * arguments.texts,
                "fit_over_forward": {"median": statistics.median(ratios), "all": ratios},
                "incremental_over_at_once": {"median": statistics.median(further), "all": further},
                "texts_run": passes,
                "seconds": {"fit": [fitting for fitting, _ in pairs], "forward": [forward for _, forward in pairs]},
                "peak_bytes_by_texts_a_set": peaks,
                "peak_bytes_incremental": held,
                "pooled_vector_bytes": 3 * arguments.texts * width * depth * 4,
                "threads": torch.get_num_threads(),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
