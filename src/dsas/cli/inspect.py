"""Inspect-data: what is wrong with sets of texts, before a Steering is fitted on them."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from dsas.cli.options import AsJson, Device, Field, Precision, app, console, hide_foreign_bars
from dsas.files.text_files import DEFAULT_FIELD, read_texts
from dsas.fitting.text_checks import Inspection, against_style, inspect_texts, separability
from dsas.model.loading import load_model
from dsas.model.sites import DEFAULT_SITES


@app.command("inspect-data", epilog="Example: `dsas inspect-data --source rude.txt --control plain.txt`")
def inspect_data(
    source: Annotated[Path, typer.Option(help="Texts with the undesired behaviour: .txt, .jsonl or .csv.")],
    control: Annotated[Path, typer.Option(help="Neutral texts of the same style.")],
    target: Annotated[Path | None, typer.Option(help="Texts with the desired behaviour.")] = None,
    held_out: Annotated[Path | None, typer.Option(help="Texts to evaluate on, which must not be in the sets.")] = None,
    model: Annotated[str | None, typer.Option(help="Folder, hub id or .gguf file: adds the curve over sites.")] = None,
    sites: Annotated[list[str], typer.Option(help="Shorthand, path, glob or re:...; repeatable.")] = [DEFAULT_SITES],  # noqa: B006
    field: Field = DEFAULT_FIELD,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Look for what a regulator would learn instead of the behaviour; exit status 1 when something must be mended."""
    read = {
        name: read_texts(path, field=field)
        for name, path in {"target": target, "held_out": held_out}.items()
        if path is not None
    }
    sources, controls = read_texts(source, field=field), read_texts(control, field=field)
    found = inspect_texts(sources, controls, **read)
    if model is not None:
        hide_foreign_bars()
        loaded = load_model(model, device=device, precision=precision)
        curve = separability(*loaded, source=sources, control=controls, sites=sites, progress=not as_json)
        found = against_style(curve, found)
    if as_json:
        print(json.dumps(found.as_dict()))
    else:
        _show(found)
    if any(finding.level == "error" for finding in found.findings):
        raise typer.Exit(1)


def _show(found: Inspection) -> None:
    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    say(", ".join(f"{name}: {size} texts" for name, size in found.sizes.items()))
    for finding in found.findings:
        say(f"{finding.level}: {finding.check}: {finding.message}")
        for example in finding.examples:
            say(f"    {example}")
    if not found.findings:
        say("nothing to mend")
    if found.separability:
        table = Table("site", "held-out accuracy", "")
        for line in found.separability:
            table.add_row(line.site, f"{line.accuracy:.2f}", "#" * round(40 * max(line.accuracy - 0.5, 0)))
        console.print(table)
