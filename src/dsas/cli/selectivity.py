"""Selectivity: what source texts lose under a stored Steering for what it costs on texts to be left alone."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsas.cli.app import app
from dsas.cli.checks import check_model
from dsas.cli.models import loaded_model
from dsas.cli.options import REPEATABLE, STEERING, AsJson, Device, Field, Precision, Source, in_model, in_texts
from dsas.cli.output import show_table
from dsas.errors import OptionError
from dsas.files.text_files import DEFAULT_FIELD, read_texts

if TYPE_CHECKING:
    from dsas.evaluation.intervals import Interval
    from dsas.evaluation.selectivity import Selectivity


@app.command(
    "selectivity",
    epilog="Example: `dsas selectivity detox/ --model ./model --source rude.txt --control clean.txt`",
)
def selectivity(
    steering: Annotated[str, typer.Argument(help=STEERING)],
    model: Annotated[str, in_model(help="Folder, hub id or .gguf file of the model.")],
    source: Source,
    control: Annotated[
        list[Path], in_texts(help=f"A file for each kind of text that must stay as it is. {REPEATABLE}")
    ],
    damage: Annotated[float, in_texts(min=0.0, help="What control texts may lose, in nats per token.")] = 0.02,
    field: Field = DEFAULT_FIELD,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure by how much source texts become less probable at a stated damage to control texts, without sampling.

    Texts must be others than those the Steering was fitted on. Beside it: the same without a regulator.
    """
    texts = read_texts(source, field=field)
    kinds = {path.stem: read_texts(path, field=field) for path in control}
    if len(kinds) < len(control):
        raise OptionError(f"each file is a kind of text by its name, but some have one name: {[*map(str, control)]}")
    check_model(model)
    from dsas.evaluation.selectivity import measure_selectivity
    from dsas.steering.steering import Steering

    chosen = Steering.from_pretrained(steering)
    loaded = loaded_model(model, device, precision)
    found = measure_selectivity(*loaded, chosen, source=texts, control=kinds, damage=damage, progress=not as_json)
    if as_json:
        print(json.dumps(found.as_dict()))
    else:
        _show(found)


def _show(found: "Selectivity") -> None:
    if not found.reached:
        print(
            f"no strength does the stated damage of {found.damage:g} nats per token, so nothing can be compared there"
        )
    else:
        print(f"where control texts lose {found.damage:g} nats per token, at strength {_said(found.strength)}:")
        print(f"  source texts lose {_said(found.nats)}, {_said(found.ratio)} times what they lose without a regulator")
        show_table(
            ("control texts", "lose there", "source, where these alone lose as much"),
            [(name, _said(kind.loss), _said(kind.nats)) for name, kind in found.kinds.items()],
        )
    rows = found.curve.rows()
    show_table(list(rows[0]), [[f"{value:.4g}" for value in row.values()] for row in rows], title="The whole curve")


def _said(interval: "Interval | None") -> str:
    if interval is None:
        return "not reached"
    return f"{interval.mean:.3g} [{interval.low:.3g}, {interval.high:.3g}]"
