"""Playground: the local web page to try Steerings in."""

from pathlib import Path
from typing import Annotated

import typer

import dsas
from dsas.cli.options import Device, Model, Precision, Strength, app, console, hide_foreign_bars
from dsas.demo.playground import HOST, serve
from dsas.demo.playground import playground as build
from dsas.model.loading import load_model


@app.command(epilog="Example: `dsas playground ./model --steering detox --steering calm --strength 0.1`")
def playground(
    model: Model,
    steering: Annotated[list[str], typer.Option(help="Folder or hub id of a Steering; repeatable.")],
    strength: Strength = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="On 127.0.0.1; nobody else can reach it.")] = 7860,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Serve a page on this machine to type prompts, move the strength and switch Steerings; Ctrl-C ends it."""
    hide_foreign_bars()
    loaded = load_model(model, device=device, precision=precision)
    steerings = {Path(name).name: dsas.Steering.from_pretrained(name) for name in steering}
    page = build(*loaded, steerings, strength=strength)
    console.print(f"playground: http://{HOST}:{port} (Ctrl-C ends it)", markup=False, highlight=False)
    serve(page, port=port)
