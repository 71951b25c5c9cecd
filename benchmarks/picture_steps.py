"""Question: does steering a concept in only some of the denoising steps change less of everything else?

The concepts of `picture_concepts.py`, strength 1, the same captions and noise as there: paired maps with the located
regulator, in windows of the ten steps, at two kinds of sites. The keys and values of cross-attention read the tokens of
the prompt at every step; the outputs of cross-attention are read position by position, there also with a regulator for
each step, and with a map and a regulator for each step. Windows were chosen with --choose, on tuning captions from
other noise. Pictures are kept in --out. It has not been run to its end yet, so the docs have no numbers from it.

    python benchmarks/picture_steps.py [--n 200] [--concepts red square night] [--settings ...] [--choose]
                                       [--out out/pictures]
"""

import argparse
import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from picture_concepts import (
    BY_TOKEN,
    CONCEPTS,
    REPORT,
    SITES,
    TUNING,
    Lab,
    Painter,
    Recipe,
    Task,
    fitted,
    other_mixed,
    removed,
    said,
    task_of,
)  # fmt: skip
from scenes import caption

import dsas
from dsas.files.atomic import replace_files
from dsas.model.drawing import prompt_batches
from dsas.model.picture_activations import drawn_activations
from dsas.model.pipeline_modules import PipelineModules
from dsas.model.subject import subject_of

STEPS = BY_TOKEN.steps
POSITIONS = Recipe("paired", "located", SITES)
PROMPT = Recipe("paired", "located", ("unet.**.attn2.to_k", "unet.**.attn2.to_v"), BY_TOKEN._replace(steps=1))


class Stepwise(NamedTuple):
    """A Steering for each step."""

    steerings: tuple[dsas.Steering, ...]

    def digest(self) -> str:
        """Return what identifies these Steerings."""
        return " ".join(one.digest() for one in self.steerings)

    def apply(self, pipeline: object, strength: float, *, record: bool) -> object:
        """Return the context manager inside which all act, each in its own step."""
        every = self.steerings[0] | self.steerings[1]
        for one in self.steerings[2:]:
            every = every | one
        return every.apply(pipeline, strength, record=record)


def stepwise(painter: Painter, task: Task) -> Stepwise:
    """Return a map and a regulator for each step, each fitted on what the sites did in that step alone."""
    pipeline = painter.lab.pipeline
    subject, reading = subject_of(pipeline), BY_TOKEN._replace(per_step=True)
    sites = subject.sites(SITES)
    sets = []
    for scenes in (task.fit.source, task.fit.control, task.fit.target):
        batches = prompt_batches([caption(one) for one in scenes], range(len(scenes)), reading.batch_size)
        parts = list(drawn_activations(PipelineModules(pipeline), batches, sites, reading))
        sets.append({site: torch.cat([part[site] for part in parts]) for site in sites})
    source, control, target = sets

    def rule(site: dsas.Site, step: int) -> dsas.Rule:
        s, c, t = (some[site][:, step] for some in (source, control, target))
        owners = torch.arange(len(s) + len(c)).repeat_interleave(s.shape[1])
        s, c, t = s.flatten(0, 1), c.flatten(0, 1), t.flatten(0, 1)
        return dsas.Rule(site, dsas.PairedMap.fit(s, t), dsas.Located.fit(s, c, t, groups=owners).regulator)

    each = [dsas.Steering([rule(site, step) for site in sites], subject.identity) for step in range(STEPS)]
    return Stepwise(tuple(one.within(dsas.Schedule("denoising", step, step + 1)) for step, one in enumerate(each)))


def settings(painter: Painter, task: Task) -> dict[str, Callable[[], dsas.Steering | Stepwise]]:
    """Return what is compared, by name; each is fitted when it is asked for."""

    def within(recipe: Recipe, start: int, stop: int = STEPS) -> dsas.Steering:
        return fitted(painter, task, recipe).within(dsas.Schedule("denoising", start, stop))

    half = STEPS // 2
    return {
        "prompt": partial(fitted, painter, task, PROMPT),
        **{f"prompt, from step {start + 1}": partial(within, PROMPT, start) for start in (1, 2, 3, 4)},
        "positions": partial(fitted, painter, task, POSITIONS),
        "positions, first half": partial(within, POSITIONS, 0, half),
        "positions, last half": partial(within, POSITIONS, half),
        "positions, a regulator per step": partial(
            fitted, painter, task, POSITIONS._replace(reading=BY_TOKEN._replace(per_step=True))
        ),
        "positions, a map and a regulator per step": partial(stepwise, painter, task),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--concepts", nargs="+", default=[*CONCEPTS], choices=[*CONCEPTS])
    parser.add_argument("--settings", nargs="+")
    parser.add_argument("--choose", action="store_true", help="measure on tuning captions, from other noise")
    parser.add_argument("--out", type=Path, default=Path("out/pictures"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    painter, rows = Painter(Lab(arguments.out), TUNING if arguments.choose else REPORT), dict[str, dict[str, str]]()
    for concept in arguments.concepts:
        task = task_of(concept, CONCEPTS[concept], n=arguments.n)
        if arguments.choose:
            task = task._replace(report=task.tune._replace(mixed=other_mixed(task, induce=False)))
        every = settings(painter, task)
        for name in arguments.settings or every:
            after = partial(painter.lab.painted, seed=painter.seed, steering=every[name](), strength=1.0)
            rows[f"{concept}: {name}"] = {key: said(value) for key, value in removed(painter, task, after).items()}
            print(f"| {concept} | {name} | " + " | ".join(rows[f"{concept}: {name}"].values()) + " |", flush=True)
    file = arguments.out / ("steps-chosen.json" if arguments.choose else "steps.json")
    replace_files({file: json.dumps(rows, indent=1).encode()})


if __name__ == "__main__":
    main()
