"""Claim: sets of any length are fitted in memory that does not grow with them.

Fits CAA with a logistic regulator on generators of short texts and a random model, in a fresh process per number of
texts, and prints for each the peak resident memory above that of a process that has loaded everything, what was kept,
and the processor seconds per 1,000 texts.

    python benchmarks/long_sets.py [--texts 1000,10000,100000] [--reservoir 256] [--width 64] [--layers 2]
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator

import torch
from fit_cost import high_water
from transformers import LlamaConfig, LlamaForCausalLM

import dsas
from dsas.testing import tiny_tokenizer


def texts(word: str, count: int) -> Iterator[str]:
    for number in range(count):
        yield f"{word} {number}"


def of_process(count: int, given: argparse.Namespace) -> dict[str, float]:
    """Return what a fresh process takes that fits on `count` texts of all sets together."""
    options = ["--reservoir", str(given.reservoir), "--width", str(given.width), "--layers", str(given.layers)]
    command = [sys.executable, __file__, "--one", str(count), *options]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def one(count: int, given: argparse.Namespace) -> dict[str, float]:
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": given.width, "intermediate_size": 2 * given.width, "num_hidden_layers": given.layers}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=4, num_key_value_heads=4, **sizes)
    model = LlamaForCausalLM(config).eval()

    def fitted(each: int) -> dsas.Steering:
        words = {"source": "SHUT UP", "control": "the door", "target": "thank you"}
        sets = {name: texts(word, each) for name, word in words.items()}
        return dsas.fit(
            model, tokenizer, **sets, regulator="logistic", selection="all", reservoir=given.reservoir, progress=False
        )

    fitted(2 * given.reservoir)  # which imports all, and takes what a stream takes
    before, begun = high_water(), time.process_time()
    steering = fitted(count // 3)
    grown = high_water() - before
    return {
        "texts": sum(steering.settings["texts"].values()),
        "peak grown by MB": round(grown / 1e6, 1),
        "peak MB": round((before + grown) / 1e6),
        "seconds per 1000 texts": round((time.process_time() - begun) / count * 1000, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", default="1000,10000,100000")
    parser.add_argument("--reservoir", type=int, default=256)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--one", type=int)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.one is not None:
        print(json.dumps(one(given.one, given)))
        return
    for count in map(int, given.texts.split(",")):
        print(json.dumps(of_process(count, given)), flush=True)


if __name__ == "__main__":
    main()
