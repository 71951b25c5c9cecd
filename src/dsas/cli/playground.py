"""Playground: the local web page to try Steerings in."""

from typing import Annotated

from dsas.cli.app import app
from dsas.cli.checks import check_model, check_strength, folders_by_name
from dsas.cli.models import loaded_model
from dsas.cli.options import REPEATABLE, STEERING, Device, Model, Precision, Strength, in_method, in_model
from dsas.cli.output import say


@app.command(epilog="Example: `dsas playground ./model --steering detox --steering calm --strength 0.1`")
def playground(
    model: Model,
    steering: Annotated[list[str], in_method(help=f"{STEERING} {REPEATABLE}")],
    strength: Strength = None,
    port: Annotated[int, in_model(min=1, max=65535, help="Port on 127.0.0.1; no other machine can reach it.")] = 7860,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Serve a page on this machine to type prompts, move the strength and switch Steerings; Ctrl-C ends it."""
    check_strength(strength)
    folders = folders_by_name(steering)
    check_model(model)
    import dsas
    from dsas.demo.playground import HOST, serve
    from dsas.demo.playground import playground as build

    steerings = {name: dsas.Steering.from_pretrained(folder) for name, folder in folders.items()}
    page = build(*loaded_model(model, device, precision), steerings, strength=strength)
    say(f"playground: http://{HOST}:{port} (Ctrl-C ends it)")
    serve(page, port=port)
