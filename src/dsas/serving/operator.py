"""Operator: load, replace and unload Steerings while the server runs, over HTTP, for who knows the operator's key.

    GET    /dsas/steerings                                      what requests may name
    POST   /dsas/steerings  {"name": "detox", "folder": "..."}  load, or replace: the folder is one of the server's
    DELETE /dsas/steerings/detox                                no further request may name it

All want `Authorization: Bearer` with the value of the environment variable DSAS_OPERATOR_KEY, without which vLLM has no
such endpoint. It is no key of clients: those of vLLM (`--api-key`) open no door here. What does not fit is refused with
HTTP 400 and the server goes on as before. Requests that run, or wait, keep the version they named.
"""

import asyncio
import os
import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Body, FastAPI, Header  # pyright: ignore[reportMissingImports]
from fastapi.responses import JSONResponse  # pyright: ignore[reportMissingImports]

from dsas.errors import DsasError
from dsas.files.json_values import JsonObject
from dsas.serving.config import KEY
from dsas.serving.engine import checked, publish, withdraw
from dsas.serving.server import OPERATOR_KEY, OPERATOR_PLUGIN


class Operator:
    """The endpoint as vLLM plugs it in: routes first, the engine when there is one."""

    name = OPERATOR_PLUGIN
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._client: Any = None
        self._turn = asyncio.Lock()

    def attach_router(self, app: FastAPI) -> None:
        """Register the routes."""
        router = APIRouter(prefix="/dsas/steerings")
        router.add_api_route("", self.listed, methods=["GET"])
        router.add_api_route("", self.loaded, methods=["POST"])
        router.add_api_route("/{name}", self.unloaded, methods=["DELETE"])
        app.include_router(router)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Take the engine that the routes speak to."""
        self._client = engine_client

    async def listed(self, authorization: Annotated[str, Header()] = "") -> JSONResponse:
        """Answer what requests may name."""
        return _answer(200, self._config[KEY]["steerings"]) if _allowed(authorization) else _forbidden()

    async def loaded(
        self,
        name: Annotated[str, Body()],
        folder: Annotated[str, Body()],
        authorization: Annotated[str, Header()] = "",
    ) -> JSONResponse:
        """Load a Steering under a name, which may be taken: requests to come then mean the new one."""
        if not _allowed(authorization):
            return _forbidden()
        async with self._turn:
            try:
                model = self._client.vllm_config.model_config.model
                source = await asyncio.to_thread(checked, name, folder, model)
                problems = await self._client.collective_rpc("dsas_load", args=(name, source._asdict()))
                publish(self._config, name, source, problems)
            except DsasError as error:
                return _answer(400, {"error": {"type": type(error).__name__, "message": str(error)}})
        return _answer(200, {name: source._asdict()})

    async def unloaded(self, name: str, authorization: Annotated[str, Header()] = "") -> JSONResponse:
        """Let no further request name a Steering."""
        if not _allowed(authorization):
            return _forbidden()
        try:
            withdraw(self._config, name)
        except DsasError as error:
            return _answer(400, {"error": {"type": type(error).__name__, "message": str(error)}})
        return _answer(200, {})

    @property
    def _config(self) -> JsonObject:
        return self._client.vllm_config.additional_config


def _allowed(authorization: str) -> bool:
    key = os.environ.get(OPERATOR_KEY, "")
    return bool(key) and secrets.compare_digest(authorization.encode(), f"Bearer {key}".encode())


def _answer(status: int, content: JsonObject) -> JSONResponse:
    return JSONResponse(content, status_code=status)


def _forbidden() -> JSONResponse:
    return _answer(401, {"error": {"type": "Unauthorized", "message": "this needs the operator's key"}})
