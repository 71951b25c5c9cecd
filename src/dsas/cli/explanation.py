"""Explain: a page that shows which tokens of some texts were steered, where, and by how much."""

from pathlib import Path
from typing import Annotated

import typer

from dsas.cli import options
from dsas.cli.app import app
from dsas.cli.checks import check_model, check_out_file, check_strength, check_table
from dsas.cli.examples import asked_of, chat_of
from dsas.cli.models import loaded_model
from dsas.cli.options import STEERING, in_method, in_output, in_texts
from dsas.cli.output import say
from dsas.files.text_files import DEFAULT_FIELD
from dsas.files.tidy_tables import write_rows
from dsas.steering.folder import steering_folder


@app.command(epilog='Example: `dsas explain ./model "You are a fool." --steering detox --strength 0.1`')
def explain(
    model: options.Model,
    steering: Annotated[str, in_method(help=STEERING)],
    text: Annotated[str | None, typer.Argument(help="One text; or give --file.")] = None,
    file: options.File = None,
    strength: options.Strength = None,
    generate: Annotated[int, in_texts(min=0, help="Generate N tokens with and without steering.")] = 0,
    next_tokens: Annotated[
        int, in_texts(min=0, help="Compare the N likeliest next tokens with and without steering.")
    ] = 0,
    skip_sinks: Annotated[bool, in_method(help="Do not steer the first token of each text.")] = False,
    out: Annotated[Path, in_output(help="Page to write.")] = Path("explain.html"),
    chat: options.Chat = False,
    system: options.System = None,
    template_args: options.TemplateArgs = options.NO_ARGS,
    field: options.Field = DEFAULT_FIELD,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    table: options.Table = None,
    as_json: options.AsJson = False,
) -> None:
    """Write a page that shows which tokens were steered, at which sites, and by how much; --json prints it instead."""
    texts = asked_of(text, file, field, chat=chat_of(system, template_args), as_chat=chat)
    check_strength(strength)
    folder = steering_folder(steering)
    check_out_file(out)
    check_table(table)
    check_model(model)
    import dsas
    from dsas.explaining.explanation import write_explanation
    from dsas.views.table import rows

    chosen = dsas.Steering.from_pretrained(folder)
    loaded = loaded_model(model, device, precision)
    trace = dsas.explain(
        *loaded,
        chosen,
        None if generate else texts,
        prompt=texts if generate else None,
        generate=max(generate, 1),
        strength=strength,
        next_tokens=next_tokens,
        skip_sinks=skip_sinks,
    )
    if table is not None:
        write_rows(table, rows(trace.rows()))
    if as_json:
        say(trace.to_json())
        return
    used = chosen.default_strength if strength is None else strength
    write_explanation(out, trace, title=f"What {Path(steering).name} steered at strength {used:g}")
    say(f"page: {out}")
