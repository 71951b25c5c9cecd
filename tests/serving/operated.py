"""The operator's endpoint as vLLM has it, over a stand-in for the engine: requests in, statuses and answers out."""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch
from urllib.parse import unquote

from fastapi import FastAPI  # pyright: ignore[reportMissingImports]
from served import First, Served, store, vllm_config

from dsas.serving.operator import Operator
from dsas.serving.runner import SteeredRunner
from dsas.testing import tiny_model

KEY = "clé".encode()  # which no ASCII is


class PlatformWorker:
    """vLLM's own worker of this platform."""

    def __init__(self, config: Any) -> None:
        self.vllm_config = config

    def load_model(self) -> None:
        self.model_runner = First(Served())


MODULES = {
    "vllm": {},
    "vllm.distributed": {"get_tp_group": lambda: SimpleNamespace(rank_in_group=0)},
    "vllm.platforms": {"current_platform": SimpleNamespace(is_cpu=lambda: True)},
    "vllm.v1": {},
    "vllm.v1.worker": {},
    "vllm.v1.worker.cpu_worker": {"CPUWorker": PlatformWorker},
}


class Answer(NamedTuple):
    """What came back of a request."""

    status: int
    body: bytes

    @property
    def message(self) -> str:
        """What it says is wrong."""
        return json.loads(self.body)["error"]["message"]


class Operated:
    """A server of a tiny Llama with the Steering "detox", and what its operator can do; `spare` slots are free."""

    def __init__(self, root: Path, *, spare: int = 4) -> None:
        modules = {name: ModuleType(name) for name in MODULES}
        for name, members in MODULES.items():
            vars(modules[name]).update(members)
        with patch.dict(sys.modules, modules):  # what the worker imports of vLLM
            from dsas.serving.worker import SteeringWorker
        if not (root / "detox").exists():
            store(root, "detox", "topic")
            model = tiny_model("llama")
            model.save_pretrained(root / "model")  # pyright: ignore[reportAttributeAccessIssue]
        self.config = vllm_config(root, "detox", spare=spare)
        self.config.model_config.model = str(root / "model")
        worker: Any = SteeringWorker
        self.worker = worker(self.config)
        self.worker.load_model()
        self.app, operator = FastAPI(), Operator()
        operator.attach_router(self.app)
        asyncio.run(operator.init_state(self, None, None))
        self.vllm_config, self.engine_core = self.config, self
        self.output_processor = SimpleNamespace(request_states={}, dsas_digests={})

    async def call_utility_all_async(self, _call: str, method: str, _timeout: Any, args: Sequence[Any], _: Any) -> Any:
        """Call all workers of all engines, of which there is one."""
        return [[getattr(self.worker, method)(*args)]]

    @property
    def names(self) -> list[str]:
        """The names that requests may use."""
        return sorted(self.config.additional_config["dsas"]["steerings"])

    def slots(self) -> dict[str, int]:
        """Return which slot each Steering has, by digest."""
        steered: SteeredRunner = self.worker.dsas
        return dict(steered._slots)

    def rows(self) -> list[Any]:
        """Return a copy of all tables and buffers of the model."""
        return [buffer.clone() for buffer in self.worker.model_runner.model.buffers()]

    def ask(
        self,
        method: str,
        path: str = "",
        body: Any = None,
        *,
        key: bytes | None = KEY,
        headers: Any = (),
        parts: int = 1,
    ) -> Answer:
        """Send a request; body: bytes, or what becomes JSON. parts: in which it comes."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        own = [(b"content-type", b"application/json")] if not headers else []
        own += [] if key is None else [(b"authorization", b"Bearer " + key)]
        whole = path if path.startswith("/dsas/") else f"/dsas/steerings{path}"
        return asyncio.run(self._ask(method, whole, data, [*own, *headers], parts))

    async def _ask(self, method: str, path: str, data: bytes, headers: Any, parts: int) -> Answer:
        size = max(1, -(-len(data) // max(parts, 1)))
        pieces = [data[start : start + size] for start in range(0, len(data), size)] or [b""]
        events = [
            {"type": "http.request", "body": piece, "more_body": number < len(pieces) - 1}
            for number, piece in enumerate(pieces)
        ]
        if parts == 0:  # who asks has left before all was sent
            events[-1]["more_body"] = True
        sent: list[Any] = []

        async def receive() -> Any:
            return events.pop(0) if events else {"type": "http.disconnect"}

        async def send(event: Any) -> None:
            sent.append(event)

        await self.app(
            {
                "type": "http",
                "asgi": {"version": "3.0"},
                "http_version": "1.1",
                "scheme": "http",
                "method": method,
                "path": unquote(path.partition("?")[0]),
                "raw_path": path.encode(),
                "query_string": path.partition("?")[2].encode(),
                "root_path": "",
                "headers": headers,
                "client": ("127.0.0.1", 1),
                "server": ("127.0.0.1", 80),
            },
            receive,
            send,
        )
        body = b"".join(event.get("body", b"") for event in sent if event["type"] == "http.response.body")
        return Answer(sent[0]["status"], body)
