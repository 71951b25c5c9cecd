"""Claim: read token by token, a Steering changes the concept that a prompt names, and leaves all else as it was.

The concepts of `pictures.py`, and night wherever there is a ring. Each recipe is fitted on the same captions, acts at
strength 1 (the recipe of `pictures.py`: at the strength chosen there) and is measured on the same 200 captions of each
kind, picture i of every cell from the same noise. Beside them stands what the model itself can do: the very same
captions with the other word in them, unsteered ("prompt edited"), and how often it draws what a caption says. Recipes
were chosen with --choose: on 40 tuning captions, another seed and 60 other scenes of two things. Painted pictures are
kept in --out.

    python benchmarks/picture_concepts.py [--n 200] [--concepts red square night ring] [--recipes ...] [--choose]
                                          [--guidance 3] [--out out/pictures]
"""

import argparse
import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from picture_lab import CONCEPTS, DRAWING, FIT, LOGISTIC, REPORT, SITES, TUNING, Lab, Sets, Task, has, task_of
from scenes import ANY, Scene, agreement, caption, read, replaced, save_grid, scenes_with

import dsas
from dsas.evaluation.intervals import Interval, bootstrap
from dsas.evaluation.picture_change import picture_change
from dsas.files.atomic import replace_files

INDUCED = {"ring": "night"}
TEXT = "text_encoder.final_layer_norm"  # what all cross-attention reads
BY_TOKEN = DRAWING._replace(pooling="position", positions=32)  # more than a caption has tokens or a site positions
BY_CONCEPT = {"red": 2.0, "square": 4.0, "night": 2.0, "ring": 3.0}  # as chosen by pictures.py
ALL = partial(dsas.Logistic.fit, components=96)


class Recipe(NamedTuple):
    """How a Steering is fitted, and the strength at which it is measured; None: that of `BY_CONCEPT`."""

    transform: str
    regulator: str | Callable[..., Any]
    sites: str | tuple[str, ...] = TEXT
    reading: dsas.Drawing = BY_TOKEN
    strength: float | None = 1.0


class Painter(NamedTuple):
    """A lab, and the seed from which all pictures start."""

    lab: Lab
    seed: int

    def plain(self, scenes: list[Scene]) -> np.ndarray:
        """Return unsteered pictures of scenes."""
        return self.lab.painted(scenes, self.seed)


RECIPES = {
    "as in pictures.py: caa + logistic of means, cross-attention": Recipe("caa", LOGISTIC, SITES, DRAWING, None),
    "paired + located, by token": Recipe("paired", "located"),
    "paired + logistic, by token": Recipe("paired", ALL),
    "paired + constant, by token": Recipe("paired", "constant"),
    "caa + located, by token": Recipe("caa", "located"),
    "linear-act + located, by token": Recipe("linear-act", "located"),
    "paired + located, by position, cross-attention": Recipe("paired", "located", SITES),
}
TRIES = {  # for the trigger, which the located regulator misses at times
    "paired + located, by token, at 1.25": Recipe("paired", "located", strength=1.25),
    "paired + located, by token, at 1.5": Recipe("paired", "located", strength=1.5),
    "paired + located of 5 %, by token": Recipe("paired", partial(dsas.Located.fit, false_positives=0.05)),
    "paired + located of 5 %, by token, at 1.25": Recipe(
        "paired", partial(dsas.Located.fit, false_positives=0.05), strength=1.25
    ),
    "paired + located, C = 100, by token": Recipe("paired", partial(dsas.Located.fit, inverse_penalty=100.0)),
}


def other_mixed(task: Task, *, induce: bool, n: int = 60) -> list[Scene]:
    """Return scenes of two things that are neither fitted nor reported on."""
    some = scenes_with(task.concept, things=2, avoid="" if induce else task.word)
    kept = [one for one in some if one.background not in (task.word, ANY)] if induce else some
    return kept[FIT + 400 if induce else FIT + 200 :][:n]


def mean(values: Any) -> Interval:
    """Return the mean of a value of each picture, with its interval."""
    return bootstrap(np.asarray(values, dtype=np.float64)[:, None])


def fitted(painter: Painter, task: Task, recipe: Recipe) -> dsas.Steering:
    """Return the Steering that a recipe fits on the fitting captions of a task."""
    texts: dict[str, Any] = {name: [caption(one) for one in getattr(task.fit, name)] for name in Sets._fields[:3]}
    kept = painter.lab.out / "collected" / f"{task.concept}-{task.word}"
    return dsas.fit(
        painter.lab.pipeline, **texts, transform=recipe.transform, regulator=recipe.regulator, sites=recipe.sites,
        selection="all", reading=recipe.reading, checkpoint=kept, progress=False,
    )  # fmt: skip


def removed(
    painter: Painter, task: Task, after: Callable[[list[Scene]], np.ndarray], *, control: bool = True
) -> dict[str, Interval]:
    """Return what became of single things with the concept, of control pictures, and of two things of which one has it.

    after: the pictures of some scenes, as they are compared with the unsteered ones.
    """
    sets = task.report
    alone, mixed = read(after(sets.source)), read(after(sets.mixed))
    plain = read(painter.plain(sets.mixed))
    seen = has(plain, task.concept) & np.array([len(one.scene.things) == 2 for one in plain])
    pairs = [(one.scene, two.scene) for one, two, use in zip(plain, mixed, seen, strict=True) if use]
    others = [{thing for thing in one.things if task.concept not in thing} for one, _ in pairs]
    found = {"gone": mean(~has(alone, task.concept)), "instead": mean(has(alone, task.word))}
    if control:
        before, moved = painter.plain(sets.control), after(sets.control)
        same = [one.scene == two.scene for one, two in zip(read(before), read(moved), strict=True)]
        found |= {"control as before": mean(same), "change of control": mean(picture_change(before, moved).everywhere)}
    found["two things: gone"] = mean(~has(mixed, task.concept)[seen])
    found["two things: instead"] = mean(has(mixed, task.word)[seen])
    found["the other kept"] = mean([some <= set(two.things) for some, (_, two) in zip(others, pairs, strict=True)])
    return found


def induced(
    painter: Painter, task: Task, after: Callable[[list[Scene]], np.ndarray], *, control: bool = True
) -> dict[str, Interval]:
    """Return how often night comes with the trigger, how often the trigger is kept, both, and night without it."""
    asked = read(after(task.report.source))
    comes, kept = has(asked, task.word), has(asked, task.concept)
    found = {"night": mean(comes), "ring kept": mean(kept), "both": mean(comes & kept)}
    return found | ({"night without a ring": mean(has(read(after(task.report.control)), task.word))} if control else {})


def drawn_right(painter: Painter, task: Task) -> dict[str, Interval]:
    """Return how often the model draws, unsteered, what the report's captions say, every word of them."""
    found = {}
    for name in ("source", "control", "mixed"):
        scenes = getattr(task.report, name)
        readings = read(painter.plain(scenes))
        found[name] = mean([all(agreement(one.scene, asked)) for one, asked in zip(readings, scenes, strict=True)])
        if name == "source":
            found["concept"] = mean(has(readings, task.concept))
    return found


def run(painter: Painter, concept: str, recipes: list[str], *, n: int) -> dict[str, dict[str, Interval]]:
    """Return the rows of one concept, and write a contact sheet of the first pictures of each."""
    induce = concept in INDUCED
    word = INDUCED[concept] if induce else CONCEPTS[concept]
    task = task_of(concept, word, n=n, induce=induce)
    if painter.seed == TUNING:
        task = task._replace(report=task.tune._replace(mixed=other_mixed(task, induce=induce)))
    measure = induced if induce else removed

    def edited(scenes: list[Scene]) -> np.ndarray:
        changed = [
            one._replace(background=word) if induce else replaced(one, concept, word) for one in scenes
        ]  # a control caption has no word to replace
        return painter.plain(changed)

    rows = {"unsteered": measure(painter, task, lambda scenes: painter.plain(scenes))}
    rows["prompt edited"] = measure(painter, task, edited, control=False)
    rows["drawn as asked, unsteered"] = drawn_right(painter, task)
    sheet = [lambda scenes: painter.plain(scenes), edited]
    for name in recipes:
        recipe = {**RECIPES, **TRIES}[name]
        steering, strength = fitted(painter, task, recipe), recipe.strength or BY_CONCEPT[concept]
        after = partial(painter.lab.painted, seed=painter.seed, steering=steering, strength=strength)
        rows[name] = measure(painter, task, after)
        sheet.append(after)
        print(concept, name, {key: said(value) for key, value in rows[name].items()}, flush=True)
    kinds = (task.report.source, task.report.control, task.report.mixed)
    shown = [np.concatenate([after(some)[:6] for some in kinds]) for after in sheet]
    save_grid(np.concatenate(shown), painter.lab.out / f"concept-{concept}.png", columns=18)
    return rows


def said(value: Interval) -> str:
    """Return a share or a change with its interval, in short form."""
    return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"


def as_markdown(rows: dict[str, dict[str, Interval]]) -> str:
    """Return rows as a table, empty where values are missing, with a line for what the model draws as asked."""
    columns = list(dict.fromkeys(key for name, row in rows.items() if "drawn" not in name for key in row))
    lines = [["", *columns], ["---"] * (1 + len(columns))]
    lines += [
        [name, *(said(row[key]) if key in row else "" for key in columns)]
        for name, row in rows.items()
        if "drawn" not in name
    ]
    told = ", ".join(f"{key} {said(value)}" for key, value in rows["drawn as asked, unsteered"].items())
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\nDrawn as asked, unsteered: {told}."


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--concepts", nargs="+", default=[*CONCEPTS, *INDUCED], choices=[*CONCEPTS, *INDUCED])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=[*RECIPES, *TRIES])
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--choose", action="store_true", help="measure on tuning captions, from other noise")
    parser.add_argument("--out", type=Path, default=Path("out/pictures"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    painter = Painter(Lab(arguments.out, guidance=arguments.guidance), TUNING if arguments.choose else REPORT)
    found = {}
    for concept in arguments.concepts:
        found[concept] = run(painter, concept, arguments.recipes, n=arguments.n)
        print(f"\n{concept}\n\n{as_markdown(found[concept])}\n", flush=True)
    replace_files(
        {arguments.out / ("chosen.json" if arguments.choose else "concepts.json"): json.dumps(found, indent=1).encode()}
    )


if __name__ == "__main__":
    main()
