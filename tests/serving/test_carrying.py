"""What asks to be steered where an address would pass over it is refused, and everything else reaches the address."""

import asyncio
import json
from typing import Any

import pytest
from fastapi import FastAPI, Request  # pyright: ignore[reportMissingImports]

from dsas.serving.carrying import CARRIED, Carrying, misplaced_in

ASKED = {"dsas_steering": "detox"}
OTHERS = ("/v1/systemone", "/generative_scoring", "/cohere/v2/chat", "/v1/embeddings")


@pytest.mark.parametrize("path", CARRIED)
def test_every_address_takes_our_keys_where_it_reads_them_and_nowhere_else(path: str) -> None:
    xargs, extra = {"vllm_xargs": ASKED}, {"sampling_params": {"extra_args": ASKED}}
    right, wrong = (extra, xargs) if "generate" in path else (xargs, extra)
    assert misplaced_in(path, json.dumps({"prompt": "dsas", **right}).encode()) == ""
    for body in (wrong, ASKED, {"extra_body": xargs}, {"extra_body": ASKED}, {"extra_args": ASKED}, {**right, **ASKED}):
        said = misplaced_in(path, json.dumps(body).encode())
        assert said.startswith("'dsas_steering' is")
        assert said.endswith(f"write it inside {'sampling_params.extra_args' if right is extra else 'vllm_xargs'}")


@pytest.mark.parametrize("path", OTHERS)
def test_an_address_that_reads_them_nowhere_says_which_do(path: str) -> None:
    for body in (ASKED, {"vllm_xargs": ASKED}):
        said = misplaced_in(path, json.dumps(body).encode())
        assert "requests to this address cannot be steered; those to these can: /v1/completions" in said


def test_what_prepares_a_request_is_looked_at_like_what_runs_it_and_what_counts_tokens_is_not() -> None:
    right, wrong = json.dumps({"vllm_xargs": ASKED}).encode(), json.dumps(ASKED).encode()
    assert misplaced_in("/v1/chat/completions/render", right) == ""
    assert "write it inside vllm_xargs" in misplaced_in("/v1/chat/completions/render", wrong)
    for path in ("/tokenize", "/v1/messages/count_tokens", "/v1/completions/derender"):
        assert misplaced_in(path, wrong) == misplaced_in(path, right) == ""


def test_words_and_tools_and_schemas_may_be_called_as_ours_are() -> None:
    schema = {"type": "object", "properties": {"dsas_steering": {"type": "string"}}}
    body = {"messages": [{"role": "user", "content": "dsas_steering"}], "response_format": {"json_schema": schema}}
    assert misplaced_in("/v1/chat/completions", json.dumps(body).encode()) == ""


@pytest.mark.parametrize(
    "body", [b'{"dsas_', b"[1, 2]", b'"dsas"', b"null # dsas", b"[" * 100_000 + b"dsas", b"\xff dsas"]
)
def test_what_is_no_request_is_left_to_the_address(body: bytes) -> None:
    assert misplaced_in("/v1/completions", body) == ""


def test_a_field_of_a_form_is_refused_beside_the_one_that_carries() -> None:
    form = '--x\r\nContent-Disposition: form-data; name="{}"\r\n\r\n{}\r\n--x--'
    assert "'dsas_strength' is" in misplaced_in("/v1/audio/transcriptions", form.format("dsas_strength", 1).encode())
    given = form.format("vllm_xargs", json.dumps(ASKED)).encode()
    assert misplaced_in("/v1/audio/transcriptions", given) == ""


def asked(path: str, pieces: list[bytes]) -> tuple[int, Any]:
    """Return status and answer of an address that echoes what it has read, behind the layer."""
    app = FastAPI()

    @app.post("/{path:path}")
    async def echo(request: Request, path: str) -> Any:
        return await request.json()

    events = [
        {"type": "http.request", "body": piece, "more_body": number < len(pieces) - 1}
        for number, piece in enumerate(pieces)
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return events.pop(0) if events else {"type": "http.disconnect"}

    async def send(event: Any) -> None:
        sent.append(event)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "method": "POST",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "client": ("127.0.0.1", 1),
        "headers": [(b"content-type", b"application/json")], "server": ("127.0.0.1", 80),
    }  # fmt: skip
    asyncio.run(Carrying(app)(scope, receive, send))
    body = b"".join(event.get("body", b"") for event in sent if event["type"] == "http.response.body")
    return sent[0]["status"], json.loads(body)


def test_a_body_reaches_its_address_whole_in_whatever_pieces_it_comes_or_gets_400() -> None:
    good, bad = ({"prompt": "Hi", **rest} for rest in ({"vllm_xargs": ASKED}, ASKED))
    for given, wanted in ((good, 200), (bad, 400)):
        data = json.dumps(given).encode()
        for pieces in ([data], [data[:20], data[20:]], [data[i : i + 1] for i in range(len(data))]):
            status, answer = asked("/v1/completions", pieces)
            assert status == wanted
            assert answer == good if status == 200 else "write it inside vllm_xargs" in answer["detail"]
