"""Options: those that several commands share, with their help, their group in it, and what completes them."""

from pathlib import Path
from typing import Annotated

import typer

from dsas.cli.choices import DEVICES, SITES, PrecisionName, offering, regulators, transforms

TEXTS, METHOD, MODEL, OUTPUT = "Texts", "Method", "Model", "Output"
STEERING = "Folder or hub id of a Steering."
REPEATABLE = "May be given several times."

Model = Annotated[str, typer.Argument(help="Folder, hub id or .gguf file of a transformers causal language model.")]
Device = Annotated[
    str,
    typer.Option(
        help="'auto' (a GPU when there is one), 'cpu', 'cuda:1', ...; 'balanced' spreads the layers over all GPUs.",
        autocompletion=offering(DEVICES),
        rich_help_panel=MODEL,
    ),
]
Precision = Annotated[
    PrecisionName, typer.Option(help="Number format of the weights; auto: as stored.", rich_help_panel=MODEL)
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object instead of tables.", rich_help_panel=OUTPUT)
]
Out = Annotated[Path, typer.Option(help="Folder to write the Steering to.", rich_help_panel=OUTPUT)]

Source = Annotated[
    Path, typer.Option(help="Texts with the undesired behaviour: .txt, .jsonl or .csv.", rich_help_panel=TEXTS)
]
Control = Annotated[
    Path, typer.Option(help="Neutral texts of the same style that must stay as they are.", rich_help_panel=TEXTS)
]
Target = Annotated[
    Path | None, typer.Option(help="Texts with the desired behaviour; default: control.", rich_help_panel=TEXTS)
]
Field = Annotated[str, typer.Option(help="JSON key or CSV column that holds the text.", rich_help_panel=TEXTS)]
File = Annotated[Path | None, typer.Option(help="Prompts: .txt, .jsonl or .csv.", rich_help_panel=TEXTS)]
Chat = Annotated[bool, typer.Option(help="Put each prompt through the model's chat template.", rich_help_panel=TEXTS)]

Transform = Annotated[
    str,
    typer.Option(help="A name that `dsas methods` lists.", autocompletion=transforms, rich_help_panel=METHOD),
]
Regulator = Annotated[
    str,
    typer.Option(
        help="A name that `dsas methods` lists, or a product of names, a*b.",
        autocompletion=regulators,
        rich_help_panel=METHOD,
    ),
]
Sites = Annotated[
    list[str],
    typer.Option(
        help=f"Where to steer: {', '.join(SITES)}, or a path, glob or re:... of modules. {REPEATABLE}",
        autocompletion=offering(SITES),
        rich_help_panel=METHOD,
    ),
]
Strength = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="0 is unsteered; residual sites often need only 0.1; default: the calibrated one, or 1.",
        rich_help_panel=METHOD,
    ),
]

Workers = Annotated[int, typer.Option(min=1, help="Processes on this machine.", rich_help_panel=MODEL)]
Ray = Annotated[str, typer.Option(help="Address of a Ray cluster, or auto.", rich_help_panel=MODEL)]
NewTokens = Annotated[int, typer.Option(min=1, help="Tokens to generate per prompt.", rich_help_panel=TEXTS)]
