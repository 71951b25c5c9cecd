"""Calibrate: the strength of a stored Steering, chosen by a budget of damage and written into it."""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import dsas
from dsas.cli.options import AsJson, Device, Field, Model, Precision, app, console, hide_foreign_bars, kinds_of
from dsas.errors import OptionError
from dsas.files.text_files import DEFAULT_FIELD
from dsas.model.loading import load_model


@app.command(epilog="Example: `dsas calibrate ./model detox --tune wiki=a.txt --tune news=b.txt --held-out c.txt`")
def calibrate(
    model: Model,
    steering: Annotated[str, typer.Argument(help="Folder or hub id of a Steering.")],
    tune: Annotated[list[str], typer.Option(help="Ordinary texts to choose by, [kind=]file; repeatable.")],
    held_out: Annotated[list[str], typer.Option(help="Other texts, to check with, [kind=]file; repeatable.")],
    budget: Annotated[list[str], typer.Option(help="perplexity=RATIO or kl=NATS; all given must hold.")] = [  # noqa: B006
        "perplexity=1.05"
    ],
    worst: Annotated[bool, typer.Option(help="Keep the budget for the worst kind of text, not for the mean.")] = False,
    per: Annotated[str, typer.Option(help="One strength for 'all' sites, or the weight of each 'site', too.")] = "all",
    start: Annotated[float, typer.Option(help="Least strength that is tried.")] = 0.005,
    limit: Annotated[float, typer.Option(help="Largest strength that is tried.")] = 16.0,
    out: Annotated[Path | None, typer.Option(help="Folder to write to; default: the Steering's own.")] = None,
    field: Field = DEFAULT_FIELD,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Find the largest strength that keeps a budget of damage, check it on other texts, and store it.

    An interrupted calibration goes on where it stopped.
    """
    budgets = [_budget(text, worst) for text in budget]
    sets = {"tune": kinds_of(tune, field), "held_out": kinds_of(held_out, field)}
    folder = out or Path(steering)
    if out is None and not folder.is_dir():
        raise OptionError(f"{steering!r} is no local folder, so --out must say where to write the calibrated Steering")
    hide_foreign_bars()
    chosen = dsas.Steering.from_pretrained(steering)
    loaded = load_model(model, device=device, precision=precision)
    measured = folder.resolve().with_name(f".{folder.resolve().name}.calibrated")
    calibration = dsas.calibrate(
        loaded.model,
        loaded.tokenizer,
        chosen,
        **sets,
        budget=budgets,
        per=per,  # pyright: ignore[reportArgumentType]
        start=start,
        limit=limit,
        checkpoint=measured,
        progress=not as_json,
    )
    chosen.calibrated(calibration).save_pretrained(folder)
    shutil.rmtree(measured, ignore_errors=True)
    if as_json:
        print(json.dumps({**calibration.as_dict(), "kept": calibration.kept, "saved": str(folder)}))
    else:
        _show(calibration, folder)


def _budget(text: str, worst: bool) -> dsas.Budget:
    damage, _, most = text.partition("=")
    try:
        return dsas.Budget(damage, float(most), worst)  # pyright: ignore[reportArgumentType]
    except ValueError as error:
        raise OptionError(f"expected --budget as perplexity=1.05 or kl=0.02, got {text!r}") from error


def _show(calibration: dsas.Calibration, folder: Path) -> None:
    """Print the damage by strength on the tuning texts, the check on the others, and where it was written."""
    names = [spent.damage for spent in calibration.budgets]
    curve = Table("strength", *names, title="Damage on the tuning texts")
    for strength, *damages in calibration.curve:
        cells = ["not finite" if damage is None else f"{damage:.4g}" for damage in damages]
        curve.add_row(f"{strength:.4g}", *cells, style="bold" if strength == calibration.strength else None)
    console.print(curve)
    checks = Table("held-out texts", "n", *names, title=f"Damage at strength {calibration.strength:.4g}")
    kinds = list(dict.fromkeys(kind for spent in calibration.budgets for kind in spent.by_kind))
    for kind in kinds:
        cells = [_interval(spent.by_kind[kind]) if kind in spent.by_kind else "-" for spent in calibration.budgets]
        checks.add_row(kind, str(calibration.held_out[kind]), *cells)
    overall = [_interval(spent.held_out) for spent in calibration.budgets]
    checks.add_row("all kinds", str(sum(calibration.held_out.values())), *overall, style="bold")
    console.print(checks)
    for line in calibration.lines():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"saved: {folder}", markup=False, highlight=False, soft_wrap=True)


def _interval(damage: dict[str, float]) -> str:
    return "{mean:.4g} ({low:.4g} to {high:.4g})".format(**damage)
