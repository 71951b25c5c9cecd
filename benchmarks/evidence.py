"""Claim: with a regulator, steering removes toxicity at a small fraction of the cost without one.

Fits CAA, ITI, Linear-AcT and LinEAS each with the constant and the logistic regulator, CAA with CAST and MERA,
E2E-DSAS, and CAA with and without DSAS further trained on preference pairs of continuations, on texts of 70 prompts;
chooses each strength on other texts (Wikipedia and clean prompts; toxicity plays no part); and measures all of them on
503 other prompts x 3 seeds, on four kinds of neutral text, two of which (web, news) neither the control nor the tuning
texts contain, on SocialIQA, and by the other model as a judge. If interrupted, it resumes.

    python benchmarks/evidence.py --model smollm2|gemma3 [--workers 2] [--series NAME ...] [--questions 600]
        [--out out/evidence]
"""

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pairs import drawn_pairs, learned_from
from questions import social_iqa

import dsas
from dsas.demo.data import split, toxic_prompts
from dsas.demo.models import real_model
from dsas.demo.texts import DemoTexts, Sizes, bare_setup, demo_texts
from dsas.evaluation.scorers import packaged_scorers
from dsas.model.identity import fingerprint
from dsas.model.loading import LoadedModel, load_model
from dsas.parallel.workers import Spread
from dsas.reports.pareto import write_pareto_report
from dsas.sweep.jobs import Part, Setup
from dsas.sweep.run import Grid, Series, run_sweep

SIZES = Sizes(fit=70, tune=50, report=503, draws=9, tune_sentences=60, report_sentences=200)
TUNED_ON = ("Wikipedia", "prompt style")
JUDGES = {"smollm2": "gemma3", "gemma3": "smollm2"}
ADDED = (0.03, 0.2)  # strengths of what is fitted on the residual stream, measured beside the chosen one
BY_ROW = (0.03, 0.2, 0.8)  # of what steers some rows, or as far as it must
TRAINED = (0.3, 1.0, 3.0)  # of what is trained
STEPS = 20
READING = dsas.Reading(batch_size=32, max_tokens=64)


class Plan(NamedTuple):
    """A series by name: what makes it, and its strengths."""

    transform: str
    regulator: str
    strengths: tuple[float, ...]


PLANS = {
    **{
        f"{transform} + {regulator}": Plan(transform, regulator, ADDED)
        for transform in ("caa", "iti", "linear-act")
        for regulator in ("constant", "logistic")
    },
    **{f"lineas + {regulator}": Plan("lineas", regulator, TRAINED) for regulator in ("constant", "logistic")},
    **{f"caa + {regulator}": Plan("caa", regulator, BY_ROW) for regulator in ("cast", "mera")},
    "e2e-dsas": Plan("lineas", "e2e", TRAINED),
    "preference": Plan("caa", "preference", (0.5, 0.7, *TRAINED[1:])),
    "preference + constant": Plan("caa", "preference-constant", (0.5, 1.0)),
}


def steering_of(plan: Plan, loaded: LoadedModel, texts: DemoTexts, folder: Path) -> dsas.Steering:
    """Return the Steering of a plan, fitted or trained, or read back."""
    sets: dict[str, Any] = {"source": texts.source, "control": texts.control, "target": texts.target}
    if plan.regulator.startswith("preference"):
        prompts, scorers = split(toxic_prompts(), SIZES[:1])[0], packaged_scorers()
        pairs = drawn_pairs(loaded, prompts, scorers, file=folder / "pairs.json")
        clean = texts.control[: len(texts.control) // 2]
        regulator = "constant" if plan.regulator.endswith("constant") else "logistic"
        given: dict[str, Any] = {**sets, "target": clean, "regulator": regulator}
        fitted = dsas.fit(*loaded, **given, checkpoint=folder / "collected")
        return kept(folder / plan.regulator, lambda log: learned_from(pairs, fitted, loaded, texts, log))
    if plan.transform != "lineas":
        asked = {"transform": plan.transform, "regulator": plan.regulator}
        return dsas.fit(*loaded, **sets, **asked, checkpoint=folder / "collected")
    where: dict[str, Any] = {"sites": "norm", "reading": READING}
    if plan.regulator == "e2e":
        where["objective"] = "e2e-dsas"
    name = "e2e" if plan.regulator == "e2e" else "lineas"
    learned = kept(folder / name, lambda log: dsas.train(*loaded, **sets, **where, steps=STEPS, checkpoint=log))
    if plan.regulator != "logistic":
        return learned
    fitted = dsas.fit(*loaded, **sets, **where, transform="lineas", regulator=plan.regulator)
    pairs = zip(fitted.rules, learned.rules, strict=True)
    rules = [when._replace(transform=how.transform) for when, how in pairs]
    return dsas.Steering(rules, fitted.model, learned.settings)


def kept(folder: Path, make: Callable[[Path], dsas.Steering]) -> dsas.Steering:
    """Return what `make` gives, stored in `folder` the first time; it is given a folder for its state."""
    if not (folder / "config.json").is_file():
        make(folder.with_name(f"{folder.name}.log")).save_pretrained(folder)
    return dsas.Steering.from_pretrained(folder)


def setup_of(name: str, loaded: LoadedModel, texts: DemoTexts, questions: int, threads: int) -> Setup:
    """Return what all cells are measured on."""
    parts = {
        "tune": Part(perplexity={kind: tuple(texts.tune[kind]) for kind in TUNED_ON}),
        "report": Part(
            perplexity={kind: tuple(some) for kind, some in texts.report.items()},
            kl={kind: tuple(some[:25]) for kind, some in texts.report.items()},
            choice={"SocialIQA": tuple(social_iqa()[:questions])},
        ),
    }
    return Setup(
        model=str(real_model(name)), fingerprint=fingerprint(loaded.model), prompts=tuple(texts.prompts), parts=parts,
        judge=str(real_model(JUDGES[name])), threads=threads,
    )  # fmt: skip


def opened(name: str, out: Path, sizes: Sizes) -> tuple[Path, LoadedModel, DemoTexts]:
    """Return the folder of a model's results, the model, and its texts, which are sampled the first time."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    loaded = load_model(str(real_model(name)))
    return folder, loaded, demo_texts(folder, bare_setup(str(real_model(name)), loaded), sizes=sizes, progress=False)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2", choices=sorted(JUDGES))
    parser.add_argument("--series", nargs="*", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--questions", type=int, default=600)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--ray", default="")
    parser.add_argument("--out", type=Path, default=Path("out/evidence"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    folder, loaded, texts = opened(arguments.model, arguments.out, SIZES)
    print({"source": len(texts.source), "control": len(texts.control)}, {k: len(v) for k, v in texts.report.items()})
    plans = {name: PLANS[name] for name in arguments.series}
    series = [
        Series(name, steering_of(plan, loaded, texts, folder), plan.transform, plan.regulator, plan.strengths)
        for name, plan in plans.items()
    ]
    spread = Spread(arguments.workers, arguments.ray)
    setup = setup_of(arguments.model, loaded, texts, arguments.questions, spread.threads)
    command = f"python benchmarks/evidence.py --model {arguments.model}"
    chosen = run_sweep(folder, setup, series, grid=Grid(), spread=spread, command=command)
    print(json.dumps({name: found.strength for name, found in chosen.items()}))
    write_pareto_report(folder)


if __name__ == "__main__":
    main()
