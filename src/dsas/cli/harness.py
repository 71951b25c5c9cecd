"""lm-eval: the command of lm-evaluation-harness, in which a model may be steered."""

import sys
from typing import Annotated

import typer

from dsas.cli.app import app
from dsas.steering.folder import steering_folder


@app.command(
    "lm-eval",
    epilog="Example: `dsas lm-eval run --model dsas --model_args pretrained=./model,steering=detox --tasks hellaswag`",
    context_settings={"ignore_unknown_options": True},
)
def lm_eval(options: Annotated[list[str], typer.Argument(help="Command and options of lm-eval.")] = []) -> None:  # noqa: B006
    """Run lm-eval, with its own options and `--model dsas`, which takes steering= and strength= too."""
    given = [part.removeprefix("--model_args=") for option in options for part in option.split(",")]
    for part in given:
        if part.startswith("steering="):
            steering_folder(part.removeprefix("steering="))
    from dsas.evaluation.lm_eval_model import register

    register()
    from lm_eval.__main__ import cli_evaluate

    before, sys.argv = sys.argv, ["lm-eval", *options]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
