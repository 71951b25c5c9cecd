"""Make the Steerings in `steerings/`, with the evidence that their cards show. If interrupted, it resumes.

| folder | model | fitted on |
|---|---|---|
| smollm2-toxicity | SmolLM2-135M-Instruct | its own continuations of toxicity prompts, sorted by scorers |
| gemma3-insults | gemma-3-270m | comments that people labelled insulting, and other comments (`behaviours.py`) |
| smollm2-guardrail | SmolLM2-135M-Instruct | harmful, everyday and alarming requests, as in `benchmarks/guardrail.py` |

The first two are CAA with the default regulator, the third is trained by preference. Strengths keep the perplexity of
every kind of tuning text within 1.02, of SmolLM2 with 90 % of bootstrap draws of these texts; that of the guardrail is
also the one that refuses most of the tuning requests. Texts that had no say in any of it check that, once; nothing that
is reported was fitted or tuned on. Numbers are stored, and no text.

    python scripts/make_steerings.py [--only NAME ...] [--out steerings] [--work out/steerings]
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import guardrail
import numpy as np
import torch
from behaviours import texts_of
from cells import Bench

import dsas
from dsas.demo.data import split, toxic_prompts
from dsas.demo.models import real_model
from dsas.demo.texts import Sizes, bare_setup, demo_texts
from dsas.evaluation.coherence import incoherent
from dsas.evaluation.generations import Sampling
from dsas.evaluation.intervals import Interval, bootstrap
from dsas.evaluation.loss_curve import Yardstick
from dsas.evaluation.refusal import RefusalPhrases
from dsas.evaluation.scorers import CharacterGrams, packaged_scorers
from dsas.model.identity import fingerprint
from dsas.model.loading import LoadedModel, load_model

NAMES = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct", "gemma3": "google/gemma-3-270m"}
LICENCES = {"smollm2": "apache-2.0", "gemma3": "gemma"}
BUDGET = dsas.Budget("perplexity", 1.02, worst=True, sure=0.9)
SIZES = Sizes(tune=150, report=203, tune_sentences=100, report_sentences=150)
SEEDS = (0, 1, 2)
NO_PROMISE = (
    "Fitted and measured on a 4-bit build of the model (the registry packages of dsas.demo.models), in English, on "
    "short continuations; the publisher's own weights are relatives of it, on which it was not measured."
)


class Made(NamedTuple):
    """A Steering with its calibration, and what is said of it; `of`: its model, whose licence it has."""

    steering: dsas.Steering
    what: str
    of: str
    evidence: list[str]
    limits: list[str]


def shares(before: Interval, after: Interval) -> str:
    """Return two shares in words."""
    told = [f"{100 * one.mean:.1f} % [{100 * one.low:.1f}, {100 * one.high:.1f}]" for one in (before, after)]
    return f"{told[0]} unsteered, {told[1]} steered"


def calibrated(loaded: LoadedModel, steering: dsas.Steering, tune: Any, held_out: Any, **options: Any) -> dsas.Steering:
    """Return the Steering at the largest strength within the budget."""
    options = {"budget": BUDGET, "progress": False, **options}
    return steering.calibrated(dsas.calibrate(*loaded, steering, tune=tune, held_out=held_out, **options))


def toxic_share(
    loaded: LoadedModel, steering: dsas.Steering, prompts: Sequence[str], work: Path, seeds: Sequence[int] = SEEDS
) -> str:
    """Return how often continuations of prompts are toxic, by the mean of four scorers, unsteered and steered."""
    bench = Bench(
        *loaded, prompts=prompts, neutral={}, scorers=[*packaged_scorers(), CharacterGrams()], seeds=list(seeds),
        sampling=Sampling(), folder=work / "cells",
    )  # fmt: skip
    found, identity = [], fingerprint(loaded.model)
    for strength in (0.0, steering.default_strength):
        steered = steering.apply(loaded.model, strength, record=False) if strength else nullcontext()
        marks = f"{identity} {steering.digest()}" if strength else identity
        cell = bench.cell("", strength, marks, steered=steered, progress=lambda _: None)
        found.append(cell.toxic()["ensemble"])
    return (
        f"toxic continuations (24 tokens, mean of four scorers above 0.5) of {len(prompts)} toxicity prompts x "
        f"{len(seeds)} seeds: {shares(*found)}"
    )


def smollm2_toxicity(work: Path) -> Made:
    """Return the detox of SmolLM2, fitted on the demo's texts."""
    folder = str(real_model("smollm2"))
    loaded = load_model(folder)
    texts = demo_texts(work, bare_setup(folder, loaded), sizes=SIZES, progress=False)
    sets = {"source": texts.source, "control": texts.control, "target": texts.target}
    steering = dsas.fit(*loaded, **sets, checkpoint=work / "collected", progress=False)
    steering = calibrated(loaded, steering, texts.tune, texts.report, start=0.16, checkpoint=work / "calibrated")
    return Made(
        steering, "Makes SmolLM2-135M-Instruct continue less toxically, at little cost to other text.", "smollm2",
        [toxic_share(loaded, steering, texts.prompts, work)],
        [NO_PROMISE, "The scorers that sorted what it was fitted on are three of the four that judge it."],
    )  # fmt: skip


def gemma3_insults(work: Path) -> Made:
    """Return what takes insults from Gemma 3, fitted on labelled comments."""
    loaded = load_model(str(real_model("gemma3")))
    fit, read = texts_of("insults", 200)
    sets = {"source": fit.source, "control": fit.control, "target": fit.control}
    steering = dsas.fit(*loaded, **sets, checkpoint=work / "collected", progress=False)
    kinds = {"comments": read.control, **read.general}
    tune, held_out = ({kind: texts[part] for kind, texts in kinds.items()} for part in (slice(60), slice(60, 160)))
    budget = BUDGET._replace(sure=0.0)
    steering = calibrated(loaded, steering, tune, held_out, budget=budget, checkpoint=work / "calibrated")
    yardstick = Yardstick(*loaded, source=read.source[:100], control=held_out)
    losses = yardstick.losses(steering.apply(loaded.model, steering.default_strength, record=False))
    lost = [bootstrap(one[:, None]) for one in (losses.source, losses.control["comments"])]
    told = [f"{one.mean:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in lost]
    prompts = split(toxic_prompts(), (150,))[0]
    return Made(
        steering, "Makes insults less likely to Gemma 3 270M, at little cost to other text.", "gemma3",
        [f"nats lost per token by {len(losses.source)} held-out comments that people labelled insulting: {told[0]}; by "
         f"{len(losses.control['comments'])} other comments: {told[1]}",
         toxic_share(loaded, steering, prompts, work, SEEDS[:2])],
        [NO_PROMISE, "The comments are of one site and year (2012).", "It is a small effect: insults that people wrote "
         "become less likely, and what the model says by itself does not become less toxic by more than chance."],
    )  # fmt: skip


def smollm2_guardrail(work: Path) -> Made:
    """Return what makes SmolLM2 refuse harmful requests, at the strength that refuses most of the tuning requests."""
    lab, name = guardrail.Lab(work, 100, 0), f"{guardrail.LEARNED}{guardrail.HELD_ROW}"
    steering = lab.steering(name)
    strength, _ = guardrail.chosen_strength(lab, steering, guardrail.ROWS[name].strengths)
    tune, held_out = (
        {kind: lab.conversations(asked[kind], lab.answers(asked[kind])) for kind in ("everyday", "alarming")}
        for asked in (lab.tune, lab.report)
    )
    steering = calibrated(
        lab.loaded, steering, tune, held_out, start=strength / 64, limit=strength, checkpoint=work / "calibrated"
    )
    told = []
    for kind, asked in lab.report.items():
        found = []
        for chosen, at in ((None, 0.0), (steering, steering.default_strength)):
            answers = lab.answers(asked, chosen, at)
            broken = np.array(list(map(incoherent, answers, lab.nats(asked, answers))))
            found.append(bootstrap(((RefusalPhrases()(answers) > 0.5) & ~broken)[:, None]))
        told.append(f"refused of {len(asked)} requests ({kind}), greedy answers, by phrases: {shares(*found)}")
    return Made(
        steering, "Makes SmolLM2-135M-Instruct refuse harmful requests, and next to no others.", "smollm2", told,
        [NO_PROMISE,
         f"At {strength:g} it refuses most of the tuning requests; larger ones refuse fewer and break the language.",
         "It reads the request alone, in the model's chat template, and decides about the whole answer by it.",
         "Sampled at temperature 1 (top-p 0.9) it refuses less, 49 % [42, 55] of HarmBench (docs/lab/guardrail.md).",
         "By another judge, an embedding classifier, both shares are higher, of harmless requests too "
         "(docs/lab/guardrail.md).",
         "Other Steerings had been reported on with the same held-out requests before, in that page."],
    )  # fmt: skip


MAKERS: dict[str, Callable[[Path], Made]] = {
    "smollm2-toxicity": smollm2_toxicity,
    "gemma3-insults": gemma3_insults,
    "smollm2-guardrail": smollm2_guardrail,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=list(MAKERS), choices=list(MAKERS))
    parser.add_argument("--out", type=Path, default=Path("steerings"))
    parser.add_argument("--work", type=Path, default=Path("out/steerings"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in arguments.only:
        work = arguments.work / name
        work.mkdir(parents=True, exist_ok=True)
        made = MAKERS[name](work)
        done = made.steering.described(
            made.what, model=NAMES[made.of], licence=LICENCES[made.of], evidence=made.evidence, limits=made.limits
        )
        done.save_pretrained(arguments.out / name)
        print(name, f"strength {done.default_strength:.4g}", *made.evidence, sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
