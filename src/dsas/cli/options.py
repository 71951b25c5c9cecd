"""Common: the application all commands belong to, the options they share, and how errors and warnings end."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
from rich.console import Console
from rich.table import Table

from dsas.errors import DsasError, DsasWarning, OptionError
from dsas.files.text_files import read_texts
from dsas.steering.steering import Steering

console, errors = Console(), Console(stderr=True)


class _Commands(typer.core.TyperGroup):
    """Commands whose errors end as exit status 2, and whose interruption as 130, with one line instead of a trace."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except DsasError as error:
            errors.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as interrupt:
            errors.print("interrupted; fit, train, calibrate, pareto and demo go on from here when run again")
            raise typer.Exit(130) from interrupt


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Steer generative models only when and where it is needed.",
)

Model = Annotated[str, typer.Argument(help="Folder, hub id or .gguf file of a transformers causal language model.")]
Device = Annotated[
    str, typer.Option(help="'auto' (a GPU when there is one), 'cpu', 'cuda:1', ...; 'balanced' over all GPUs.")
]
Precision = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Field = Annotated[str, typer.Option(help="JSON key or CSV column that holds the text.")]
Strength = Annotated[
    float | None,
    typer.Option(help="0 is unsteered; residual sites often need only 0.1; default: the calibrated one, or 1."),
]
File = Annotated[Path | None, typer.Option(help="Prompts: .txt, .jsonl or .csv.")]
Chat = Annotated[bool, typer.Option(help="Put each prompt through the model's chat template.")]


def prompts_of(prompt: str | None, file: Path | None, field: str) -> list[str]:
    """Return the prompt that was given, or those of the file. Raises OptionError unless it is one of both."""
    if prompt is not None and file is None:
        return [prompt]
    if file is not None and prompt is None:
        return read_texts(file, field=field)
    raise OptionError("give either one prompt or --file with prompts")


def kinds_of(given: list[str], field: str) -> dict[str, list[str]]:
    """Return the texts of files by kind, which is the name before "=", or that of the file."""
    found: dict[str, list[str]] = {}
    for text in given:
        kind, named, file = text.partition("=")
        if not named or Path(text).is_file():
            kind, file = Path(text).stem, text
        found.setdefault(kind, []).extend(read_texts(file, field=field))
    return found


def hide_foreign_bars() -> None:
    """Keep the bars that transformers draws while it loads weights out of the way of ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def show_warning(message: Warning | str, category: type[Warning], *_where: Any) -> None:
    """Print a warning of ours as one line on the error stream; those of others are not a user's matter."""
    if issubclass(category, DsasWarning):
        errors.print(f"warning: {message}", markup=False, highlight=False, soft_wrap=True)


def show(steering: Steering, as_json: bool, **extra: str) -> None:
    """Print what a Steering does, site by site, and how it was made."""
    lines = steering.report()
    if as_json:
        found = steering.calibration.as_dict() if steering.calibration is not None else None
        facts = {"model": steering.model.as_dict(), "settings": steering.settings}
        facts |= {"strength": steering.strength, "calibration": found}
        print(json.dumps({**facts, "sites": [line._asdict() for line in lines], **extra}))
        return
    table = Table("site", "accuracy", "weight", "status", title=f"Steering for {steering.model.model_class}")
    for line in lines:
        accuracy = "-" if line.accuracy is None else f"{line.accuracy:.2f}"
        table.add_row(line.site, accuracy, f"{line.weight:.2f}", line.status)
    console.print(table)
    for key, value in {**steering.settings, **extra}.items():
        console.print(f"{key}: {value}", markup=False)
    for line in steering.calibration.lines() if steering.calibration is not None else []:
        console.print(line, markup=False)
