"""Claim: at every strength the regulator removes as much of a concept for less change of other pictures.

The sweep of `pictures.py` at all strengths, not only the chosen ones, as the same report that texts have: a folder with
samples.jsonl, sweep.json and report.html for each concept, with pictures of all series side by side. It reuses what
`pictures.py` has fitted, learned and painted in the same --out, and paints the rest. If interrupted, it resumes.

    python benchmarks/picture_fronts.py [--n 200] [--concepts red square night] [--sites text]
                                        [--out out/pictures]
"""

import argparse
import json
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from picture_lab import CONCEPTS, DRAWING, REPORT, SITES, STRENGTHS, TRANSFORMS, Lab, Task, has, share, task_of
from PIL import Image
from scenes import Scene, caption, read

import dsas
from dsas.evaluation.picture_change import picture_change
from dsas.files.atomic import replace_files
from dsas.reports.pareto import write_pareto_report
from dsas.sweep.samples import UNSTEERED

SHOWN = 6
KIND = "the same captions without the concept"


class Cell(NamedTuple):
    """One series at one strength; pictures: whether its first ones are kept beside the samples."""

    series: str
    steering: dsas.Steering | None
    strength: float
    pictures: bool


def lines(lab: Lab, task: Task, cell: Cell, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the samples of a cell, and write those of its pictures that the report shows."""
    head = {"series": cell.series, "strength": cell.strength}
    asked, plain, moved = (
        lab.painted(scenes, REPORT, steering, cell.strength if steering else 0.0)
        for scenes, steering in (
            (task.report.source, cell.steering),
            (task.report.control, None),
            (task.report.control, cell.steering),
        )
    )
    readings = read(asked)
    rows = zip(asked, readings, has(readings, task.concept).tolist(), strict=True)
    for item, (picture, reading, shown) in enumerate(rows):
        yield {
            **head, "seed": 0, "measure": "generation", "item": item, "text": said(reading.scene),
            "scores": {"detector": int(shown)}, "judge": None, "picture": kept(folder, cell, "asked", item, picture),
        }  # fmt: skip
    changes = picture_change(plain, moved).everywhere.tolist()
    for item, (picture, change) in enumerate(zip(moved, changes, strict=True)):
        yield {
            **head, "seed": None, "measure": "change", "kind": KIND, "item": item, "value": change,
            "picture": kept(folder, cell, "control", item, picture),
        }  # fmt: skip


def said(scene: Scene) -> str:
    """Return a scene as a caption. No caption asks for an empty scene, but steering may leave one."""
    return caption(scene) if scene.things else f"nothing, {scene.background}"


def kept(folder: Path, cell: Cell, what: str, item: int, picture: np.ndarray) -> str | None:
    """Write the file of a picture that is shown and return its name; None for a picture that is not shown."""
    if not cell.pictures or item >= SHOWN:
        return None
    name = f"{what}-{item}-{cell.series.replace(' + ', '-')}-{cell.strength:g}.png"
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(folder / "pictures" / name)
    return f"pictures/{name}"


def sweep(lab: Lab, task: Task, folder: Path, *, command: str) -> None:
    """Write the samples and the report of one concept."""
    every = lab.steerings(task, TRANSFORMS)
    rate = partial(share, concept=task.concept)
    chosen = {series: lab.chosen(steering, task.tune, rate) for series, steering in every.items()}
    cells = [Cell(UNSTEERED, None, 0.0, True)]
    cells += [Cell(name, every[name], value, value == chosen[name]) for name in every for value in STRENGTHS]
    samples = "".join(json.dumps(line) + "\n" for cell in cells for line in lines(lab, task, cell, folder))
    plan = {
        "model": f"the scene model, {task.concept} into {task.word}",
        "prompts": [caption(scene) for scene in task.report.source],
        "series": [
            {"name": name, "transform": name.split(" + ")[0], "regulator": name.split(" + ")[1], "chosen": strength}
            for name, strength in chosen.items()
        ],
        "command": command,
        "settings": {"sites": lab.sites, "drawing": DRAWING.as_dict(), "strengths": STRENGTHS, "seed": REPORT},
    }
    folder.mkdir(parents=True, exist_ok=True)
    replace_files({folder / "samples.jsonl": samples.encode(), folder / "sweep.json": json.dumps(plan).encode()})
    write_pareto_report(folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--concepts", nargs="+", default=list(CONCEPTS), choices=list(CONCEPTS))
    parser.add_argument("--sites", default=SITES, help="as pictures.py was given them")
    parser.add_argument("--out", type=Path, default=Path("out/pictures"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    lab = Lab(arguments.out, arguments.sites)
    for concept in arguments.concepts:
        task = task_of(concept, CONCEPTS[concept], n=arguments.n)
        options = f"--n {arguments.n} --sites '{arguments.sites}' --concepts {concept}"
        command = f"python benchmarks/picture_fronts.py {options}"
        sweep(lab, task, arguments.out / "fronts" / concept, command=command)


if __name__ == "__main__":
    main()
