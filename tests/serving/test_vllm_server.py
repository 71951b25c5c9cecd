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
from pathlib import Path
from typing import Any

import pytest
from engines import ASKS, NEW_TOKENS, PROMPTS, SETTINGS, Ask, Reference, write_folders
from makers import random_steering
from servers import KEY, OPTIONS, Server, answers, asked, operate, serving

from dsas.testing import tiny_model

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def reference(root: Path) -> Reference:
    return Reference(root)


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    with serving(
        root, ("detox", "topic", "line"), "--together", "2", "--spare", "1", "--reports", "--enable-scale-out"
    ) as one:
        yield one


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


COMMON: Any = {"model": "tiny", "max_tokens": NEW_TOKENS, "temperature": 0}
TOKENS = {"ignore_eos": True, "return_token_ids": True}


def body_of(ask: Ask, **more: Any) -> dict[str, Any]:
    return {**TOKENS, "vllm_xargs": {**(ask.extra_args() or {}), **more}}


def test_several_answers_and_streams_are_steered_as_asked(server: Server, reference: Reference) -> None:
    wanted = reference.generate(PROMPTS[2], ASKS[2]).tokens
    with client_of(server) as client:
        several = client.completions.create(prompt=PROMPTS[2], n=3, extra_body={**body_of(ASKS[2]), "top_k": 1}, **{
            **COMMON, "temperature": 1.0
        })  # fmt: skip
        assert [choice.token_ids for choice in several.choices] == 3 * [wanted]
        streamed: list[int] = []
        for chunk in client.completions.create(prompt=PROMPTS[2], stream=True, extra_body=body_of(ASKS[2]), **COMMON):
            streamed += chunk.choices[0].token_ids
        assert streamed == wanted
        said: list[int] = []
        messages = [{"role": "user", "content": PROMPTS[2]}]
        for chunk in client.chat.completions.create(
            messages=messages, stream=True, extra_body=body_of(ASKS[2]), **COMMON
        ):
            for choice in chunk.choices:
                said += getattr(choice, "token_ids", None) or []
        assert said == wanted


def test_stop_strings_end_the_steered_text_and_prompts_are_scored_as_they_were_steered(
    server: Server, reference: Reference
) -> None:
    text = reference.tokenizer.decode(reference.generate(PROMPTS[2], ASKS[2]).tokens)
    with client_of(server) as client:
        whole = client.completions.create(prompt=PROMPTS[2], extra_body=body_of(ASKS[2]), **COMMON).choices[0].text
        stopped = client.completions.create(prompt=PROMPTS[2], stop=[whole[2:4]], extra_body=body_of(ASKS[2]), **COMMON)
        assert whole.strip() in text or text.strip() in whole
        assert stopped.choices[0].text == whole[: whole.index(whole[2:4])]
        scored = {
            ask: client.completions.create(
                prompt=PROMPTS[2], extra_body={**body_of(ask), "prompt_logprobs": 0}, **COMMON
            )
            .choices[0]
            .prompt_logprobs
            for ask in (ASKS[0], ASKS[2])
        }
    ids = reference.tokenizer(PROMPTS[2])["input_ids"]
    for ask, found in scored.items():
        got = [at[str(token)]["logprob"] for at, token in zip(found[1:], ids[1:], strict=True)]
        assert got == pytest.approx(reference.scores(PROMPTS[2], ask), abs=1e-4)


def test_an_answer_that_has_to_follow_a_schema_does_under_steering(server: Server) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {**schema, "additionalProperties": False}}}
    messages = [{"role": "user", "content": "Hi"}]
    with client_of(server) as client:
        for ask in (ASKS[0], ASKS[2], ASKS[3]):
            extra = {"vllm_xargs": ask.extra_args()} if ask.names else {}
            answer = client.chat.completions.create(
                messages=messages, response_format=form, extra_body=extra, **{**COMMON, "max_tokens": 120}
            )
            said = answer.choices[0].message.content
            assert answer.choices[0].finish_reason == "length" or list(json.loads(said)) == ["a"], said


def test_the_responses_of_openai_are_steered_as_asked(server: Server, reference: Reference) -> None:
    given = {"model": "tiny", "input": PROMPTS[2], "max_output_tokens": NEW_TOKENS, "temperature": 0}
    said = {}
    with client_of(server) as client:
        for ask in (ASKS[0], ASKS[2]):
            extra = {"ignore_eos": True, **({"vllm_xargs": ask.extra_args()} if ask.names else {})}
            said[ask] = client.responses.create(**given, extra_body=extra).output_text
    wanted = {ask: reference.tokenizer.decode(reference.generate(PROMPTS[2], ask).tokens) for ask in said}
    assert said[ASKS[0]] != said[ASKS[2]]
    for ask, text in said.items():
        assert text.strip("\ufffd \n") == wanted[ask].strip("\ufffd \n")  # a character may end half-way


def test_what_would_be_unsteered_without_a_word_gets_400(server: Server) -> None:
    from openai import BadRequestError  # pyright: ignore[reportMissingImports]

    messages = [{"role": "user", "content": "Hi"}]
    with client_of(server) as client:
        for extra, said in (
            ({"use_beam_search": True, "n": 2, **body_of(ASKS[2])}, "beam search cannot be steered"),
            ({"dsas_steering": "detox"}, "stands beside vllm_xargs"),
        ):
            for create in (
                lambda extra: client.completions.create(prompt="Hi", extra_body=extra, **COMMON),
                lambda extra: client.chat.completions.create(messages=messages, extra_body=extra, **COMMON),
            ):
                with pytest.raises(BadRequestError, match=said):
                    create(extra)
        with pytest.raises(BadRequestError, match="stands beside vllm_xargs"):
            client.responses.create(model="tiny", input="Hi", extra_body={"dsas_steering": "detox"})


def test_every_other_address_steers_as_asked_or_says_that_it_does_not(server: Server, reference: Reference) -> None:
    messages, extra = [{"role": "user", "content": PROMPTS[2]}], ASKS[2].extra_args()
    wanted, common = reference.generate(PROMPTS[2], ASKS[2]).tokens, {"model": "tiny", "max_tokens": NEW_TOKENS}
    greedy = {**common, "temperature": 0}
    ids = reference.tokenizer(PROMPTS[2])["input_ids"]
    sampling = {"max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
    for path, body in (
        ("/v1/chat/completions/batch", {**greedy, **TOKENS, "messages": [messages, messages], "vllm_xargs": extra}),
        (
            "/inference/v1/generate",
            {"model": "tiny", "token_ids": ids, "sampling_params": {**sampling, "extra_args": extra}},
        ),
    ):
        status, answer = asked(server, path, body)
        assert status == 200, answer
        assert all(choice["token_ids"] == wanted for choice in answer["choices"])
    status, answer = asked(server, "/v1/messages", {**greedy, "messages": messages, "vllm_xargs": extra})
    text, right = answer["content"][0]["text"], reference.tokenizer.decode(wanted)
    assert text.strip("\ufffd \n") == right.strip("\ufffd \n")
    given = {"sampling_params": sampling, "vllm_xargs": extra}
    for path, body in (
        ("/v1/messages", {**greedy, "messages": messages, **extra}),
        ("/inference/v1/generate", {"model": "tiny", "token_ids": ids, **given}),
        ("/v1/completions", {**greedy, "prompt": "Hi", "extra_body": {"vllm_xargs": extra}}),
        (
            "/generative_scoring",
            {"model": "tiny", "query": "a", "items": ["b"], "label_token_ids": [1, 2], "vllm_xargs": extra},
        ),
    ):
        status, answer = asked(server, path, body)
        assert status == 400, (path, answer)
        assert "'dsas_steering' stands" in answer["error"]["message"]
    assert asked(server, "/v1/completions", {**greedy, "prompt": "Hi", **extra}, key="wrong")[0] == 401


def test_a_chat_with_tools_is_steered_as_the_same_text_is(server: Server, reference: Reference) -> None:
    """The template shows no tools, so the prompt is that of the chat alone."""
    tool = {"type": "function", "function": {"name": "dsas_look", "parameters": {"type": "object", "properties": {}}}}
    with client_of(server) as client:
        for ask in (ASKS[0], ASKS[2]):
            answer = client.chat.completions.create(
                messages=[{"role": "user", "content": PROMPTS[2]}], tools=[tool], tool_choice="none",
                extra_body=body_of(ask), **COMMON,
            )  # fmt: skip
            assert answer.choices[0].token_ids == reference.generate(PROMPTS[2], ask).tokens


def test_prompts_that_are_echoed_are_scored_as_they_were_steered(server: Server, reference: Reference) -> None:
    with client_of(server) as client:
        answer = client.completions.create(
            prompt=[PROMPTS[2], PROMPTS[3]], echo=True, logprobs=0, extra_body=body_of(ASKS[2]), **COMMON
        )
    for choice, prompt in zip(answer.choices, (PROMPTS[2], PROMPTS[3]), strict=True):
        scores = reference.scores(prompt, ASKS[2])
        assert choice.logprobs.token_logprobs[1 : 1 + len(scores)] == pytest.approx(scores, abs=1e-4)
        assert choice.token_ids[-NEW_TOKENS:] == reference.generate(prompt, ASKS[2]).tokens


def replayed(reference: Reference, prompt: str, ask: Ask, tokens: int) -> list[float]:
    """Return what the regulator of the one Steering says of each token of an answer, outside of a server."""
    ids = reference.tokenizer(prompt)["input_ids"]
    values = reference.values(prompt, ask, tokens)
    return values[len(ids) :]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_stopped_where_an_offline_replay_says_so_and_says_why(
    server: Server, reference: Reference, *, stream: bool
) -> None:
    ask, window, new = Ask(("detox",), (0.5,)), 3, 24
    wanted = reference.generate(PROMPTS[2], ask, new).tokens
    values = replayed(reference, PROMPTS[2], ask, new)
    means = [sum(values[n - window + 1 : n + 1]) / window for n in range(window - 1, len(values))]
    threshold = sorted(means[4:])[len(means[4:]) // 2]
    threshold = max([threshold, *means[:4]]) * 1.000001  # not among the first
    last = next((n for n, mean in enumerate(means, window - 1) if mean > threshold), None)
    extra = body_of(ask, dsas_stop_above=threshold, dsas_stop_window=window)
    given = {**COMMON, "max_tokens": new, "prompt": PROMPTS[2], "extra_body": extra, "logprobs": 1}
    with client_of(server) as client:
        if stream:
            tokens, reason = [], None
            for chunk in client.completions.create(stream=True, **given):
                tokens += chunk.choices[0].token_ids or []
                reason = getattr(chunk.choices[0], "stop_reason", None) or reason
        else:
            choice = client.completions.create(**given).choices[0]
            tokens, reason = choice.token_ids, choice.stop_reason
            assert len(choice.logprobs.tokens) == len(tokens)
    assert tokens == (wanted if last is None else wanted[: last + 1])
    assert (reason == "dsas_stop_above") == (last is not None)
    assert last is not None


def test_a_request_is_steered_more_from_where_an_offline_replay_says_so(server: Server, reference: Reference) -> None:
    ask, new = Ask(("detox",), (0.2,)), 12
    values = replayed(reference, PROMPTS[2], ask, new)
    threshold = sorted(values[1:6])[2]
    first = next(n for n, value in enumerate(values) if value > threshold)
    extra = body_of(ask, dsas_raise_above=threshold, dsas_raise_to=1.5, dsas_stop_window=1)
    with client_of(server) as client:
        choice = client.completions.create(
            prompt=PROMPTS[2], extra_body=extra, **{**COMMON, "max_tokens": new}
        ).choices[0]
    assert choice.token_ids == reference.raised(PROMPTS[2], ask, first + 1, 1.5, new)


def test_a_stream_is_told_of_by_the_operators_endpoint_and_in_the_metrics(server: Server, reference: Reference) -> None:
    ask = ASKS[2]
    with client_of(server) as client:
        chunks = list(client.completions.create(prompt=PROMPTS[2], stream=True, extra_body=body_of(ask), **COMMON))
    request = urllib.request.Request(
        f"{server.url}/dsas/reports/{chunks[0].id}", headers={"Authorization": f"Bearer {KEY}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        (report,) = json.load(answer).values()
    assert report["mean_strength"] == pytest.approx(reference.applied(PROMPTS[2], ask), abs=1e-5)
    for _ in range(20):
        text = urllib.request.urlopen(f"{server.url}/metrics", timeout=30).read().decode()
        if 'dsas_mean_strength_count{steering="detox"}' in text:
            break
        time.sleep(0.2)
    assert 'dsas_tokens_above_half_count{steering="detox"}' in text
    assert 'dsas_stopped_total{steering="detox"}' in text


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
    assert status == 200  # the slot of "later", which nothing names, was given back
    status, answer = operate(server, "POST", body={"name": "most", "folder": str(root / "later")})
    assert status == 400
    assert "no slot is free for 'most'" in answer["error"]["message"]
    assert operate(server, "DELETE", "/more")[0] == 200
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


def test_a_check_lets_what_fits_answer_and_says_what_is_refused(root: Path) -> None:
    random_steering(tiny_model("qwen2")).save_pretrained(root / "other")
    names = ("detox", "plane", "role", "cast", "other")
    folders = [part for name in names for part in ("--steering", str(root / name))]
    command = ["serve", str(root / "model"), *folders, "--reports", "--default", "detox=0.5", "--check", *OPTIONS]
    done = subprocess.run(
        [sys.executable, "-m", "dsas.cli", *command], env={**os.environ, **SETTINGS}, capture_output=True, text=True
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 1, done.stderr[-2000:]
    assert list(told["refused"]) == ["other"]
    assert told["answered"] == ["detox", "plane", "role", "cast"]
    assert told["sites"]["model.layers.1"] == {"reads": 2, "projections": 2, "places": 1, "prompt": 1}
    assert set(told["sites"]) == {f"model.layers.{number}" for number in range(3)} | {"model.layers.1.mlp"}
    assert told["table_bytes"] > 0
