"""Claim: on a processor without bfloat16 instructions float32 is faster, and with them bfloat16 is at least as fast.

Measures tokens per second of processor time, in one process of one thread, for generating (64 prompts at once) and for
reading sentences, in every precision in turn, several times over; what is printed is the median, and its ratio to
float32. This is what `precision="auto"` of `dsas.model.loading` chooses by.

    python benchmarks/precision.py [--model smollm2|gemma3] [--rounds 3]
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/precision.py    # as if there was AVX2 only
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from dsas.demo.data import toxic_prompts, wikipedia_sentences
from dsas.demo.models import real_model
from dsas.evaluation.generations import Sampling, sample_continuations
from dsas.evaluation.perplexity import perplexity
from dsas.model.loading import LoadedModel, load_model
from dsas.model.tokenizing import tokenize

PRECISIONS = ("float32", "bfloat16", "float16")
SENTENCES = 64


def processor_seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def rates(loaded: LoadedModel) -> dict[str, float]:
    """Return tokens per second of processor time, generating and reading."""
    prompts, sentences = toxic_prompts()[:SENTENCES], wikipedia_sentences()[:SENTENCES]
    sampling = Sampling(new_tokens=16)
    drawn = sample_continuations(*loaded, prompts, seeds=(0,), sampling=sampling)[0]
    made = sum(map(len, tokenize(loaded.tokenizer, [text or " " for text in drawn])))
    read = sum(min(50, len(row)) for row in tokenize(loaded.tokenizer, sentences))
    generating = processor_seconds(lambda: sample_continuations(*loaded, prompts, seeds=(0,), sampling=sampling))
    reading = processor_seconds(lambda: perplexity(*loaded, sentences))
    return {"generating": made / generating, "reading": read / reading}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = str(real_model(arguments.model))
    models = {name: load_model(folder, device="cpu", precision=name) for name in PRECISIONS}
    rounds = [{name: rates(loaded) for name, loaded in models.items()} for _ in range(arguments.rounds)]
    for name in PRECISIONS:
        medians = {task: statistics.median(one[name][task] for one in rounds) for task in rounds[0][name]}
        over = {task: statistics.median(one[name][task] / one["float32"][task] for one in rounds) for task in medians}
        print(json.dumps({"precision": name, "tokens per second": medians, "over float32": over}))


if __name__ == "__main__":
    main()
