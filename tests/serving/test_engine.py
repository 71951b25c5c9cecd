"""What vLLM is told, what is refused before it starts, and how requests are admitted, without vLLM."""

import asyncio
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from served import store

import dsas
from dsas.errors import MissingExtraError, ModelMismatchError, OptionError, StateError
from dsas.serving import admission, engine, server
from dsas.serving.answers import digests_in_use
from dsas.serving.config import ServingConfig, Source, source_of
from dsas.serving.requests import Default, Entry
from dsas.serving.verdicts import STOP_TOKEN
from dsas.steering.calibration_record import Calibration
from dsas.testing import tiny_model


class ValidationError(ValueError):
    """What vLLM answers with HTTP 400."""


class Counter:
    """Counts by name."""

    counted: ClassVar[list[str]] = []

    def __init__(self, name: str, *about: Any, **options: Any) -> None:
        self.name = name
        self.counted.clear()

    def labels(self, name: str) -> Any:
        own = name if self.name == "dsas_requests" else f"{self.name}:{name}"
        return SimpleNamespace(
            inc=lambda: self.counted.append(own), observe=lambda value: self.counted.append(f"{own}={value}")
        )


class SamplingParams(SimpleNamespace):
    """The parameters of a request."""

    min_tokens = 0
    structured_outputs = None
    stop_token_ids = None


class InputProcessor:
    """Where requests enter vLLM."""

    def __init__(self, additional_config: Any) -> None:
        parallel = SimpleNamespace(pipeline_parallel_size=1)
        self.vllm_config = SimpleNamespace(additional_config=additional_config, parallel_config=parallel)

    def process_inputs(self, request_id: str, prompt: Any, params: Any, *, salt: str | None = None) -> Any:
        return SimpleNamespace(sampling_params=SamplingParams(**vars(params)), cache_salt=salt)


class AsyncLLM:
    """A server's client of two engines: two outputs, the second is the last, and the second engine has the reports."""

    def __init__(self, config: ServingConfig, *, stop_reason: str | None = None) -> None:
        self.asked: list[Any] = []
        self.vllm_config = SimpleNamespace(additional_config=config.as_json())
        self.stop_reason = stop_reason

    async def generate(self, prompt: Any, sampling_params: Any, request_id: str) -> Any:
        for finished in (False, True):
            one = SimpleNamespace(finish_reason="stop" if finished else None, stop_reason=self.stop_reason)
            given = {"theirs": 1} if finished else None
            yield SimpleNamespace(finished=finished, kv_transfer_params=given, outputs=[one])

    @property
    def engine_core(self) -> Any:
        return self

    async def call_utility_all_async(self, call: str, method: str, timeout: Any, args: Any, kwargs: Any) -> Any:
        assert (call, timeout, kwargs) == ("collective_rpc", None, None)
        self.asked.append((method, args))
        report = {"tokens": 5, "mean_strength": {"detox": 0.25}, "above_half": {"detox": 2}}
        return (
            [[None], [report]] if method == "dsas_report" else [[[None for _ in args[0]]], [[report for _ in args[0]]]]
        )


class OutputProcessor:
    """Where what the engine gives becomes what clients see."""

    def __init__(self) -> None:
        self.request_states: dict[str, Any] = {}
        self.seen: list[Any] = []

    def process_outputs(self, outputs: Any) -> None:
        self.seen += outputs

    def add_request(self, request: Any) -> None:
        self.request_states[request.request_id] = request


class HttpRequest(SimpleNamespace):
    """A request over HTTP, of any of the three kinds."""

    model_extra: ClassVar[dict[str, Any]] = {}
    vllm_xargs: Any = None

    def to_sampling_params(self) -> str:
        return "sampled"

    def to_beam_search_params(self) -> str:
        return "beams"


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be a vLLM that has what admission uses."""
    fresh = type("InputProcessor", (InputProcessor,), {"process_inputs": InputProcessor.process_inputs})
    contents = {
        "prometheus_client": {"Counter": Counter, "Histogram": Counter},
        "vllm": {"SamplingParams": SamplingParams},
        "vllm.exceptions": {"VLLMValidationError": ValidationError},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.input_processor": {"InputProcessor": fresh},
        "vllm.v1.engine.async_llm": {"AsyncLLM": type("AsyncLLM", (AsyncLLM,), {"generate": AsyncLLM.generate})},
        "vllm.v1.engine.output_processor": {"OutputProcessor": type("OutputProcessor", (OutputProcessor,), {})},
        "vllm.entrypoints": {},
        "vllm.entrypoints.openai": {},
    }
    kinds = {
        "completion": "CompletionRequest",
        "chat_completion": "ChatCompletionRequest",
        "responses": "ResponsesRequest",
    }
    for part, kind in kinds.items():
        contents[f"vllm.entrypoints.openai.{part}"] = {}
        contents[f"vllm.entrypoints.openai.{part}.protocol"] = {kind: type(kind, (HttpRequest,), {})}
    for name, members in contents.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(engine, "require_vllm", lambda: None)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    store(tmp_path, "detox", "topic")
    tiny_model("llama").save_pretrained(tmp_path / "model")  # pyright: ignore[reportAttributeAccessIssue]
    return tmp_path


def admitted(given: Any, additional_config: Any, **options: Any) -> Any:
    admission.activate()
    processor = sys.modules["vllm.v1.engine.input_processor"].InputProcessor(additional_config)
    return processor.process_inputs("id", "prompt", given, **options)


CONFIG = ServingConfig({"detox": Source("detox/", "d1", 0.8)}, together=1, spare=0)


REPORTING = CONFIG._replace(reports=True)


@pytest.mark.usefixtures("vllm")
def test_a_request_that_asks_is_let_in_with_its_id_and_the_names_that_act() -> None:
    both = REPORTING._replace(sources={**CONFIG.sources, "topic": Source("topic/", "d2", 1.0)}, together=2)
    asked = {"dsas_steering": ["topic", "detox"], "dsas_strength": [0, 2], "dsas_report": True}
    request = admitted(SamplingParams(extra_args=asked), both.as_json())
    assert request.sampling_params.extra_args["dsas_reported"] == ["id", "detox"]
    silent = admitted(SamplingParams(extra_args={"dsas_steering": "detox"}), both._replace(reports=False).as_json())
    assert "dsas_reported" not in silent.sampling_params.extra_args
    with pytest.raises(ValidationError, match="'dsas_report' needs a server that was started with --reports"):
        admitted(SamplingParams(extra_args=asked), both._replace(reports=False).as_json())


def outputs_of(client: Any, extra_args: Any) -> list[Any]:
    async def collected() -> list[Any]:
        generated = client.generate("prompt", SamplingParams(extra_args=extra_args), "id")
        return [output.kv_transfer_params async for output in generated]

    return asyncio.run(collected())


@pytest.mark.usefixtures("vllm")
def test_the_last_output_of_a_request_that_asks_carries_its_report_and_no_other_waits_for_one() -> None:
    admission.activate()
    both = REPORTING._replace(sources={**CONFIG.sources, "topic": Source("topic/", "d2", 1.0)}, together=2)
    kind = sys.modules["vllm.v1.engine.async_llm"].AsyncLLM
    client = kind(both._replace(reports=False))
    assert outputs_of(client, {"dsas_steering": "detox"}) == outputs_of(client, None) == [None, {"theirs": 1}]
    assert client.asked == []
    client = kind(both)
    found = outputs_of(client, {"dsas_steering": ["detox", "topic"], "dsas_report": True})
    report = {"tokens": 5, "mean_strength": {"detox": 0.25, "topic": 0.0}, "above_half": {"detox": 2, "topic": 0}}
    assert found == [None, {"theirs": 1, "dsas_report": report}]
    assert client.asked == [("dsas_report", ("id",))]


@pytest.mark.usefixtures("vllm")
def test_what_a_server_with_reports_has_steered_and_stopped_is_in_its_metrics() -> None:
    admission.activate()
    client = sys.modules["vllm.v1.engine.async_llm"].AsyncLLM(REPORTING, stop_reason="dsas_stop_above")

    async def some() -> None:
        for _ in range(3):
            params = SamplingParams(extra_args={"dsas_steering": "detox"})
            assert [output.kv_transfer_params async for output in client.generate("p", params, "id")][-1] == {
                "theirs": 1
            }
        await asyncio.sleep(0.01)

    asyncio.run(some())
    assert sum(len(args[0]) for _, args in client.asked) == 3  # asked for in batches
    told = ["dsas_stopped:detox", "dsas_mean_strength:detox=0.25", "dsas_tokens_above_half:detox=2"]
    assert sorted(Counter.counted) == sorted(3 * told)


@pytest.mark.usefixtures("vllm")
def test_offline_the_report_of_all_stages_of_a_pipeline_is_their_sum() -> None:
    stages = [{"tokens": 5, "mean_strength": {"detox": part}, "above_half": {"detox": 1}} for part in (0.25, 0.5)]
    told = [[stages[0], None, stages[1], None], [None] * 4]
    llm = SimpleNamespace(collective_rpc=lambda method, args: told.pop(0))
    output = SimpleNamespace(request_id="7")
    assert engine.report(llm, output) == {"tokens": 5, "mean_strength": {"detox": 0.75}}
    with pytest.raises(StateError, match="nothing is known of request 7: it was not steered, or ended long ago"):
        engine.report(llm, output)


DEFAULT = CONFIG._replace(default=Default("detox"))


@pytest.mark.usefixtures("vllm")
def test_a_request_that_names_nothing_is_steered_by_the_default_and_turns_it_off_where_that_is_allowed() -> None:
    def resolved(config: ServingConfig, extra_args: Any) -> Any:
        request = admitted(SamplingParams(extra_args=extra_args), config.as_json())
        return request.sampling_params.extra_args["dsas_resolved"], request.cache_salt

    assert resolved(DEFAULT, None) == resolved(DEFAULT, {"other": 1}) == ([("d1", 0.8)], "dsas:d1*0.8:")
    stronger = DEFAULT._replace(default=Default("detox", 2.0, may_be_off=True))
    assert resolved(stronger, None)[0] == [("d1", 2.0)]
    assert resolved(stronger, {"dsas_off": True}) == ([], None)
    assert resolved(stronger, {"dsas_steering": "detox", "dsas_strength": 0.0}) == ([], None)
    assert resolved(DEFAULT, {"dsas_steering": "detox"})[0] == [("d1", 0.8)]
    for asked in ({"dsas_off": True}, {"dsas_steering": "detox", "dsas_strength": 0.0}):
        with pytest.raises(ValidationError, match=r"every request by 'detox' at 0\.8, and its operator does not allow"):
            resolved(DEFAULT, asked)
    raised = {"dsas_raise_above": 0.0, "dsas_raise_to": 0.7}
    reporting = DEFAULT._replace(reports=True)
    for asked in (raised, {**raised, "dsas_raise_to": -5.0}, {**raised, "dsas_steering": "detox"}):
        with pytest.raises(ValidationError, match=r"'dsas_raise_to' must be 0\.8 or stronger.* got (0\.7|-5\.0)"):
            resolved(reporting, asked)
    assert resolved(reporting, {**raised, "dsas_raise_to": 1.5})[0] == [("d1", 0.8)]
    assert resolved(stronger._replace(reports=True), raised)[0] == [("d1", 2.0)]
    for strange in ([{"a": 1}], {"a": 1}, [["detox"]], None):
        with pytest.raises(ValidationError):
            resolved(DEFAULT, {"dsas_steering": strange})
    with pytest.raises(ValidationError, match="'dsas_off' and 'dsas_steering' contradict each other"):
        resolved(stronger, {"dsas_off": True, "dsas_steering": "detox"})
    with pytest.raises(OptionError, match="'detox' is the default of this server"):
        engine.withdraw(DEFAULT.as_json(), "detox")


@pytest.mark.usefixtures("vllm")
def test_a_default_that_is_not_served_or_no_number_is_refused_at_the_start(root: Path) -> None:
    model, detox = str(root / "model"), f"{root}/detox"
    told = engine.arguments(model, [detox], default="detox=0.5", may_be_off=True)["additional_config"]
    assert ServingConfig.of(told) == ServingConfig.of(told)._replace(default=Default("detox", 0.5, True))
    for given, said in (("topic", "got 'topic'; known"), ("detox=x", "got 'detox=x'"), ("detox=0", "other than 0")):
        with pytest.raises(OptionError, match=said):
            engine.arguments(model, [detox], default=given)
    with pytest.raises(OptionError, match="there is no default that requests could turn off"):
        engine.arguments(model, [detox], may_be_off=True)


@pytest.mark.usefixtures("vllm")
def test_a_request_that_is_judged_is_let_in_with_what_it_asks_for_and_its_own_blocks_where_it_is_raised() -> None:
    asked = {"dsas_steering": "detox", "dsas_stop_above": 0.5, "dsas_strength": 0}
    request = admitted(SamplingParams(extra_args=asked), REPORTING.as_json())
    own = request.sampling_params
    assert own.extra_args["dsas_verdict"] == [0.5, None, None, 16]
    assert own.extra_args["dsas_resolved"] == [("d1", 0.0)]  # it watches
    assert (own.stop_token_ids, request.cache_salt) == ([STOP_TOKEN], None)
    raised = {"dsas_steering": "detox", "dsas_raise_above": 0.5, "dsas_raise_to": 2, "dsas_stop_window": 4}
    request = admitted(SamplingParams(extra_args=raised), REPORTING.as_json())
    assert request.sampling_params.extra_args["dsas_verdict"] == [None, 0.5, 2.0, 4]
    assert (request.sampling_params.stop_token_ids, request.cache_salt) == (None, "dsas:d1*0.8::id")


@pytest.mark.usefixtures("vllm")
@pytest.mark.parametrize(
    ("asked", "options", "said"),
    [
        ({"dsas_stop_above": 0.5}, {}, "needs 'dsas_steering', the name of a Steering that watches"),
        ({"dsas_steering": "detox", "dsas_stop_above": -1}, {}, "must be >= 0"),
        ({"dsas_steering": "detox", "dsas_stop_above": "x"}, {}, "'dsas_stop_above' must be a number"),
        ({"dsas_steering": "detox", "dsas_stop_window": 3}, {}, "without 'dsas_stop_above' or 'dsas_raise_above'"),
        ({"dsas_steering": "detox", "dsas_stop_above": 1, "dsas_stop_window": 0}, {}, "from 1 to 4096, got 0"),
        ({"dsas_steering": "detox", "dsas_raise_above": 1}, {}, "must be given together"),
        ({"dsas_steering": "detox", "dsas_stop_above": 1}, {"min_tokens": 3}, "min_tokens contradict each other"),
        ({"dsas_steering": "detox", "dsas_stop_above": 1}, {"structured_outputs": {}}, "follow a grammar or schema"),
    ],
)
def test_a_verdict_that_makes_no_sense_is_refused(asked: Any, options: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        admitted(SamplingParams(extra_args=asked, **options), REPORTING.as_json())
    with pytest.raises(ValidationError, match=r"--reports|dsas"):
        admitted(SamplingParams(extra_args=asked, **options), CONFIG.as_json())


@pytest.mark.usefixtures("vllm")
def test_what_http_would_leave_unsteered_without_a_word_is_refused() -> None:
    admission.activate()
    names = ("completion.protocol.CompletionRequest", "chat_completion.protocol.ChatCompletionRequest")
    for name in (*names, "responses.protocol.ResponsesRequest"):
        module, _, kind = name.rpartition(".")
        made = getattr(sys.modules[f"vllm.entrypoints.openai.{module}"], kind)
        assert made(vllm_xargs={"dsas_steering": "detox"}).to_sampling_params() == "sampled"
        assert made(vllm_xargs={"other": 1}).to_beam_search_params() == "beams"
        with pytest.raises(ValidationError, match="'dsas_steering' is next to vllm_xargs"):
            made(model_extra={"dsas_steering": "detox"}).to_sampling_params()
        with pytest.raises(ValidationError, match="beam search cannot be steered"):
            made(vllm_xargs={"dsas_steering": "detox"}).to_beam_search_params()


@pytest.mark.usefixtures("vllm")
def test_the_token_that_stops_is_in_no_answer_and_digests_are_in_use_until_their_requests_end() -> None:
    admission.activate()
    processor = sys.modules["vllm.v1.engine.output_processor"].OutputProcessor()
    for number, digest in enumerate(("d1", "d2", "d1")):
        params = SamplingParams(extra_args={"dsas_resolved": [(digest, 1.0)]})
        processor.add_request(SimpleNamespace(request_id=f"r{number}", sampling_params=params))
    assert digests_in_use(processor) == ["d1", "d2"]
    del processor.request_states["r1"]
    assert digests_in_use(processor) == ["d1"]
    stopped = SimpleNamespace(stop_reason=STOP_TOKEN, new_token_ids=[STOP_TOKEN], new_logprobs=None)
    other = SimpleNamespace(stop_reason=7, new_token_ids=[7], new_logprobs=None)
    processor.process_outputs([stopped, other])
    assert (stopped.stop_reason, stopped.new_token_ids) == ("dsas_stop_above", [])
    assert (other.stop_reason, other.new_token_ids) == (7, [7])


@pytest.mark.usefixtures("vllm")
def test_a_request_is_let_in_with_its_digest_strength_and_salt() -> None:
    request = admitted(SamplingParams(extra_args={"dsas_steering": "detox"}), CONFIG.as_json(), salt="mine")
    assert request.sampling_params.extra_args["dsas_resolved"] == [("d1", 0.8)]
    assert request.cache_salt == "dsas:d1*0.8:mine"


@pytest.mark.usefixtures("vllm")
def test_strength_zero_is_let_in_as_checked_and_unsalted() -> None:
    asked = {"dsas_steering": "detox", "dsas_strength": 0.0}
    request = admitted(SamplingParams(extra_args=asked), CONFIG.as_json())
    assert request.sampling_params.extra_args["dsas_resolved"] == []
    assert request.cache_salt is None


@pytest.mark.usefixtures("vllm")
def test_the_callers_own_parameters_are_left_as_they_were() -> None:
    given = SamplingParams(extra_args={"dsas_steering": "detox"})
    admitted(given, CONFIG.as_json())
    assert given.extra_args == {"dsas_steering": "detox"}


@pytest.mark.usefixtures("vllm")
def test_a_bad_request_is_refused_as_vllm_refuses_its_own() -> None:
    with pytest.raises(ValidationError, match="no Steering 'other' is loaded; closest: 'detox'"):
        admitted(SamplingParams(extra_args={"dsas_steering": "other"}), CONFIG.as_json())


@pytest.mark.usefixtures("vllm")
def test_requests_are_counted_by_name_and_refused_ones_are_not() -> None:
    config = CONFIG._replace(sources={**CONFIG.sources, "topic": Source("topic/", "d2", 1.0)}, together=2).as_json()
    for given in (None, {"dsas_steering": "topic"}, {"dsas_steering": ["detox", "topic"]}):
        admitted(SamplingParams(extra_args=given), config)
    with pytest.raises(ValidationError):
        admitted(SamplingParams(extra_args={"dsas_steering": "other"}), config)
    assert Counter.counted == ["topic", "detox", "topic"]


@pytest.mark.usefixtures("vllm")
def test_an_engine_without_steerings_is_left_alone() -> None:
    request = admitted(SamplingParams(extra_args={"dsas_steering": "other"}), {})
    assert request.sampling_params.extra_args == {"dsas_steering": "other"}


@pytest.mark.usefixtures("vllm")
def test_activating_twice_checks_once() -> None:
    admission.activate()
    first = sys.modules["vllm.v1.engine.input_processor"].InputProcessor.process_inputs
    admission.activate()
    assert sys.modules["vllm.v1.engine.input_processor"].InputProcessor.process_inputs is first


def test_the_configuration_survives_json() -> None:
    assert ServingConfig.of(CONFIG.as_json()) == CONFIG
    assert ServingConfig.of({"other": 1}) is ServingConfig.of(None) is None
    assert CONFIG.entries() == {"detox": Entry("d1", 0.8)}


def test_a_steering_with_a_strength_of_its_own_is_served_at_it(root: Path) -> None:
    steering = dsas.Steering.from_pretrained(root / "detox")
    assert source_of("detox", steering).strength == 1.0
    found = Calibration(0.3, (), (), None, {}, {}, None, steering.digest(), "any", "any")
    assert source_of("detox", steering.calibrated(found)).strength == 0.3


@pytest.mark.usefixtures("vllm")
def test_vllm_is_told_the_worker_and_every_steering_by_name_and_digest(root: Path) -> None:
    told = engine.arguments(str(root / "model"), [f"{root}/detox/", f"other={root}/topic"], together=2, spare=3)
    assert told["worker_cls"] == "dsas.serving.worker.SteeringWorker"
    config = ServingConfig.of(told["additional_config"])
    assert config is not None
    digests = {name: dsas.Steering.from_pretrained(root / name).digest() for name in ("detox", "topic")}
    assert {name: source.digest for name, source in config.sources.items()} == {
        "detox": digests["detox"],
        "other": digests["topic"],
    }
    assert (config.together, config.spare) == (2, 3)


@pytest.mark.usefixtures("vllm")
def test_what_cannot_be_served_is_refused_before_anything_starts(root: Path) -> None:
    model, detox = str(root / "model"), f"{root}/detox"
    for given, options, said in (
        ([], {}, "at least one Steering"),
        ([detox, detox], {}, "two Steerings are called 'detox'"),
        ([detox], {"together": 0}, "together must be >= 1"),
        ([detox], {"spare": -1}, "spare >= 0"),
    ):
        with pytest.raises(OptionError, match=said):
            engine.arguments(model, given, **options)
    steering = dsas.Steering.from_pretrained(detox)
    unit = torch.nn.functional.normalize(torch.ones(32), dim=0)
    per_step = [rule._replace(regulator=dsas.PerStep([dsas.Constant()])) for rule in steering.rules]
    dsas.Steering(per_step, steering.model).save_pretrained(root / "steps")
    with pytest.raises(OptionError, match=r"'steps' cannot be served: the regulator 'per-step' at model\.layers\.0"):
        engine.arguments(model, [f"{root}/steps"])
    cast = [rule._replace(regulator=dsas.Cast(unit, torch.tensor(0.0))) for rule in steering.rules]
    dsas.Steering(cast, steering.model).save_pretrained(root / "cast")
    config = engine.arguments(model, [detox, f"{root}/cast"])["additional_config"]
    assert [source.reads_prompts for source in ServingConfig.of(config).sources.values()] == [False, True]
    request = admitted(SamplingParams(extra_args={"dsas_steering": "cast"}), config)
    assert request.sampling_params.skip_reading_prefix_cache
    tiny_model("qwen2").save_pretrained(root / "qwen")  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ModelMismatchError, match="'Qwen2ForCausalLM' served"):
        engine.arguments(str(root / "qwen"), [detox])


def test_without_vllm_the_extra_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"dsas\[vllm\]"):
        engine.arguments(str(root / "model"), [f"{root}/detox"])


def test_names_are_published_when_all_workers_took_them_and_withdrawn_at_once() -> None:
    config, source = CONFIG.as_json(), Source("new/", "d2", 1.0)
    with pytest.raises(OptionError, match="no slot"):
        engine.publish(config, "new", source, [None, "no slot"])
    assert list(config["dsas"]["steerings"]) == ["detox"]
    engine.publish(config, "new", source, [None, None])
    engine.withdraw(config, "detox")
    assert list(config["dsas"]["steerings"]) == ["new"]
    with pytest.raises(OptionError, match=r"no Steering 'detox' is loaded, only \['new'\]"):
        engine.withdraw(config, "detox")


@pytest.fixture
def parsed() -> Any:
    return SimpleNamespace(
        worker_cls="auto",
        additional_config={"mine": 1},
        middleware=["their.Layer"],
        api_server_count=None,
        data_parallel_size=1,
        headless=False,
    )


WANTED = {"worker_cls": engine.WORKER, "additional_config": CONFIG.as_json()}


def test_the_options_of_vllm_are_kept_and_ours_added(parsed: Any) -> None:
    server._add(parsed, WANTED)
    assert parsed.worker_cls == engine.WORKER
    assert parsed.additional_config == {"mine": 1, **CONFIG.as_json()}
    assert parsed.middleware == ["their.Layer", "dsas.serving.carrying.Carrying"]


def test_options_that_would_leave_steering_out_are_refused(parsed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=r"--worker-cls their\.Worker would replace the worker that steers"):
        server._add(SimpleNamespace(worker_cls="their.Worker"), WANTED)
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(OptionError, match="unset VLLM_USE_RUST_FRONTEND"):
        server._add(parsed, WANTED)


def test_the_operators_endpoint_is_named_beside_the_plugins_that_are_there(
    parsed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(server.OPERATOR_KEY, "key")
    monkeypatch.setenv("VLLM_PLUGINS", "theirs")
    server._add(parsed, WANTED)
    assert server.os.environ["VLLM_PLUGINS"] == "theirs,dsas,dsas-operator"
    monkeypatch.delenv("VLLM_PLUGINS")
    server._add(parsed, WANTED)
    assert server.os.environ["VLLM_PLUGINS"].endswith("dsas,dsas-operator")
    parsed.data_parallel_size = 2
    server._add(parsed, WANTED)
    assert parsed.api_server_count == 1  # of which vLLM would start two
    parsed.api_server_count = 2
    with pytest.raises(OptionError, match="of one front end only, since others would not know"):
        server._add(parsed, WANTED)


def test_a_server_is_refused_what_would_not_work(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(server.OPERATOR_KEY, raising=False)
    with pytest.raises(OptionError, match="the model comes first"):
        server.serve("--port", [str(root / "detox")], [])
    with pytest.raises(OptionError, match="DSAS_OPERATOR_KEY is set"):
        server.serve(str(root / "model"), [str(root / "detox")], [], {"spare": 1})
