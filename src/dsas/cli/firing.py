"""Fires-on: what kinds of text the regulators of a stored Steering fire on, before anything is generated."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsas.cli.app import app
from dsas.cli.checks import check_model
from dsas.cli.models import loaded_model
from dsas.cli.options import REPEATABLE, STEERING, AsJson, Device, Field, Precision, in_model, in_texts
from dsas.cli.output import show_table
from dsas.errors import OptionError
from dsas.files.text_files import DEFAULT_FIELD, read_texts

if TYPE_CHECKING:
    from dsas.evaluation.intervals import Interval


@app.command("fires-on", epilog="Example: `dsas fires-on detox/ --model ./model --texts rude.txt --texts wiki.txt`")
def fires_on(
    steering: Annotated[str, typer.Argument(help=STEERING)],
    model: Annotated[str, in_model(help="Folder, hub id or .gguf file of the model.")],
    texts: Annotated[
        list[Path],
        in_texts(help=f"A file for each kind of text; the first holds the behaviour itself. {REPEATABLE}"),
    ],
    field: Field = DEFAULT_FIELD,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Show how strongly the regulators fire on each kind of text, and warn where they fire on what they should not."""
    kinds = {path.stem: read_texts(path, field=field) for path in texts}
    if len(kinds) < len(texts):
        raise OptionError(f"each file is a kind of text by its name, but some have one name: {[*map(str, texts)]}")
    check_model(model)
    from dsas.evaluation.firing import fires_on as measure
    from dsas.steering.steering import Steering

    chosen = Steering.from_pretrained(steering)
    loaded = loaded_model(model, device, precision)
    report = measure(*loaded, chosen, kinds)
    if as_json:
        print(json.dumps(report.as_dict()))
        return
    show_table(
        ("texts", "n", "regulator", "above one half", "AUROC of a token"),
        [
            (one.kind, str(one.value.n), _said(one.value), _said(one.above_half), _said(one.auroc))
            for one in report.kinds
        ],
    )
    for warning in report.warnings():
        print(f"warning: {warning}")


def _said(interval: "Interval | None") -> str:
    return "" if interval is None else f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
