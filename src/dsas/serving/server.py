"""Server: vLLM's own OpenAI-compatible server, with a worker that steers; every option but ours is vLLM's."""

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType

from dsas.errors import OptionError, shown
from dsas.files.json_values import Json, JsonObject
from dsas.model.foreign import Foreign, Given
from dsas.serving.engine import arguments

# With this environment variable the operator's endpoint is there, and who sends its value may use it.
OPERATOR_KEY = "DSAS_OPERATOR_KEY"
OPERATOR_ROOT = "DSAS_OPERATOR_ROOT"  # below which the folders are that it loads
OPERATOR_PLUGIN = "dsas-operator"


def serve(
    model: str,
    steerings: Sequence[str],
    options: Sequence[str],
    ours: Mapping[str, Json] = MappingProxyType({}),
) -> None:
    """Serve until interrupted; `options` are those of `vllm serve`, `ours` those of `engine.arguments`.

    Raises OptionError for options that would leave steering out, and as `engine.arguments`.
    """
    command, given = parsed(model, steerings, options, ours)
    command.validate(given)
    command.cmd(given)


def parsed(
    model: str, steerings: Sequence[str], options: Sequence[str], ours: Mapping[str, Json]
) -> tuple[Foreign, Foreign]:
    """Return vLLM's command that serves, and its options with what steers. Raises as `serve`."""
    if model.startswith("-"):
        raise OptionError(f"the model comes first, before the options of vLLM; got {model!r} in its place")
    if ours.get("spare") and OPERATOR_KEY not in os.environ:
        raise OptionError(
            f"spare slots are filled through the operator's endpoint, which is there when {OPERATOR_KEY} is set"
        )
    _check_operator(os.environ.get(OPERATOR_KEY), os.environ.get(OPERATOR_ROOT))
    wanted = arguments(model, steerings, **ours)
    from vllm.entrypoints.cli.serve import ServeSubcommand  # pyright: ignore[reportMissingImports]
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup  # pyright: ignore[reportMissingImports]
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # pyright: ignore[reportMissingImports]

    cli_env_setup()
    command = ServeSubcommand()
    parser = FlexibleArgumentParser(prog="dsas")
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    given = parser.parse_args(["serve", model, *options])
    _add(given, wanted)
    return command, given


def _check_operator(key: str | None, root: str | None) -> None:
    """Raise OptionError for a key that no request can carry, and a root that is no folder."""
    if key is not None and (not key or key != key.strip() or any(ord(one) < 32 or ord(one) == 127 for one in key)):
        raise OptionError(
            f"{OPERATOR_KEY} is empty, begins or ends with a space, or has a line break: no header of HTTP can carry it"
        )
    if root is not None and not Path(root).is_dir():
        raise OptionError(f"{OPERATOR_ROOT} must be the folder below which Steerings may be loaded, got {shown(root)}")


def _add(given: Given, wanted: JsonObject) -> None:
    """Put what steers among the parsed options of vLLM. Raises OptionError for what would leave it out."""
    if given.worker_cls not in ("auto", wanted["worker_cls"]):
        raise OptionError(f"--worker-cls {given.worker_cls} would replace the worker that steers: leave it out")
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        raise OptionError("requests are checked in vLLM's Python front end: unset VLLM_USE_RUST_FRONTEND")
    if OPERATOR_KEY in os.environ:
        if (given.api_server_count or 1) > 1 or given.data_parallel_size > 1:
            raise OptionError(
                f"Steerings can be loaded into a server of one front end and one engine only: unset {OPERATOR_KEY}"
            )
        os.environ["VLLM_PLUGINS"] = ",".join(_plugins())
    if "async_scheduling" in wanted:
        if given.async_scheduling:
            raise OptionError(
                "--async-scheduling schedules steps before the numbers of their tokens are known, which a Steering "
                "that looks at roles or turns needs: leave it out"
            )
        given.async_scheduling = False
    given.worker_cls = wanted["worker_cls"]
    given.additional_config = {**(given.additional_config or {}), **wanted["additional_config"]}


def _plugins() -> list[str]:
    """Return the plugins that vLLM would load anyway, and the operator's: once one is named, all have to be."""
    named = os.environ.get("VLLM_PLUGINS")
    if named is not None:
        return [*named.split(","), "dsas", OPERATOR_PLUGIN]
    groups = ("general_plugins", "platform_plugins", "io_processor_plugins", "stat_logger_plugins")
    found = [entry.name for group in groups for entry in entry_points(group=f"vllm.{group}")]
    return [*dict.fromkeys([*found, "dsas", OPERATOR_PLUGIN])]
