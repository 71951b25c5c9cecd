"""Fit and info: make a Steering from texts, and show what a stored one does."""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import dsas
from dsas.cli.common import AsJson, Device, Field, Model, Precision, app, console, hide_foreign_bars
from dsas.collection import Reading
from dsas.loading import load_model
from dsas.textfiles import DEFAULT_FIELD, read_texts


@app.command(epilog="Example: `dsas fit ./model --source rude.txt --control plain.txt --target polite.txt --out detox`")
def fit(
    model: Model,
    source: Annotated[Path, typer.Option(help="Texts with the undesired behaviour: .txt, .jsonl or .csv.")],
    control: Annotated[Path, typer.Option(help="Neutral texts of the same style that must stay as they are.")],
    out: Annotated[Path, typer.Option(help="Folder to write the Steering to.")],
    target: Annotated[Path | None, typer.Option(help="Texts with the desired behaviour; default: control.")] = None,
    transform: Annotated[str, typer.Option(help=f"One of: {', '.join(dsas.TRANSFORMS)}.")] = "caa",
    regulator: Annotated[str, typer.Option(help=f"One of: {', '.join(dsas.REGULATORS)}.")] = "logistic",
    sites: Annotated[list[str], typer.Option(help="Shorthand, path, glob or re:...; repeatable.")] = ["residual"],  # noqa: B006
    selection: Annotated[str, typer.Option(help="threshold, smooth or all.")] = "threshold",
    threshold: Annotated[float, typer.Option(help="Least held-out accuracy of a steered site.")] = 0.75,
    batch_size: Annotated[int, typer.Option(help="Texts a forward pass.")] = 16,
    max_tokens: Annotated[int, typer.Option(help="Longer texts are cut.")] = 512,
    field: Field = DEFAULT_FIELD,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit a Steering from sets of texts and write it to a folder; an interrupted fit resumes where it stopped."""
    hide_foreign_bars()
    texts = {"source": read_texts(source, field=field), "control": read_texts(control, field=field)}
    goal = read_texts(target, field=field) if target else None
    loaded = load_model(model, device=device, precision=precision)
    collected = out.with_name(f".{out.name}.collected")
    steering = dsas.fit(
        loaded.model,
        loaded.tokenizer,
        **texts,
        target=goal,
        transform=transform,
        regulator=regulator,
        sites=sites,
        selection=selection,  # pyright: ignore[reportArgumentType]
        threshold=threshold,
        reading=Reading(batch_size=batch_size, max_tokens=max_tokens),
        checkpoint=collected,
        progress=not as_json,
    )
    steering.save_pretrained(out)
    shutil.rmtree(collected, ignore_errors=True)
    _show(steering, as_json, saved=str(out))


@app.command(epilog="Example: `dsas info detox --json`")
def info(
    steering: Annotated[str, typer.Argument(help="Folder or hub id of a Steering.")], as_json: AsJson = False
) -> None:
    """Show what a stored Steering does, site by site."""
    _show(dsas.Steering.from_pretrained(steering), as_json)


def _show(steering: dsas.Steering, as_json: bool, **extra: str) -> None:
    lines = steering.report()
    if as_json:
        facts = {"model": steering.model.as_dict(), "settings": steering.settings}
        print(json.dumps({**facts, "sites": [line._asdict() for line in lines], **extra}))
        return
    table = Table("site", "accuracy", "weight", "status", title=f"Steering for {steering.model.model_class}")
    for line in lines:
        accuracy = "-" if line.accuracy is None else f"{line.accuracy:.2f}"
        table.add_row(line.site, accuracy, f"{line.weight:.2f}", line.status)
    console.print(table)
    for key, value in {**steering.settings, **extra}.items():
        console.print(f"{key}: {value}", markup=False)
