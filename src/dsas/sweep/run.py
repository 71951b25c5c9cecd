"""Sweep: several Steerings over the same strengths, prompts, texts and seeds; the data of a Pareto front.

    1. tune      every Steering reads the tuning texts at increasing strengths, until they cost too much; the largest
                 strength within the budget is chosen, by halving between two of the grid
    2. curves    if the report has held-out source texts: losses of these and of its control texts, for selectivity
    3. measure   continuations for every seed, and the report's texts and questions, at every remaining strength
    4. score     scorers and the judging model read the continuations

Perplexity ratios are exp of the log-loss that all tokens of a kind of text lose together, per token; the mean over
kinds counts. A strength whose tuning ratio is above `Grid.limit` is not measured: its texts are useless, and if the
damage falls again at larger strengths, it no longer means what it should. Toxicity plays no part in the choice.

In the sweep's folder, `jobs/` holds one file per job, written when it ends: whenever a sweep stops, the same call
resumes and computes nothing twice, in one process or over any number of workers. From these come `samples.jsonl`, one
line per sample, `curves.json` (see `dsas.sweep.curves`), and `sweep.json`, which says what was chosen and how.

Source: arXiv 2512.03661, section 4 (the same grid with and without the regulator).
"""

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from dsas.errors import DsasWarning, OptionError
from dsas.files.atomic import replace_files
from dsas.files.json_values import JsonObject
from dsas.model.examples import check_texts
from dsas.model.foreign import Foreign
from dsas.parallel.workers import Spread
from dsas.steering.steering import Steering
from dsas.sweep.curves import CURVES, Curves, Start, measure_curves
from dsas.sweep.jobs import Job, Setup, Task
from dsas.sweep.lab import Lab, open_lab
from dsas.version import VERSION

UNSTEERED = "unsteered"
TUNE, REPORT = "tune", "report"
SAMPLES, SWEEP = "samples.jsonl", "sweep.json"
STRENGTHS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
REFINEMENTS = 3


class Series(NamedTuple):
    """A Steering under its name in tables, with the names of its methods and its strengths.

    transform, regulator: their names. strengths: above 0; the same for Steerings that are to be compared.
    """

    name: str
    steering: Steering
    transform: str
    regulator: str
    strengths: tuple[float, ...] = STRENGTHS


class Grid(NamedTuple):
    """How every series is swept.

    seeds: each continues every prompt once. budget, limit: ratio of tuning perplexities, mean over kinds, up to which a
    strength may be chosen, and above which none is measured. judged: how many of the seeds the judge reads, which takes
    as long as sampling. refinements: how often the step between the largest strength within the budget and the next one
    of the grid is halved; with 0 the chosen strength is one of the grid.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    budget: float = 1.05
    limit: float = 1.6
    judged: int = 1
    refinements: int = REFINEMENTS


Cell = tuple[str, Steering | None, float]  # series, Steering and strength


class Chosen(NamedTuple):
    """The result of tuning for a series: strengths to measure, ascending, and the one chosen, or None."""

    strengths: tuple[float, ...]
    strength: float | None


def run_sweep(
    out: Path,
    setup: Setup,
    series: Sequence[Series],
    *,
    grid: Grid = Grid(),
    spread: Spread = Spread(),
    command: str = "",
    progress: bool = True,
) -> dict[str, Chosen]:
    """Measure every series, write the results into `out`, and return what was chosen, by series.

    setup: must have the parts "tune" and "report", both with texts for perplexity; selectivity is measured if the
    latter has `source`, texts that no Steering was fitted on. command: the command that reproduces the sweep, for the
    report.
    Raises OptionError for parts that are missing, names that repeat and values out of range, TextsError for too few
    texts to measure selectivity on, and what workers raise.
    """
    _check(setup, series, grid)
    with open_lab(out, setup, spread, progress=progress) as lab:
        chosen = _tune(lab, series, grid)
        cells: list[Cell] = [(UNSTEERED, None, 0.0)]
        cells += [(one.name, one.steering, strength) for one in series for strength in chosen[one.name].strengths]
        curves = Curves()
        try:
            if setup.parts[REPORT].source:
                curves = _curves(lab, series, chosen)
            _measure(lab, cells, grid)
        finally:
            about = _about(lab.setup, {one: chosen[one.name] for one in series}, grid, command)
            files = {SWEEP: json.dumps(about, indent=1, ensure_ascii=False), CURVES: json.dumps(curves.as_dict())}
            _write(out, lab, cells, grid, files)
    return chosen


def _tune(lab: Lab, series: Sequence[Series], grid: Grid) -> dict[str, Chosen]:
    """Return the strengths at which each series may be measured, and the largest one within the budget."""
    tried = {one.name: sorted(one.strengths) for one in series}

    def ratios(asked: Mapping[str, float]) -> dict[str, float]:
        """Return, by series in their order, the mean over kinds of tuning perplexity over unsteered."""
        jobs = [Job("losses", one.steering, asked[one.name], part=TUNE) for one in series if one.name in asked]
        said = ", ".join(f"{value:g}" for value in sorted(set(asked.values())))
        plain, *costs = map(_costs, lab.run([Job("losses", part=TUNE), *jobs], f"tuning: strengths {said}"))
        with np.errstate(over="ignore", invalid="ignore"):  # a model that broke down keeps no budget
            return {name: float(np.exp(cost - plain).mean()) for name, cost in zip(asked, costs, strict=True)}

    names = [one.name for one in series]
    within, left = {name: [] for name in names}, dict.fromkeys(names, True)
    good, bad = dict.fromkeys(names, 0.0), dict.fromkeys(names, math.inf)
    while asked := {name: tried[name].pop(0) for name in names if left[name] and tried[name]}:
        for name, ratio in ratios(asked).items():
            if not math.isfinite(ratio):
                said = f"{name}: at strength {asked[name]:g} the steered model's perplexity is not finite"
                warnings.warn(f"{said}: nothing is measured there", DsasWarning, stacklevel=4)
            left[name] = ratio <= grid.limit
            if left[name]:
                within[name].append(asked[name])
            if not ratio <= grid.budget:
                bad[name] = min(bad[name], asked[name])
            elif bad[name] == math.inf:
                good[name] = asked[name]
    for _ in range(grid.refinements):
        middle = {name: _between(good[name], bad[name]) for name in names if bad[name] < math.inf}
        for name, ratio in ratios(middle).items() if middle else ():
            ends = good if ratio <= grid.budget else bad
            ends[name] = middle[name]
    return {
        name: Chosen(tuple(sorted({*within[name], *([good[name]] if good[name] else [])})), good[name] or None)
        for name in names
    }


def _between(good: float, bad: float) -> float:
    """Return the geometric mean of two strengths, to three digits; below the grid, half the smaller one."""
    return float(f"{math.sqrt(good * bad) if good else bad / 2:.3g}")


def _costs(found: Mapping[str, Any]) -> Float[np.ndarray, " kind"]:
    """Return the log-loss of each kind of text, in nats per token over all its texts."""
    kinds = found["kinds"].values()
    return np.array([np.average(kind["nats per token"], weights=kind["tokens"]) for kind in kinds])


def _curves(lab: Lab, series: Sequence[Series], chosen: Mapping[str, Chosen]) -> Curves:
    """Measure the curves; each begins at the chosen strength, whose damage is about the stated one."""

    def read(asked: Sequence[tuple[Steering | None, float]]) -> Sequence[Foreign]:
        jobs = [Job("losses", steering, strength, part=REPORT) for steering, strength in asked]
        said = ", ".join(f"{value:.3g}" for value in sorted({strength for _, strength in asked}))
        return lab.run(jobs, f"selectivity: strengths {said}")

    starts = [chosen[one.name].strength or min(one.strengths) for one in series]
    named = [(one.name, one.steering, one.transform, one.regulator) for one in series]
    return measure_curves(read, [Start(*names, start) for names, start in zip(named, starts, strict=True)])


def _measure(lab: Lab, cells: Sequence[Cell], grid: Grid) -> None:
    drawn = [(steering, strength, seed) for _, steering, strength in cells for seed in grid.seeds]
    generations = [job for one in drawn for job in lab.generations(*one)]
    tasks: tuple[Task, ...] = ("losses", "read")
    readings = [Job(task, steering, strength, part=REPORT) for _, steering, strength in cells for task in tasks]
    lab.run([*generations, *readings], "generating and reading")
    lab.run([Job("score", texts=lab.texts(*one)) for one in drawn], "scoring")
    if lab.setup.judge:
        judged = [lab.texts(*one) for one in drawn if one[2] in _judged(grid)]
        lab.run([Job("judge", texts=texts) for texts in judged], "judging")


def _judged(grid: Grid) -> tuple[int, ...]:
    return grid.seeds[: grid.judged]


def _about(setup: Setup, chosen: Mapping[Series, Chosen], grid: Grid, command: str) -> JsonObject:
    return {
        "model": setup.model,
        "prompts": list(setup.prompts),
        "series": [_described(one, found) for one, found in chosen.items()],
        "command": command,
        "settings": _settings(setup, grid),
    }


def _write(out: Path, lab: Lab, cells: Sequence[Cell], grid: Grid, beside: Mapping[str, str]) -> None:
    lines = (line for cell in cells for line in _lines(lab, cell, grid))
    samples = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    # The name of a folder, in a series or the command, need not be valid text: unwritable characters become ?
    contents = {name: text.encode("utf-8", errors="replace") for name, text in {SAMPLES: samples, **beside}.items()}
    replace_files({out / name: data for name, data in contents.items()})


def _lines(lab: Lab, cell: Cell, grid: Grid) -> Iterator[JsonObject]:
    series, steering, strength = cell
    head = {"series": series, "strength": strength}
    for seed in grid.seeds:
        texts = lab.texts(steering, strength, seed)
        scores = lab.found(Job("score", texts=texts)) if texts else None
        if scores is None:
            continue
        judge = lab.found(Job("judge", texts=texts)) if lab.setup.judge and seed in _judged(grid) else None
        for item, text in enumerate(texts):
            one = {name: values[item] for name, values in scores.items()}
            nats = judge[item] if judge else None
            yield {
                **head, "seed": seed, "measure": "generation", "item": item, "text": text, "scores": one, "judge": nats,
            }  # fmt: skip
    losses = lab.found(Job("losses", steering, strength, part=REPORT)) or {"kinds": {}}
    for kind, values in losses["kinds"].items():
        for item, (nats, tokens) in enumerate(zip(*values.values(), strict=True)):
            yield {
                **head, "seed": None, "measure": "loss", "kind": kind, "item": item, "value": nats, "tokens": tokens,
            }  # fmt: skip
    found = lab.found(Job("read", steering, strength, part=REPORT)) or {}
    for measure, kinds in found.items():
        for kind, values in kinds.items():
            for item, value in enumerate(values):
                yield {**head, "seed": None, "measure": measure, "kind": kind, "item": item, "value": value}


def _described(one: Series, chosen: Chosen) -> JsonObject:
    rules = one.steering.rules
    return {
        "name": one.name,
        "transform": one.transform,
        "regulator": one.regulator,
        "chosen": chosen.strength,
        "sites": f"{sum(rule.weight > 0 for rule in rules)} of {len(rules)}",
        "digest": one.steering.digest(),
    }


def _settings(setup: Setup, grid: Grid) -> JsonObject:
    parts = {
        f"{name}: {measure}": {kind: len(items) for kind, items in kinds.items()} if measure != "source" else len(kinds)
        for name, part in setup.parts.items()
        for measure, kinds in part._asdict().items()
    }
    plain = {key: getattr(setup, key) for key in ("fingerprint", "scorers", "judge", "device", "precision", "threads")}
    return {**grid._asdict(), **plain, "sampling": setup.sampling._asdict(), **parts, "dsas": VERSION}


def _check(setup: Setup, series: Sequence[Series], grid: Grid) -> None:
    names = [one.name for one in series]
    if not names or len({*names, UNSTEERED}) <= len(names):
        raise OptionError(f"expected series with different names, none of them {UNSTEERED!r}, got {names}")
    parts = [name for name, part in setup.parts.items() if part.perplexity]
    if not {TUNE, REPORT} <= set(parts):
        raise OptionError(f"expected parts 'tune' and 'report', both with texts for perplexity, got such parts {parts}")
    if not setup.prompts or not grid.seeds or any(not one.strengths or min(one.strengths) <= 0 for one in series):
        raise OptionError("expected at least one prompt, one seed and one strength above 0")
    report = setup.parts[REPORT]
    for name, texts in {"held-out source": report.source, **report.perplexity}.items() if report.source else ():
        check_texts(name, texts)
    if not 1 <= grid.budget <= grid.limit:
        raise OptionError(f"expected 1 <= budget <= limit, got {grid.budget} and {grid.limit}")
