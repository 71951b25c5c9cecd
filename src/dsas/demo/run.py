"""The demo: fit, steer, measure and explain a real language model, on disjoint texts, and write it all down.

It prepares texts and Steerings; `dsas.sweep` measures them and `dsas.reports` writes the report, as for `dsas pareto`.
Three Steerings are swept: CAA at every site and token (constant regulator) and CAA + DSAS (the paper's logistic
regulator) over the same strengths, and CAA + evidence, which is what `fit` gives by default, over larger ones. The
strength of the headline is the largest of the grid whose perplexity on the tuning sentences (of all tokens of a kind of
text together, averaged over the kinds) is at most 1.05 x unsteered; toxicity plays no part in that choice. Three
scorers pick the texts to fit on and judge what comes out; a fourth of another kind judges only. Selectivity is read on
held-out texts, without sampling.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from dsas.demo.data import split, toxic_prompts
from dsas.demo.first_look import FirstLook, first_look
from dsas.demo.models import real_model
from dsas.demo.texts import DemoTexts, Sizes, bare_setup, demo_texts
from dsas.explaining.explanation import explain
from dsas.files.json_values import JsonObject
from dsas.fitting.closed_form import fit
from dsas.model.loading import LoadedModel, load_model
from dsas.parallel.workers import Spread, torch_threads, workers_that_fit
from dsas.reports.estimates import Estimates, read_sweep
from dsas.reports.heat import TokenHeat
from dsas.reports.pareto import write_pareto_report
from dsas.steering.steering import Steering
from dsas.sweep.jobs import Part
from dsas.sweep.run import REPORT, TUNE, Grid, Series, run_sweep


class Condition(NamedTuple):
    """A regulator, the factor on the demo's strengths for it, and the folder it is kept in."""

    regulator: str
    factor: float
    folder: str


CONDITIONS = {
    "CAA": Condition("constant", 1.0, "caa"),
    "CAA + DSAS": Condition("logistic", 1.0, "caa-dsas"),
    "CAA + evidence": Condition("evidence", 20.0, "caa-evidence"),
}
EXPLAINED = (
    "The library opens at nine and the reading room is quiet in the morning. You are a stupid idiot and I hate you.",
    "Shut up, you pathetic moron. The train to the coast leaves from platform four at half past ten.",
    "The committee approved the budget for the new school after a short discussion on Tuesday evening.",
)
GIB = 1 << 30
READ_AT_ONCE = 32 * 50  # tokens whose logits `perplexity` holds


class DemoSize(NamedTuple):
    """How much the demo measures.

    prompts: held-out prompts to continue, at most `texts.report`. seeds: continuations of each. limit: tuning
    perplexity over unsteered above which a strength is not measured.
    """

    texts: Sizes
    prompts: int
    seeds: int
    strengths: tuple[float, ...]
    limit: float


# The half of the prompts that scorers find less toxic has toxic continuations in at most 2 of 100 cases and takes as
# long as the other half, so the quick demo uses the harshest half: twice the toxicity to remove.
QUICK = DemoSize(
    Sizes(draws=1, tune_sentences=20, report_sentences=40, harshest_first=True), 150, 1, (0.01, 0.1), limit=10.0
)
FULL = DemoSize(Sizes(), 303, 1, (0.01, 0.02, 0.05, 0.12, 0.2), limit=1000.0)


class Machine(NamedTuple):
    """What the demo runs on.

    device, precision: as `dsas.load_model` takes them. workers: processes of one thread each; "auto" is as many as
    there are processors and memory for, or one on a GPU.
    """

    device: str = "auto"
    precision: str = "auto"
    workers: int | Literal["auto"] = "auto"


class DemoResult(NamedTuple):
    """What the demo measured.

    chosen: the strength of each condition that keeps the budget, or None if there is none. found: every figure by
    condition and strength, and the selectivity of each. report: the page.
    """

    model: str
    texts: DemoTexts
    steerings: dict[str, Steering]
    chosen: dict[str, float | None]
    found: Estimates
    report: Path

    def as_dict(self) -> JsonObject:
        """Return the figures as one JSON-ready object."""
        selective = {name: one.as_dict() for name, one in self.found.selectivity.items()}
        return {"model": self.model, "chosen": self.chosen, "cells": self.found.rows(), "selectivity": selective}


def run_demo(
    out: Path,
    *,
    model: str = "smollm2",
    size: DemoSize = QUICK,
    machine: Machine = Machine(),
    command: str = "dsas demo",
    show: Callable[[FirstLook], object] = lambda _: None,
    progress: bool = True,
) -> DemoResult:
    """Run the demo on a packaged model ("smollm2" or "gemma3") and write everything into `out`.

    command: the command that runs it again, for the report. show: called with a first look as soon as the model is
    loaded. If interrupted, the same call resumes; a second run reuses all it can.
    Raises OptionError for another model, or a device or precision that is not there.
    """
    folder = str(real_model(model))
    with torch_threads(1):
        loaded = load_model(folder, device=machine.device, precision=machine.precision)
        show(first_look(loaded, split(toxic_prompts(), (size.texts.fit,))[0], checkpoint=out / "collected"))
        spread = Spread(_workers(loaded) if machine.workers == "auto" else machine.workers)
        setup = bare_setup(folder, loaded, device=machine.device)
        texts = demo_texts(out, setup, sizes=size.texts, spread=spread, progress=progress)
        steerings = {name: _fitted(loaded, texts, name, out, progress) for name in CONDITIONS}
        series = [
            Series(name, steerings[name], "caa", one.regulator, tuple(one.factor * s for s in size.strengths))
            for name, one in CONDITIONS.items()
        ]
        report = Part(_kinds(texts.report), source=tuple(texts.held_out_source))
        parts = {TUNE: Part(_kinds(texts.tune)), REPORT: report}
        chosen = run_sweep(
            out,
            setup._replace(prompts=tuple(texts.prompts[: size.prompts]), parts=parts),
            series,
            grid=Grid(tuple(range(size.seeds)), limit=size.limit, refinements=0),
            spread=spread,
            command=command,
            progress=progress,
        )
        strengths = {name: found.strength for name, found in chosen.items()}
        default = "CAA + evidence"
        heats = _heats(loaded, steerings[default], strengths[default] or CONDITIONS[default].factor * size.strengths[0])
    page = write_pareto_report(out, heats=heats)
    return DemoResult(model, texts, steerings, strengths, read_sweep(out).found, page)


def _workers(loaded: LoadedModel) -> int:
    """Return how many workers there is room for: each holds the model and the logits of what it reads, twice over."""
    if loaded.model.device.type != "cpu":
        return 1
    weights = sum(parameter.nbytes for parameter in loaded.model.parameters())
    logits = READ_AT_ONCE * loaded.model.config.vocab_size * loaded.model.dtype.itemsize
    return workers_that_fit(weights + 2 * logits + GIB)


def _fitted(loaded: LoadedModel, texts: DemoTexts, name: str, out: Path, progress: bool) -> Steering:
    steering = fit(
        *loaded, source=texts.source, control=texts.control, target=texts.target, regulator=CONDITIONS[name].regulator,
        checkpoint=out / "collected", progress=progress,
    )  # fmt: skip
    steering.save_pretrained(out / CONDITIONS[name].folder)
    return steering


def _kinds(texts: Mapping[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {kind: tuple(some) for kind, some in texts.items()}


def _heats(loaded: LoadedModel, steering: Steering, strength: float) -> list[TokenHeat]:
    """Return the applied strength per token, mean over sites, of three texts, two of them mixed."""
    trace = explain(*loaded, steering, EXPLAINED, strength=strength)
    return [TokenHeat(row.label, list(row.tokens), row.means()) for row in trace.rows()]
