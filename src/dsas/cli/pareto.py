"""Pareto: toxicity against damage, for several methods over the same strengths, prompts and texts."""

import itertools
import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

import dsas
from dsas.cli.options import AsJson, Device, Field, Model, Precision, app, console, hide_foreign_bars, kinds_of
from dsas.errors import OptionError, TextsError
from dsas.evaluation.choice import Question, read_questions
from dsas.evaluation.generations import Sampling
from dsas.files.text_files import DEFAULT_FIELD, read_texts
from dsas.model.identity import fingerprint
from dsas.model.loading import LoadedModel, load_model
from dsas.parallel.workers import Spread
from dsas.sweep.jobs import PACKAGED, Part, Setup, scorer_of
from dsas.sweep.run import STRENGTHS, Grid, Series, run_sweep

KL_TEXTS = 25
SCORERS = list(PACKAGED)


@app.command(
    epilog="Example: `dsas pareto ./model --source rude.txt --control plain.txt --target polite.txt --prompts ask.txt "
    "--tune a.txt --neutral b.txt --transform caa --transform iti --out front`"
)
def pareto(
    model: Model,
    prompts: Annotated[Path, typer.Option(help="Prompts to continue, none of them fitted on.")],
    tune: Annotated[list[str], typer.Option(help="Neutral texts that choose strengths, [kind=]file; repeatable.")],
    neutral: Annotated[list[str], typer.Option(help="Other neutral texts to report on, [kind=]file; repeatable.")],
    out: Annotated[Path, typer.Option(help="Folder for samples and report.")],
    source: Annotated[Path | None, typer.Option(help="Texts to fit on, as in dsas fit.")] = None,
    control: Annotated[Path | None, typer.Option(help="Neutral texts that must stay as they are.")] = None,
    target: Annotated[Path | None, typer.Option(help="Texts with the desired behaviour; default: control.")] = None,
    transform: Annotated[list[str], typer.Option(help="Each is fitted with every --regulator; repeatable.")] = ["caa"],  # noqa: B006
    regulator: Annotated[list[str], typer.Option(help="Repeatable; a product is a*b.")] = ["constant", "logistic"],  # noqa: B006
    steering: Annotated[list[Path], typer.Option(help="Folder of a Steering to sweep as well; repeatable.")] = [],  # noqa: B006
    sites: Annotated[list[str], typer.Option(help="Shorthand, path, glob or re:...; repeatable.")] = ["residual"],  # noqa: B006
    strength: Annotated[list[float], typer.Option(help="Repeatable; the grid of every series.")] = list(STRENGTHS),  # noqa: B006
    seeds: Annotated[int, typer.Option(min=1, help="Continuations of each prompt.")] = 3,
    budget: Annotated[float, typer.Option(help="Tuning perplexity, over unsteered, of a chosen strength.")] = 1.05,
    limit: Annotated[float, typer.Option(help="The same, above which nothing is measured.")] = 1.6,
    scorer: Annotated[list[str], typer.Option(help="Packaged, or a classifier's id[@label]; repeatable.")] = SCORERS,
    judge: Annotated[str, typer.Option(help="Another language model, to judge the continuations.")] = "",
    questions: Annotated[Path | None, typer.Option(help=".jsonl with prompt, choices and answer (a number).")] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a continuation.")] = 32,
    workers: Annotated[int, typer.Option(help="Processes on this machine.")] = 1,
    ray: Annotated[str, typer.Option(help="Address of a Ray cluster, or auto.")] = "",
    show_words: Annotated[bool, typer.Option(help="Do not mask toxic words in the report.")] = False,
    field: Field = DEFAULT_FIELD,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Sweep methods over strengths and seeds, and report toxicity against damage; run again, it goes on."""
    from dsas.reports.pareto import write_pareto_report

    sets = {name: read_texts(file, field=field) for name, file in _given(source, control, target).items()}
    texts = {"tune": kinds_of(tune, field), "report": kinds_of(neutral, field)}
    asked = read_texts(prompts, field=field)
    _check_apart(sets, texts, asked)
    quiz = {questions.stem: read_questions(questions)} if questions else {}
    for name in scorer:
        scorer_of(name, device=device)
    hide_foreign_bars()
    loaded = load_model(model, device=device, precision=precision)
    pairs = list(itertools.product(transform, regulator)) if sets else []
    series = [_fitted(loaded, sets, pair, sites=sites, out=out, progress=not as_json) for pair in pairs]
    series += [Series(folder.name, dsas.Steering.from_pretrained(folder), "stored", "stored") for folder in steering]
    spread = Spread(workers, ray)
    setup = Setup(
        model=model,
        fingerprint=fingerprint(loaded.model),
        prompts=tuple(asked),
        parts=_parts(texts, quiz),
        scorers=tuple(scorer),
        judge=judge,
        sampling=Sampling(new_tokens=new_tokens),
        device=device,
        precision=precision,
        threads=spread.threads,
    )
    chosen = run_sweep(
        out,
        setup,
        [one._replace(strengths=tuple(strength)) for one in series],
        grid=Grid(tuple(range(seeds)), budget, limit),
        spread=spread,
        command=shlex.join(["dsas", *sys.argv[1:]]),
        progress=not as_json,
    )
    write_pareto_report(out, show_words=show_words)
    if as_json:
        print(json.dumps({"chosen": {name: found.strength for name, found in chosen.items()}, "out": str(out)}))
        return
    for name, found in chosen.items():
        said = "no strength of the grid keeps the budget" if found.strength is None else f"strength {found.strength:g}"
        console.print(f"{name}: {said}", markup=False, highlight=False)
    console.print(f"report: {out / 'report.html'}", soft_wrap=True)


def _given(source: Path | None, control: Path | None, target: Path | None) -> dict[str, Path]:
    """Return the files to fit on. Raises OptionError unless there are both source and control, or none of the three."""
    files = {"source": source, "control": control, "target": target or control}
    given = {name: file for name, file in files.items() if file is not None}
    if given and len(given) < len(files):
        raise OptionError("give --source and --control to fit on, or --steering with what is fitted already")
    return given


def _check_apart(sets: dict[str, list[str]], texts: dict[str, dict[str, list[str]]], prompts: list[str]) -> None:
    """Raise TextsError when a text is in two of those that fit, choose strengths, and are reported on."""
    parts = {
        "the texts to fit on": {text for some in sets.values() for text in some},
        **{f"--{name}": {text for some in texts[part].values() for text in some} for part, name in _PARTS.items()},
        "--prompts": set(prompts),
    }
    for (one, first), (other, second) in itertools.combinations(parts.items(), 2):
        if shared := first & second:
            raise TextsError(f"{len(shared)} texts are in both {one} and {other}: what is reported must be held out")


_PARTS = {"tune": "tune", "report": "neutral"}


def _parts(texts: dict[str, dict[str, list[str]]], quiz: dict[str, tuple[Question, ...]]) -> dict[str, Part]:
    """Return what is read to choose strengths, and what to report: KL, of two passes, on the first texts of a kind."""
    tune, report = ({kind: tuple(some) for kind, some in texts[part].items()} for part in _PARTS)
    return {"tune": Part(tune), "report": Part(report, {kind: some[:KL_TEXTS] for kind, some in report.items()}, quiz)}


def _fitted(
    loaded: LoadedModel,
    sets: dict[str, list[str]],
    pair: tuple[str, str],
    *,
    sites: list[str],
    out: Path,
    progress: bool,
) -> Series:
    """Return the series of a transform and a regulator; activations are collected once for all pairs."""
    (how, when), (source, control, target) = pair, (sets[name] for name in ("source", "control", "target"))
    steering = dsas.fit(
        *loaded, source=source, control=control, target=target, transform=how, regulator=when, sites=sites,
        checkpoint=out / "collected", progress=progress,
    )  # fmt: skip
    return Series(f"{how} + {when}", steering, how, when)
