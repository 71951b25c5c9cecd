"""Claim: a served model loses a few per cent of its throughput to steering, whatever the mix of requests.

Runs vLLM several times, in a process each: as it is, and with Steerings of additions and logistic regulators (or
evidence) at every decoder layer of SmolLM2-135M. Every batch goes to all of them in turn, so that what else the machine
does falls on all; each is compared with the stock one by the time that its processor was busy, and by the clock. The
ratio is the median over the batches, with its 95 % interval. Two processes of one program differ, too, by where their
memory lies: all are started anew for each round. Needs the environment of `make test-vllm`.

    python benchmarks/serving.py [--kinds steered together judged tenants] [--eager] [--sites "layers.*"]
                                 [--batches 1 16 64] [--rounds 3] [--pairs 7] [--new-tokens 16] [--regulator logistic]

steered: one Steering, every request at a strength of its own. together: the same on a server on which a request may
name two. judged: every request is told how strongly it was steered, and may be stopped or steered more by thresholds
that are never reached. tenants: eight Steerings, of which each request names one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any, NamedTuple

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
KINDS = ["steered", "together", "judged", "tenants"]
TENANTS = 8
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


class Timed(NamedTuple):
    """How long a batch took, in seconds, by the clock and of the processor."""

    clock: float
    processor: float


def write_steerings(folder: Path, sites: str, regulator: str) -> None:
    model = load_model(str(real_model("smollm2")), precision="bfloat16").model
    width, generator, zero = model.config.hidden_size, torch.Generator().manual_seed(0), torch.tensor(0.0)
    for number in range(TENANTS):
        rules = []
        for site in dsas.find_sites(model, sites):
            vector, theta = (torch.randn(width, generator=generator) / width for _ in range(2))
            gate = dsas.Logistic(theta, zero) if regulator == "logistic" else dsas.Evidence(theta, zero, zero)
            rules.append(dsas.Rule(site, dsas.Addition(vector), gate))
        dsas.Steering(rules, ModelIdentity.of(model)).save_pretrained(folder / f"tenant{number}")
    print(f"{len(rules)} sites of width {width}", flush=True)


def asked_for(kind: str, number: int, count: int) -> dict[str, Any] | None:
    """Return what request `number` of `count` asks for."""
    if kind == "stock":
        return None
    name = f"tenant{number % TENANTS if kind == 'tenants' else 0}"
    asked: dict[str, Any] = {"dsas_steering": name, "dsas_strength": 1 + number / count}
    if kind == "judged":
        asked |= {"dsas_report": True, "dsas_stop_window": 4, "dsas_stop_above": 2.0}
        asked |= {"dsas_raise_above": 2.0, "dsas_raise_to": 3.0}
    return asked


def answer(arguments: argparse.Namespace) -> None:
    """Be one of the engines: read batch sizes, write seconds."""
    from vllm import LLM, SamplingParams

    model, kind = str(real_model("smollm2")), arguments.engine
    folders = [str(arguments.folder / f"tenant{number}") for number in range(TENANTS if kind == "tenants" else 1)]
    options = {"together": 2 if kind == "together" else 1, "reports": kind == "judged"}
    extra: dict[str, Any] = {} if kind == "stock" else engine.arguments(model, folders, **options)
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
    for line in sys.stdin:
        count = int(line)
        given = {"temperature": 0, "max_tokens": arguments.new_tokens, "ignore_eos": True}
        asked = [SamplingParams(**given, extra_args=asked_for(kind, n, count)) for n in range(count)]
        clock, processor = time.perf_counter(), time.process_time()
        outputs = llm.generate([PROMPT] * count, asked, use_tqdm=False)
        for output in outputs if kind == "judged" else ():
            engine.report(llm, output)
        print(json.dumps([time.perf_counter() - clock, time.process_time() - processor]), flush=True)


class Engine:
    """One of the engines, in a process of its own."""

    def __init__(self, arguments: list[str], log: IO[bytes]) -> None:
        command = [sys.executable, __file__, *sys.argv[1:], *arguments]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True}
        self.process = subprocess.Popen(command, env={**os.environ, **SETTINGS}, **pipes)

    def timed(self, count: int) -> Timed:
        """Return how long a batch of `count` requests takes."""
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            try:
                return Timed(*map(float, json.loads(line)))
            except (TypeError, ValueError):
                continue
        raise SystemExit("an engine has ended before it answered")


Round = dict[int, dict[str, list[Timed]]]  # batch, engine


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["steered"])
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--sites", default="residual")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--regulator", choices=["logistic", "evidence"], default="logistic")
    parser.add_argument("--engine", choices=["stock", *KINDS])
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.engine:
        answer(arguments)
        return
    rounds: list[Round] = []
    for _ in range(arguments.rounds):
        rounds.append(one_round(arguments))
        for count in arguments.batches:
            for kind in arguments.kinds:
                print(told(count, kind, [one[count] for one in rounds], arguments.new_tokens), flush=True)


def one_round(arguments: argparse.Namespace) -> Round:
    """Return the seconds of all engines, batch by batch; the engines are started for this round."""
    kinds, found = ["stock", *arguments.kinds], {}
    with tempfile.TemporaryDirectory() as scratch, open(Path(scratch) / "log", "wb") as log:
        write_steerings(Path(scratch), arguments.sites, arguments.regulator)
        engines = {kind: Engine(["--engine", kind, "--folder", scratch], log) for kind in kinds}
        for count in arguments.batches:
            for one in engines.values():
                one.timed(count)  # compiles, and fills what is filled once
            found[count] = {kind: [] for kind in kinds}
            for number in range(arguments.pairs):
                for kind in kinds if number % 2 == 0 else kinds[::-1]:
                    found[count][kind].append(engines[kind].timed(count))
        for one in engines.values():
            one.process.stdin.close()
            one.process.wait()
    return found


def told(count: int, kind: str, rounds: list[dict[str, list[Timed]]], new_tokens: int) -> str:
    """Return the ratios of a batch in words: medians with intervals, and those of each round by the processor."""
    pairs = [list(zip(one["stock"], one[kind], strict=True)) for one in rounds]
    words = []
    for measure in ("processor", "clock"):
        ratios = np.array([getattr(a, measure) / getattr(b, measure) for one in pairs for a, b in one])
        draws = np.median(np.random.default_rng(0).choice(ratios, (2000, len(ratios))), axis=1)
        found = percentile_interval(float(np.median(ratios)), draws, len(ratios))
        words.append(f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}] by the {measure}")
    medians = [f"{np.median([a.processor / b.processor for a, b in one]):.3f}" for one in pairs]
    tokens = count * new_tokens / float(np.median([b.clock for one in pairs for _, b in one]))
    return (
        f"batch {count:3}: throughput {kind} / stock, median of {sum(map(len, pairs))} pairs: {'; '.join(words)}; "
        f"by round {', '.join(medians)}; {tokens:.0f} tokens/s"
    )


if __name__ == "__main__":
    main()
