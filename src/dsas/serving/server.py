"""Server: vLLM's own OpenAI-compatible server, with a worker that steers; all other options are vLLM's."""

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType

from dsas.errors import OptionError, shown
from dsas.files.json_values import Json, JsonObject
from dsas.model.foreign import Foreign, Given
from dsas.serving.engine import arguments

# If this environment variable is set, the operator's endpoint exists, and its value is the key.
OPERATOR_KEY = "DSAS_OPERATOR_KEY"
OPERATOR_ROOT = "DSAS_OPERATOR_ROOT"  # the folder below which Steerings may be loaded
OPERATOR_PLUGIN = "dsas-operator"
LAYER = "dsas.serving.carrying.Carrying"  # of vLLM's server, which sees every request over HTTP


def serve(
    model: str,
    steerings: Sequence[str],
    options: Sequence[str],
    ours: Mapping[str, Json] = MappingProxyType({}),
) -> None:
    """Serve until interrupted; `options` are those of `vllm serve`, `ours` those of `engine.arguments`.

    Raises OptionError for options that would disable steering, and as `engine.arguments` does.
    """
    command, given = parsed(model, steerings, options, ours)
    command.validate(given)
    command.cmd(given)


def parsed(
    model: str, steerings: Sequence[str], options: Sequence[str], ours: Mapping[str, Json]
) -> tuple[Foreign, Foreign]:
    """Return vLLM's serve command, and its options with those that steer. Raises as `serve` does."""
    if model.startswith("-"):
        raise OptionError(f"the model comes first, before the options of vLLM; got {model!r} in its place")
    if ours.get("spare") and OPERATOR_KEY not in os.environ:
        raise OptionError(
            f"spare slots are filled through the operator's endpoint, which exists when {OPERATOR_KEY} is set"
        )
    _check_operator(os.environ.get(OPERATOR_KEY), os.environ.get(OPERATOR_ROOT))
    wanted = arguments(model, steerings, **ours)
    from vllm.entrypoints.cli.serve import ServeSubcommand  # pyright: ignore[reportMissingImports]
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # pyright: ignore[reportMissingImports]

    _prepare_environment()
    command = ServeSubcommand()
    parser = FlexibleArgumentParser(prog="dsas")
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    given = parser.parse_args(["serve", model, *options])
    _add(given, wanted)
    return command, given


def _prepare_environment() -> None:
    """Do what vLLM's own command does before it reads its options, wherever this vLLM has it."""
    try:
        from vllm.entrypoints.common.startup import cli_env_setup  # pyright: ignore[reportMissingImports]
    except ImportError:  # before vLLM 0.33
        from vllm.entrypoints.serve.utils.api_utils import cli_env_setup  # pyright: ignore[reportMissingImports]

    cli_env_setup()


def _check_operator(key: str | None, root: str | None) -> None:
    """Raise OptionError for a key that no request can carry, and a root that is not a folder."""
    if key is not None and (not key or key != key.strip() or any(ord(one) < 32 or ord(one) == 127 for one in key)):
        raise OptionError(
            f"{OPERATOR_KEY} is empty, begins or ends with a space, or has a line break: no header of HTTP can carry it"
        )
    if root is not None and not Path(root).is_dir():
        raise OptionError(f"{OPERATOR_ROOT} must be the folder below which Steerings may be loaded, got {shown(root)}")


def _add(given: Given, wanted: JsonObject) -> None:
    """Add the options that steer to vLLM's parsed options. Raises OptionError for options that would disable them."""
    if given.worker_cls not in ("auto", wanted["worker_cls"]):
        raise OptionError(f"--worker-cls {given.worker_cls} would replace the worker that steers: remove it")
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        raise OptionError("requests are checked in vLLM's Python front end: unset VLLM_USE_RUST_FRONTEND")
    if OPERATOR_KEY in os.environ:
        if (given.api_server_count or 1) > 1:
            raise OptionError(
                f"Steerings can be loaded into a server of one front end only, since others would not know of them: "
                f"leave --api-server-count out, or unset {OPERATOR_KEY}"
            )
        if given.data_parallel_size > 1 and not given.headless:
            given.api_server_count = 1  # else vLLM starts one for each engine
        os.environ["VLLM_PLUGINS"] = ",".join(_plugins())
    if "async_scheduling" in wanted:
        if given.async_scheduling:
            raise OptionError(
                "--async-scheduling schedules steps before their token ids are known, which a Steering that reads "
                "roles or turns needs: remove it"
            )
        given.async_scheduling = False
    given.worker_cls = wanted["worker_cls"]
    given.middleware = [*(given.middleware or ()), LAYER]
    given.additional_config = {**(given.additional_config or {}), **wanted["additional_config"]}


def _plugins() -> list[str]:
    """Return the plugins that vLLM would load anyway, and the operator's: once one is named, all must be named."""
    named = os.environ.get("VLLM_PLUGINS")
    if named is not None:
        return [*named.split(","), "dsas", OPERATOR_PLUGIN]
    groups = ("general_plugins", "platform_plugins", "io_processor_plugins", "stat_logger_plugins")
    found = [entry.name for group in groups for entry in entry_points(group=f"vllm.{group}")]
    return [*dict.fromkeys([*found, "dsas", OPERATOR_PLUGIN])]
