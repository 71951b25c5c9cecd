"""Claim: learning how and when together preserves more of the model at the same toxicity than learning only how.

For each condition and seed: a Steering is learned on `--texts` texts per set, its strength is the largest of a grid
whose mean perplexity on tuning sentences stays within 1.05 x, and toxicity and perplexity are measured at that strength
on held-out prompts and sentences. Everything is stored in --out: an interrupted run resumes.

    python benchmarks/training.py --model smollm2 --out out/training [--texts 32] [--seeds 4] [--steps 20]
    python benchmarks/training.py --model smollm2 --out out/training --extras     # control term, sparsity
"""

import argparse
import json
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from cells import Bench, Cell

import dsas
from dsas.demo.models import real_model
from dsas.demo.texts import DemoTexts, bare_setup, demo_texts
from dsas.evaluation.generations import Sampling
from dsas.evaluation.intervals import bootstrap, bootstrap_ratio
from dsas.evaluation.perplexity import perplexity
from dsas.evaluation.scorers import CharacterGrams, packaged_scorers
from dsas.files.atomic import replace_files
from dsas.files.results import Results
from dsas.model.identity import fingerprint
from dsas.model.loading import LoadedModel, load_model
from dsas.model.subject import subject_of
from dsas.training.passes import Passes, Work
from dsas.training.terms import drift

GRID = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5)
BUDGET = 1.05
READING = dsas.Reading(batch_size=32, max_tokens=64)
CONDITIONS: dict[str, dict[str, Any]] = {
    "LinEAS": {},
    "LinEAS + logistic": {},  # the same transforms, with regulators fitted in closed form before them
    "E2E sigmoid": {"objective": dsas.E2E()},
    "E2E ReLU": {"objective": dsas.E2E(regulator_form="relu")},
    "fit: Linear-AcT + logistic": {},  # no training, the same sites
}
# Plain gradient steps, whose proximal step is that of the penalised loss.
SGD = {"optimiser": dsas.Optimiser("sgd", 0.1)}
EXTRAS: dict[str, dict[str, Any]] = {
    "E2E sigmoid, no control term": {"objective": dsas.E2E(control_weight=0.0)},
    **{f"E2E sigmoid, control_weight {value}": {"objective": dsas.E2E(control_weight=value)} for value in (0.1, 1.0)},
    "LinEAS, SGD": SGD,
    **{
        f"LinEAS, SGD, sparsity {value}": {**SGD, "objective": dsas.LinEAS(sparsity=value)}
        for value in (0.003, 0.01, 0.02)
    },
}


class Lab(NamedTuple):
    """The model, its texts and where everything is kept."""

    loaded: LoadedModel
    texts: DemoTexts
    bench: Bench
    out: Path
    steps: int

    def sets(self, count: int, seed: int) -> dict[str, list[str]]:
        """Return `count` texts per set, drawn by `seed`; both halves of the control in equal shares."""
        draw = np.random.default_rng(seed)

        def some(texts: Sequence[str], number: int) -> list[str]:
            return [texts[i] for i in sorted(draw.permutation(len(texts))[:number])]

        t, half = self.texts, len(self.texts.control) // 2
        control = some(t.control[:half], count // 2) + some(t.control[half:], count - count // 2)
        return {"source": some(t.source, count), "control": control, "target": some(t.target, count)}

    def steering(self, condition: str, options: dict[str, Any], count: int, seed: int) -> dsas.Steering:
        """Return the Steering of a condition, learned or read back."""
        name = f"{condition}-{count}-{seed}-{self.steps}".replace(" ", "_").replace(",", "").replace(":", "")
        folder, sets = self.out / "steerings" / name, self.sets(count, seed)
        where: dict[str, Any] = {"sites": "norm", "reading": READING}
        logistic = {"regulator": "logistic"}
        if (folder / "config.json").is_file():
            return dsas.Steering.from_pretrained(folder)
        if condition.startswith("fit"):
            found = dsas.fit(*self.loaded, **sets, **where, **logistic, transform="linear-act", progress=False)
        elif condition == "LinEAS + logistic":
            learned = self.steering("LinEAS", {}, count, seed)
            fitted = dsas.fit(*self.loaded, **sets, **where, **logistic, transform="lineas", progress=False)
            pairs = zip(fitted.rules, learned.rules, strict=True)
            rules = [when._replace(transform=how.transform) for when, how in pairs]
            found = dsas.Steering(rules, fitted.model, learned.settings)
        else:
            found = dsas.train(
                *self.loaded, **sets, **where, **options, steps=self.steps, held_out=dsas.HeldOut(seed=seed),
                checkpoint=folder.with_name(name + ".log"), running=dsas.Running(progress=False),
            )  # fmt: skip
        found.save_pretrained(folder)
        return found

    def strength(self, steering: dsas.Steering) -> float:
        """Return the largest strength of the grid that keeps the budget on the tuning sentences; 0 if none does."""
        identity = fingerprint(self.loaded.model)

        def measured(name: str, value: float, steered: Any) -> list[float]:
            def measure() -> list[float]:
                with steered:
                    return [perplexity(*self.loaded, texts).mean for texts in self.texts.tune.values()]

            return Results(self.out / "tuned").remember("tuned", [name, value, self.texts.tune], measure)

        plain, chosen = measured(identity, 0.0, nullcontext()), 0.0
        for value in GRID:
            applied = steering.apply(self.loaded.model, value, record=False)
            found = measured(f"{identity} {steering.digest()}", value, applied)
            if np.mean([new / old for new, old in zip(found, plain, strict=True)]) > BUDGET:
                break
            chosen = value
        return chosen

    def cell(self, condition: str, steering: dsas.Steering | None, strength: float) -> Cell:
        """Return the measurements of a Steering at a strength, or of the unsteered model."""
        identity = fingerprint(self.loaded.model)
        steered = steering.apply(self.loaded.model, strength, record=False) if steering and strength else nullcontext()
        name = f"{identity} {steering.digest()}" if steering and strength else identity
        return self.bench.cell(condition, strength, name, steered=steered, progress=lambda _: None)

    def drift(self, steering: dsas.Steering) -> float:
        """Return, over held-out neutral sentences, how far tokens move at strength 1, mean over tokens and sites."""
        depends = [fingerprint(self.loaded.model), steering.digest(), self.texts.report]
        return Results(self.out / "drift").remember("drift", depends, lambda: self._drift(steering))

    def _drift(self, steering: dsas.Steering) -> float:
        rules = [rule for rule in steering.rules if rule.weight > 0]
        texts = [text for kind in self.texts.report.values() for text in kind[:25]]
        one = subject_of(*self.loaded).examples(READING)
        work = Work(self.loaded.model, one.run, one.real, one.counted, one.pool)
        moved, tokens = 0.0, 0
        with torch.no_grad(), Passes(work, rules) as passes:
            for batch in one.batches(texts, range(len(texts)), one.batch_size):
                plain, now = (passes.tokens(batch, steered=steered) for steered in (False, True))
                moved += sum(float(drift(a.value, b.value)) for a, b in zip(now, plain, strict=True)) / len(rules)
                tokens += int(batch.mask.sum())
        return moved / tokens


def flags(cells: list[Cell]) -> np.ndarray:
    """Return which continuations the mean of all scorers calls toxic, (prompt, cell x seed)."""
    scores = [np.mean([np.array(values) for values in cell.scores.values()], axis=0) for cell in cells]
    return np.concatenate(scores, axis=1) > 0.5


def against(found: dict[str, list[Cell]], other: str) -> dict[str, Any]:
    """Return each condition's toxic share minus that of another, paired by prompt, over all seeds of either."""
    every = {name: flags(cells).mean(1, keepdims=True) for name, cells in found.items()}
    return {name: bootstrap(own - every[other])._asdict() for name, own in every.items() if name != other}


def summary(lab: Lab, condition: str, jobs: list[tuple[dsas.Steering, float, Cell]]) -> dict[str, Any]:
    """Return one row over all seeds of a condition, with intervals over prompts or sentences."""
    plain = lab.cell("unsteered", None, 0.0)
    cells = [cell for *_, cell in jobs]
    ratios = {}
    for kind, values in plain.perplexities.items():
        now = np.stack([cell.perplexities[kind] for cell in cells], axis=1)
        ratios[kind] = bootstrap_ratio(now, np.array(values)[:, None])._asdict()
    said = [steering.settings.get("training", {}) for steering, *_ in jobs]
    return {
        "condition": condition,
        "strengths": [strength for _, strength, _ in jobs],
        "toxic": bootstrap(flags(cells))._asdict(),
        "toxic unsteered": bootstrap(flags([plain]))._asdict(),
        "toxic by seed": [float(flags([cell]).mean()) for cell in cells],
        "perplexity": ratios,
        "mean perplexity": float(np.mean([ratio["mean"] for ratio in ratios.values()])),
        "drift at strength 1": [lab.drift(steering) for steering, *_ in jobs],
        "sites steered": [sum(rule.weight > 0 for rule in steering.rules) for steering, *_ in jobs],
        **{key: [one.get(key) for one in said] for key in ("support", "best_step", "separation", "stopped")},
    }


def open_lab(arguments: argparse.Namespace) -> Lab:
    folder = str(real_model(arguments.model))
    loaded = load_model(folder, device=arguments.device)
    scorers, out = packaged_scorers(), arguments.out / arguments.model
    out.mkdir(parents=True, exist_ok=True)
    texts = demo_texts(out, bare_setup(folder, loaded, device=arguments.device), progress=False)
    bench = Bench(
        *loaded, prompts=texts.prompts[: arguments.prompts], neutral=texts.report,
        scorers=[*scorers, CharacterGrams()], seeds=[0], sampling=Sampling(), folder=out / "cells",
    )  # fmt: skip
    return Lab(loaded, texts, bench, out, arguments.steps)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", type=Path, default=Path("out/training"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--extras", action="store_true", help="the control term and sparsity instead")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    lab = open_lab(arguments)
    file = lab.out / f"results-{arguments.texts}{'-extras' if arguments.extras else ''}.json"
    conditions = EXTRAS if arguments.extras else CONDITIONS
    found: dict[str, list[tuple[dsas.Steering, float, Cell]]] = {name: [] for name in conditions}
    for seed in range(arguments.seeds):
        for condition, options in conditions.items():
            steering = lab.steering(condition, options, arguments.texts, seed)
            strength = lab.strength(steering)
            found[condition].append((steering, strength, lab.cell(condition, steering, strength)))
            rows = [summary(lab, name, jobs) for name, jobs in found.items() if jobs]
            replace_files({file: json.dumps(rows, indent=1).encode()})
            print(seed, json.dumps(next(row for row in rows if row["condition"] == condition)), flush=True)
    every = {"unsteered": [lab.cell("unsteered", None, 0.0)]}
    every |= {name: [cell for *_, cell in jobs] for name, jobs in found.items()}
    for name in every:
        print(f"toxic share minus that of {name}:", json.dumps(against(every, name)))


if __name__ == "__main__":
    main()
