"""Selectivity: what source texts lose under a stored Steering, at a stated cost on texts that should not change."""

from typing import TYPE_CHECKING, Annotated

import typer

from dsas.cli import options
from dsas.cli.app import app
from dsas.cli.checks import check_enough, check_model, check_table
from dsas.cli.examples import chat_of, kinds_of_examples, read_examples
from dsas.cli.models import loaded_model
from dsas.cli.options import REPEATABLE, STEERING, in_model, in_texts
from dsas.cli.output import say, say_json, show_table, shown
from dsas.files.text_files import DEFAULT_FIELD
from dsas.files.tidy_tables import write_rows

if TYPE_CHECKING:
    from dsas.evaluation.selectivity import Selectivity


@app.command(
    "selectivity",
    epilog="Example: `dsas selectivity detox/ --model ./model --source rude.txt --control clean.txt`",
)
def selectivity(
    steering: Annotated[str, typer.Argument(help=STEERING)],
    model: Annotated[str, in_model(help="Folder, hub id or .gguf file of the model.")],
    source: options.Source,
    control: Annotated[
        list[str], in_texts(help=f"Each kind of text that must stay as it is: [KIND=]FILE. {REPEATABLE}")
    ],
    damage: Annotated[float, in_texts(min=0.0, help="What control texts may lose, in nats per token.")] = 0.02,
    system: options.System = None,
    template_args: options.TemplateArgs = options.NO_ARGS,
    field: options.Field = DEFAULT_FIELD,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    table: options.Table = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure by how much source texts become less probable at a stated damage to control texts, without sampling.

    Use texts that the Steering was not fitted on. The same is measured without a regulator, for comparison.
    """
    chat = chat_of(system, template_args)
    texts = read_examples(source, field, chat=chat, half="rejected")
    kinds = kinds_of_examples(control, field, chat)
    check_enough({"--source": texts, **{f"--control {kind}=...": some for kind, some in kinds.items()}})
    check_table(table)
    check_model(model)
    from dsas.evaluation.selectivity import measure_selectivity
    from dsas.steering.steering import Steering

    chosen = Steering.from_pretrained(steering)
    loaded = loaded_model(model, device, precision)
    found = measure_selectivity(*loaded, chosen, source=texts, control=kinds, damage=damage, progress=not as_json)
    if table is not None:
        write_rows(table, found.curve.text_rows())
    if as_json:
        say_json(found.as_dict())
    else:
        _show(found)


def _show(found: "Selectivity") -> None:
    if not found.reached:
        say(f"no strength does the stated damage of {found.damage:g} nats per token, so there is nothing to compare")
    else:
        say(f"where control texts lose {found.damage:g} nats per token, at strength {shown(found.strength)}:")
        say(f"  source texts lose {shown(found.nats)}, {shown(found.ratio)} times what they lose without a regulator")
        show_table(
            ("control texts", "lose there", "source, where this kind alone loses as much"),
            [(name, shown(kind.loss), shown(kind.nats)) for name, kind in found.kinds.items()],
        )
    rows = found.curve.rows()
    show_table(list(rows[0]), [[f"{value:.4g}" for value in row.values()] for row in rows], title="The whole curve")
