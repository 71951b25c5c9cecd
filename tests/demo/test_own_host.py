"""A page of another site whose name resolves to this machine (DNS rebinding) gets nothing from a local page."""

import asyncio
import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from dsas.demo.own_host import OwnHost, without_port

PROGRAM = """
import sys, gradio
from dsas.demo.playground import serve
with gradio.Blocks(analytics_enabled=False) as page:
    gradio.Markdown("a page")
serve(page, port=int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Serve a page by the playground's server."""
    pytest.importorskip("gradio_client")  # which comes with gradio, whose own import warns of much
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(number)])
    try:
        for _ in range(600):
            if process.poll() is not None or reachable(number):
                break
            time.sleep(0.1)
        assert process.poll() is None
        yield number
    finally:
        process.kill()
        process.wait()


def reachable(port: int) -> bool:
    with closing(socket.socket()) as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def status(port: int, *hosts: str, method: str = "GET", path: str = "/") -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.putrequest(method, path, skip_host=True)
        for host in hosts:
            connection.putheader("Host", host.format(port=port))
        connection.endheaders()
        return connection.getresponse().status


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:{port}", "localhost:{port}", "LOCALHOST:1", "[::1]:{port}"])
def test_the_page_is_there_by_every_name_of_this_machine(port: int, host: str) -> None:
    assert status(port, host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "127.0.0.1:x",
        "0.0.0.0",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/call/x", "/gradio_api/queue/join"])
def test_by_any_other_name_nothing_is(port: int, host: str, path: str) -> None:
    assert status(port, host, path=path) == status(port, host, path=path, method="POST") == 421


def test_a_name_is_read_with_and_without_its_port() -> None:
    names = ("a:1", "A", "[::1]:2", "[::1]", "a:", "a:b", "[::1]x")
    assert [without_port(name) for name in names] == ["a", "a", "[::1]", "[::1]", "a:", "a:b", "[::1]x"]


def test_a_websocket_of_another_name_is_closed_and_one_without_a_name_too() -> None:
    sent: list[Any] = []

    async def fail(*_: Any) -> None:
        raise AssertionError("it came through")

    async def send(event: Any) -> None:
        sent.append(event["type"])

    for headers in ([(b"host", b"evil.example")], [], [(b"host", b"localhost"), (b"host", b"evil.example")]):
        asyncio.run(OwnHost(fail)({"type": "websocket", "headers": headers}, fail, send))
    assert sent == ["websocket.close"] * 3
