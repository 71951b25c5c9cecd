"""Claim: what a user waits for is torch, transformers and the model, and little of it is dsas.

Processor time, which other programs on the machine disturb least, in pairs that run in turn:

    import     `import dsas` and its first name over `import torch, transformers`
    fit        `dsas fit` from shell to folder over a process that loads the model and reads the same texts once
    sweep      tokens a second of what a sweep draws, over those of transformers' own `generate` at the same settings
    calibrate  seconds that the strength of one Steering takes, at --texts texts per kind, and for how many strengths

    python benchmarks/first_minute.py [--parts import,fit,sweep,calibrate] [--model smollm2] [--pairs 5] [--texts 60]
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

import dsas
from dsas.demo.data import news_sentences, openwebtext_sentences, toxic_prompts, wikipedia_sentences
from dsas.demo.models import real_model
from dsas.evaluation.generations import Sampling, sample_continuations
from dsas.model.loading import load_model

FITTED = 64  # texts per set
BARE = """
import sys, torch
from dsas.model.loading import load_model
from dsas.model.token_batches import batches
from dsas.model.tokenizing import pad_token, tokenize
loaded = load_model(sys.argv[1], device="cpu")
texts = [line for file in sys.argv[2:] for line in open(file, encoding="utf-8").read().splitlines()]
with torch.no_grad():
    rows = tokenize(loaded.tokenizer, texts)
    for batch in batches(rows, 16, pad=pad_token(loaded.tokenizer), side="right"):
        loaded.model(input_ids=batch.tokens, attention_mask=batch.mask.long(), use_cache=False, logits_to_keep=1)
"""


def of_process(*command: str) -> float:
    """Return the processor seconds of a fresh process, user and system together."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def of_work(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def compared(one: Callable[[], float], other: Callable[[], float], pairs: int) -> dict[str, object]:
    """Return the ratio of two costs: median, range, and the seconds of both."""
    found = []
    for number in range(pairs):
        first, second = (one, other) if number % 2 else (other, one)
        pair = first(), second()
        found.append(pair if number % 2 else pair[::-1])
    ratios = [a / b for a, b in found]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "range": [round(min(ratios), 3), round(max(ratios), 3)],
        "n": pairs,
        "seconds": [round(statistics.median(each), 2) for each in zip(*found, strict=True)],
    }


def imports(pairs: int) -> dict[str, object]:
    def of(code: str) -> Callable[[], float]:
        return lambda: of_process(sys.executable, "-c", code)

    bare = of("import torch, transformers")
    return {
        "import dsas": compared(of("import dsas"), bare, pairs),
        "import dsas; dsas.fit": compared(of("import dsas; dsas.fit"), bare, pairs),
    }


def fits(folder: str, pairs: int) -> dict[str, object]:
    sets = {"source": toxic_prompts(), "control": openwebtext_sentences(), "target": wikipedia_sentences()}
    with tempfile.TemporaryDirectory() as place:
        files = {name: str(Path(place, f"{name}.txt")) for name in sets}
        for name, texts in sets.items():
            Path(files[name]).write_text("\n".join(texts[:FITTED]), encoding="utf-8")
        given = [part for name, file in files.items() for part in (f"--{name}", file)]

        def fit(*options: str) -> float:
            out = str(Path(place, f"steering{time.monotonic_ns()}"))
            command = [sys.executable, "-m", "dsas.cli", "fit", folder, *given, "--out", out, "--device", "cpu"]
            return of_process(*command, "--json", *options)

        bare = lambda: of_process(sys.executable, "-c", BARE, folder, *files.values())  # noqa: E731
        return {
            "logistic, nothing said of general text": compared(
                lambda: fit("--regulator", "logistic", "--general", "0"), bare, pairs
            ),
            "evidence, nothing said of general text": compared(lambda: fit("--general", "0"), bare, pairs),
            "as it is": compared(fit, bare, 1),
        }


def fitted(folder: str) -> tuple[object, dsas.Steering]:
    loaded = load_model(folder, device="cpu")
    sets = {"source": toxic_prompts(), "control": openwebtext_sentences(), "target": wikipedia_sentences()}
    some = {name: texts[:FITTED] for name, texts in sets.items()}
    return loaded, dsas.fit(*loaded, **some, progress=False)


def sweeps(folder: str, pairs: int) -> dict[str, object]:
    (model, tokenizer), steering = fitted(folder)
    prompts, sampling = toxic_prompts()[:64], Sampling()

    def steered() -> None:
        with steering.apply(model, 0.05, record=False):
            sample_continuations(model, tokenizer, prompts, seeds=(0,), sampling=sampling)

    def plain() -> None:
        tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.pad_token or tokenizer.eos_token
        given = tokenizer(prompts, return_tensors="pt", padding=True)
        model.generate(
            **given, do_sample=True, top_p=sampling.top_p, top_k=0, repetition_penalty=sampling.repetition_penalty,
            max_new_tokens=sampling.new_tokens, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip

    return compared(lambda: 1 / of_work(steered), lambda: 1 / of_work(plain), pairs)


def calibrations(folder: str, texts: int) -> dict[str, object]:
    loaded, steering = fitted(folder)
    kinds = {"wikipedia": wikipedia_sentences(), "web": openwebtext_sentences()[FITTED:], "news": news_sentences()}
    tune, held_out = ({kind: every[at : at + texts] for kind, every in kinds.items()} for at in (100, 100 + texts))
    found: list[dsas.Calibration] = []
    seconds = of_work(
        lambda: found.append(dsas.calibrate(*loaded, steering, tune=tune, held_out=held_out, progress=False))
    )
    return {
        "seconds": round(seconds, 1),
        "strengths": len(found[0].curve),
        "strength": found[0].strength,
        "precision": str(loaded.model.dtype),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", default="import,fit,sweep,calibrate")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--texts", type=int, default=60)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    folder = str(real_model(asked.model))
    parts = {
        "import": lambda: imports(asked.pairs),
        "fit": lambda: fits(folder, asked.pairs),
        "sweep": lambda: sweeps(folder, asked.pairs),
        "calibrate": lambda: calibrations(folder, asked.texts),
    }
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    print(json.dumps({"threads": torch.get_num_threads(), "load": os.getloadavg()[0], **versions}), flush=True)
    for name in asked.parts.split(","):
        print(json.dumps({name: parts[name]()}), flush=True)


if __name__ == "__main__":
    main()
