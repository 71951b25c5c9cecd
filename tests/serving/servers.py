"""`dsas serve` in a process of its own, and its operator."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from socket import socket
from typing import Any, NamedTuple

from engines import SETTINGS

KEY = "the operator's"
OPTIONS = (
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", "192", "--block-size", "32", "--api-key", "clients"),
    *("--kv-cache-memory-bytes", "64M", "--served-model-name", "tiny", "--disable-log-stats", "--host", "127.0.0.1"),
)


class Server(NamedTuple):
    """A running server: its process and address."""

    process: subprocess.Popen[bytes]
    url: str


@contextmanager
def serving(root: Path, names: Sequence[str], *options: str) -> Iterator[Server]:
    """Run a server of the model and these Steerings of a folder; options: of `dsas serve`."""
    with closing(socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    folders = [part for name in names for part in ("--steering", str(root / name))]
    template = root / "template.jinja"  # the message and nothing else
    template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    command = ["serve", str(root / "model"), *folders, *options, *OPTIONS, "--chat-template", str(template)]
    log = (root / "log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "dsas.cli", *command, "--port", port],
        env={**os.environ, **SETTINGS, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "DSAS_OPERATOR_KEY": KEY},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(400):
            if process.poll() is not None or answers(f"{url}/health"):
                break
            time.sleep(1)
        assert process.poll() is None, (root / "log").read_text()[-4000:]
        yield Server(process, url)
    finally:
        process.terminate()
        process.wait(timeout=60)
        log.close()


def answers(url: str) -> bool:
    """Whether somebody answers at an address."""
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


def asked(server: Server, path: str, body: Any, key: str = "clients") -> tuple[int, Any]:
    """Return status and answer of a request to any address."""
    request = urllib.request.Request(
        f"{server.url}{path}",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    return _answered(request)


def operate(server: Server, method: str, path: str = "", body: Any = None, key: str = KEY) -> tuple[int, Any]:
    """Return status and answer of a request to the operator's endpoint."""
    request = urllib.request.Request(
        f"{server.url}/dsas/steerings{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    return _answered(request)


def _answered(request: urllib.request.Request) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
