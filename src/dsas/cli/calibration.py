"""Calibrate: the strength of a stored Steering, chosen by a budget of damage and written into it."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsas.cli import options
from dsas.cli.app import app
from dsas.cli.checks import check_model, check_out, check_table, resumed_from
from dsas.cli.choices import DAMAGES, PerSite, offering
from dsas.cli.examples import chat_of, kinds_of_examples
from dsas.cli.models import loaded_model
from dsas.cli.options import REPEATABLE, STEERING, in_method, in_output, in_texts
from dsas.cli.output import say, say_json, show_table
from dsas.errors import OptionError, closest
from dsas.files.text_files import DEFAULT_FIELD
from dsas.files.tidy_tables import write_rows
from dsas.steering.folder import steering_folder

if TYPE_CHECKING:
    import dsas


@app.command(epilog="Example: `dsas calibrate ./model detox --tune wiki=a.txt --tune news=b.txt --held-out c.txt`")
def calibrate(
    model: options.Model,
    steering: Annotated[str, typer.Argument(help=STEERING)],
    tune: Annotated[list[str], in_texts(help=f"Neutral texts used to choose the strength: [KIND=]FILE. {REPEATABLE}")],
    held_out: Annotated[
        list[str], in_texts(help=f"Other neutral texts, used to check the strength: [KIND=]FILE. {REPEATABLE}")
    ],
    budget: Annotated[
        list[str],
        in_method(
            help="Damage that is allowed: perplexity=RATIO or loss=NATS of all tokens together, mean-perplexity=RATIO "
            f"of the mean over texts, kl=NATS; all of them must hold. {REPEATABLE}",
            autocompletion=offering(["perplexity=", "loss=", "mean-perplexity=", "kl="]),
        ),
    ] = ["perplexity=1.05"],  # noqa: B006
    worst: Annotated[bool, in_method(help="Keep the budget for the worst kind of text, not for the mean.")] = False,
    sure: Annotated[
        float,
        in_method(help="Confidence with which other texts must keep the budget, such as 0.9; 0: no such check."),
    ] = 0.0,
    per: Annotated[PerSite, in_method(help="all: one strength; site: choose the weight of each site as well.")] = "all",
    start: Annotated[float, in_method(help="Smallest strength to try.")] = 0.005,
    limit: Annotated[float, in_method(help="Largest strength to try.")] = 16.0,
    out: Annotated[Path | None, in_output(help="Folder to write to; default: the Steering's own.")] = None,
    system: options.System = None,
    template_args: options.TemplateArgs = options.NO_ARGS,
    field: options.Field = DEFAULT_FIELD,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    table: options.Table = None,
    as_json: options.AsJson = False,
) -> None:
    """Find the largest strength that keeps a budget of damage, check it on other texts, and store it.

    An interrupted calibration resumes where it stopped.
    """
    allowed = [budget_of(text) for text in budget]
    if not 0 < start <= limit < float("inf"):
        raise OptionError(f"expected 0 < start <= limit, got --start {start} and --limit {limit}")
    if not (sure == 0 or 0.5 <= sure < 1):
        raise OptionError(f"--sure must be 0, or from 0.5 to below 1, got {sure}")
    chat = chat_of(system, template_args)
    sets = {"tune": kinds_of_examples(tune, field, chat), "held_out": kinds_of_examples(held_out, field, chat)}
    folder = out or Path(steering)
    if out is None and not folder.is_dir():
        raise OptionError(f"{steering!r} is not a local folder, so give --out, the folder to write the result to")
    stored = steering_folder(steering)
    measured = resumed_from(folder, "calibrated")
    for written in (folder, measured):
        check_out(written)
    check_table(table)
    check_model(model)
    import dsas

    chosen = dsas.Steering.from_pretrained(stored)
    loaded = loaded_model(model, device, precision)
    calibration = dsas.calibrate(
        *loaded,
        chosen,
        **sets,
        budget=[dsas.Budget(damage, most, worst, sure=sure) for damage, most in allowed],  # pyright: ignore[reportArgumentType]
        per=per,
        start=start,
        limit=limit,
        checkpoint=measured,
        progress=not as_json,
    )
    chosen.calibrated(calibration).save_pretrained(folder)
    shutil.rmtree(measured, ignore_errors=True)
    if table is not None:
        write_rows(table, calibration.rows())
    if as_json:
        say_json({**calibration.as_dict(), "kept": calibration.kept, "saved": str(folder)})
    else:
        _show(calibration, folder)


def budget_of(text: str) -> tuple[str, float]:
    """Return a budget as DAMAGE and what is allowed of it. Raises OptionError."""
    damage, _, most = text.partition("=")
    try:
        allowed = float(most)
    except ValueError as error:
        raise OptionError(f"expected --budget as perplexity=1.05 or kl=0.02, got {text!r}") from error
    if damage not in DAMAGES:
        raise OptionError(f"unknown budget {damage!r}; closest: {closest(damage, DAMAGES)}")
    return damage, allowed


def _show(calibration: "dsas.Calibration", folder: Path) -> None:
    names = [spent.damage for spent in calibration.budgets]
    curve = [
        [f"{strength:.4g}", *("not finite" if damage is None else f"{damage:.4g}" for damage in damages)]
        for strength, *damages in calibration.curve
    ]
    chosen = [place for place, (strength, *_) in enumerate(calibration.curve) if strength == calibration.strength]
    show_table(("strength", *names), curve, title="Damage on the tuning texts", bold=chosen)
    checks = [
        [kind, str(calibration.held_out[kind])]
        + [_interval(spent.by_kind[kind]) if kind in spent.by_kind else "-" for spent in calibration.budgets]
        for kind in dict.fromkeys(kind for spent in calibration.budgets for kind in spent.by_kind)
    ]
    overall = [_interval(spent.held_out) for spent in calibration.budgets]
    checks.append(["all kinds", str(sum(calibration.held_out.values())), *overall])
    title = f"Damage at strength {calibration.strength:.4g}"
    show_table(("held-out texts", "n", *names), checks, title=title, bold=[len(checks) - 1])
    for line in [*calibration.lines(), f"saved: {folder}"]:
        say(line)


def _interval(damage: dict[str, float]) -> str:
    return "{mean:.4g} ({low:.4g} to {high:.4g})".format(**damage)
