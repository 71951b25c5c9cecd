"""Own host: a local page answers only requests that name this machine as their host.

A page of another site can have its own name resolve to 127.0.0.1 (DNS rebinding); the browser then takes the local page
for a part of that site, and lets the site read and press everything. The Host header still says the name that was asked
for.
"""

from collections.abc import Awaitable, Callable, Collection

from dsas.model.foreign import Foreign

LOCAL = ("localhost", "127.0.0.1", "[::1]")
_REFUSED = b"This page answers on this machine only: ask for it as 127.0.0.1 or localhost.\n"

Receive = Callable[[], Awaitable[Foreign]]
Send = Callable[[Foreign], Awaitable[None]]


class OwnHost:
    """An ASGI middleware that answers HTTP 421 (403 to a WebSocket) to requests for any other host."""

    def __init__(
        self, app: Callable[[Foreign, Receive, Send], Awaitable[None]], hosts: Collection[str] = LOCAL
    ) -> None:
        """Let requests for these hosts through, whatever the port; IPv6 addresses are in brackets."""
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Foreign, receive: Receive, send: Send) -> None:
        """Pass a request on or refuse it."""
        named = [value.decode("latin-1") for name, value in scope.get("headers", ()) if name == b"host"]
        if scope["type"] == "lifespan" or (len(named) == 1 and without_port(named[0]) in self._hosts):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(_REFUSED)).encode())]
            await send({"type": "http.response.start", "status": 421, "headers": headers})
            await send({"type": "http.response.body", "body": _REFUSED})


def without_port(host: str) -> str:
    """Return what a Host header names, in lower case."""
    end = host.find("]") + 1 if host.startswith("[") else host.find(":") if ":" in host else len(host)
    name, port = host[:end].lower(), host[end:]
    return name if not port or (port[0] == ":" and port[1:].isdecimal()) else host
