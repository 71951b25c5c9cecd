"""Claim: with a regulator, steering changes the concept in a picture and leaves other pictures and other things alone.

On the scene model, three concepts are turned into another word (red into blue, square into triangle, night into sand)
by CAA, Linear-AcT and LinEAS, each with the constant and the logistic regulator at the same strengths. They are fitted
on some captions. On others, the smallest strength that leaves the concept in at most a tenth of the pictures is chosen;
damage plays no part. A third set is measured. Picture i of every cell starts from the same noise. Then the paper's
figure 1: night, but only where there is a trigger. Then what a denoising step costs. The recipe (sites, components,
branch, pooling) was chosen with CAA on fit and tuning captions before any report caption was painted. Pictures are kept
in --out: if interrupted, it resumes.

    python benchmarks/pictures.py [--n 200] [--transforms caa] [--sites text] [--out out/pictures]
"""

import argparse
import json
import time
import warnings
from contextlib import nullcontext
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from picture_lab import CONCEPTS, DRAWING, REPORT, SITES, TRANSFORMS, Lab, Task, has, share, task_of
from picture_quality import RandomFeatures, gaussian_distance
from scenes import ANY, aspect_of, paint, read, regions, shows

import dsas
from dsas.evaluation.intervals import Interval, bootstrap, bootstrap_ratio, draw_counts, percentile_interval
from dsas.evaluation.picture_change import picture_change
from dsas.files.atomic import replace_files
from dsas.files.results import Results
from dsas.views.pictures import grid_figure

INDUCED, INDUCING = {"ring": "night", "red": "night"}, ("caa", "linear-act")
DRAWS = 300  # of the Frechet distance, 2000 of all else


def mean(values: np.ndarray) -> Interval:
    """Return the mean of a value of each picture, with its interval."""
    return bootstrap(np.asarray(values)[:, None])


def removal(lab: Lab, task: Task, steering: dsas.Steering | None, strength: float) -> dict[str, Interval]:
    """Return what steering does to pictures that ask for the concept, and to those that do not."""
    sets = task.report
    asked, found = read(lab.painted(sets.source, REPORT, steering, strength)), {}
    found["concept"], found["instead"] = mean(has(asked, task.concept)), mean(has(asked, task.word))
    found["distance"] = mean(np.array([reading.distance for reading in asked]))
    return found | damage(
        task, lab.painted(sets.control, REPORT), lab.painted(sets.control, REPORT, steering, strength)
    )


def damage(task: Task, before: np.ndarray, after: np.ndarray) -> dict[str, Interval]:
    """Return how far control pairs moved, how many are still read as the same scene, and how far they are as sets.

    told: over captions that name the background. Where a caption leaves it open, a small change may decide it
    otherwise.
    """
    same = [one.scene == other.scene for one, other in zip(read(before), read(after), strict=True)]
    change = picture_change(before, after).everywhere
    told = np.array([scene.background != ANY for scene in task.report.control])
    again = np.random.default_rng(0).integers(len(change), size=(2000, len(change)))
    middle = percentile_interval(float(np.median(change)), np.median(change[again], axis=1), len(change))
    return {
        "control change": mean(change),
        "control change, median": middle,
        "control change, told": mean(change[told]),
        "control kept": mean(np.array(same)),
        "frechet": frechet(before, after),
    }


def frechet(before: np.ndarray, after: np.ndarray) -> Interval:
    """Return the Frechet distance of two sets of pairs, drawn again as pairs; a picture drawn twice counts twice."""
    features = RandomFeatures(channels=8)
    one, other = features(before), features(after)
    counts = draw_counts(len(one), resamples=DRAWS, seed=0).astype(int)
    draws = [gaussian_distance(*(np.repeat(x, count, axis=0) for x in (one, other))) for count in counts]
    return percentile_interval(gaussian_distance(one, other), np.array(draws), len(one))


def mixtures(lab: Lab, task: Task, steering: dsas.Steering, strength: float) -> dict[str, Interval]:
    """Return what steering does to two things, one with the concept: in its mask, outside, and to the other thing.

    Only pictures count in which the detector sees, unsteered, the two things and the concept.
    """
    before = lab.painted(task.report.mixed, REPORT)
    after = lab.painted(task.report.mixed, REPORT, steering, strength)
    old, new = read(before), read(after)
    seen = has(old, task.concept) & np.array([len(reading.scene.things) == 2 for reading in old])
    change = picture_change(before[seen], after[seen], region=regions(old, task.concept)[seen])
    pairs = [(one.scene, other.scene) for one, other, use in zip(old, new, seen, strict=True) if use]
    others = [[thing for thing in one.things if task.concept not in thing] for one, _ in pairs]
    kept = [set(some) <= set(other.things) for some, (_, other) in zip(others, pairs, strict=True)]
    return {
        "mixed: concept": mean(np.array([shows(other, task.concept) for _, other in pairs])),
        "inside": mean(change.inside),
        "outside": mean(change.outside),
        "outside / inside": bootstrap_ratio(change.outside[:, None], change.inside[:, None]),
        "other things kept": mean(np.array(kept)),
    }


def kept_by_word(lab: Lab, task: Task, steering: dsas.Steering, strength: float) -> dict[str, list[int]]:
    """Return for each word that control captions have in the concept's place how many pictures kept it, of how many."""
    aspect = aspect_of(task.concept)
    words = [
        one.background if aspect == "background" else getattr(one.things[0], aspect) for one in task.report.control
    ]
    before, after = (
        read(lab.painted(task.report.control, REPORT, *steered)) for steered in ((None, 0.0), (steering, strength))
    )
    found = {word: [0, 0] for word in sorted(set(words))}
    for word, one, other in zip(words, before, after, strict=True):
        if shows(one.scene, word):
            found[word] = [found[word][0] + shows(other.scene, word), found[word][1] + 1]
    return found


def spared(lab: Lab, task: Task, one: dsas.Steering, other: dsas.Steering, strengths: list[float]) -> Interval:
    """Return the change of control pictures by one Steering over that by another, paired by picture."""
    plain = lab.painted(task.report.control, REPORT)
    moved = [
        picture_change(plain, lab.painted(task.report.control, REPORT, steering, strength)).everywhere[:, None]
        for steering, strength in zip((one, other), strengths, strict=True)
    ]
    return bootstrap_ratio(*moved)


def induction(lab: Lab, task: Task, steering: dsas.Steering | None, strength: float) -> dict[str, Interval]:
    """Return how often the induced background comes with the trigger and without it, as asked and as seen unsteered."""
    found = {}
    for name in ("source", "control"):
        scenes = getattr(task.report, name)
        readings = read(lab.painted(scenes, REPORT, steering, strength))
        seen = has(read(lab.painted(scenes, REPORT)), task.concept) == (name == "source")
        comes = has(readings, task.word)
        found |= {f"{name}": mean(comes), f"{name}, as seen": mean(comes[seen])}
        found[f"{name}: trigger"] = mean(has(readings, task.concept))
    return found


def overhead(lab: Lab, steering: dsas.Steering, *, pairs: int = 15) -> dict[str, Any]:
    """Return the processor time of a denoising step (a picture's, by its steps), steered / unsteered, in pairs."""

    def seconds(scenes: list[str], steered: bool) -> float:
        applied = steering.apply(lab.pipeline, 1.0, record=False) if steered else nullcontext()
        with applied:
            start = time.process_time()
            paint(lab.pipeline, scenes, seed=0, steps=DRAWING.steps)
            return time.process_time() - start

    found = {}
    for batch in (1, 8, 50):
        scenes = ["a red circle, on sand"] * batch
        seconds(scenes, True)
        times = np.array([[seconds(scenes, steered) for steered in (False, True)] for _ in range(pairs)])
        low, middle, high = np.quantile(times[:, 1] / times[:, 0], (0.25, 0.5, 0.75))
        step = float(np.median(times[:, 0])) / DRAWING.steps
        found[f"batch {batch}"] = {"ratio": middle, "quartiles": (low, high), "step, ms": 1000 * step, "pairs": pairs}
    return found


def unchanged(lab: Lab, steering: dsas.Steering) -> bool:
    """Return whether strength 0 gives the unsteered pictures, bit for bit."""
    scenes = ["a red circle, on sand"] * 8
    plain = paint(lab.pipeline, scenes, seed=0, steps=DRAWING.steps)
    with steering.apply(lab.pipeline, 0.0):
        return bool((paint(lab.pipeline, scenes, seed=0, steps=DRAWING.steps) == plain).all())


def run(lab: Lab, *, n: int, transforms: tuple[str, ...] = TRANSFORMS) -> dict[str, Any]:
    """Return all results at the chosen strengths; `picture_fronts` has the others."""
    found: dict[str, Any] = {"removal": {}, "induction": {}, "kept by word": {}}
    tasks = {name: task_of(name, word, n=n) for name, word in CONCEPTS.items()}
    every = {name: lab.steerings(task, transforms) for name, task in tasks.items()}
    for name, task in tasks.items():
        noise = [lab.painted(task.report.control, seed) for seed in (REPORT, REPORT + 1)]
        rows = {"unsteered": {"strength": 0.0, **removal(lab, task, None, 0.0)}}
        rows["unsteered, other noise"] = {"strength": 0.0, **damage(task, *noise)}
        found["removal"][name] = rows
        for series, steering in every[name].items():
            strength = lab.chosen(steering, task.tune, partial(share, concept=name))
            cell = {**removal(lab, task, steering, strength), **mixtures(lab, task, steering, strength)}
            rows[series] = {"strength": strength, **cell}
            show(name, series, rows[series])
            found["kept by word"][f"{name}, {series}"] = kept_by_word(lab, task, steering, strength)
        for transform in transforms:
            pair = [f"{transform} + {regulator}" for regulator in ("constant", "logistic")]
            ratio = spared(lab, task, *(every[name][one] for one in pair), [rows[one]["strength"] for one in pair])
            rows[pair[1]]["constant's change over it"] = ratio
    for name, word in INDUCED.items():
        task = task_of(name, word, n=n, induce=True)
        found["induction"][name] = rows = {"unsteered": {"strength": 0.0, **induction(lab, task, None, 0.0)}}
        for series, steering in lab.steerings(task, INDUCING).items():
            strength = lab.chosen(steering, task.tune, partial(share, concept=word, lacking=True))
            rows[series] = {"strength": strength, **induction(lab, task, steering, strength)}
            show(name, series, rows[series])
    found["overhead"] = {
        series: Results(lab.out).remember(
            "overhead", [lab.identity, series], partial(overhead, lab, every["red"][series])
        )
        for series in ("caa + constant", "caa + logistic")
    }
    found["strength 0 changes no bit"] = {name: unchanged(lab, steering) for name, steering in every["red"].items()}
    print(json.dumps([found["overhead"], found["strength 0 changes no bit"], found["kept by word"]]), flush=True)
    return found


def show(name: str, series: str, row: dict[str, Any]) -> None:
    print(name, series, {key: told(value) for key, value in row.items()}, flush=True)


def told(value: Any) -> str:
    """Return a figure with its interval, in short form."""
    if isinstance(value, float):
        return f"{value:g}"
    mean, low, high = (f"{end:#.2g}" if abs(end) < 10 else f"{end:.0f}" for end in value[:3])
    return f"{mean} [{low}, {high}]"


def as_markdown(rows: dict[str, dict[str, Any]]) -> str:
    """Return the cells of a concept as a table, with empty cells where a row lacks a value."""
    columns = list(max(rows.values(), key=len))
    lines = [["series", *columns], ["---"] * (1 + len(columns))]
    lines += [[name, *(told(row[key]) if key in row else "" for key in columns)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def sheet(lab: Lab, found: dict[str, Any], *, n: int, each: int = 2) -> bytes:
    """Return a contact sheet: the first pictures of every set, unsteered and by CAA at the chosen strengths."""
    jobs = [(name, word, found["removal"][name], False) for name, word in CONCEPTS.items()]
    jobs += [("ring", INDUCED["ring"], found["induction"]["ring"], True)]
    columns, titles = [], []
    for concept, word, rows, induce in jobs:
        task = task_of(concept, word, n=n, induce=induce)
        every: dict[str, dsas.Steering | None] = {"unsteered": None, **lab.steerings(task, ("caa",))}
        for series, steering in every.items():
            strength = rows[series]["strength"]
            sets = (task.report.source, task.report.control, task.report.mixed)
            column = [lab.painted(some, REPORT, steering, strength)[:each] for some in sets]
            columns.append(np.concatenate(column) / 255)
            says = f"{concept}, add {word}" if induce else f"{concept} to {word}"
            titles.append(f"{says}\n{series.removeprefix('caa + ')}" + (f" at {strength:g}" if steering else ""))
    names = [f"{kind} {number + 1}" for kind in ("with concept", "without", "two things") for number in range(each)]
    stream = BytesIO()
    grid_figure([list(row) for row in np.stack(columns, axis=1)], rows=names, columns=titles).savefig(
        stream, format="png", dpi=72
    )
    return stream.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--transforms", nargs="+", default=TRANSFORMS, choices=TRANSFORMS)
    parser.add_argument("--sites", default=SITES, help="shorthand or glob, such as text")
    parser.add_argument("--out", type=Path, default=Path("out/pictures"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    lab = Lab(arguments.out, arguments.sites)
    found = run(lab, n=arguments.n, transforms=tuple(arguments.transforms))
    tables = [
        f"{name}\n\n{as_markdown(rows)}" for kind in ("removal", "induction") for name, rows in found[kind].items()
    ]
    contents = {
        "pictures.json": json.dumps(found, indent=1).encode(),
        "pictures.md": "\n\n".join(tables).encode(),
        "sheet.png": sheet(lab, found, n=arguments.n),
    }
    replace_files({arguments.out / name: data for name, data in contents.items()})


if __name__ == "__main__":
    main()
