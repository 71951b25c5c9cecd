"""Inspect-data: what is wrong with sets of texts, before a Steering is fitted on them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsas.cli.app import app
from dsas.cli.checks import check_model, check_table
from dsas.cli.examples import chat_of, chosen_of, read_examples
from dsas.cli.models import loaded_model
from dsas.cli.options import (
    NO_ARGS,
    AsJson,
    Control,
    Device,
    Field,
    Precision,
    Sites,
    Source,
    System,
    Table,
    TemplateArgs,
    Tokens,
    in_model,
    in_texts,
)
from dsas.cli.output import say, say_json, show_table
from dsas.files.text_files import DEFAULT_FIELD
from dsas.files.tidy_tables import write_rows

if TYPE_CHECKING:
    from dsas.fitting.text_checks import Inspection


@app.command("inspect-data", epilog="Example: `dsas inspect-data --source rude.txt --control plain.txt`")
def inspect_data(
    source: Source,
    control: Control,
    target: Annotated[Path | None, in_texts(help="Texts with the desired behaviour.")] = None,
    held_out: Annotated[Path | None, in_texts(help="Texts to evaluate on, which must not be in the sets.")] = None,
    model: Annotated[
        str | None,
        in_model(help="Folder, hub id or .gguf file: adds how well each site separates source from control."),
    ] = None,
    sites: Sites = ["residual"],  # noqa: B006
    tokens: Tokens = "auto",
    system: System = None,
    template_args: TemplateArgs = NO_ARGS,
    field: Field = DEFAULT_FIELD,
    device: Device = "auto",
    precision: Precision = "auto",
    table: Table = None,
    as_json: AsJson = False,
) -> None:
    """Check whether a regulator would learn something else than the behaviour; exit status 1 if they need fixing."""
    chat = chat_of(system, template_args)
    sources, controls = read_examples(source, field, half="rejected"), read_examples(control, field)
    chosen = None if target else chosen_of(source, field)
    goal = read_examples(target, field, half="chosen") if target else chosen and list(chosen)
    held = read_examples(held_out, field) if held_out else None
    check_table(table)
    if model is not None:
        check_model(model)
    from dsas.fitting.text_checks import against_style, inspect_texts, separability
    from dsas.model.reading import Reading

    found = inspect_texts(sources, controls, target=goal, held_out=held, tokens=tokens)
    if model is not None:
        loaded = loaded_model(model, device, precision)
        reading = Reading(tokens, chat=chat)
        curve = separability(
            *loaded, source=sources, control=controls, sites=sites, reading=reading, progress=not as_json
        )
        found = against_style(curve, found)
    if table is not None:
        write_rows(table, found.rows())
    if as_json:
        say_json(found.as_dict())
    else:
        _show(found)
    if any(finding.level == "error" for finding in found.findings):
        raise typer.Exit(1)


def _show(found: "Inspection") -> None:
    say(", ".join(f"{name}: {size} texts" for name, size in found.sizes.items()))
    for finding in found.findings:
        say(f"{finding.level}: {finding.check}: {finding.message}")
        for example in finding.examples:
            say(f"    {example}")
    if not found.findings:
        say("nothing to fix")
    if found.separability:
        bars = [
            (one.site, f"{one.accuracy:.2f}", "#" * round(40 * max(one.accuracy - 0.5, 0)))
            for one in found.separability
        ]
        show_table(("site", "held-out accuracy", ""), bars)
