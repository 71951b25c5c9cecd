"""The options of every command, read from the live commands: `python tests/cli/make_options.py` writes options.json."""

import inspect
import json
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from dsas.cli import app

FILE = Path(__file__).with_name("options.json")


def options() -> dict[str, dict[str, str]]:
    """Return for every command its options as they are written: type or choices, range, default and group."""
    live: Any = typer.main.get_command(app)
    return {name: _of(command) for name, command in sorted(live.commands.items())}


def _of(command: Any) -> dict[str, str]:
    written = {one.name: " ".join([*one.opts, *one.secondary_opts]) for one in command.params}
    signature = inspect.signature(inspect.unwrap(command.callback))
    return {written[name]: _line(parameter) for name, parameter in signature.parameters.items()}


def _line(parameter: inspect.Parameter) -> str:
    kind, about = parameter.annotation, None
    if get_origin(kind) is Annotated:
        kind, about = get_args(kind)
    limits = "".join(
        f", {end} {getattr(about, end)}" for end in ("min", "max") if getattr(about, end, None) is not None
    )
    required = parameter.default is inspect.Parameter.empty
    default = "required" if required else f"default {str(parameter.default) or repr('')}"
    group = getattr(about, "rich_help_panel", None)
    shown = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
    return f"{shown.replace('typing.', '').replace('pathlib.', '')}{limits}, {default}" + (
        f", in {group}" if group else ""
    )


if __name__ == "__main__":
    FILE.write_text(json.dumps(options(), indent=1) + "\n")
