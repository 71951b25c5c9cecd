"""Fit, info and methods: make a Steering from texts, show what a stored one does, list what there is to choose."""

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

import dsas
from dsas.cli.options import AsJson, Device, Field, Model, Precision, app, console, hide_foreign_bars, show
from dsas.files.text_files import DEFAULT_FIELD, read_spans, read_texts
from dsas.fitting.selection import selection_of
from dsas.model.loading import load_model
from dsas.model.reading import Reading


@app.command(epilog="Example: `dsas fit ./model --source rude.txt --control plain.txt --target polite.txt --out detox`")
def fit(
    model: Model,
    source: Annotated[Path, typer.Option(help="Texts with the undesired behaviour: .txt, .jsonl or .csv.")],
    control: Annotated[Path, typer.Option(help="Neutral texts of the same style that must stay as they are.")],
    out: Annotated[Path, typer.Option(help="Folder to write the Steering to.")],
    target: Annotated[Path | None, typer.Option(help="Texts with the desired behaviour; default: control.")] = None,
    transform: Annotated[str, typer.Option(help="A name that `dsas methods` lists.")] = "caa",
    regulator: Annotated[str, typer.Option(help="A name that `dsas methods` lists, or a product, a*b.")] = "logistic",
    sites: Annotated[list[str], typer.Option(help="Shorthand, path, glob or re:...; repeatable.")] = ["residual"],  # noqa: B006
    selection: Annotated[str, typer.Option(help="threshold, smooth, top or all.")] = "threshold",
    threshold: Annotated[float, typer.Option(help="Least held-out accuracy of a steered site.")] = 0.75,
    top: Annotated[int, typer.Option(help="With --selection top: how many sites are steered.")] = 48,
    incremental: Annotated[bool, typer.Option(help="Fit each site with the earlier ones already steered.")] = False,
    spans: Annotated[bool, typer.Option(help="Learn from tokens: the source .jsonl has 'spans'.")] = False,
    pooling: Annotated[str, typer.Option(help="A text's vector: the mean of its tokens, or the last.")] = "mean",
    batch_size: Annotated[int, typer.Option(help="Texts a forward pass.")] = 16,
    max_tokens: Annotated[int, typer.Option(help="Longer texts are cut.")] = 512,
    workers: Annotated[int, typer.Option(help="Processes on this machine, each with its own model.")] = 1,
    ray: Annotated[str, typer.Option(help="Address of a Ray cluster, or auto.")] = "",
    field: Field = DEFAULT_FIELD,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit a Steering from sets of texts and write it to a folder; an interrupted fit resumes where it stopped."""
    hide_foreign_bars()
    texts: dict[str, list[Any]] = {
        "source": read_texts(source, field=field),
        "control": read_texts(control, field=field),
    }
    if spans:
        texts["source"] = list(map(dsas.Example, texts["source"], read_spans(source)))
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
        selection=_selection(selection, threshold, top),
        reading=Reading(pooling, True, batch_size, max_tokens, incremental, dsas.Spread(workers, ray)),  # pyright: ignore[reportArgumentType]
        checkpoint=collected,
        progress=not as_json,
    )
    steering.save_pretrained(out)
    shutil.rmtree(collected, ignore_errors=True)
    show(steering, as_json, saved=str(out))


def _selection(name: str, threshold: float, top: int) -> dsas.Selection:
    """Return the selection of that name with the option that belongs to it."""
    given = {"threshold": dsas.Threshold(threshold), "top": dsas.Top(top)}
    return given[name] if name in given else selection_of(name)


@app.command(epilog="Example: `dsas info detox --json`")
def info(
    steering: Annotated[str, typer.Argument(help="Folder or hub id of a Steering.")], as_json: AsJson = False
) -> None:
    """Show what a stored Steering does, site by site."""
    show(dsas.Steering.from_pretrained(steering), as_json)


@app.command(epilog="Example: `dsas methods --json`")
def methods(as_json: AsJson = False) -> None:
    """List every transform and regulator: name, formula, paper, what is left out, cost a token."""
    kinds = {"transform": dsas.TRANSFORMS, "regulator": dsas.REGULATORS}
    rows = [{"kind": kind, "name": name, **of[name].facts._asdict()} for kind, of in kinds.items() for name in of]
    if as_json:
        print(json.dumps(rows))
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(escape(value) for value in row.values()))
    console.print(table)
