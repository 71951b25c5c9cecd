"""Fires-on: what kinds of text the regulators of a stored Steering fire on, before anything is generated."""

from typing import TYPE_CHECKING, Annotated

import typer

from dsas.cli import options
from dsas.cli.app import app
from dsas.cli.checks import check_model, check_table
from dsas.cli.examples import chat_of, kinds_of_examples
from dsas.cli.models import loaded_model
from dsas.cli.options import REPEATABLE, STEERING, in_model, in_texts
from dsas.cli.output import say, say_json, show_table, shown
from dsas.files.text_files import DEFAULT_FIELD
from dsas.files.tidy_tables import write_rows

if TYPE_CHECKING:
    from dsas.evaluation.firing import FiringReport


@app.command("fires-on", epilog="Example: `dsas fires-on detox/ --model ./model --texts rude.txt --texts wiki.txt`")
def fires_on(
    steering: Annotated[str, typer.Argument(help=STEERING)],
    model: Annotated[str, in_model(help="Folder, hub id or .gguf file of the model.")],
    texts: Annotated[
        list[str],
        in_texts(help=f"Each kind of text: [KIND=]FILE; the first holds the behaviour itself. {REPEATABLE}"),
    ],
    system: options.System = None,
    template_args: options.TemplateArgs = options.NO_ARGS,
    max_tokens: Annotated[int, in_texts(min=1, help="Longer texts and answers are cut to this many tokens.")] = 50,
    field: options.Field = DEFAULT_FIELD,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    table: options.Table = None,
    as_json: options.AsJson = False,
) -> None:
    """Show how strongly the regulators fire on each kind of text, and warn where they fire on what they should not."""
    kinds = kinds_of_examples(texts, field, chat_of(system, template_args))
    check_table(table)
    check_model(model)
    from dsas.evaluation.firing import fires_on as measure
    from dsas.steering.steering import Steering

    chosen = Steering.from_pretrained(steering)
    loaded = loaded_model(model, device, precision)
    report = measure(*loaded, chosen, kinds, max_tokens=max_tokens, progress=not as_json)
    if table is not None:
        write_rows(table, report.rows())
    if as_json:
        say_json(report.as_dict())
    else:
        show_firing(report)


def show_firing(report: "FiringReport") -> None:
    """Print what a Steering fires on, by kind of text, and the warnings."""
    show_table(
        ("texts", "n", "regulator", "above one half", "AUROC of a token"),
        [
            (one.kind, str(one.value.n), shown(one.value), shown(one.above_half), shown(one.auroc))
            for one in report.kinds
        ],
    )
    for warning in report.warnings():
        say(f"warning: {warning}")
