"""Serve: vLLM's OpenAI-compatible server with Steerings that requests name."""

from typing import Annotated

import typer

from dsas.cli.options import app
from dsas.serving.server import serve as run


@app.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Example: `dsas serve ./model --steering detox/ --steering topic/ --port 8000 --max-model-len 4096`",
)
def serve(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a model that vLLM serves; before vLLM's options.")],
    options: Annotated[list[str] | None, typer.Argument(help="Options of `vllm serve`, in any place.")] = None,
    *,
    steering: Annotated[list[str], typer.Option(help="Folder or hub id of a Steering, or name=folder; repeatable.")],
    together: Annotated[int, typer.Option(min=1, help="How many Steerings one request may combine.")] = 1,
    spare: Annotated[int, typer.Option(min=0, help="How many more may be loaded while the server runs.")] = 0,
    reports: Annotated[bool, typer.Option(help="Let requests ask how strongly they were steered.")] = False,
) -> None:
    """Serve a model with vLLM; requests choose Steerings by name. All other options are those of `vllm serve`."""
    run(model, steering, options or [], together=together, spare=spare, reports=reports)
