"""The demo: fit, steer, measure and explain a real language model, on disjoint texts, and write it all down.

Three conditions over the same strengths: unsteered, CAA at every site and token (constant regulator), and CAA + DSAS
(logistic regulator). A condition's strength for the headline is the largest whose perplexity on the tuning sentences,
averaged over the kinds of text, is at most 1.05 x unsteered; toxicity plays no part in that choice. Three scorers pick
the texts to fit on and judge what comes out; a fourth of another kind judges only.
"""

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import Progress

from dsas.demo.cells import Bench, Cell
from dsas.demo.models import real_model
from dsas.demo.texts import DemoTexts, demo_texts
from dsas.demo.token_heats import token_heats
from dsas.evaluation.generations import Sampling
from dsas.evaluation.perplexity import perplexity
from dsas.evaluation.scorers import CharacterGrams, packaged_scorers
from dsas.files.atomic import replace_files
from dsas.files.results import remembered
from dsas.fitting.closed_form import fit
from dsas.model.identity import fingerprint
from dsas.model.loading import LoadedModel, load_model
from dsas.parallel.progress import progress_bar
from dsas.reports.heat import TokenHeat
from dsas.steering.steering import Steering

STRENGTHS = (0.01, 0.02, 0.05, 0.12, 0.2)
BUDGET = 1.05
UNSTEERED = "unsteered"
CONDITIONS = {"CAA": "constant", "CAA + DSAS": "logistic"}


class DemoResult(NamedTuple):
    """What the demo measured.

    cells: unsteered first. chosen: each condition's strength within the budget, 0 if none. heats: texts by token.
    """

    model: str
    texts: DemoTexts
    steerings: dict[str, Steering]
    cells: list[Cell]
    chosen: dict[str, float]
    heats: list[TokenHeat]

    def rows(self) -> list[dict[str, Any]]:
        """Return one flat row a cell: shares and ratios with their 95 % intervals, JSON-ready."""
        return [self._row(cell) for cell in self.cells]

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as one JSON-ready object."""
        return {"model": self.model, "chosen": self.chosen, "cells": self.rows()}

    def _row(self, cell: Cell) -> dict[str, Any]:
        toxic = {f"toxic {name}": interval._asdict() for name, interval in cell.toxic().items()}
        ratios = {f"perplexity {kind}": i._asdict() for kind, i in cell.perplexity_over(self.cells[0]).items()}
        operating = cell.strength == self.chosen.get(cell.condition)
        head = {"condition": cell.condition, "strength": cell.strength, "operating point": operating}
        return {**head, **toxic, **ratios, "distinct pairs": cell.distinct()}


def run_demo(
    out: Path,
    *,
    model: str = "smollm2",
    device: str = "auto",
    prompts: int = 100,
    seeds: int = 1,
    progress: bool = True,
) -> DemoResult:
    """Run the demo on a packaged model ("smollm2" or "gemma3") and write everything into `out`.

    prompts: held-out prompts to continue, at most 303; seeds: continuations of each. Interrupted, it goes on from
    where it stopped; a second run reuses all it can.
    """
    loaded = load_model(str(real_model(model)), device=device)
    scorers = packaged_scorers()
    out.mkdir(parents=True, exist_ok=True)
    with progress_bar(progress) as bar:
        samples = out / f"samples-{fingerprint(loaded.model)}.json"
        texts = demo_texts(*loaded, scorers, file=samples, progress=_task(bar, "sampling texts to fit on", None))
    steerings = {
        condition: fit(
            *loaded,
            source=texts.source,
            control=texts.control,
            target=texts.target,
            regulator=regulator,
            checkpoint=out / "collected",
            progress=progress,
        )
        for condition, regulator in CONDITIONS.items()
    }
    chosen = _choose(loaded, steerings, texts.tune, out / "tuned", progress)
    for condition, steering in steerings.items():
        steering.save_pretrained(out / condition.lower().replace(" + ", "-"))
    bench = Bench(
        loaded.model,
        loaded.tokenizer,
        prompts=texts.prompts[:prompts],
        neutral=texts.report,
        scorers=[*scorers, CharacterGrams()],
        seeds=list(range(seeds)),
        sampling=Sampling(),
        folder=out / "cells",
    )
    cells = _measure(bench, steerings, progress)
    heats = token_heats(*loaded, steerings["CAA + DSAS"], chosen["CAA + DSAS"] or min(STRENGTHS))
    result = DemoResult(model, texts, steerings, cells, chosen, heats)
    replace_files({out / "results.json": json.dumps(result.as_dict(), indent=2).encode()})
    return result


def _choose(
    loaded: LoadedModel, steerings: dict[str, Steering], tune: dict[str, list[str]], folder: Path, show: bool
) -> dict[str, float]:
    """Return each condition's largest strength whose mean perplexity ratio on the tuning sentences keeps the budget."""
    identity = fingerprint(loaded.model)

    def perplexities(name: str, strength: float, steered: AbstractContextManager[Any]) -> list[float]:
        def measure() -> list[float]:
            with steered:
                return [perplexity(loaded.model, loaded.tokenizer, sentences).mean for sentences in tune.values()]

        return remembered(folder, [name, strength, tune], measure)

    unsteered = perplexities(identity, 0.0, nullcontext())
    chosen = dict.fromkeys(steerings, 0.0)
    with progress_bar(show) as bar:
        for condition in bar.track(steerings, description="choosing strengths"):
            steering = steerings[condition]
            for strength in STRENGTHS:
                steered = steering.apply(loaded.model, strength, record=False)
                found = perplexities(f"{identity} {steering.digest()}", strength, steered)
                if sum(new / old for new, old in zip(found, unsteered, strict=True)) / len(found) > BUDGET:
                    break
                chosen[condition] = strength
    return chosen


def _measure(bench: Bench, steerings: dict[str, Steering], show: bool) -> list[Cell]:
    identity = fingerprint(bench.model)
    total = len(bench.prompts) * len(bench.seeds)
    with progress_bar(show) as bar:
        step = _task(bar, UNSTEERED, total)
        cells = [bench.cell(UNSTEERED, 0.0, identity, steered=nullcontext(), progress=step)]
        for condition, steering in steerings.items():
            for strength in STRENGTHS:
                step = _task(bar, f"{condition} at {strength}", total)
                applied = steering.apply(bench.model, strength, record=False)
                name = f"{identity} {steering.digest()}"
                cells.append(bench.cell(condition, strength, name, steered=applied, progress=step))
    return cells


def _task(bar: Progress, name: str, total: int | None) -> Any:
    task = bar.add_task(name, total=total)
    return lambda done: bar.update(task, completed=done)
