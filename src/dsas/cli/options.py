"""Options: those that several commands share, with their help, their group in it, and what completes them."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from dsas.cli.choices import DEVICES, PARTS, SITES, PrecisionName, WhichTokens, offering, regulators, transforms
from dsas.errors import StrengthError

in_texts = partial(typer.Option, rich_help_panel="Texts")
in_method = partial(typer.Option, rich_help_panel="Method")
in_model = partial(typer.Option, rich_help_panel="Model")
in_output = partial(typer.Option, rich_help_panel="Output")

LARGEST_STRENGTH = 3.4e38
LARGEST_SEED = 2**40  # torch takes 64 bits, and the seeds of batches are multiples of it

STEERING = "Folder or hub id of a Steering."
REPEATABLE = "May be given several times."

Model = Annotated[str, typer.Argument(help="Folder, hub id or .gguf file of a transformers language model.")]
Device = Annotated[
    str,
    in_model(
        help="'auto' (a GPU when there is one), 'cpu', 'cuda:1', ...; 'balanced' uses all GPUs.",
        autocompletion=offering(DEVICES),
    ),
]
Precision = Annotated[
    PrecisionName,
    in_model(help="Number format of the weights; auto: as stored, or float32 on a CPU that is slow in it."),
]
AsJson = Annotated[bool, in_output("--json", help="Print one JSON object instead of tables.")]
Table = Annotated[Path | None, in_output("--table", help="Also write the report as a table: FILE.csv or FILE.jsonl.")]
Out = Annotated[Path, in_output(help="Folder to write the Steering to.")]

Source = Annotated[
    Path,
    in_texts(
        help="Texts or conversations with the undesired behaviour: .txt, .jsonl, .csv or hub:OWNER/NAME:SPLIT:COLUMN."
    ),
]
Control = Annotated[Path, in_texts(help="Neutral texts of the same style that must stay as they are.")]
Target = Annotated[
    Path | None,
    in_texts(help="Texts with the desired behaviour; default: the chosen half of --source, or --control."),
]
Field = Annotated[str, in_texts(help="JSON key or CSV column that holds the text or the messages.")]
Tokens = Annotated[WhichTokens, in_texts(help="Which tokens count; auto: the answer of a conversation, all of a text.")]
System = Annotated[str | None, in_texts(help="System message to put before conversations that have none.")]
TemplateArgs = Annotated[
    str, in_texts(help="JSON object for the chat template, such as '{\"enable_thinking\": false}'.")
]
Parts = Annotated[
    list[str],
    in_texts("--part", help=f"Parts of an answer that count. {REPEATABLE}", autocompletion=offering(PARTS)),
]
ALL_PARTS: list[str] = list(PARTS)
NO_ARGS = "{}"
File = Annotated[Path | None, in_texts(help="Prompts: .txt, .jsonl or .csv.")]
Chat = Annotated[bool, in_texts(help="Put each prompt through the model's chat template.")]

Transform = Annotated[str, in_method(help="A name that `dsas methods` lists.", autocompletion=transforms)]
Regulator = Annotated[
    str,
    in_method(help="auto (evidence), a name that `dsas methods` lists, or a product, a*b.", autocompletion=regulators),
]
Sites = Annotated[
    list[str],
    in_method(
        help=f"Where to steer: {', '.join(SITES)}, or a path, glob or re:... of modules. {REPEATABLE}",
        autocompletion=offering(SITES),
    ),
]


def finite(given: float | list[float] | None) -> float | list[float] | None:
    """Return a given strength. Raises StrengthError for a value that float32 cannot hold."""
    for one in given if isinstance(given, list) else [given]:
        if one is not None and not abs(one) <= LARGEST_STRENGTH:
            raise StrengthError(f"a strength must be finite, got {one:g}; float32 holds up to 3.4e38")
    return given


Strength = Annotated[
    float | None,
    in_method(
        callback=finite, help="0 is unsteered, below 0 the opposite direction; default: the calibrated one, or 1."
    ),
]

Workers = Annotated[int, in_model(min=1, help="Processes on this machine.")]
Ray = Annotated[str, in_model(help="Address of a Ray cluster, or auto.")]
NewTokens = Annotated[int, in_texts(min=1, help="Tokens to generate per prompt.")]
