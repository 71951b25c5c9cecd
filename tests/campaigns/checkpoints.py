"""Checkpoints: what was kept to resume from is damaged at random, and the result must be that of an undisturbed run.

    python -m campaigns.checkpoints --rounds 500 --seed 0          (from tests/; rounds are per verb)

Each round begins with what a run left that ended, or that was cut at a random moment. One or two of its files are then
cut, emptied, flipped in one bit, replaced by one of their neighbours or by noise, or taken away.
"""

import json
import random
import shutil
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from campaigns.rounds import among, begun

import dsas
from dsas.errors import DsasWarning
from dsas.model.identity import fingerprint
from dsas.sweep.jobs import PACKAGED, Part, Setup
from dsas.sweep.run import Grid, Series, run_sweep
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.training.plan import Running

SOURCE, TARGET, CONTROL = ([f"{what} {n}" for n in range(8)] for what in ("you fool", "thanks", "the sun"))
SNAPSHOTS = 6
VERBS = ("fit", "train", "calibrate", "draft", "sweep")
Verb = Callable[[Path], object]


class Cut(KeyboardInterrupt):
    """What is raised where a verb is cut."""


class Even:
    """A scorer that finds every text with an even number of letters toxic."""

    name = "even"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([float(len(text) % 2 == 0) for text in texts])


def verbs(folder: Path) -> dict[str, Verb]:
    """Return what can be resumed, by name: from what it kept in a folder to its result."""
    model, tokenizer = tiny_model("llama", layers=2), tiny_tokenizer()
    sets: dict[str, Any] = {"source": SOURCE, "target": TARGET, "control": CONTROL}
    steering = dsas.fit(model, tokenizer, **sets, regulator="logistic", selection="all", progress=False)
    for part in (model, tokenizer):
        part.save_pretrained(folder / "model")
    parts = {name: Part({"plain": tuple(CONTROL[:2])}) for name in ("tune", "report")}
    given = (str(folder / "model"), fingerprint(model), ("you", "the sun"), parts)
    setup = Setup(*given, scorers=("even",), device="cpu")
    series = [Series("caa", steering, "caa", "logistic", (0.05, 0.1))]

    def fit(kept: Path) -> object:
        return dsas.fit(model, tokenizer, **sets, checkpoint=kept, progress=False).digest()

    def train(kept: Path) -> object:
        quiet = Running(progress=False)
        return dsas.train(
            model, tokenizer, **sets, objective="e2e-dsas", steps=4, checkpoint=kept, running=quiet
        ).digest()

    def calibrate(kept: Path) -> object:
        given = {"tune": CONTROL[:4], "held_out": CONTROL[4:], "per": "site", "limit": 0.5, "progress": False}
        budget = dsas.Budget("kl", 0.001)
        return dsas.calibrate(model, tokenizer, steering, **given, budget=budget, checkpoint=kept).as_dict()

    def draft(kept: Path) -> object:
        prompts = dsas.Prompts(["{question} Sing."], ["{question} Never sing."], template={})
        given: dict[str, Any] = {"questions": SOURCE, "prompts": prompts, "new_tokens": 3, "least": 4, "batch_size": 2}
        with mock.patch.object(tokenizer, "chat_template", "{{ messages | map(attribute='content') | join('|') }}"):
            found = dsas.draft(model, tokenizer, "sings", **given, checkpoint=kept, progress=False)
        return [found.as_dict(), repr(found)]

    def sweep(kept: Path) -> object:
        with mock.patch.dict(PACKAGED, even=Even):
            run_sweep(kept, setup, series, grid=Grid((0,), limit=50.0, refinements=1), progress=False)
        return [(kept / name).read_bytes() for name in ("samples.jsonl", "sweep.json", "curves.json")]

    return {"fit": fit, "train": train, "calibrate": calibrate, "draft": draft, "sweep": sweep}


def files_of(folder: Path) -> list[Path]:
    """Return all files below a folder."""
    return sorted(file for file in folder.rglob("*") if file.is_file())


def snapshots(verb: Verb, root: Path, drawn: random.Random) -> list[Path]:
    """Return copies of what runs kept that ended, or were cut by a signal."""

    def cut(*_: object) -> None:
        raise Cut

    start = time.perf_counter()
    verb(root / "0")
    whole, before = time.perf_counter() - start, signal.signal(signal.SIGALRM, cut)
    try:
        for number in range(1, SNAPSHOTS):
            try:
                signal.setitimer(signal.ITIMER_REAL, drawn.uniform(0.1, 0.9) * whole)
                verb(root / str(number))
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Cut:
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # its signal would end the process
        signal.signal(signal.SIGALRM, before)
    return [folder for number in range(SNAPSHOTS) if files_of(folder := root / str(number))]


def damage(folder: Path, drawn: random.Random) -> str:
    """Change one file and say how."""
    file = drawn.choice(files_of(folder))
    data, how = file.read_bytes(), drawn.choice(("flip", "cut", "empty", "swap", "noise", "gone"))
    if how == "flip" and data:
        place = drawn.randrange(len(data))
        file.write_bytes(data[:place] + bytes([data[place] ^ 1 << drawn.randrange(8)]) + data[place + 1 :])
    elif how == "cut" and data:
        file.write_bytes(data[: drawn.randrange(len(data))])
    elif how == "swap":
        file.write_bytes(drawn.choice(files_of(folder)).read_bytes())
    elif how == "gone":
        file.unlink()
    else:
        file.write_bytes(drawn.randbytes(64) if how == "noise" else b"")
    return how


def attempt(verb: Verb, folder: Path, expected: object) -> str:
    """Run a verb over what is left, and say how that ended."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = verb(folder)
        except Exception as error:
            return f"WRONG {type(error).__name__}: {error}"[:90]
    if json.dumps(found, default=repr) != json.dumps(expected, default=repr):
        return "WRONG: another result"
    told = any(issubclass(one.category, DsasWarning) and "damaged" in str(one.message) for one in said)
    return "same, and damage was said" if told else "same"


def run(rounds: int, seed: int, chosen: tuple[str, ...] = VERBS) -> dict[str, Counter[str]]:
    """Return by verb how often which end came."""
    found: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        every = verbs(root)
        for name in chosen:
            verb = every[name]
            drawn, counts = random.Random(f"{seed} {name}"), Counter[str]()
            start = time.monotonic()
            kept = snapshots(verb, root / name, drawn)
            expected = verb(root / name / "0")
            for _ in among(rounds):
                shutil.copytree(drawn.choice(kept), root / "now")
                for _ in range(drawn.choice((1, 1, 2))):
                    if files_of(root / "now"):
                        counts[f"({damage(root / 'now', drawn)})"] += 1
                counts[attempt(verb, root / "now", expected)] += 1
                shutil.rmtree(root / "now")
            found[name] = counts
            done = sum(count for what, count in counts.items() if not what.startswith("("))
            print(
                f"{name}: {done} rounds, {dict(sorted(counts.items()))} ({time.monotonic() - start:.0f} s)", flush=True
            )
    return found


if __name__ == "__main__":
    asked = begun(__doc__, 500, parts="verb", names=VERBS)
    ends = run(asked.rounds, asked.seed, tuple(asked.verb or VERBS))
    raise SystemExit(any("WRONG" in what for counts in ends.values() for what in counts))
