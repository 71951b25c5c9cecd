"""Claim: at equal damage to clean text, accumulated evidence leaves less toxicity in sampled text.

CAA on the demo's texts with each regulator. The strength of each is that at which tuning texts (Wikipedia, web, news,
prompt style) lose the stated damage on average, in nats per token; toxicity plays no part in it. At that strength the
demo's 303 report prompts are continued, and other texts of the same kinds are read: toxic share and mean score by the
mean of four scorers, three of which chose the texts that were fitted on (`character-grams` did not), nats lost by kind,
and how much language is left where steering acts most: the nats per token that the unsteered model gives to what is
said after the 60 prompts that are most toxic unsteered. 95 % intervals by prompt or text. If interrupted, it resumes.

    python benchmarks/equal_damage.py [--model smollm2|gemma3] [--only NAME ...] [--damage 0.02] [--seeds 2]
        [--draws 16] [--out out/equal_damage]
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import Bench, Cell
from pairs import COPIES, SEEDS, drawn_pairs, learned_from

import dsas
from dsas.demo.data import split, toxic_prompts
from dsas.demo.models import real_model
from dsas.demo.texts import DemoTexts, Sizes, bare_setup, demo_texts
from dsas.evaluation.generations import Sampling
from dsas.evaluation.intervals import Interval, bootstrap, bootstrap_ratio
from dsas.evaluation.loss_curve import Losses, Yardstick, measured_curve
from dsas.evaluation.perplexity import perplexity
from dsas.evaluation.scorers import CharacterGrams, packaged_scorers
from dsas.evaluation.selectivity import selectivity
from dsas.files.results import Results
from dsas.model.identity import fingerprint
from dsas.model.loading import LoadedModel, load_model

REGULATORS: dict[str, Any] = {
    "none": "constant",
    "logistic (the paper's)": "logistic",
    "evidence (the default)": "auto",
    "evidence, read clean": partial(dsas.Clean.fit, of=dsas.Evidence.fit),
    "evidence, 2 %, sharpness 4": partial(dsas.Evidence.fit, false_positives=0.02, sharpness=4.0),
    "evidence, 5 %": partial(dsas.Evidence.fit, false_positives=0.05),
    "evidence, 10 %": partial(dsas.Evidence.fit, false_positives=0.1),
    "evidence, 15 %": partial(dsas.Evidence.fit, false_positives=0.15),
    "evidence, 15 %, sharpness 4": partial(dsas.Evidence.fit, false_positives=0.15, sharpness=4.0),
    "probe": "probe",
}
MOST_TOXIC = 60
PREFERENCE = {"preference, from logistic": "logistic", "preference, from evidence": "auto"}
END_TO_END = "end to end, from evidence"


Finder = Callable[[dsas.Steering], float]


def fitted(
    name: str, loaded: LoadedModel, texts: DemoTexts, folder: Path, draws: int, strength: Finder
) -> dsas.Steering:
    """Return the Steering of a row.

    draws: continuations of each prompt that pairs are made of. strength: what gives the strength of a Steering at the
    stated damage, from which preference goes on.
    """
    sets = {"source": texts.source, "control": texts.control, "target": texts.target}
    asked = REGULATORS.get(name) or PREFERENCE.get(name, "auto")
    steering = dsas.fit(*loaded, **sets, regulator=asked, checkpoint=folder / "collected", progress=False)
    if name in REGULATORS:
        return steering
    kept = folder / f"{name.replace(', ', '-').replace(' ', '-')}-{draws}"
    if not (kept / "config.json").is_file():
        start = strength(steering)
        if name == END_TO_END:
            learned = dsas.train(
                *loaded,
                **sets,
                objective="e2e-dsas",
                start=start * steering,
                steps=20,
                optimiser=dsas.Optimiser("adam", 0.003, 0.003),
                held_out=dsas.HeldOut(0.0),
                reading=dsas.Reading(batch_size=32, max_tokens=64),
                checkpoint=kept.with_suffix(".log"),
            )
            learned.save_pretrained(kept)
            return dsas.Steering.from_pretrained(kept)
        prompts = split(toxic_prompts(), (Sizes().fit,))[0]
        file, seeds = folder / f"pairs-{draws}.json", SEEDS[: draws // COPIES]
        pairs = drawn_pairs(loaded, prompts, packaged_scorers(), file=file, seeds=seeds)
        learned_from(pairs, steering, loaded, texts, kept.with_suffix(".log"), start=start).save_pretrained(kept)
    return dsas.Steering.from_pretrained(kept)


def strength_at(
    damage: float, steering: dsas.Steering, yardstick: Yardstick, loaded: LoadedModel, kept: Results
) -> float:
    """Return the strength at which the yardstick's control texts lose the damage, the largest measured if none does."""

    def losses(strength: float) -> Losses:
        def measure() -> Any:
            found = yardstick.losses(steering.apply(loaded.model, strength, record=False))
            return [found.source.tolist(), {kind: values.tolist() for kind, values in found.control.items()}]

        source, control = kept.remember("losses", [fingerprint(loaded.model), steering.digest(), strength], measure)
        return Losses(np.array(source), {kind: np.array(values) for kind, values in control.items()})

    curve = measured_curve(losses, damage=damage, start=0.2, max_strength=64.0)
    found = selectivity(curve, damage=damage)
    return max(curve.strengths) if found.strength is None else round(found.strength.mean, 4)


def language(cell: Cell, unsteered: Cell, prompts: Sequence[str], loaded: LoadedModel) -> Interval:
    """Return the nats per token that the unsteered model gives to what a cell says after the most toxic prompts."""
    scores = np.mean([np.array(one) for one in unsteered.scores.values()], axis=0).mean(1)
    said = [
        {"prompt": prompts[place], "completion": texts[place]}
        for place in np.argsort(-scores)[:MOST_TOXIC]
        for texts in cell.continuations
        if texts[place].strip()
    ]
    return bootstrap(perplexity(*loaded, said).losses[:, None])


def shown(cell: Cell, unsteered: Cell, sites: int, lost: dict[str, np.ndarray], left: Interval) -> str:
    """Return a row as a line of Markdown."""
    shares = [cell.toxic()[name] for name in ("ensemble", "character-grams")]
    scores = [np.mean([np.array(one) for one in some.scores.values()], axis=0) for some in (cell, unsteered)]
    ratio = bootstrap_ratio(*scores)
    cells = [cell.condition, f"{sites}", f"{cell.strength:.3g}"]
    cells += [f"{100 * one.mean:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]" for one in shares]
    cells += [f"{ratio.mean:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"]
    for values in lost.values():
        one = bootstrap(values[:, None])
        cells.append(f"{one.mean:.3f} [{one.low:.3f}, {one.high:.3f}]")
    cells += [f"{cell.distinct():.2f}", f"{left.mean:.2f} [{left.low:.2f}, {left.high:.2f}]"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--only", nargs="*", default=[*REGULATORS, *PREFERENCE, END_TO_END])
    parser.add_argument("--damage", type=float, default=0.02)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--draws", type=int, default=16, help="continuations of each prompt, 4 at a time, for pairs")
    parser.add_argument("--out", type=Path, default=Path("out/equal_damage"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = arguments.out / arguments.model
    folder.mkdir(parents=True, exist_ok=True)
    name = str(real_model(arguments.model))
    loaded = load_model(name)
    texts = demo_texts(folder, bare_setup(name, loaded), progress=False)
    kinds = list(texts.report)
    tune = Yardstick(*loaded, source=texts.source[:8], control=texts.tune)
    report = Yardstick(*loaded, source=texts.source[:8], control=texts.report)  # only control is looked at
    bench = Bench(
        *loaded,
        prompts=texts.prompts,
        neutral={},
        scorers=[*packaged_scorers(), CharacterGrams()],
        seeds=list(range(arguments.seeds)),
        sampling=Sampling(),
        folder=folder / "cells",
    )
    kept = Results(folder / "measured")
    identity = fingerprint(loaded.model)
    unsteered = bench.cell("unsteered", 0.0, identity, steered=nullcontext(), progress=lambda _: None)
    print(f"n = {len(texts.prompts)} prompts x {arguments.seeds}; fitted on {len(texts.source)} a set", flush=True)
    print("| regulator | sites | strength | toxic, % | by the judge apart | score over unsteered |"
          f" {' | '.join(f'{kind} loses' for kind in kinds)} | distinct pairs | nats said |", flush=True)  # fmt: skip
    nothing = {kind: np.zeros(len(members)) for kind, members in texts.report.items()}
    print(shown(unsteered, unsteered, 0, nothing, language(unsteered, unsteered, texts.prompts, loaded)), flush=True)
    at = partial(strength_at, arguments.damage, yardstick=tune, loaded=loaded, kept=kept)
    for row in arguments.only:
        steering = fitted(row, loaded, texts, folder, arguments.draws, at)
        strength = at(steering)
        steered = steering.apply(loaded.model, strength, record=False)
        cell = bench.cell(row, strength, f"{identity} {steering.digest()}", steered=steered, progress=lambda _: None)
        lost = report.losses(steering.apply(loaded.model, strength, record=False)).control
        sites = sum(rule.weight > 0 for rule in steering.rules)
        left = language(cell, unsteered, texts.prompts, loaded)
        print(shown(cell, unsteered, sites, lost, left), flush=True)
        print("   ", steering.settings.get("held_out_tokens"), flush=True)


if __name__ == "__main__":
    main()
