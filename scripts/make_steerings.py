"""Make the Steerings in `steerings/`, with the evidence that their cards show. Interrupted, it resumes.

| folder | model | fitted on | target |
|---|---|---|---|
| smollm2-toxicity | SmolLM2-135M-Instruct | its own continuations of toxicity prompts, sorted by scorers | Wikipedia |
| gemma3-insults | gemma-3-270m | comments that people labelled insulting, and other comments | the other comments |
| smollm2-pirate | SmolLM2-135M-Instruct | its answers, asked to talk like a pirate, and for nothing | asked not to |

All are CAA with the default regulator at the outputs of all layers. The strength is the largest at which each kind of
tuning text keeps its perplexity within 1.02; texts that had no say in it check that. Nothing that is reported was
fitted or tuned on. No text is stored.

    python scripts/make_steerings.py [--only NAME ...] [--out steerings] [--work out/steerings]
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from behaviours import texts_of
from cells import Bench
from drafted import BEHAVIOURS, FIT, TEST, TUNE, Lab, answer_losses, tuning_sets

import dsas
from dsas.demo.data import split, toxic_prompts
from dsas.demo.models import real_model
from dsas.demo.texts import bare_setup, demo_texts
from dsas.drafting.prompts import prompts_for
from dsas.evaluation.generations import Sampling
from dsas.evaluation.intervals import Interval, bootstrap
from dsas.evaluation.loss_curve import Yardstick
from dsas.evaluation.scorers import CharacterGrams, packaged_scorers
from dsas.model.identity import fingerprint
from dsas.model.loading import LoadedModel, load_model

SMOLLM2, GEMMA3 = "HuggingFaceTB/SmolLM2-135M-Instruct", "google/gemma-3-270m"
BUDGET = dsas.Budget("perplexity", 1.02, worst=True)
SEEDS = (0, 1)
APACHE = "apache-2.0"
NO_PROMISE = (
    "Fitted and measured on a 4-bit build of the model (the registry packages of dsas.demo.models), in English, on "
    "short continuations; the publisher's own weights are relatives of it, on which it was not measured."
)


class Made(NamedTuple):
    """A Steering with its calibration, and what is said of it; the licence is that of the model."""

    steering: dsas.Steering
    what: str
    model: str
    licence: str
    evidence: list[str]
    limits: list[str]


def shares(before: Interval, after: Interval) -> str:
    """Return two shares in words."""
    told = [f"{100 * one.mean:.1f} % [{100 * one.low:.1f}, {100 * one.high:.1f}]" for one in (before, after)]
    return f"{told[0]} unsteered, {told[1]} steered"


def calibrated(loaded: LoadedModel, steering: dsas.Steering, tune: Any, held_out: Any, **options: Any) -> dsas.Steering:
    """Return the Steering at the largest strength within the budget."""
    budget = options.pop("budget", BUDGET)
    return steering.calibrated(
        dsas.calibrate(*loaded, steering, tune=tune, held_out=held_out, budget=budget, progress=False, **options)
    )


def toxic_share(loaded: LoadedModel, steering: dsas.Steering, prompts: Sequence[str], work: Path) -> str:
    """Return how often continuations of prompts are toxic, by the mean of four scorers, unsteered and steered."""
    bench = Bench(
        *loaded, prompts=prompts, neutral={}, scorers=[*packaged_scorers(), CharacterGrams()], seeds=list(SEEDS),
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
        f"{len(SEEDS)} seeds: {shares(*found)}"
    )


def smollm2_toxicity(work: Path) -> Made:
    """Return the detox of SmolLM2, fitted on the demo's texts."""
    name = str(real_model("smollm2"))
    loaded = load_model(name)
    texts = demo_texts(work, bare_setup(name, loaded), progress=False)
    sets = {"source": texts.source, "control": texts.control, "target": texts.target}
    steering = dsas.fit(*loaded, **sets, checkpoint=work / "collected", progress=False)
    steering = calibrated(loaded, steering, texts.tune, texts.report, checkpoint=work / "calibrated")
    return Made(
        steering, "Makes SmolLM2 continue less toxically, at little cost to other text.", SMOLLM2, APACHE,
        [toxic_share(loaded, steering, texts.prompts, work)],
        [NO_PROMISE, "The scorers that sorted what it was fitted on are three of the four that judge it."],
    )  # fmt: skip


def gemma3_insults(work: Path) -> Made:
    """Return the detox of Gemma 3, fitted on labelled comments."""
    loaded = load_model(str(real_model("gemma3")))
    fit, read = texts_of("insults", 200)
    sets = {"source": fit.source, "control": fit.control, "target": fit.control}
    steering = dsas.fit(*loaded, **sets, checkpoint=work / "collected", progress=False)
    kinds = {"comments": read.control, **read.general}
    tune, held_out = ({kind: texts[part] for kind, texts in kinds.items()} for part in (slice(60), slice(60, 160)))
    steering = calibrated(loaded, steering, tune, held_out, checkpoint=work / "calibrated")
    yardstick = Yardstick(*loaded, source=read.source[:100], control=held_out)
    losses = yardstick.losses(steering.apply(loaded.model, steering.default_strength, record=False))
    lost = [bootstrap(one[:, None]) for one in (losses.source, losses.control["comments"])]
    told = [f"{one.mean:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in lost]
    prompts = split(toxic_prompts(), (150,))[0]
    return Made(
        steering, "Makes insults less likely to Gemma 3 270M, at little cost to other text.", GEMMA3, "gemma",
        [f"nats lost per token by {len(losses.source)} held-out comments that people labelled insulting: {told[0]}; by "
         f"{len(losses.control['comments'])} other comments: {told[1]}", toxic_share(loaded, steering, prompts, work)],
        [NO_PROMISE, "The comments are of one site and year (2012)."],
    )  # fmt: skip


def smollm2_pirate(work: Path) -> Made:
    """Return what keeps SmolLM2 from talking like a pirate when it is asked to, fitted on drafted sets."""
    lab = Lab(work)
    behaviour, shows = BEHAVIOURS["pirate"]
    sets = lab.drafted("pirate").sets()
    steering = dsas.fit(*lab.loaded, **sets, checkpoint=work / "collected", progress=False)
    tune, held_out = (tuning_sets(lab, behaviour, questions) for questions in (TUNE, TEST))
    budget = BUDGET._replace(measure=answer_losses)
    steering = calibrated(lab.loaded, steering, tune, held_out, budget=budget, checkpoint=work / "calibrated")
    rendered = [text for one in prompts_for(behaviour).unwanted[:2] for text in lab.asked(one, TEST)]
    found = []
    for chosen, strength in ((None, 0.0), (steering, steering.default_strength)):
        drawn = [lab.sampled(rendered, seed, chosen, strength) for seed in SEEDS]
        shown = np.array([[shows(text) for text in texts] for texts in drawn])
        found.append(bootstrap(shown.reshape(len(SEEDS) * 2, len(TEST)).T.astype(float)))
    return Made(
        steering, "Keeps SmolLM2 from talking like a pirate when it is asked to.",
        SMOLLM2, APACHE,
        [f"answers with a word of pirates, asked to talk like one (32 tokens, {len(TEST)} questions x 2 wordings x "
         f"{len(SEEDS)} seeds): {shares(*found)}"],
        [NO_PROMISE, "Its budget was not kept on held-out answers (see Strength): 30 questions tune a regulator that "
         "seldom fires badly. Calibrate it on answers of your own.",
         f"Drafted from {len(FIT)} questions; the rule that chose the answers also judges it.",
         "A showcase of `dsas draft`: fit your own behaviour in the same way."],
    )  # fmt: skip


MAKERS: dict[str, Callable[[Path], Made]] = {
    "smollm2-toxicity": smollm2_toxicity,
    "smollm2-pirate": smollm2_pirate,
    "gemma3-insults": gemma3_insults,
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
            made.what, model=made.model, licence=made.licence, evidence=made.evidence, limits=made.limits
        )
        done.save_pretrained(arguments.out / name)
        print(name, f"strength {done.default_strength:.4g}", *made.evidence, sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
