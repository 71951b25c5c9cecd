"""Draft and new: from one sentence that names a behaviour to three sets, or to a calibrated Steering."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsas.cli import options
from dsas.cli.app import app
from dsas.cli.checks import check_model, check_out, check_scorers, check_table, resumed_from
from dsas.cli.choices import OWN_JUDGES, SCORERS, offering
from dsas.cli.models import loaded_model
from dsas.cli.options import REPEATABLE, in_method, in_model, in_output, in_texts
from dsas.cli.output import say, say_json, shown
from dsas.errors import TextsError
from dsas.files.text_files import DEFAULT_FIELD, read_texts
from dsas.files.tidy_tables import write_rows

if TYPE_CHECKING:
    import dsas

Behaviour = Annotated[
    str, typer.Argument(help='What follows "The assistant ...", such as "insults the user".', show_default=False)
]
Questions = Annotated[
    Path | None, in_texts(help="Questions to answer: .txt, .jsonl or .csv; default: 200 everyday ones.")
]
JudgeName = Annotated[
    str,
    in_method(
        help="Scores answers. ratio: how much more probable the model finds one when asked for the behaviour; "
        "yes: its odds of saying yes when asked; or a packaged scorer, or a classifier as ID[@LABEL].",
        autocompletion=offering((*OWN_JUDGES, *SCORERS)),
    ),
]
Draws = Annotated[int, in_texts(min=1, help="Answers per question and kind of prompt.")]
Instructed = Annotated[str, in_model(help="Folder, hub id or .gguf file of a model with a chat template.")]


@app.command(epilog='Example: `dsas draft "insults the user" --model ./model --out sets`')
def draft(
    behaviour: Behaviour,
    model: Instructed,
    out: Annotated[Path, in_output(help="Folder for the sets, and for draft.html, which shows what was dropped.")],
    questions: Questions = None,
    unwanted: Annotated[
        list[str], in_method(help=f"System prompt that asks for the behaviour; default: built in. {REPEATABLE}")
    ] = [],  # noqa: B006
    wanted: Annotated[
        list[str], in_method(help=f"System prompt for answers without it; default: built in. {REPEATABLE}")
    ] = [],  # noqa: B006
    neutral: Annotated[
        list[str], in_method(help=f"System prompt that does not mention it; default: built in. {REPEATABLE}")
    ] = [],  # noqa: B006
    judge: JudgeName = "ratio",
    draws: Draws = 1,
    new_tokens: options.NewTokens = 64,
    least: Annotated[int, in_texts(min=4, help="Least number of questions left for the sets to be written.")] = 32,
    batch_size: Annotated[int, in_texts(min=1, help="Questions per call of the model.")] = 8,
    field: options.Field = DEFAULT_FIELD,
    show_words: Annotated[bool, in_output(help="Do not mask toxic words in draft.html.")] = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    table: options.Table = None,
    as_json: options.AsJson = False,
) -> None:
    """Draft source, control and target texts in the model's own words; an interrupted draft resumes where it stopped.

    The sets are not written when wanted and unwanted answers do not differ enough, too few are left, or dsas
    inspect-data finds a fault in them; draft.html then shows why.
    """
    asked = read_texts(questions, field=field) if questions else None
    drawn = resumed_from(out, "drafted")
    for folder in (out, drawn):
        check_out(folder)
    check_table(table)
    _check(model, judge)
    import dsas
    from dsas.drafting.prompts import prompts_for

    given = {"unwanted": unwanted, "wanted": wanted, "neutral": neutral}
    prompts = replace(prompts_for(behaviour), **{kind: told for kind, told in given.items() if told})
    found = dsas.draft(
        *loaded_model(model, device, precision),
        behaviour,
        questions=asked,
        prompts=prompts,
        judge=_judge_of(judge, device),
        seeds=range(draws),
        new_tokens=new_tokens,
        batch_size=batch_size,
        least=least,
        checkpoint=drawn,
        progress=not as_json,
    )
    if table is not None:
        write_rows(table, found.rows())  # before the sets, which may be refused
    _save(found, out, show_words)
    shutil.rmtree(drawn, ignore_errors=True)
    if as_json:
        say_json({**found.as_dict(), "saved": str(out)})
        return
    _show(found, model, out)


@app.command(epilog='Example: `dsas new politeness "insults the user" --model ./model`')
def new(
    name: Annotated[Path, typer.Argument(help="Folder to write everything to.")],
    behaviour: Behaviour,
    model: Instructed,
    questions: Questions = None,
    judge: JudgeName = "ratio",
    draws: Draws = 1,
    new_tokens: options.NewTokens = 64,
    least: Annotated[int, in_texts(min=20, help="Least number of questions left; three fifths are used to fit.")] = 60,
    batch_size: Annotated[int, in_texts(min=1, help="Questions per call of the model.")] = 8,
    field: options.Field = DEFAULT_FIELD,
    show_words: Annotated[bool, in_output(help="Do not mask toxic words on the pages.")] = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    table: options.Table = None,
    as_json: options.AsJson = False,
) -> None:
    """Draft, fit, calibrate and try a Steering in one go; if interrupted, the same command resumes."""
    asked = read_texts(questions, field=field) if questions else None
    check_out(name)
    check_table(table)
    _check(model, judge)
    import dsas
    from dsas.drafting.new_steering import make
    from dsas.drafting.prompts import prompts_for
    from dsas.drafting.three_sets import writer_of
    from dsas.evaluation.question_list import everyday_questions

    loaded, judged, drawn = loaded_model(model, device, precision), _judge_of(judge, device), name / ".drafted"
    found = dsas.draft(
        *loaded, behaviour, questions=asked, judge=judged, seeds=range(draws), new_tokens=new_tokens,
        batch_size=batch_size, least=least, checkpoint=drawn, progress=not as_json,
    )  # fmt: skip
    _save(found, name / "sets", show_words)
    writer = writer_of(*loaded, prompts_for(behaviour), (new_tokens, batch_size), drawn)
    steering, trial = make(
        writer, found, judged, asked or everyday_questions(), name, show_words=show_words, progress=not as_json
    )
    shutil.rmtree(drawn, ignore_errors=True)
    if table is not None:
        write_rows(table, trial.rows(steering.default_strength))
    if as_json:
        say_json({"draft": found.as_dict(), "strength": steering.strength, **trial.as_dict(), "saved": str(name)})
        return
    for line in steering.calibration.lines() if steering.calibration else ():
        say(line)
    shares = f"unsteered {shown(trial.unsteered)}, steered {shown(trial.steered)}"
    say(f"answers that {found.verdict.says}, of {trial.unsteered.n} that are asked to: {shares}")
    say(f"report: {name / 'report.html'}; next: dsas generate {model} --chat --steering {name / 'steering'}")


def _save(found: "dsas.Draft", out: Path, show_words: bool) -> None:
    try:
        found.save(out, show_words=show_words)
    except TextsError as error:
        raise TextsError(f"{error} See {out / 'draft.html'}; the answers are kept for the next try.") from error


def _check(model: str, judge: str) -> None:
    if judge not in OWN_JUDGES:
        check_scorers([judge])
    check_model(model)


def _judge_of(name: str, device: str) -> Any:
    from dsas.sweep.jobs import scorer_of

    return name if name in OWN_JUDGES else scorer_of(name, device=device)


def _show(found: "dsas.Draft", model: str, out: Path) -> None:
    said = found.verdict
    say(f"kept: {len(found.chosen.kept)} questions, each with a source, a control and a target answer")
    for reason, count in found.chosen.counts().items():
        say(f"dropped, {reason}: {count}")
    say(f"judge: {said.judge}; unwanted against neutral answers: AUROC {said.auroc:.2f}")
    shares = ", ".join(f"{kind} {share:.0%}" for kind, share in said.shares.items())
    say(f"answers that {said.says}: {shares}")
    for one in found.inspection.findings if found.inspection else []:
        say(f"{one.level}: {one.check}: {one.message}")
    files = " ".join(f"--{name} {out / name}.jsonl" for name in ("source", "control", "target"))
    say(f"look at {out / 'draft.html'}, then: dsas fit {model} {files} --out ...")
