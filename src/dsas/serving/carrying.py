"""Carrying: where a request over HTTP may ask for steering, so that none that asks elsewhere is left unsteered.

vLLM's addresses take a request's further arguments in one place and silently ignore all others; some take none at
all. `Carrying` is a layer of the server (ASGI) that inspects the body of every request as it is read, after vLLM has
checked the client's key. It refuses with HTTP 400 a request that asks to be steered in a place that would be ignored:

    /v1/completions, /v1/chat/completions (and .../batch), /v1/responses, /v1/messages, /invocations     vllm_xargs
    /inference/v1/generate                                                       sampling_params.extra_args
    all others                                                                                 nowhere

Addresses that end with /render, which prepare such a request, are inspected like those that run it; those that only
count or translate tokens are not inspected.

Limitations: bodies that are JSON; of forms, which the addresses for sounds take, only names of fields are inspected.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

from fastapi import HTTPException  # pyright: ignore[reportMissingImports]

from dsas.errors import shown
from dsas.files.json_values import Json
from dsas.serving.requests import PREFIX

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_XARGS, _EXTRA_ARGS = ("vllm_xargs",), ("sampling_params", "extra_args")
CARRIED = {
    "/v1/completions": _XARGS,
    "/v1/chat/completions": _XARGS,
    "/v1/chat/completions/batch": _XARGS,
    "/v1/responses": _XARGS,
    "/v1/messages": _XARGS,
    "/v1/audio/transcriptions": _XARGS,
    "/v1/audio/translations": _XARGS,
    "/invocations": _XARGS,
    "/inference/v1/generate": _EXTRA_ARGS,
}
_RENDERS = "/render"
_NO_ANSWER = ("/tokenize", "/detokenize", "/count_tokens", "/derender")  # where nothing is steered or not
# Where clients put them: in the body, in what the openai client calls extra_body, and where another address has them.
_PLACES = ((), _XARGS, ("extra_args",), ("extra_body",), ("extra_body", *_XARGS), ("sampling_params",), _EXTRA_ARGS)
_PLACES = (*_PLACES, ("sampling_params", *_XARGS))


class Carrying:
    """The layer: refuses requests with keys of dsas where the address ignores them."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a call on, with its body looked at."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"].startswith("/dsas/"):
            await self._app(scope, receive, send)
            return
        pieces: list[bytes] = []

        async def looked_at() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                pieces.append(message.get("body", b""))
                if not message.get("more_body", False):
                    body = b"".join(pieces)
                    pieces.clear()
                    if problem := misplaced_in(scope["path"], body):
                        raise HTTPException(400, problem)
            return message

        await self._app(scope, looked_at, send)


def misplaced_in(path: str, body: bytes) -> str:
    """Return what is wrong with the places of a body's keys of dsas; empty when nothing is."""
    if PREFIX.encode() not in body or path.endswith(_NO_ANSWER):
        return ""
    asked = path.removesuffix(_RENDERS)
    carried = next((place for address, place in CARRIED.items() if asked.endswith(address)), None)
    for place, key in _keys(body):
        if place != carried:
            beside = ".".join(carried) if carried else "the other fields"
            where = f"in {'.'.join(place)}" if place else f"beside {beside}"
            return f"{shown(key)} is {where}, where it would be ignored: {_instead(carried)}"
    return ""


def _instead(carried: Sequence[str] | None) -> str:
    if carried is None:
        return f"requests to this address cannot be steered; those to these can: {', '.join(CARRIED)}"
    return f"write it inside {'.'.join(carried)}"


def _keys(body: bytes) -> list[tuple[tuple[str, ...], str]]:
    """Return the keys of dsas in a body, with their places."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):  # a form, or what vLLM refuses itself
        begin = body.find(b'name="' + PREFIX.encode())
        name = body[begin + 6 : begin + 100].partition(b'"')[0].decode(errors="replace")
        return [((), name)] if begin >= 0 else []
    found = [(place, _at(given, place)) for place in _PLACES]
    return [(place, key) for place, fields in found for key in fields if key.startswith(PREFIX)]


def _at(given: Json, place: Sequence[str]) -> Mapping[str, Json]:
    for name in place:
        given = given.get(name) if isinstance(given, dict) else None
    return given if isinstance(given, dict) else {}
