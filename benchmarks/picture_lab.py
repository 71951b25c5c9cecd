"""The lab of `pictures.py` and `picture_fronts.py`: their tasks on the scene model, its Steerings and its pictures.

Everything that is painted, fitted or learned is kept in a folder, under a hash of all that it depends on.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scenes import (
    ANY,
    Reading,
    Scene,
    caption,
    paint,
    read,
    replaced,
    scene_pipeline,
    scenes_with,
    shows,
    without,
)

import dsas
from dsas.files.atomic import replace_files
from dsas.model.subject import subject_of
from dsas.reports.pictures import everywhere

CONCEPTS = {"red": "blue", "square": "triangle", "night": "sand"}
TRANSFORMS = ("caa", "linear-act", "lineas")
STRENGTHS = (1.0, 2.0, 3.0, 4.0, 6.0)
LEFT = 0.1  # share of tuning pictures that still have the concept, or that lack the induced one
FIT, TUNE = 100, 40
SITES = "unet.**.attn2"
DRAWING = dsas.Drawing(steps=10, options={"guidance_scale": 3.0}, batch_size=50)
LOGISTIC = partial(dsas.Logistic.fit, components=20)
LEARNED: dict[str, Any] = {"steps": 15, "optimiser": dsas.Optimiser(rate=0.05), "held_out": dsas.HeldOut(share=0.0)}
LEARNED_ON = 64
TUNING, REPORT = 5, 6  # seeds


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
    """The pipeline, the sites at which it is steered, how it draws, and a folder with everything that it painted."""

    def __init__(self, out: Path, sites: str = SITES, *, guidance: float = 3.0) -> None:
        self.pipeline, self.out, self.sites = scene_pipeline(), out, sites
        self.drawing = DRAWING._replace(options={"guidance_scale": guidance})
        self.identity = subject_of(self.pipeline).identity.fingerprint
        (out / "painted").mkdir(parents=True, exist_ok=True)

    def painted(
        self, scenes: list[Scene], seed: int, steering: dsas.Steering | None = None, strength: float = 0.0
    ) -> np.ndarray:
        """Return a picture of each scene, painted now or read back."""
        captions = [caption(one) for one in scenes]
        what = [self.identity, steering.digest() if steering else "", strength, captions, seed, self.drawing.as_dict()]
        file = self.out / "painted" / f"{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]}.png"
        if not file.is_file():
            applied = steering.apply(self.pipeline, strength, record=False) if steering else nullcontext()
            with applied:
                guidance = float(self.drawing.options["guidance_scale"])  # type: ignore
                images = paint(self.pipeline, captions, seed=seed, steps=self.drawing.steps, guidance=guidance)
            stream = BytesIO()
            Image.fromarray(images.reshape(-1, *images.shape[2:])).save(stream, format="png")
            replace_files({file: stream.getvalue()})
        flat = np.asarray(Image.open(file))
        return flat.reshape(len(scenes), -1, *flat.shape[1:])

    def steerings(self, task: Task, transforms: tuple[str, ...]) -> dict[str, dsas.Steering]:
        """Return each transform with each regulator, at the same sites."""
        name = f"{task.concept}-{task.word}-{self.sites.replace('*', '')}"
        texts: dict[str, Any] = {
            field: [caption(one) for one in getattr(task.fit, field)] for field in Sets._fields[:3]
        }
        found = {}
        for transform in transforms:
            fitted = dsas.fit(
                self.pipeline, **texts, transform=transform, regulator=LOGISTIC, sites=self.sites, selection="all",
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
                self.pipeline, **some, **LEARNED, sites=self.sites, reading=reading, checkpoint=log,
                running=dsas.Running(progress=False),
            )  # fmt: skip
            found.save_pretrained(folder)
        return dsas.Steering.from_pretrained(folder)

    def chosen(self, steering: dsas.Steering, sets: Sets, rate: Callable[[np.ndarray], float]) -> float:
        """Return the smallest strength whose `rate` in tuning pictures is at most `LEFT`, else that of the least."""
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
