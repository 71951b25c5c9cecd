"""Commands: fit, train, calibrate and pareto, cut by a signal at a random moment, or writing where nothing can be.

    python -m campaigns.commands --rounds 30 --seed 0 --command fit --command pareto          (from tests/)

After each cut no worker is alive, what lies there can be read, and the same command gives what an undisturbed one
gives. Where the disk is full (a limit on the size of files) or a folder cannot be written, the command ends with one
line of ours, and then gives the same, too. Commands run in forks of this process, which spares them their imports.
"""

import ctypes
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from campaigns.rounds import among, begun, uncut
from transformers import BertConfig, BertForSequenceClassification

import dsas
from dsas import cli
from dsas.testing import tiny_model, tiny_tokenizer

TEXTS = {
    "rude": [f"shut up {n}" for n in range(8)],
    "plain": [f"the door {n}" for n in range(8)],
    "kind": [f"thank you {n}" for n in range(8)],
    "ask": ["what is", "who is there"],
    "tune": ["the sky is blue", "rain falls", "fog lifts", "ice melts"],
    "other": ["the sun is warm", "snow lies", "wind blows", "hail drums"],
}
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
PATIENCE = 20.0  # seconds for workers to notice that they have nobody to work for
COMMANDS = ("fit", "train", "calibrate", "pareto")


def make_files(root: Path) -> None:
    """Write a tiny model, a classifier and the texts."""
    tiny_model(layers=2).save_pretrained(root / "model")
    tiny_tokenizer().save_pretrained(root / "model")
    for name, texts in TEXTS.items():
        (root / f"{name}.txt").write_text("\n".join(texts))
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    labels = {"id2label": {0: "fine", 1: "toxic"}, "label2id": {"fine": 0, "toxic": 1}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForSequenceClassification(BertConfig(**sizes, vocab_size=300, **labels)).save_pretrained(root / "scorer")
    tiny_tokenizer().save_pretrained(root / "scorer")


def arguments(command: str, root: Path) -> list[str]:
    """Return the command; what it writes is below root/now, where calibrate finds a Steering."""
    out, device = root / "now" / "out", ["--device", "cpu", "--json"]
    sets = [part for name, file in (("source", "rude"), ("control", "plain"), ("target", "kind"))
            for part in (f"--{name}", f"{root / file}.txt")]  # fmt: skip
    more = {
        "fit": [*sets, "--out", f"{out}", "--selection", "all", "--general", "0"],
        "train": [*sets, "--out", f"{out}", "--objective", "e2e-dsas", "--steps", "8"],
        "calibrate": [f"{out}", "--tune", f"{root}/tune.txt", "--held-out", f"{root}/other.txt", "--budget", "kl=0.001",
                      "--per", "site"],
        "pareto": [*sets, "--out", f"{out}", "--prompts", f"{root}/ask.txt", "--tune", f"{root}/tune.txt",
                   "--neutral", f"sky={root}/other.txt", "--scorer", f"{root}/scorer", "--strength", "0.1", "--seeds",
                   "1", "--new-tokens", "4", "--limit", "100", "--workers", "2", "--regulator", "logistic"],
    }  # fmt: skip
    return [command, f"{root / 'model'}", *more[command], *device]


def begin(command: list[str], said: Path, first: Callable[[], None]) -> int:
    """Fork, call `first` in the new process, and run the command there in a session of its own; return its number."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        uncut()
        sys.modules["__main__"] = ModuleType("__main__")  # as light for workers to import as the script of a command is
        os.setsid()
        written = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(written, 1)
        os.dup2(written, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        sys.argv = ["dsas", *command]
        first()
        cli.main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    except KeyboardInterrupt:  # before the command began, or after it ended
        status = 130
    except BaseException as error:
        print(f"TRACEBACK {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(status)


def end(child: int) -> int:
    """Wait for a command and return its exit status, below 0 for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def alive(session: int) -> list[int]:
    """Return the processes of a session, those that have ended and wait to be buried aside."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, own = stat.read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(own) == session and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def result(root: Path) -> dict[str, bytes]:
    """Return the files that a command is for."""
    names = ("config.json", "model.safetensors", "samples.jsonl", "sweep.json", "curves.json")
    return {name: file.read_bytes() for name in names if (file := root / "now" / "out" / name).is_file()}


class Campaign:
    """One command, with what it gives undisturbed, and what it begins with."""

    def __init__(self, command: str, root: Path, drawn: random.Random) -> None:
        self.root, self.drawn, self.command = root, drawn, arguments(command, root)
        self.begins_with = root / "steering" if command == "calibrate" else None
        self.said, self.counts = root / "said", Counter[str]()
        self.anew()
        start = time.monotonic()
        assert end(self.run()) == 0, self.said.read_text()
        self.seconds, self.expected = time.monotonic() - start, result(root)
        self.counts["ended, and again: " + self.ended()] += 1

    def run(self, first: Callable[[], None] = lambda: None) -> int:
        return begin(self.command, self.said, first)

    def anew(self) -> None:
        """Begin where nothing has been run."""
        shutil.rmtree(self.root / "now", ignore_errors=True)
        (self.root / "now").mkdir()
        if self.begins_with:
            shutil.copytree(self.begins_with, self.root / "now" / "out")

    def ended(self) -> str:
        """Run the command to its end, and say whether it gave the right result."""
        if status := end(self.run()):
            return f"WRONG status {status}: {self.said.read_text()[-200:]}"
        return "same" if result(self.root) == self.expected else "WRONG: another result"

    def cut(self) -> None:
        """Cut the command by a signal, look at what lies there, and run it again."""
        self.anew()
        child, sent = self.run(), self.drawn.choice(SIGNALS)
        time.sleep(self.drawn.uniform(0.0, self.seconds))
        os.kill(child, sent)
        status, waited = end(child), time.monotonic()
        while (left := alive(child)) and time.monotonic() - waited < PATIENCE:
            time.sleep(0.05)
        self.counts[f"({sent.name} {'ended before' if status == 0 else 'cut'})"] += 1
        said = self.said.read_text()
        if left:
            self.counts["WRONG: a worker is alive"] += 1
            for one in left:
                os.kill(one, signal.SIGKILL)
        if status not in (0, 130, -sent) or "TRACEBACK" in said:
            self.counts[f"WRONG after {sent.name}: status {status}: {said[-150:]}"] += 1
        if (self.root / "now" / "out" / "config.json").is_file():
            dsas.Steering.from_pretrained(self.root / "now" / "out")
        self.counts[self.ended()] += 1

    def refused(self, how: str, first: Callable[[], None]) -> None:
        """Run the command where it cannot write, then where it can."""
        self.anew()
        if how == "read-only":
            os.chmod(self.root / "now", 0o555)
            if self.begins_with:
                os.chmod(self.root / "now" / "out", 0o555)
        before, child = result(self.root), self.run(first)
        status, said = end(child), self.said.read_text()
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        if status == 2 and len(lines) == 1 and "Traceback" not in said and result(self.root) == before:
            self.counts[f"({how}: one line)"] += 1
        elif status == 0:
            self.counts[f"({how}: ended)"] += 1
        else:
            self.counts[f"WRONG where {how}: status {status}: {said[-300:]}"] += 1
        os.chmod(self.root / "now", 0o755)
        if self.begins_with:
            os.chmod(self.root / "now" / "out", 0o755)
        self.counts[self.ended()] += 1


def limited(size: int) -> Callable[[], None]:
    """Return what lets no file of this process, or of those that it begins, grow beyond a size in bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def without_privilege() -> None:
    """Let the permissions of files hold for this process although it may be root's (Linux's CAP_DAC_OVERRIDE)."""
    libc, header = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, for the lower 32 capabilities and the others
    if libc.capget(header, sets) == 0:
        for place in range(3):
            sets[place] &= ~0b10
        libc.capset(header, sets)


def run(rounds: int, seed: int, commands: tuple[str, ...] = COMMANDS) -> dict[str, Counter[str]]:
    """Cut each command so often, and let a tenth as many write where they cannot; return by command what came."""
    found: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.chmod(root, 0o755)
        make_files(root)
        sets: dict[str, Any] = {"source": TEXTS["rude"], "control": TEXTS["plain"], "target": TEXTS["kind"]}
        steering = dsas.fit(tiny_model(layers=2), tiny_tokenizer(), **sets, selection="all", progress=False)
        steering.save_pretrained(root / "steering")
        for command in commands:
            start = time.monotonic()
            one = Campaign(command, root, random.Random(f"{seed} {command}"))
            for _ in among(rounds):
                one.cut()
            for _ in range(max(1, rounds // 10)):
                one.refused("full", limited(one.drawn.randrange(1, 12_000)))
            one.refused("read-only", without_privilege)
            found[command] = one.counts
            print(f"{command}: {json.dumps(one.counts)} ({time.monotonic() - start:.0f} s)", flush=True)
    return found


if __name__ == "__main__":
    asked = begun(__doc__, 30, parts="command", names=COMMANDS)
    ends = run(asked.rounds, asked.seed, tuple(asked.command or COMMANDS))
    raise SystemExit(any("WRONG" in what for counts in ends.values() for what in counts))
