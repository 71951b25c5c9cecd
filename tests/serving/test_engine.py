"""What vLLM is told, what is refused before it starts, and how requests are let in, without vLLM."""

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
from dsas.serving.config import ServingConfig, Source, source_of
from dsas.serving.requests import Entry
from dsas.steering.calibration_record import Calibration
from dsas.testing import tiny_model


class ValidationError(ValueError):
    """What vLLM answers with HTTP 400."""


class Counter:
    """Counts by name."""

    counted: ClassVar[list[str]] = []

    def __init__(self, *about: Any) -> None:
        self.counted.clear()

    def labels(self, name: str) -> Any:
        return SimpleNamespace(inc=lambda: self.counted.append(name))


class SamplingParams(SimpleNamespace):
    """The parameters of a request."""


class InputProcessor:
    """Where requests enter vLLM."""

    def __init__(self, additional_config: Any) -> None:
        self.vllm_config = SimpleNamespace(additional_config=additional_config)

    def process_inputs(self, request_id: str, prompt: Any, params: Any, *, salt: str | None = None) -> Any:
        return SimpleNamespace(sampling_params=SamplingParams(**vars(params)), cache_salt=salt)


class AsyncLLM:
    """The engine of a server: two outputs, the second is the last, and two workers, of which one has reports."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def generate(self, prompt: Any, sampling_params: Any, request_id: str) -> Any:
        for finished in (False, True):
            yield SimpleNamespace(finished=finished, kv_transfer_params={"theirs": 1} if finished else None)

    async def collective_rpc(self, method: str, args: Any) -> Any:
        self.asked.append((method, args))
        return [{"tokens": 5, "mean_strength": {"detox": 0.25}}, None]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be a vLLM that has what admission uses."""
    fresh = type("InputProcessor", (InputProcessor,), {"process_inputs": InputProcessor.process_inputs})
    contents = {
        "prometheus_client": {"Counter": Counter},
        "vllm": {"SamplingParams": SamplingParams},
        "vllm.exceptions": {"VLLMValidationError": ValidationError},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.input_processor": {"InputProcessor": fresh},
        "vllm.v1.engine.async_llm": {"AsyncLLM": type("AsyncLLM", (AsyncLLM,), {"generate": AsyncLLM.generate})},
    }
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
    silent = admitted(SamplingParams(extra_args={"dsas_steering": "detox", "dsas_report": False}), both.as_json())
    assert "dsas_reported" not in silent.sampling_params.extra_args
    with pytest.raises(ValidationError, match="'dsas_report' needs a server that was started with --reports"):
        admitted(SamplingParams(extra_args=asked), both._replace(reports=False).as_json())


def outputs_of(client: Any, extra_args: Any) -> list[Any]:
    async def collected() -> list[Any]:
        generated = client.generate("prompt", SamplingParams(extra_args=extra_args), "id")
        return [output.kv_transfer_params async for output in generated]

    return asyncio.run(collected())


@pytest.mark.usefixtures("vllm")
def test_the_last_output_of_a_request_that_asks_carries_its_report_and_no_other_costs_anything() -> None:
    admission.activate()
    client = sys.modules["vllm.v1.engine.async_llm"].AsyncLLM()
    assert outputs_of(client, {"dsas_steering": "detox"}) == outputs_of(client, None) == [None, {"theirs": 1}]
    assert client.asked == []
    found = outputs_of(client, {"dsas_steering": ["detox", "topic"], "dsas_report": True})
    report = {"tokens": 5, "mean_strength": {"detox": 0.25, "topic": 0.0}}
    assert found == [None, {"theirs": 1, "dsas_report": report}]
    assert client.asked == [("dsas_report", ("id",))]


@pytest.mark.usefixtures("vllm")
def test_offline_the_report_of_all_stages_of_a_pipeline_is_their_sum_and_told_once() -> None:
    stages = [{"tokens": 5, "mean_strength": {"detox": part}} for part in (0.25, 0.5)]
    told = [[stages[0], None, stages[1], None], [None] * 4]
    llm = SimpleNamespace(collective_rpc=lambda method, args: told.pop(0))
    output = SimpleNamespace(request_id="7")
    assert engine.report(llm, output) == {"tokens": 5, "mean_strength": {"detox": 0.75}}
    with pytest.raises(StateError, match="nothing is known of request 7: it did not ask, or was told already"):
        engine.report(llm, output)


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
    turned = [rule._replace(transform=dsas.Ablation(unit, torch.tensor(0.0))) for rule in steering.rules]
    dsas.Steering(turned, steering.model).save_pretrained(root / "ablation")
    with pytest.raises(OptionError, match=r"'ablation' cannot be served: the transform 'ablation' at model\.layers\.0"):
        engine.arguments(model, [f"{root}/ablation"])
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
        worker_cls="auto", additional_config={"mine": 1}, api_server_count=None, data_parallel_size=1
    )


WANTED = {"worker_cls": engine.WORKER, "additional_config": CONFIG.as_json()}


def test_the_options_of_vllm_are_kept_and_ours_added(parsed: Any) -> None:
    server._add(parsed, WANTED)
    assert parsed.worker_cls == engine.WORKER
    assert parsed.additional_config == {"mine": 1, **CONFIG.as_json()}


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
    with pytest.raises(OptionError, match="one front end and one engine only"):
        server._add(parsed, WANTED)


def test_a_server_is_refused_what_would_not_work(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(server.OPERATOR_KEY, raising=False)
    with pytest.raises(OptionError, match="the model comes first"):
        server.serve("--port", [str(root / "detox")], [])
    with pytest.raises(OptionError, match="DSAS_OPERATOR_KEY is set"):
        server.serve(str(root / "model"), [str(root / "detox")], [], spare=1)
