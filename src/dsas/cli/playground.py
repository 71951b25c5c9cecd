"""Playground: the local web page to try Steerings in."""

from pathlib import Path
from typing import Annotated

import typer

from dsas.cli.app import app
from dsas.cli.checks import check_model, check_strength
from dsas.cli.models import loaded_model
from dsas.cli.options import METHOD, MODEL, REPEATABLE, STEERING, Device, Model, Precision, Strength
from dsas.steering.folder import steering_folder


@app.command(epilog="Example: `dsas playground ./model --steering detox --steering calm --strength 0.1`")
def playground(
    model: Model,
    steering: Annotated[list[str], typer.Option(help=f"{STEERING} {REPEATABLE}", rich_help_panel=METHOD)],
    strength: Strength = None,
    port: Annotated[
        int,
        typer.Option(min=1, max=65535, help="Port on 127.0.0.1; no other machine can reach it.", rich_help_panel=MODEL),
    ] = 7860,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Serve a page on this machine to type prompts, move the strength and switch Steerings; Ctrl-C ends it."""
    check_strength(strength)
    folders = {Path(name).name: steering_folder(name) for name in steering}
    check_model(model)
    import dsas
    from dsas.demo.playground import HOST, serve
    from dsas.demo.playground import playground as build

    steerings = {name: dsas.Steering.from_pretrained(folder) for name, folder in folders.items()}
    page = build(*loaded_model(model, device, precision), steerings, strength=strength)
    print(f"playground: http://{HOST}:{port} (Ctrl-C ends it)", flush=True)
    serve(page, port=port)
