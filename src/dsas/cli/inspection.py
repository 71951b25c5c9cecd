"""Inspect-data: what is wrong with sets of texts, before a Steering is fitted on them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsas.cli.app import app
from dsas.cli.checks import check_model
from dsas.cli.models import loaded_model
from dsas.cli.options import AsJson, Control, Device, Field, Precision, Sites, Source, in_model, in_texts
from dsas.cli.output import show_table
from dsas.files.text_files import DEFAULT_FIELD, read_texts

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
    field: Field = DEFAULT_FIELD,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Look for what a regulator would learn instead of the behaviour; exit status 1 when something must be mended."""
    files = {"target": target, "held_out": held_out}
    read = {name: read_texts(path, field=field) for name, path in files.items() if path is not None}
    sources, controls = read_texts(source, field=field), read_texts(control, field=field)
    if model is not None:
        check_model(model)
    from dsas.fitting.text_checks import against_style, inspect_texts, separability

    found = inspect_texts(sources, controls, **read)
    if model is not None:
        loaded = loaded_model(model, device, precision)
        curve = separability(*loaded, source=sources, control=controls, sites=sites, progress=not as_json)
        found = against_style(curve, found)
    if as_json:
        print(json.dumps(found.as_dict()))
    else:
        _show(found)
    if any(finding.level == "error" for finding in found.findings):
        raise typer.Exit(1)


def _show(found: "Inspection") -> None:
    print(", ".join(f"{name}: {size} texts" for name, size in found.sizes.items()))
    for finding in found.findings:
        print(f"{finding.level}: {finding.check}: {finding.message}")
        for example in finding.examples:
            print(f"    {example}")
    if not found.findings:
        print("nothing to mend")
    if found.separability:
        bars = [
            (one.site, f"{one.accuracy:.2f}", "#" * round(40 * max(one.accuracy - 0.5, 0)))
            for one in found.separability
        ]
        show_table(("site", "held-out accuracy", ""), bars)
