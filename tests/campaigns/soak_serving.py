"""Soak a server: thousands of mixed requests while Steerings come and go, and what each was given compared offline.

python -m campaigns.soak_serving [--requests 1000] [--kills 1] [--minutes 60] [--replay 500] [--threads 8] [--seed 1]

Needs the environment of `make test-vllm`; `make soak-vllm` runs it. Of the requests, 2 in 100 are bad, 5 in 100 are
streams that their clients leave, 10 in 100 may be stopped by a verdict; every two seconds the operator loads, replaces
or unloads a Steering that some of them name. The server is killed --kills times while requests run, without a chance to
clean up, and started again. After --minutes no more requests are sent. Prints one line of JSON; ends with status 1 if
an answer was not that of the reference, an error was not of ours, a slot was lost, or memory grew by more than 5 %
after the first tenth of the requests to one server.
"""

import argparse
import json
import os
import random
import signal
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from engines import ASKS, PROMPTS, TONES, Ask, Reference, write_folders
from makers import random_steering
from servers import Server, operate, serving

from dsas.testing import tiny_model

BASE = ("detox", "topic", "line", "tone", "mood")
VERSIONS = ("later", "latest")
TOKENS, SPARE = 6, 2
OPTIONS = ("--together", "2", "--spare", str(SPARE), "--reports", "--max-num-seqs", "16")


class Done(NamedTuple):
    """A request that was answered: what it asked for, and the tokens and log-probabilities that came."""

    prompt: str
    ask: Ask
    tokens: list[int]
    scores: list[float]


class Soak:
    """The requests of one run, and what became of them."""

    def __init__(self, root: Path, seed: int, ends: float) -> None:
        self.root, self.chance = root, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.done: list[Done] = []
        self.problems: list[str] = []
        self.over, self.killed = threading.Event(), threading.Event()
        self.ends = ends
        self.memories: list[int] = []  # KiB, of one server: after its first tenth, after its last request

    def post(self, body: Any) -> Any:
        request = urllib.request.Request(
            f"{self.server.url}/v1/completions",
            data=json.dumps(body).encode(),
            headers={"Authorization": "Bearer clients", "Content-Type": "application/json"},
        )
        return urllib.request.urlopen(request, timeout=300)

    def one(self, number: int) -> None:
        """Send one request of a kind that its number draws, unless time is up or the server killed."""
        if self.killed.is_set() or time.monotonic() > self.ends:
            self.counts["not sent"] += 1
            return
        chance = random.Random(number)
        kind, prompt = chance.random(), chance.choice(PROMPTS[1:])
        ask = chance.choice([*ASKS, *TONES, *4 * [Ask(("extra",), (1.0,))]])
        extra: Any = {**(ask.extra_args() or {})}
        if kind < 0.02:
            extra = {"dsas_steering": "nobody"}
        elif kind < 0.12 and ask.names:
            extra |= {"dsas_stop_above": 0.5, "dsas_stop_window": 2}
        body = {"model": "tiny", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "logprobs": 0}
        body |= {"ignore_eos": True, "return_token_ids": True, **({"vllm_xargs": extra} if extra else {})}
        try:
            if 0.12 <= kind < 0.17:
                with self.post({**body, "stream": True, "max_tokens": 40}) as answer:
                    answer.readline()
                self.counts["left"] += 1
                return
            with self.post(body) as answer:
                choice = json.load(answer)["choices"][0]
        except urllib.error.HTTPError as error:
            said = error.read().decode()
            fair = error.code == 400 and ("no Steering 'nobody'" in said or "no Steering 'extra'" in said)
            self.counts["refused" if fair else "failed"] += 1
            if not fair:
                self.problems.append(f"{error.code} {said[:200]}")
            return
        except Exception as error:
            if self.killed.is_set():
                self.counts["cut"] += 1
                return
            self.counts["failed"] += 1
            self.problems.append(f"{type(error).__name__}: {error}")
            return
        self.counts["stopped" if choice["stop_reason"] == "dsas_stop_above" else "answered"] += 1
        self.done.append(Done(prompt, ask, choice["token_ids"], choice["logprobs"]["token_logprobs"]))

    def operate(self) -> None:
        """Load, replace and unload until it is over."""
        while not self.over.wait(2.0):
            try:
                if self.chance.random() < 0.3:
                    status, _ = operate(self.server, "DELETE", "/extra")
                    self.counts["unloads"] += status == 200
                else:
                    folder = str(self.root / self.chance.choice(VERSIONS))
                    status, said = operate(self.server, "POST", body={"name": "extra", "folder": folder})
                    self.counts["loads"] += status == 200
                    if status != 200:
                        self.problems.append(f"load: {said}")
            except OSError as error:
                if not self.killed.is_set():
                    self.problems.append(f"operator: {error}")

    def family(self) -> dict[int, int]:
        """Return the resident memory, in KiB, of each process of the server by its id."""
        parents, sizes = {}, {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
            except OSError:
                continue
            parents[int(folder.name)], size = int(fields["PPid"]), fields.get("VmRSS", "0 kB")
            sizes[int(folder.name)] = int(size.split()[0])
        family = {self.server.process.pid}
        while more := {child for child, parent in parents.items() if parent in family} - family:
            family |= more
        return {one: sizes.get(one, 0) for one in family}

    def memory(self) -> int:
        """Return the resident memory of the server and all its processes, in KiB."""
        return sum(self.family().values())

    def replay(self, reference: Reference, most: int) -> float:
        """Compare a sample with the reference; return the worst difference of log-probabilities."""
        worst = 0.0
        for done in self.chance.sample(self.done, min(most, len(self.done))):
            asks = [done.ask]
            if done.ask.names == ("extra",):
                asks = [Ask((version,), done.ask.strengths) for version in VERSIONS]
            differences = []
            for ask in asks:
                wanted = reference.generate(done.prompt, ask, TOKENS)
                count = len(done.tokens)
                if wanted.tokens[:count] == done.tokens:
                    near = wanted.log_probabilities[:count].gather(-1, torch.tensor(done.tokens)[:, None]).flatten()
                    differences.append(float((near - torch.tensor(done.scores)).abs().max()) if count else 0.0)
            if not differences:
                self.problems.append(f"other tokens than the reference's: {done.ask}")
            else:
                worst = max(worst, min(differences))
        return worst

    def serve(self, server: Server, numbers: range, threads: int, *, kill: bool) -> None:
        """Send the requests of these numbers to a server while its operator is busy; kill it before the last ones."""
        self.server = server
        self.over.clear()
        self.killed.clear()
        operator = threading.Thread(target=self.operate)
        operator.start()
        tenth, last = len(numbers) // 10, max(len(numbers) - 4 * threads, 0) if kill else len(numbers)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(self.one, numbers[:tenth]))
            first = self.memory()
            list(pool.map(self.one, numbers[tenth:last]))
            self.memories += [first, self.memory()]
            rest = [pool.submit(self.one, number) for number in numbers[last:]]
            if kill:
                wait(rest, return_when=FIRST_COMPLETED)
                self.killed.set()
                for process in self.family():  # vLLM's engine outlives a front end that was killed
                    os.kill(process, signal.SIGKILL)
                self.counts["kills"] += 1
        self.over.set()
        operator.join()

    def fill(self) -> None:
        """Load as many Steerings as there are spare slots, which are free when the last that was loaded is gone."""
        operate(self.server, "DELETE", "/extra")
        for number in range(SPARE):
            folder = str(self.root / f"last{number}")
            status, said = operate(self.server, "POST", body={"name": f"l{number}", "folder": folder})
            if status != 200:
                self.problems.append(f"a slot is lost: {said}")

    def told(self, options: argparse.Namespace, worst: float) -> dict[str, Any]:
        """Return what became of all requests."""
        if worst > 1e-4:
            self.problems.append(f"log-probabilities differ by {worst}")
        for first, last in zip(self.memories[::2], self.memories[1::2], strict=True):
            if last > 1.05 * first:
                self.problems.append(f"memory grew from {first} to {last} KiB")
        replayed = min(options.replay, len(self.done))
        told = {**self.counts, "replayed": replayed, "worst": worst, "memory_kib": self.memories}
        return {**told, "problems": self.problems[:20]}


def main() -> int:
    """Run the soak; return the status."""
    parser = argparse.ArgumentParser()
    for name, value in (("requests", 1000), ("kills", 1), ("replay", 500), ("threads", 8), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = write_folders(Path(folder))
        for number in range(SPARE):
            random_steering(tiny_model("llama", head_dim=32), "layers.0", seed=20 + number).save_pretrained(
                root / f"last{number}"
            )
        soak = Soak(root, options.seed, started + 60 * options.minutes)
        each = -(-options.requests // (options.kills + 1))
        for number in range(options.kills + 1):
            numbers = range(number * each, min((number + 1) * each, options.requests))
            with serving(root, BASE, *OPTIONS) as server:
                soak.serve(server, numbers, options.threads, kill=number < options.kills)
                if number == options.kills:
                    soak.fill()
        seconds = time.monotonic() - started
        worst = soak.replay(Reference(root), options.replay)
    print(json.dumps({"seconds": round(seconds), **soak.told(options, worst)}))
    return bool(soak.problems)


if __name__ == "__main__":
    raise SystemExit(main())
