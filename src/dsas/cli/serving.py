"""Serve: vLLM's OpenAI-compatible server with Steerings that requests name."""

from typing import Annotated

import typer

from dsas.cli.app import app
from dsas.cli.options import REPEATABLE, in_method
from dsas.cli.output import say_json
from dsas.errors import OptionError
from dsas.steering.folder import steering_folder


@app.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Example: `dsas serve ./model --steering detox/ --steering topic/ --port 8000 --max-model-len 4096`",
)
def serve(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a model that vLLM serves; before vLLM's options.")],
    options: Annotated[list[str] | None, typer.Argument(help="Options of `vllm serve`, in any place.")] = None,
    *,
    steering: Annotated[list[str], in_method(help=f"Folder or hub id of a Steering, or NAME=FOLDER. {REPEATABLE}")],
    together: Annotated[int, in_method(min=1, help="How many Steerings one request may combine.")] = 1,
    spare: Annotated[int, in_method(min=0, help="How many more Steerings may be loaded while the server runs.")] = 0,
    reports: Annotated[
        bool, in_method(help="Let requests ask which strengths were applied, and be stopped or raised by them.")
    ] = False,
    default: Annotated[
        str | None, in_method(help="Steering for requests that name none.", metavar="NAME[=STRENGTH]")
    ] = None,
    allow_off: Annotated[bool, in_method(help="Let requests turn the default Steering off.")] = False,
    check: Annotated[
        bool, in_method(help="Check on random weights whether the Steerings can be served, and exit.")
    ] = False,
) -> None:
    """Serve a model with vLLM; requests choose Steerings by name. All other options are those of `vllm serve`."""
    if model.startswith("-"):
        raise OptionError(f"the model comes first, before the options of vLLM; got {model!r} in its place")
    for one in steering:
        steering_folder(one.rpartition("=")[2])
    ours = {"together": together, "spare": spare, "reports": reports, "default": default, "may_be_off": allow_off}
    if not check:
        from dsas.serving.server import serve as run

        run(model, steering, options or [], ours)
        return
    from dsas.serving.checking import check as tried

    told = tried(model, steering, options or [], ours)
    say_json(told)
    if told["refused"] or "failed" in told:
        raise typer.Exit(1)
