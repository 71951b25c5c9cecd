"""Operator: load, replace and unload Steerings over HTTP while the server runs, with the operator's key.

    GET    /dsas/steerings                                      the Steerings that requests may name
    POST   /dsas/steerings  {"name": "detox", "folder": "..."}  load, or replace: the folder is one of the server's
    DELETE /dsas/steerings/detox                                no further request may name it
    GET    /dsas/reports/cmpl-...                               how strongly a request was steered (`reports`)

All need `Authorization: Bearer` with the value of the environment variable DSAS_OPERATOR_KEY, without which the
endpoint does not exist; it is checked before anything else of a request is read. The keys of clients (`--api-key` of
vLLM) are not accepted here. With DSAS_OPERATOR_ROOT only folders below that one are loaded, after links are resolved;
hub ids never are. Invalid requests are refused with HTTP 400, and the server continues unchanged. Running or waiting
requests keep the version that they named; its slot is freed when the last of them has ended.
"""

import asyncio
import json
import os
import secrets
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response  # pyright: ignore[reportMissingImports]
from starlette.requests import ClientDisconnect  # pyright: ignore[reportMissingImports]

from dsas.errors import ArtifactError, DsasError, OptionError, StateError, shown
from dsas.files.json_values import JsonObject
from dsas.serving.answers import digests_in_use, every_worker
from dsas.serving.config import KEY
from dsas.serving.engine import checked, publish, withdraw
from dsas.serving.reports import combined
from dsas.serving.server import OPERATOR_KEY, OPERATOR_PLUGIN, OPERATOR_ROOT
from dsas.steering.folder import CONFIG, TENSORS

LARGEST_BODY = 2**16  # bytes: enough for a name and a folder
LONGEST_MESSAGE = 1000  # characters


class Operator:
    """The endpoint as vLLM plugs it in: routes first, the engine when there is one."""

    name = OPERATOR_PLUGIN
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._client: Any = None
        self._turn = asyncio.Lock()

    def attach_router(self, app: FastAPI) -> None:
        """Register the routes."""
        router = APIRouter(prefix="/dsas")
        router.add_api_route("/steerings", self.listed, methods=["GET"])
        router.add_api_route("/steerings", self.loaded, methods=["POST"])
        router.add_api_route("/steerings/{name}", self.unloaded, methods=["DELETE"])
        router.add_api_route("/reports/{request_id}", self.reported, methods=["GET"])
        app.include_router(router)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Set the engine that the routes use."""
        self._client = engine_client

    async def listed(self, request: Request) -> Response:
        """Answer which Steerings requests may name."""
        return _answer(200, self._config[KEY]["steerings"]) if _allowed(request) else _forbidden()

    async def loaded(self, request: Request) -> Response:
        """Load a Steering under a name; if the name is in use, later requests get the new one."""
        if not _allowed(request):
            return _forbidden()
        try:
            name, given = _fields(await _body(request))
            async with self._turn:
                model = self._client.vllm_config.model_config.model
                folder = await asyncio.to_thread(_folder, given, os.environ.get(OPERATOR_ROOT))
                source = await asyncio.to_thread(checked, name, folder, model)
                await self._give_back()
                problems = await every_worker(self._client, "dsas_load", name, source._asdict())
                publish(self._config, name, source, problems)
        except DsasError as error:
            return _refused(error)
        return _answer(200, {name: source._asdict()})

    async def unloaded(self, name: str, request: Request) -> Response:
        """Let no further request name a Steering."""
        if not _allowed(request):
            return _forbidden()
        try:
            async with self._turn:
                withdraw(self._config, name)
                await self._give_back()
        except DsasError as error:
            return _refused(error)
        return _answer(200, {})

    async def reported(self, request_id: str, request: Request) -> Response:
        """Answer how strongly a request was steered, by its client's id; streams have no other way to ask."""
        if not _allowed(request):
            return _forbidden()
        workers: list[dict[str, JsonObject]] = await every_worker(self._client, "dsas_find", request_id)
        ids = list(dict.fromkeys(one for reports in workers for one in reports))
        if not ids:
            missing = f"nothing is known of request {shown(request_id, 200)}: it was not steered, or ended long ago"
            return _refused(StateError(missing))
        told = {}
        for one in ids:
            found = [reports[one] for reports in workers if one in reports]
            told[one] = combined(found, list(found[0]["mean_strength"]))
        return _answer(200, told)

    async def _give_back(self) -> None:
        """Free the slots of versions that no request may name and no running request has named."""
        kept = [one["digest"] for one in self._config[KEY]["steerings"].values()]
        used = digests_in_use(self._client.output_processor)
        await every_worker(self._client, "dsas_keep", [*kept, *used])

    @property
    def _config(self) -> JsonObject:
        return self._client.vllm_config.additional_config


async def _body(request: Request) -> bytes:
    """Return the body of a request; no more than the largest allowed size is read."""
    data = bytearray()
    try:
        async for piece in request.stream():
            data += piece
            if len(data) > LARGEST_BODY:
                raise OptionError(f"expected a body of at most {LARGEST_BODY} bytes, got more")
    except ClientDisconnect as error:
        raise OptionError("the request ended before its body did") from error
    return bytes(data)


def _fields(body: bytes) -> tuple[str, str]:
    """Return the name and the folder in a body."""
    wanted = 'expected a JSON object {"name": "...", "folder": "..."}'
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{wanted}, got {shown(body)}: {error}") from error
    fields = ("name", "folder")
    if not (isinstance(given, dict) and set(given) == set(fields) and all(isinstance(given[x], str) for x in fields)):
        raise OptionError(f"{wanted}, got {shown(given, 200)}")
    return given["name"], given["folder"]


def _folder(given: str, root: str | None) -> str:
    """Return the folder on this machine that a request names, with links resolved; it must be below `root`, if any."""
    try:
        folder = Path(root or "", given).resolve()
        files = [folder, *(folder / name for name in (CONFIG, TENSORS)), *folder.glob("model-*.safetensors")]
        if root and not all(file.resolve().is_relative_to(Path(root).resolve()) for file in files):
            raise OptionError(f"{shown(given, 200)} is not below the folder from which this server loads Steerings")
        there = folder.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # too long, not encodable, or links that lead to themselves
        if isinstance(error, DsasError):
            raise
        raise ArtifactError(f"{shown(given, 200)} cannot be read: {error}") from error
    if not there:
        raise ArtifactError(f"expected a folder on the server's machine, got {shown(given, 200)}, which is not one")
    return str(folder)


def _allowed(request: Request) -> bool:
    """Whether a request carries the operator's key, compared as bytes, whatever they encode."""
    key, said = os.fsencode(os.environ.get(OPERATOR_KEY, "")), request.headers.get("authorization", "")
    return bool(key) and secrets.compare_digest(said.encode("latin-1"), b"Bearer " + key)


def _answer(status: int, content: JsonObject) -> Response:
    return Response(json.dumps(content), status_code=status, media_type="application/json")  # ASCII in any case


def _refused(error: DsasError) -> Response:
    message = str(error)
    cut = message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}..."
    return _answer(400, {"error": {"type": type(error).__name__, "message": cut}})


def _forbidden() -> Response:
    return _answer(401, {"error": {"type": "Unauthorized", "message": "this needs the operator's key"}})
