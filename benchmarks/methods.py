"""Claim: a regulator lets every transform go further before it does damage.

Fits every transform with the constant and with the logistic regulator (and CAA with every other regulator), takes for
each the largest strength whose perplexity on tuning sentences is at most 1.05 x unsteered, averaged over four kinds of
text, and prints, on other prompts and sentences, the toxic share and the perplexity with 95 % intervals. If
interrupted, it resumes. `mean-act` is omitted, because its map is that of `caa`.

    python benchmarks/methods.py [--model smollm2|gemma3] [--seeds 1] [--out out/methods]
"""

import argparse
import json
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from cells import Bench, Cell

import dsas
from dsas.demo.models import real_model
from dsas.demo.texts import DemoTexts, bare_setup, demo_texts
from dsas.evaluation.generations import Sampling
from dsas.evaluation.perplexity import perplexity
from dsas.evaluation.scorers import CharacterGrams, packaged_scorers
from dsas.files.results import Results
from dsas.model.identity import fingerprint
from dsas.model.loading import load_model

BUDGET, LEAST, DOUBLINGS, HALVINGS = 1.05, 0.005, 11, 2
LAST = dsas.Reading(tokens="last")
TRANSFORMS: dict[str, dict[str, Any]] = {
    "caa": {},
    "caa, last token": {"transform": "caa", "reading": LAST},
    "caa-pca": {},
    "iti": {},
    "iti, 48 best heads": {"transform": "iti", "sites": "heads", "selection": "top", "top": 48},
    "gaussian-act": {},
    "linear-act": {},
    "linear-act, incremental": {"transform": "linear-act", "incremental": True},
    "ablation": {},
    "rotation": {},
}
REGULATORS = ("constant", "logistic")
OTHER_REGULATORS = ("cast", "mera", "halfspace", "logistic*posterior")


class Chosen(NamedTuple):
    """The largest strength that kept the budget on the tuning sentences (0: none did), and the perplexity there."""

    strength: float
    ratio: float


def conditions() -> list[tuple[str, str, dict[str, Any]]]:
    """Return (transform, regulator, options of fit) of every row."""
    rows = [(name, regulator, options) for name, options in TRANSFORMS.items() for regulator in REGULATORS]
    return rows + [("caa", regulator, {}) for regulator in OTHER_REGULATORS]


def choose(bench: Bench, steering: dsas.Steering, texts: DemoTexts, folder: Path) -> Chosen:
    """Double the strength until the budget breaks, then halve the step."""
    identity = fingerprint(bench.model)

    def mean_perplexity(strength: float) -> float:
        def measure() -> float:
            with steering.apply(bench.model, strength, record=False) if strength else nullcontext():
                every = [perplexity(bench.model, bench.tokenizer, kind).mean for kind in texts.tune.values()]
            return [one / plain for one, plain in zip(every, unsteered, strict=True)]

        ratios = Results(folder).remember("tuned", [identity, steering.digest(), strength, texts.tune], measure)
        return sum(ratios) / len(ratios)

    unsteered = Results(folder).remember(
        "tuned",
        [identity, "unsteered", texts.tune],
        lambda: [perplexity(bench.model, bench.tokenizer, kind).mean for kind in texts.tune.values()],
    )
    best, strength, step = Chosen(0.0, 1.0), LEAST, 2.0
    for _ in range(DOUBLINGS):
        ratio = mean_perplexity(strength)
        if not ratio <= BUDGET:
            break
        best, strength = Chosen(strength, ratio), strength * step
    for _ in range(HALVINGS if best.strength else 0):
        step = step**0.5
        ratio = mean_perplexity(round(best.strength * step, 4))
        if ratio <= BUDGET:
            best = Chosen(round(best.strength * step, 4), ratio)
    return best


def row(cell: Cell, unsteered: Cell, transform: str, regulator: str, steered: str) -> dict[str, Any]:
    """Return a row of the table, JSON-ready."""
    return {
        "transform": transform,
        "regulator": regulator,
        "sites": steered,
        "strength": cell.strength,
        "toxic": {name: interval._asdict() for name, interval in cell.toxic().items()},
        "perplexity": {kind: ratio._asdict() for kind, ratio in cell.perplexity_over(unsteered).items()},
        "distinct pairs": cell.distinct(),
    }


def shown(found: dict[str, Any]) -> str:
    """Return a row as a line of Markdown."""
    toxic = found["toxic"]
    shares = [
        f"{100 * toxic[name]['mean']:.1f} [{100 * toxic[name]['low']:.1f}, {100 * toxic[name]['high']:.1f}]"
        for name in ("ensemble", "character-grams")
    ]
    ratios = [
        f"{ratio['mean']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]" for ratio in found["perplexity"].values()
    ]
    head = [found["transform"], found["regulator"], found["sites"], f"{found['strength']:g}"]
    return f"| {' | '.join([*head, *shares, *ratios, format(found['distinct pairs'], '.2f')])} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/methods"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    folder = arguments.out / arguments.model
    folder.mkdir(parents=True, exist_ok=True)
    name = str(real_model(arguments.model))
    loaded = load_model(name)
    model, tokenizer = loaded
    scorers, identity = packaged_scorers(), fingerprint(model)
    texts = demo_texts(folder, bare_setup(name, loaded), progress=False)
    bench = Bench(
        model,
        tokenizer,
        prompts=texts.prompts,
        neutral=texts.report,
        scorers=[*scorers, CharacterGrams()],
        seeds=list(range(arguments.seeds)),
        sampling=Sampling(),
        folder=folder / "cells",
    )
    unsteered = bench.cell("unsteered", 0.0, identity, steered=nullcontext(), progress=lambda done: None)
    rows = [row(unsteered, unsteered, "unsteered", "-", "0")]
    print(shown(rows[0]), flush=True)
    sets = {"source": texts.source, "control": texts.control, "target": texts.target}
    for transform, regulator, options in conditions():
        asked = {"transform": transform, "regulator": regulator, **options}
        steering = dsas.fit(model, tokenizer, **sets, **asked, checkpoint=folder / "collected", progress=False)
        sites = f"{sum(rule.weight > 0 for rule in steering.rules)} of {len(steering.rules)}"
        strength = choose(bench, steering, texts, folder / "tuned").strength
        applied = steering.apply(model, strength, record=False)
        marks = f"{identity} {steering.digest()}"
        cell = bench.cell(transform, strength, marks, steered=applied, progress=lambda done: None)
        rows.append(row(cell, unsteered, transform, regulator, sites))
        print(shown(rows[-1]), flush=True)
        (folder / "results.json").write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
