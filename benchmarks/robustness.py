"""Claim: a regulator learns from few texts, and from texts of which some are in the wrong set.

CAA with the constant and with the logistic regulator, fitted on 8, 32, 128 and 512 texts per set, and on 128 of which
10, 20 and 30 % of source and control have changed places; each on several draws of the texts. All are measured at one
strength, on prompts and neutral texts that no fit saw. If interrupted, it resumes. At the end it prints
a row for every kind of texts: mean over the draws [95 % interval over prompts or sentences] (lowest to highest draw).

    python benchmarks/robustness.py --model smollm2|gemma3 [--strength 0.1] [--draws 3] [--out out/robustness]
"""

import argparse
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from evidence import TUNED_ON, opened

import dsas
from dsas.demo.models import real_model
from dsas.demo.texts import DemoTexts, Sizes
from dsas.evaluation.intervals import percentile_interval
from dsas.model.identity import fingerprint
from dsas.model.loading import LoadedModel
from dsas.parallel.workers import Spread
from dsas.reports.estimates import SAMPLES
from dsas.reports.pareto import write_pareto_report
from dsas.sweep.jobs import Part, Setup
from dsas.sweep.resampling import ENSEMBLE, MEAN, PERPLEXITY_RATIO, TOXIC, resample
from dsas.sweep.run import UNSTEERED, Grid, Series, run_sweep
from dsas.sweep.samples import read_samples

SIZES = Sizes(fit=120, tune=50, report=303, draws=36, tune_sentences=60, report_sentences=100)
REGULATORS = ("constant", "logistic")
USUAL = 128


class Kind(NamedTuple):
    """Texts to fit on: how many per set, and which share of source and control changes places."""

    count: int = USUAL
    noise: float = 0.0

    def __str__(self) -> str:
        return f"{self.count} texts" + (f", {self.noise:.0%} of them wrong" if self.noise else "")


KINDS = [*(Kind(count) for count in (8, 32, 128, 512)), *(Kind(noise=noise) for noise in (0.1, 0.2, 0.3))]


def sets(texts: DemoTexts, kind: Kind, draw: int) -> dict[str, list[str]]:
    """Return sets of a kind, drawn by `draw`; both halves of the control in equal shares."""
    random, half = np.random.default_rng(draw), len(texts.control) // 2

    def some(members: list[str], count: int) -> list[str]:
        return [members[place] for place in random.permutation(len(members))[:count]]

    source, target = some(texts.source, kind.count), some(texts.target, kind.count)
    own, other = some(texts.control[:half], kind.count // 2), some(texts.control[half:], kind.count // 2)
    control = [text for pair in zip(own, other, strict=True) for text in pair]
    wrong = round(kind.noise * kind.count)
    return {
        "source": control[:wrong] + source[wrong:],
        "control": source[:wrong] + control[wrong:],
        "target": target,
    }


def series_of(loaded: LoadedModel, texts: DemoTexts, draws: int, strength: float, folder: Path) -> list[Series]:
    """Return a series for every kind of texts, draw and regulator."""
    found = []
    for kind in KINDS:
        if len(texts.source) < kind.count or len(texts.control) // 2 < kind.count // 2:
            raise SystemExit(f"{kind} a set, but there are {len(texts.source)}: raise SIZES.draws")
        for draw in range(draws):
            given = sets(texts, kind, draw)
            for regulator in REGULATORS:
                asked: dict[str, Any] = {"transform": "caa", "regulator": regulator, "checkpoint": folder / "collected"}
                steering = dsas.fit(*loaded, **given, **asked, progress=False)
                found.append(Series(named(regulator, kind, draw), steering, "caa", regulator, (strength,)))
    return found


def named(regulator: str, kind: Kind, draw: int) -> str:
    """Return the name of a series."""
    return f"{regulator}, {kind}, draw {draw}"


def print_table(folder: Path, sites: dict[str, int], draws: int) -> None:
    """Print a row for every kind of texts and regulator; sites: how many each series steers."""
    drawn = resample(read_samples(folder / SAMPLES))
    column = {series: number for number, (series, _) in enumerate(drawn.cells)}
    measures = [(100, 1, (TOXIC, ENSEMBLE))]
    measures += [(1, 3, (PERPLEXITY_RATIO, kind)) for kind in ("Wikipedia", "web", "news", "prompt style", MEAN)]

    def row(*series: str) -> list[str]:
        """Return every measure of the mean of some series."""
        found = []
        for scale, digits, (measure, kind) in measures:
            table = drawn.tables[measure, kind]
            rows = scale * table.rows[:, [column[one] for one in series]]
            middle, low, high, _ = percentile_interval(rows[0].mean(), rows[1:].mean(axis=1), table.n)
            text = f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
            found.append(text + f" ({rows[0].min():.{digits}f} to {rows[0].max():.{digits}f})" * (len(series) > 1))
        return found

    print("| texts | regulator | sites | toxic, % |", *(f"{kind} |" for *_, (_, kind) in measures[1:]))
    print("|", "---|" * (len(measures) + 3), sep="")
    print("|", " | ".join(["unsteered", "-", "-", *row(UNSTEERED)]), "|")
    for kind in KINDS:
        for regulator in REGULATORS:
            names = [named(regulator, kind, draw) for draw in range(draws)]
            steered = ", ".join(str(sites[name]) for name in names)
            measured = row(*names) if all(name in column for name in names) else ["broke down"] * len(measures)
            print("|", " | ".join([str(kind), regulator, steered, *measured]), "|")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--strength", type=float, default=0.1)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/robustness"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    folder, loaded, texts = opened(arguments.model, arguments.out, SIZES)
    series = series_of(loaded, texts, arguments.draws, arguments.strength, folder)
    parts = {
        "tune": Part(perplexity={kind: tuple(texts.tune[kind]) for kind in TUNED_ON}),
        "report": Part(perplexity={kind: tuple(some) for kind, some in texts.report.items()}),
    }
    spread = Spread(arguments.workers)
    setup = Setup(
        str(real_model(arguments.model)), fingerprint(loaded.model), tuple(texts.prompts), parts, threads=spread.threads
    )
    grid = Grid(seeds=(0,), budget=10.0, limit=10.0)  # the strength is given, whatever it costs
    run_sweep(
        folder,
        setup,
        series,
        grid=grid,
        spread=spread,
        command=f"python benchmarks/robustness.py --model {arguments.model}",
    )
    write_pareto_report(folder)
    sites = {one.name: sum(rule.weight > 0 for rule in one.steering.rules) for one in series}
    print_table(folder, sites, arguments.draws)


if __name__ == "__main__":
    main()
