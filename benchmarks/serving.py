"""Claim: a served model loses a few per cent of its throughput to steering, whatever the mix of requests.

Runs vLLM twice, in a process each: as it is, and with a Steering of additions and logistic regulators (or evidence) at
every decoder layer of SmolLM2-135M. Batches go to both in turn, stock and steered next to each other, so that what else
the machine does falls on both; the ratio is the median over the pairs, with its 95 % interval. Two processes of one
program differ, too, by where their memory lies: both are started anew for each round. With --reports both are steered,
and the second keeps reports, for which all its requests ask. Needs the environment of `make test-vllm`.

    python benchmarks/serving.py [--eager] [--sites "layers.*"] [--batches 1 16 64] [--rounds 3] [--pairs 7]
                                 [--new-tokens 16] [--reports] [--regulator logistic]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

import dsas
from dsas.demo.models import real_model
from dsas.evaluation.intervals import percentile_interval
from dsas.model.identity import ModelIdentity
from dsas.model.loading import load_model
from dsas.serving import engine

BATCHES = [1, 16, 64]
PROMPT = "The people who came to the meeting on Tuesday said that"
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


def write_steering(folder: Path, sites: str, regulator: str) -> None:
    model = load_model(str(real_model("smollm2")), precision="bfloat16").model
    width, generator = model.config.hidden_size, torch.Generator().manual_seed(0)
    rules = []
    for site in dsas.find_sites(model, sites):
        vector, theta = (torch.randn(width, generator=generator) / width for _ in range(2))
        zero = torch.tensor(0.0)
        gate = dsas.Logistic(theta, zero) if regulator == "logistic" else dsas.Evidence(theta, zero, zero)
        rules.append(dsas.Rule(site, dsas.Addition(vector), gate))
    dsas.Steering(rules, ModelIdentity.of(model)).save_pretrained(folder)
    print(f"{len(rules)} sites of width {width}")


def answer(steering: str | None, arguments: argparse.Namespace) -> None:
    """Be one of the two engines: read batch sizes, write seconds."""
    from vllm import LLM, SamplingParams

    model = str(real_model("smollm2"))
    reports = arguments.engine == "reporting"
    extra: dict[str, Any] = engine.arguments(model, [steering], reports=reports) if steering else {}
    llm = LLM(
        model,
        dtype="float32",
        enforce_eager=arguments.eager,
        max_model_len=256,
        max_num_seqs=max(arguments.batches),
        block_size=32,
        kv_cache_memory_bytes=512 << 20,
        enable_prefix_caching=False,
        distributed_executor_backend="uni",
        **extra,
    )
    name: dict[str, Any] = {"dsas_steering": Path(steering).name} if steering else {}
    name |= {"dsas_report": True} if reports else {}
    for line in sys.stdin:
        count = int(line)
        strengths = [{**name, "dsas_strength": 1 + n / count} if name else None for n in range(count)]
        new = arguments.new_tokens
        asked = [SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, extra_args=s) for s in strengths]
        start = time.perf_counter()
        outputs = llm.generate([PROMPT] * count, asked, use_tqdm=False)
        for output in outputs if reports else ():
            engine.report(llm, output)
        print(json.dumps(time.perf_counter() - start), flush=True)


class Engine:
    """One of the two engines, in a process of its own."""

    def __init__(self, arguments: list[str], log: IO[bytes]) -> None:
        command = [sys.executable, __file__, *sys.argv[1:], *arguments]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True}
        self.process = subprocess.Popen(command, env={**os.environ, **SETTINGS}, **pipes)

    def seconds(self, count: int) -> float:
        """Return how long a batch of `count` requests takes."""
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            try:
                return float(json.loads(line))
            except ValueError:
                continue
        raise SystemExit("an engine has ended before it answered")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--sites", default="residual")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--reports", action="store_true")
    parser.add_argument("--regulator", choices=["logistic", "evidence"], default="logistic")
    parser.add_argument("--engine", choices=["stock", "steered", "reporting"])
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.engine:
        answer(None if arguments.engine == "stock" else str(arguments.folder), arguments)
        return
    kinds = ("steered", "reporting") if arguments.reports else ("stock", "steered")
    found: dict[int, list[list[tuple[float, float]]]] = {count: [] for count in arguments.batches}
    for _ in range(arguments.rounds):
        for count, pairs in one_round(kinds, arguments).items():
            found[count].append(pairs)
            print(told(count, found[count], kinds, arguments.new_tokens), flush=True)


def one_round(kinds: tuple[str, str], arguments: argparse.Namespace) -> dict[int, list[tuple[float, float]]]:
    """Return the seconds of both engines, pair by pair, for each batch; the engines are started for this round."""
    with tempfile.TemporaryDirectory() as scratch, open(Path(scratch) / "log", "wb") as log:
        folder, found = Path(scratch) / "steering", {}
        write_steering(folder, arguments.sites, arguments.regulator)
        both = [Engine(["--engine", kind, "--folder", str(folder)], log) for kind in kinds]
        for count in arguments.batches:
            for one in both:
                one.seconds(count)  # compiles, and fills what is filled once
            found[count] = []
            for number in range(arguments.pairs):
                first, second = both if number % 2 == 0 else both[::-1]
                timed = {first: first.seconds(count), second: second.seconds(count)}
                found[count].append((timed[both[0]], timed[both[1]]))
        for one in both:
            one.process.stdin.close()
            one.process.wait()
    return found


def told(count: int, rounds: list[list[tuple[float, float]]], kinds: tuple[str, str], new_tokens: int) -> str:
    """Return the ratio of a batch in words: the median over all pairs with its interval, and that of each round."""
    medians = [f"{statistics.median(first / second for first, second in pairs):.3f}" for pairs in rounds]
    ratios = np.array([first / second for pairs in rounds for first, second in pairs])
    draws = np.median(np.random.default_rng(0).choice(ratios, (2000, len(ratios))), axis=1)
    found = percentile_interval(float(np.median(ratios)), draws, len(ratios))
    tokens = count * new_tokens / statistics.median(second for pairs in rounds for _, second in pairs)
    return (
        f"batch {count:3}: throughput {kinds[1]} / {kinds[0]}, median of {found.n} pairs: {found.mean:.3f} "
        f"[{found.low:.3f}, {found.high:.3f}]; by round {', '.join(medians)}; all from {ratios.min():.3f} to "
        f"{ratios.max():.3f}; {tokens:.0f} tokens/s {kinds[1]}"
    )


if __name__ == "__main__":
    main()
