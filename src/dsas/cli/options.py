"""Options: those that several commands share, with their help, their group in it, and what completes them."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from dsas.cli.choices import DEVICES, SITES, PrecisionName, offering, regulators, transforms

in_texts = partial(typer.Option, rich_help_panel="Texts")
in_method = partial(typer.Option, rich_help_panel="Method")
in_model = partial(typer.Option, rich_help_panel="Model")
in_output = partial(typer.Option, rich_help_panel="Output")

STEERING = "Folder or hub id of a Steering."
REPEATABLE = "May be given several times."

Model = Annotated[str, typer.Argument(help="Folder, hub id or .gguf file of a transformers causal language model.")]
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
Out = Annotated[Path, in_output(help="Folder to write the Steering to.")]

Source = Annotated[Path, in_texts(help="Texts with the undesired behaviour: .txt, .jsonl or .csv.")]
Control = Annotated[Path, in_texts(help="Neutral texts of the same style that must stay as they are.")]
Target = Annotated[Path | None, in_texts(help="Texts with the desired behaviour; default: control.")]
Field = Annotated[str, in_texts(help="JSON key or CSV column that holds the text.")]
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
Strength = Annotated[
    float | None,
    in_method(min=0.0, help="0 is unsteered; residual sites often need only 0.1; default: the calibrated one, or 1."),
]

Workers = Annotated[int, in_model(min=1, help="Processes on this machine.")]
Ray = Annotated[str, in_model(help="Address of a Ray cluster, or auto.")]
NewTokens = Annotated[int, in_texts(min=1, help="Tokens to generate per prompt.")]
