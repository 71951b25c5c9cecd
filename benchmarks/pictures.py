"""Claim: with a regulator, steering changes the concept in a picture and leaves other pictures and other things alone.

On the scene model, three concepts are turned into another word (red into blue, square into triangle, night into sand)
by CAA, Linear-AcT and LinEAS, each with the constant and the logistic regulator at the same strengths. Fitted on some
captions; chosen on others is the smallest strength that leaves the concept in at most a tenth of the pictures (damage
has no say); measured on a third set. Picture i of every cell starts from the same noise. Then the paper's figure 1:
night, but only where there is a trigger. Then what a denoising step costs. The recipe (sites, components, branch,
pooling) was chosen with CAA on fit and tuning captions before any report caption was painted. Pictures are kept in
--out: interrupted, it goes on from where it was.

    python benchmarks/pictures.py [--n 200] [--transforms caa] [--out out/pictures]
"""

import argparse
import hashlib
import json
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import dsas
from dsas.demo.scenes import (
    ANY,
    Reading,
    Scene,
    caption,
    paint,
    read,
    regions,
    replaced,
    scene_pipeline,
    scenes_with,
    shows,
    without,
)
from dsas.evaluation.intervals import Interval, bootstrap, bootstrap_ratio, draw_counts, percentile_interval
from dsas.evaluation.picture_change import picture_change
from dsas.evaluation.picture_quality import RandomFeatures, gaussian_distance
from dsas.identity import fingerprint
from dsas.pipeline import module_of
from dsas.reports.pictures import everywhere
from dsas.storage import replace_files

CONCEPTS = {"red": "blue", "square": "triangle", "night": "sand"}
INDUCED = {"ring": "night", "red": "night"}
TRANSFORMS, INDUCING = ("caa", "linear-act", "lineas"), ("caa", "linear-act")
REGULATORS = ("constant", "logistic")
STRENGTHS = (1.0, 2.0, 3.0, 4.0, 6.0)
LEFT = 0.1  # of tuning pictures: the concept that is to go, or the induced one that does not come
FIT, TUNE = 100, 40
SITES = "unet.**.attn2"
DRAWING = dsas.Drawing(steps=10, options={"guidance_scale": 3.0}, batch_size=50)
LOGISTIC = partial(dsas.Logistic.fit, components=20)
LEARNED: dict[str, Any] = {"steps": 15, "optimiser": dsas.Optimiser(rate=0.05), "held_out": dsas.HeldOut(share=0.0)}
LEARNED_ON = 64
TUNING, REPORT = 5, 6  # seeds
DRAWS = 300  # of the Frechet distance, 2000 of all else


class Sets(NamedTuple):
    """Scenes with the concept, the same without it and as they are to become; and mixed ones, with another thing."""

    source: list[Scene]
    control: list[Scene]
    target: list[Scene]
    mixed: list[Scene]


class Task(NamedTuple):
    """A concept, what is to be seen instead (or besides, where it is a trigger), and the scenes of each split."""

    concept: str
    word: str
    fit: Sets
    tune: Sets
    report: Sets


def task_of(concept: str, word: str, *, n: int, induce: bool = False) -> Task:
    """Return a task whose splits share no caption."""
    alone, mixed = (scenes_with(concept, things=things, avoid="" if induce else word) for things in (1, 2))
    if induce:
        alone, mixed = ([one for one in some if one.background not in (word, ANY)] for some in (alone, mixed))
    kept = FIT if not induce else FIT // 2
    later = alone[kept + TUNE :] + (mixed[FIT : FIT + n] if induce else [])
    if n > len(later):
        raise SystemExit(f"only {len(later)} captions of {concept!r} are left to report on")

    def sets(some: list[Scene], seed: int) -> Sets:
        become = [one._replace(background=word) if induce else replaced(one, concept, word) for one in some]
        return Sets(some, without(some, concept, avoid="" if induce else word, seed=seed), become, mixed[FIT:][:n])

    return Task(concept, word, sets(alone[:kept] + mixed[:FIT], 0), sets(alone[kept:][:TUNE], 1), sets(later[:n], 2))


class Lab:
    """The pipeline, and a folder with everything that it painted."""

    def __init__(self, out: Path) -> None:
        self.pipeline, self.out = scene_pipeline(), out
        self.identity = fingerprint(module_of(self.pipeline))
        (out / "painted").mkdir(parents=True, exist_ok=True)

    def painted(
        self, scenes: list[Scene], seed: int, steering: dsas.Steering | None = None, strength: float = 0.0
    ) -> np.ndarray:
        """Return a picture a scene, painted or read back."""
        captions = [caption(one) for one in scenes]
        what = [self.identity, steering.digest() if steering else "", strength, captions, seed, DRAWING.as_dict()]
        file = self.out / "painted" / f"{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]}.png"
        if not file.is_file():
            applied = steering.apply(self.pipeline, strength, record=False) if steering else nullcontext()
            with applied:
                images = paint(self.pipeline, captions, seed=seed, steps=DRAWING.steps)
            stream = BytesIO()
            Image.fromarray(images.reshape(-1, *images.shape[2:])).save(stream, format="png")
            replace_files({file: stream.getvalue()})
        flat = np.asarray(Image.open(file))
        return flat.reshape(len(scenes), -1, *flat.shape[1:])

    def steerings(self, task: Task, transforms: tuple[str, ...]) -> dict[str, dsas.Steering]:
        """Return each transform with each regulator, at the same sites."""
        name = f"{task.concept}-{task.word}"
        texts = {field: [caption(one) for one in getattr(task.fit, field)] for field in Sets._fields[:3]}
        found = {}
        for transform in transforms:
            fitted = dsas.fit(
                self.pipeline, **texts, transform=transform, regulator=LOGISTIC, sites=SITES, selection="all",
                reading=DRAWING, checkpoint=self.out / "collected" / name, progress=False,
            )  # fmt: skip
            if transform == "lineas":
                learned = self._learned(texts, self.out / "learned" / name)
                pairs = zip(fitted.rules, learned.rules, strict=True)
                rules = [when._replace(transform=how.transform) for when, how in pairs]
                fitted = dsas.Steering(rules, fitted.model, learned.settings)
            found |= {f"{transform} + constant": everywhere(fitted), f"{transform} + logistic": fitted}
        return found

    def _learned(self, texts: dict[str, list[str]], folder: Path) -> dsas.Steering:
        if not (folder / "config.json").is_file():
            half = LEARNED_ON // 2
            some = {name: texts[name][:half] + texts[name][-half:] for name in ("source", "target")}
            reading, log = DRAWING._replace(batch_size=16), folder.with_name(f"{folder.name}.log")
            found = dsas.train(
                self.pipeline, **some, **LEARNED, sites=SITES, reading=reading, checkpoint=log, progress=False
            )
            found.save_pretrained(folder)
        return dsas.Steering.from_pretrained(folder)

    def chosen(self, steering: dsas.Steering, sets: Sets, rate: Callable[[np.ndarray], float]) -> float:
        """Return the smallest strength at which `rate` of tuning pictures is at most `LEFT`, or that of the least."""
        rates = {}
        for strength in STRENGTHS:
            rates[strength] = rate(self.painted(sets.source, TUNING, steering, strength))
            if rates[strength] <= LEFT:
                return strength
        return min(rates, key=lambda strength: rates[strength])


def has(readings: list[Reading], concept: str) -> np.ndarray:
    """Return which pictures show a concept."""
    return np.array([shows(reading.scene, concept) for reading in readings], bool)


def share(images: np.ndarray, *, concept: str, lacking: bool = False) -> float:
    """Return the share of pictures that show a concept, or that do not."""
    return float((has(read(images), concept) != lacking).mean())


def mean(values: np.ndarray) -> Interval:
    """Return the mean of one value a picture, with its interval."""
    return bootstrap(np.asarray(values)[:, None])


def removal(lab: Lab, task: Task, steering: dsas.Steering | None, strength: float) -> dict[str, Interval]:
    """Return what steering does to pictures that ask for the concept, and to those that do not."""
    sets = task.report
    asked, found = read(lab.painted(sets.source, REPORT, steering, strength)), {}
    found["concept"], found["instead"] = mean(has(asked, task.concept)), mean(has(asked, task.word))
    found["distance"] = mean(np.array([reading.distance for reading in asked]))
    return found | damage(lab.painted(sets.control, REPORT), lab.painted(sets.control, REPORT, steering, strength))


def damage(before: np.ndarray, after: np.ndarray) -> dict[str, Interval]:
    """Return how far pairs moved, how many are still read as the same scene, and how far they are as sets."""
    same = [one.scene == other.scene for one, other in zip(read(before), read(after), strict=True)]
    return {
        "control change": mean(picture_change(before, after).everywhere),
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
    """Return processor time of a denoising step (a whole picture over its steps), steered over unsteered, in pairs."""

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


def run(lab: Lab, *, n: int, transforms: tuple[str, ...] = TRANSFORMS) -> dict[str, Any]:
    """Return all results at the chosen strengths; `picture_fronts` has the others."""
    found: dict[str, Any] = {"removal": {}, "induction": {}}
    tasks = {name: task_of(name, word, n=n) for name, word in CONCEPTS.items()}
    every = {name: lab.steerings(task, transforms) for name, task in tasks.items()}
    for name, task in tasks.items():
        noise = [lab.painted(task.report.control, seed) for seed in (REPORT, REPORT + 1)]
        rows = {"unsteered": {"strength": 0.0, **removal(lab, task, None, 0.0)}}
        rows["unsteered, other noise"] = {"strength": 0.0, **damage(*noise)}
        found["removal"][name] = rows
        for series, steering in every[name].items():
            strength = lab.chosen(steering, task.tune, partial(share, concept=name))
            cell = {**removal(lab, task, steering, strength), **mixtures(lab, task, steering, strength)}
            rows[series] = {"strength": strength, **cell}
            show(name, series, rows[series])
    for name, word in INDUCED.items():
        task = task_of(name, word, n=n, induce=True)
        found["induction"][name] = rows = {"unsteered": {"strength": 0.0, **induction(lab, task, None, 0.0)}}
        for series, steering in lab.steerings(task, INDUCING).items():
            strength = lab.chosen(steering, task.tune, partial(share, concept=word, lacking=True))
            rows[series] = {"strength": strength, **induction(lab, task, steering, strength)}
            show(name, series, rows[series])
    found["overhead"] = {series: overhead(lab, every["red"][series]) for series in ("caa + constant", "caa + logistic")}
    print(json.dumps(found["overhead"]), flush=True)
    return found


def show(name: str, series: str, row: dict[str, Any]) -> None:
    cells = {
        key: f"{value.mean:.3g} [{value.low:.3g}, {value.high:.3g}]" for key, value in row.items() if key != "strength"
    }
    print(name, series, f"at {row['strength']:g}", cells, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--transforms", nargs="+", default=TRANSFORMS, choices=TRANSFORMS)
    parser.add_argument("--out", type=Path, default=Path("out/pictures"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    lab = Lab(arguments.out)
    found = run(lab, n=arguments.n, transforms=tuple(arguments.transforms))
    replace_files({arguments.out / "pictures.json": json.dumps(found, indent=1).encode()})


if __name__ == "__main__":
    main()
