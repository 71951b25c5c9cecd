"""`dsas serve` as its users see it: the openai client asks by name, the operator loads, and nothing brings it down."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from socket import socket
from typing import Any, NamedTuple

import pytest
from engines import ASKS, NEW_TOKENS, PROMPTS, SETTINGS, Ask, Reference, write_folders

pytestmark = pytest.mark.vllm
KEY = "the operator's"
OPTIONS = (
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", "192", "--block-size", "32", "--api-key", "clients"),
    *("--kv-cache-memory-bytes", "64M", "--served-model-name", "tiny", "--disable-log-stats"),
)


class Server(NamedTuple):
    """A running server: its process and address."""

    process: subprocess.Popen[bytes]
    url: str


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def reference(root: Path) -> Reference:
    return Reference(root)


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    with closing(socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    folders = [part for name in ("detox", "topic", "line") for part in ("--steering", str(root / name))]
    command = ["serve", str(root / "model"), *folders, "--together", "2", "--spare", "1", "--reports"]
    template = root / "template.jinja"  # the message and nothing else
    template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    log = (root / "log").open("wb")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "dsas.cli",
            *command,
            *OPTIONS,
            "--chat-template",
            str(template),
            "--host",
            "127.0.0.1",
            "--port",
            port,
        ],
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
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


def client_of(server: Server, key: str = "clients") -> Any:
    from openai import OpenAI  # pyright: ignore[reportMissingImports]

    return OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def complete(server: Server, prompt: str, extra_args: dict[str, Any] | None) -> tuple[list[str], list[float]]:
    body = {
        "ignore_eos": True,
        "return_tokens_as_token_ids": True,
        **({"vllm_xargs": extra_args} if extra_args else {}),
    }
    with client_of(server) as client:
        answer = client.completions.create(
            model="tiny", prompt=prompt, max_tokens=NEW_TOKENS, temperature=0, logprobs=1, extra_body=body
        )
    said = answer.choices[0].logprobs
    return [token.removeprefix("token_id:") for token in said.tokens], list(said.token_logprobs)


def agrees(server: Server, reference: Reference, prompt: str, ask: Ask, *, called: str | None = None) -> bool:
    named = ask._replace(names=(called,)) if called else ask
    tokens, log_probabilities = complete(server, prompt, named.extra_args())
    wanted = reference.generate(prompt, ask)
    near = wanted.log_probabilities.gather(-1, torch_column(wanted.tokens)).flatten().tolist()
    worst = max(abs(a - b) for a, b in zip(log_probabilities, near, strict=True))
    return tokens == [str(token) for token in wanted.tokens] and worst < 1e-4


def torch_column(values: list[int]) -> Any:
    import torch

    return torch.tensor(values).unsqueeze(-1)


def operate(server: Server, method: str, path: str = "", body: Any = None, key: str = KEY) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"{server.url}/dsas/steerings{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_many_clients_at_once_each_get_what_they_asked_for(server: Server, reference: Reference) -> None:
    work = [(prompt, ask) for ask in ASKS for prompt in PROMPTS] * 2
    for prompt, ask in work:
        reference.generate(prompt, ask)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda one: agrees(server, reference, *one), work))


def test_a_chat_is_steered_too(server: Server, reference: Reference) -> None:
    with client_of(server) as client:
        answer = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": PROMPTS[2]}],
            max_tokens=NEW_TOKENS,
            temperature=0,
            logprobs=True,
            extra_body={"ignore_eos": True, "vllm_xargs": ASKS[2].extra_args(), "return_tokens_as_token_ids": True},
        )
    tokens = [one.token.removeprefix("token_id:") for one in answer.choices[0].logprobs.content]
    assert tokens == [str(token) for token in reference.generate(PROMPTS[2], ASKS[2]).tokens]


@pytest.mark.parametrize("ask", [ASKS[2], ASKS[5], ASKS[0]], ids=str)
def test_an_answer_carries_how_strongly_it_was_steered_when_the_request_asks(
    server: Server, reference: Reference, ask: Ask
) -> None:
    asked, prompt = {**(ask.extra_args() or {}), "dsas_report": True}, PROMPTS[2]
    body = {"ignore_eos": True, "vllm_xargs": asked}
    given: Any = {"model": "tiny", "max_tokens": NEW_TOKENS, "temperature": 0, "extra_body": body}
    with client_of(server) as client:
        text = client.completions.create(prompt=prompt, **given)
        chat = client.chat.completions.create(messages=[{"role": "user", "content": prompt}], **given)
    wanted = reference.applied(prompt, ask)
    for answer in (text, chat):
        report = answer.kv_transfer_params["dsas_report"]
        assert report["mean_strength"].keys() == wanted.keys()
        assert report["mean_strength"] == pytest.approx(wanted, abs=1e-5)
    silent = {**given, "extra_body": {"vllm_xargs": ask.extra_args()}}
    with client_of(server) as client:
        assert client.completions.create(prompt=prompt, **silent).kv_transfer_params is None


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"dsas_steering": "detoks"}, "no Steering 'detoks' is loaded; closest: 'detox'"),
        ({"dsas_steering": "detox", "dsas_strength": -1e7}, "must be a number from -1e+06 to 1e+06"),
        ({"dsas_steering": "x" * 10**6}, "no Steering 'xxx"),
        ({"dsas_steering": "detox", "dsas_strength": "much"}, "got 'much'"),
        ({"dsas_steering": ["detox", "topic", "line"]}, "must be 1 to 2 different names"),
        ({"dsas_strenght": 1}, "unknown key 'dsas_strenght'"),
        ({"dsas_report": "yes"}, "must be true or false, got 'yes'"),
        ({"dsas_resolved": "x"}, "unknown key 'dsas_resolved'"),
    ],
)
def test_a_bad_request_gets_400_with_what_was_expected_and_the_server_lives_on(
    server: Server, reference: Reference, asked: dict[str, Any], said: str
) -> None:
    from openai import BadRequestError  # pyright: ignore[reportMissingImports]

    with pytest.raises(BadRequestError) as refused:
        complete(server, "Hi", asked)
    assert refused.value.status_code == 400
    assert said in str(refused.value)
    assert agrees(server, reference, "Hi", ASKS[1])


def test_the_clients_key_is_asked_for_as_vllm_has_it(server: Server) -> None:
    from openai import AuthenticationError  # pyright: ignore[reportMissingImports]

    with client_of(server, "wrong") as client, pytest.raises(AuthenticationError):
        client.models.list()


def test_the_operator_loads_replaces_and_unloads_while_the_server_runs(
    server: Server, root: Path, reference: Reference
) -> None:
    later = Ask(("later",), (1.0,))
    status, loaded = operate(server, "POST", body={"name": "extra", "folder": str(root / "later")})
    assert (status, list(loaded)) == (200, ["extra"])
    assert agrees(server, reference, PROMPTS[0], later, called="extra")
    # The version that a name means can be one that is there already, which takes no further slot.
    assert operate(server, "POST", body={"name": "extra", "folder": str(root / "detox")})[0] == 200
    assert agrees(server, reference, PROMPTS[0], ASKS[2], called="extra")
    status, answer = operate(server, "POST", body={"name": "more", "folder": str(root / "latest")})
    assert status == 400
    assert "no slot is free for 'more'" in answer["error"]["message"]
    assert operate(server, "DELETE", "/extra")[0] == 200
    assert operate(server, "DELETE", "/extra")[0] == 400
    assert sorted(operate(server, "GET")[1]) == ["detox", "line", "topic"]


def test_only_who_knows_the_operators_key_may_load(server: Server, root: Path) -> None:
    for method in ("GET", "POST"):
        body = {"name": "extra", "folder": str(root / "later")} if method == "POST" else None
        assert operate(server, method, body=body, key="clients")[0] == 401
    assert operate(server, "DELETE", "/detox", key="")[0] == 401


def test_a_folder_that_holds_no_steering_is_refused(server: Server, root: Path) -> None:
    status, answer = operate(server, "POST", body={"name": "extra", "folder": str(root / "model")})
    assert (status, answer["error"]["type"]) == (400, "ArtifactError")


def test_requests_are_counted_beside_the_metrics_of_vllm(server: Server) -> None:
    def counted() -> float:
        lines = urllib.request.urlopen(f"{server.url}/metrics", timeout=30).read().decode().splitlines()
        found = [line for line in lines if line.startswith('dsas_requests_total{steering="topic"}')]
        return float(found[0].split()[-1]) if found else 0.0

    before = counted()
    complete(server, "Hi", {"dsas_steering": "topic"})
    assert counted() == before + 1


def test_the_server_is_still_the_process_that_was_started(server: Server) -> None:
    assert server.process.poll() is None
    assert answers(f"{server.url}/health")
