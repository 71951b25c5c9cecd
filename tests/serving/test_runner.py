"""In both generations of vLLM's runners every token finds the row of its own request; what does not fit is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from served import TOKENS, First, Second, Served, request, steered_by_hand, store, vllm_config
from torch import Tensor, nn

import dsas
from dsas.errors import ModelMismatchError, OptionError, StateError
from dsas.serving.config import Source, source_of
from dsas.serving.runner import SteeredRunner
from dsas.serving.tables import SiteTable
from dsas.testing.models import WIDTH

RUNNERS = pytest.mark.parametrize("kind", [First, Second])


def source(root: Path, name: str) -> Source:
    return source_of(str(root / name), dsas.Steering.from_pretrained(root / name))


@RUNNERS
def test_every_token_is_steered_as_its_request_asks(kind: Any, tmp_path: Path) -> None:
    steerings = store(tmp_path, "detox", "topic")
    runner = kind(Served())
    SteeredRunner(runner, vllm_config(tmp_path, "detox", "topic"))
    detox, topic = (steering.digest() for steering in steerings.values())
    work = {"a": request((topic, 0.5)), "b": request(), "c": request((detox, 1.5)), "d": request((detox, 0.5))}
    counts, t = [3, 1, 4, 2], torch.randn(10, WIDTH)
    runner.run(work, counts)
    a, b, c, d = t.split(counts)
    wanted = [
        steered_by_hand(steerings["topic"], a, 0.5),
        b,
        steered_by_hand(steerings["detox"], c, 1.5),
        steered_by_hand(steerings["detox"], d, 0.5),
    ]
    torch.testing.assert_close(runner.model(t), torch.cat(wanted), rtol=0, atol=1e-4)


@RUNNERS
def test_several_steerings_of_one_request_act_in_their_order_at_every_site(kind: Any, tmp_path: Path) -> None:
    steerings = store(tmp_path, "detox", "topic", sites="layers.0")
    runner, (detox, topic) = kind(Served()), (steering.digest() for steering in steerings.values())
    SteeredRunner(runner, vllm_config(tmp_path, "detox", "topic", together=2))
    runner.run({"a": request((topic, 0.5), (detox, 0.7)), "b": request((detox, 0.7))}, [2, 2])
    t = torch.randn(4, WIDTH)
    both = steered_by_hand(steerings["detox"], steered_by_hand(steerings["topic"], t[:2], 0.5), 0.7)
    wanted = torch.cat([both, steered_by_hand(steerings["detox"], t[2:], 0.7)])
    torch.testing.assert_close(runner.model(t), wanted, rtol=0, atol=1e-4)


@RUNNERS
def test_a_request_that_takes_the_place_of_another_gets_its_own_row(kind: Any, tmp_path: Path) -> None:
    (steering,) = store(tmp_path, "detox").values()
    runner, t = kind(Served()), torch.randn(2, WIDTH)
    SteeredRunner(runner, vllm_config(tmp_path, "detox"))
    runner.run({"a": request((steering.digest(), 1.0))}, [2])
    runner.run({"a": request()}, [2])
    assert torch.equal(runner.model(t), t)


def applied_by_hand(steering: dsas.Steering, t: Tensor, strength: float) -> float:
    """Return the mean over tokens and layers, each of which does nothing but steer, of what is applied."""
    model, step, values = Served(), dsas.model.forward_pass.ForwardPass(1, len(t)), []
    for rule in steering.rules:
        gain = strength * rule.weight * rule.regulator(t[None], step)
        t = t + (gain * rule.transform.edit(t[None]))[0]
        values.append(gain.mean())
    assert len(values) == len(model.model.layers)
    return float(torch.stack(values).mean())


@RUNNERS
def test_requests_that_ask_are_told_the_mean_over_all_their_steps_and_sites(kind: Any, tmp_path: Path) -> None:
    constant = {"transform": dsas.Addition(torch.randn(WIDTH)), "regulator": dsas.Constant(0.7), "weight": 0.8}
    steerings = store(tmp_path, "detox", "topic") | store(tmp_path, "plain", **constant)
    runner = kind(Served())
    steered = SteeredRunner(runner, vllm_config(tmp_path, "detox", "topic", "plain", reports=True))
    detox, topic, plain = (steering.digest() for steering in steerings.values())
    work = {
        "a": request((topic, 0.5), dsas_reported=["r1", "topic"]),
        "b": request(),
        "c": request((detox, 1.5)),
        "d": request((plain, 2.0), dsas_reported=["r2", "plain"]),
    }
    steps = [([3, 1, 4, 2], torch.randn(10, WIDTH)), ([1, 1, 1, 1], torch.randn(4, WIDTH))]
    for counts, t in steps:
        runner.run(work, counts)
        runner.execute_model(t)
        runner.execute_model(torch.randn(16, WIDTH))  # a step that nobody prepared, as engines run to keep in time
    read = torch.cat([t.split(counts)[0] for counts, t in steps])
    report = steered.reports.read("r1")
    assert report["tokens"] == 4
    assert report["mean_strength"] == {"topic": pytest.approx(applied_by_hand(steerings["topic"], read, 0.5))}
    told = steered.reports.read("r2")
    assert told["mean_strength"] == {"plain": pytest.approx(2.0 * 0.8 * 0.7)}
    assert (told["tokens"], told["above_half"]) == (3, {"plain": 3})  # 0.8 * 0.7 is above 1/2
    assert steered.reports.read("r3") is None


@RUNNERS
def test_a_request_of_several_steerings_is_told_of_each(kind: Any, tmp_path: Path) -> None:
    steerings = store(tmp_path, "topic", sites=["layers.0", "layers.1"])
    constant = {"transform": dsas.Addition(torch.randn(WIDTH)), "regulator": dsas.Constant()}
    steerings |= store(tmp_path, "detox", sites="layers.0", **constant)
    runner, (topic, detox) = kind(Served()), (steering.digest() for steering in steerings.values())
    steered = SteeredRunner(runner, vllm_config(tmp_path, "topic", "detox", together=2, reports=True))
    asked = {"dsas_reported": ["r", "detox", "topic"]}
    runner.run({"a": request((detox, 0.5), (topic, 0.0), **asked), "b": request((topic, 3.0))}, [2, 2])
    runner.execute_model(torch.randn(4, WIDTH))
    report = steered.reports.read("r")
    assert report["mean_strength"] == {"detox": pytest.approx(0.5), "topic": 0.0}
    assert (report["tokens"], report["above_half"]["detox"]) == (2, 2)


def test_of_many_reports_the_oldest_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsas.serving.reports.MOST", 2)
    (steering,) = store(tmp_path, "detox").values()
    runner = First(Served())
    steered = SteeredRunner(runner, vllm_config(tmp_path, "detox", reports=True))
    for number in range(4):
        runner.run({"a": request((steering.digest(), 1.0), dsas_reported=[f"r{number}", "detox"])}, [2])
        runner.execute_model(torch.randn(2, WIDTH))
    assert [steered.reports.read(f"r{number}") is None for number in range(4)] == [True, True, False, False]


def test_without_reports_nothing_is_added_up(tmp_path: Path) -> None:
    store(tmp_path, "detox")
    steered = SteeredRunner(First(Served()), vllm_config(tmp_path, "detox"))
    assert "values" not in dict(steered.tokens.named_buffers())


@RUNNERS
def test_what_the_runner_does_itself_still_happens(kind: Any, tmp_path: Path) -> None:
    store(tmp_path, "detox")
    runner = kind(Served())
    SteeredRunner(runner, vllm_config(tmp_path, "detox"))
    assert runner.run({"a": request()}, [1]) in ("prepared", {"positions": None})
    assert kind is First or runner.model_state.added == [0]


def test_requests_that_are_over_are_forgotten(tmp_path: Path) -> None:
    store(tmp_path, "detox")
    runner = First(Served())
    steered = SteeredRunner(runner, vllm_config(tmp_path, "detox"))
    for number in range(500):
        runner.requests.clear()
        runner.run({f"r{number}": request()}, [1])
    assert len(steered._seen) < 100


def test_a_request_that_nobody_checked_is_an_error_and_not_unsteered(tmp_path: Path) -> None:
    store(tmp_path, "detox")
    steered = SteeredRunner(First(Served()), vllm_config(tmp_path, "detox"))
    with pytest.raises(StateError, match="reached the worker unchecked"):
        steered.row_of({"dsas_steering": "detox"})


def test_a_steering_is_loaded_beside_requests_that_run(tmp_path: Path) -> None:
    steerings = store(tmp_path, "detox", "newer")
    runner, (old, new) = First(Served()), (steering.digest() for steering in steerings.values())
    steered = SteeredRunner(runner, vllm_config(tmp_path, "detox", spare=1))
    steered.load("detox", source(tmp_path, "newer"))
    runner.run({"a": request((old, 1.0)), "b": request((new, 1.0))}, [2, 2])
    t = torch.randn(4, WIDTH)
    wanted = [steered_by_hand(one, part, 1.0) for one, part in zip(steerings.values(), t.split(2), strict=True)]
    torch.testing.assert_close(runner.model(t), torch.cat(wanted), rtol=0, atol=1e-4)


def test_a_slot_that_is_given_back_serves_another_steering_and_the_others_go_on(tmp_path: Path) -> None:
    steerings = store(tmp_path, "detox", "topic", "newer")
    runner, digests = First(Served()), {name: steering.digest() for name, steering in steerings.items()}
    steered = SteeredRunner(runner, vllm_config(tmp_path, "detox", "topic"))
    with pytest.raises(OptionError, match="until it is unloaded and its last request has ended"):
        steered.load("newer", source(tmp_path, "newer"))
    steered.keep([digests["topic"], "some other"])
    steered.load("newer", source(tmp_path, "newer"))
    t = torch.randn(4, WIDTH)
    runner.run({"a": request((digests["topic"], 1.0)), "b": request((digests["newer"], 0.5))}, [2, 2])
    wanted = [steered_by_hand(steerings["topic"], t[:2], 1.0), steered_by_hand(steerings["newer"], t[2:], 0.5)]
    torch.testing.assert_close(runner.model(t), torch.cat(wanted), rtol=0, atol=1e-4)
    steered.keep([])
    assert not any(table.rows.any() for table in runner.model.modules() if isinstance(table, SiteTable))


def test_loading_what_is_there_takes_no_slot_and_a_full_server_says_so(tmp_path: Path) -> None:
    store(tmp_path, "detox", "newer")
    steered = SteeredRunner(First(Served()), vllm_config(tmp_path, "detox"))
    steered.load("again", source(tmp_path, "detox"))
    with pytest.raises(OptionError, match="no slot is free for 'newer': the server was started with 1"):
        steered.load("newer", source(tmp_path, "newer"))


def test_a_steering_for_other_sites_is_not_loaded(tmp_path: Path) -> None:
    store(tmp_path, "detox", sites="layers.0")
    store(tmp_path, "x", "wide")
    steered = SteeredRunner(First(Served()), vllm_config(tmp_path, "detox", spare=1))
    with pytest.raises(OptionError, match=r"'wide' acts at model\.layers\.1, where no Steering acted .*\(2 such"):
        steered.load("wide", source(tmp_path, "wide"))


def test_a_steering_that_needs_another_column_leaves_every_table_as_it_was(tmp_path: Path) -> None:
    (steering,) = store(tmp_path, "detox").values()
    lines = [
        dsas.Lineas(torch.ones(WIDTH), torch.ones(WIDTH)) if n == 2 else r.transform
        for n, r in enumerate(steering.rules)
    ]
    rules = [rule._replace(transform=line) for rule, line in zip(steering.rules, lines, strict=True)]
    dsas.Steering(rules, steering.model).save_pretrained(tmp_path / "lines")
    runner = First(Served())
    steered = SteeredRunner(runner, vllm_config(tmp_path, "detox", spare=1))
    before = [column.clone() for column in runner.model.buffers()]
    with pytest.raises(OptionError, match=r"no Steering had when the server started \(slope\)"):
        steered.load("lines", source(tmp_path, "lines"))
    assert all(map(torch.equal, before, runner.model.buffers()))


def test_a_steering_that_fails_half_way_takes_no_slot_leaves_no_row_and_fails_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steerings = store(tmp_path, "detox", "newer")
    runner, new = First(Served()), steerings["newer"].digest()
    steered = SteeredRunner(runner, vllm_config(tmp_path, "detox", spare=1))
    before, put = [buffer.clone() for buffer in runner.model.buffers()], SiteTable.put
    last = runner.model.get_submodule("model.layers.2.dsas_site").table

    def fail_at_last(table: SiteTable, slot: int, row: Any) -> None:
        put(table, slot, row)
        if table is last:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(SiteTable, "put", fail_at_last)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            steered.load("newer", source(tmp_path, "newer"))
        assert all(map(torch.equal, before, runner.model.buffers()))
    monkeypatch.undo()
    steered.load("newer", source(tmp_path, "newer"))
    t = torch.randn(2, WIDTH)
    runner.run({"a": request((new, 1.0))}, [2])
    torch.testing.assert_close(runner.model(t), steered_by_hand(steerings["newer"], t, 1.0), rtol=0, atol=1e-4)


def test_a_folder_that_has_changed_since_is_refused(tmp_path: Path) -> None:
    store(tmp_path, "detox", "other")
    config = vllm_config(tmp_path, "detox")
    dsas.Steering.from_pretrained(tmp_path / "other").save_pretrained(tmp_path / "detox")
    with pytest.raises(OptionError, match="has changed since the server was configured"):
        SteeredRunner(First(Served()), config)


def test_another_kind_of_model_is_refused_by_the_steerings_name(tmp_path: Path) -> None:
    store(tmp_path, "detox")
    text = SimpleNamespace(hidden_size=WIDTH, num_hidden_layers=30)
    other = SimpleNamespace(hf_text_config=text, hf_config=SimpleNamespace(architectures=["LlamaForCausalLM"]))
    with pytest.raises(ModelMismatchError, match=r"'detox' cannot be served: .*depth 3 here, 30 served"):
        SteeredRunner(First(Served()), vllm_config(tmp_path, "detox", model_config=other))


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ({"speculative_config": object()}, "speculative decoding"),
        ({"parallel_config": SimpleNamespace(use_ubatching=True)}, "overlap of parts of a batch"),
        ({"parallel_config": SimpleNamespace(prefill_context_parallel_size=2)}, "prefill context parallelism"),
        ({"parallel_config": SimpleNamespace(enable_hc_sp=True)}, "sequence parallelism"),
        ({"cache_config": SimpleNamespace(kv_sharing_fast_prefill=True)}, "KV-sharing fast prefill"),
    ],
)
def test_features_that_move_tokens_are_refused(features: dict[str, Any], said: str, tmp_path: Path) -> None:
    store(tmp_path, "detox")
    with pytest.raises(OptionError, match=f"{said} cannot be combined with steering"):
        SteeredRunner(First(Served()), vllm_config(tmp_path, "detox", **features))


def test_a_worker_without_its_configuration_is_refused(tmp_path: Path) -> None:
    store(tmp_path, "detox")
    with pytest.raises(StateError, match=r"dsas\.serving\.engine\.arguments"):
        SteeredRunner(First(Served()), vllm_config(tmp_path, "detox", additional_config={"other": 1}))


def test_buffers_are_as_long_as_the_longest_step_or_graph(tmp_path: Path) -> None:
    store(tmp_path, "detox")
    graphs = SimpleNamespace(max_cudagraph_capture_size=3 * TOKENS)
    plain = SteeredRunner(First(Served()), vllm_config(tmp_path, "detox"))
    graphed = SteeredRunner(First(Served()), vllm_config(tmp_path, "detox", compilation_config=graphs))
    assert (plain.tokens.slots.shape[1], graphed.tokens.slots.shape[1]) == (TOKENS, 3 * TOKENS)


def test_of_a_pipeline_stage_only_its_own_layers_are_steered(tmp_path: Path) -> None:
    class PPMissingLayer(nn.Identity):
        """What vLLM puts where a layer is on another pipeline stage."""

    store(tmp_path, "detox")
    model = Served()
    model.model.layers[0] = PPMissingLayer()  # pyright: ignore[reportIndexIssue]
    SteeredRunner(First(model), vllm_config(tmp_path, "detox"))
    steered = [path for path, module in model.named_modules() if type(module).__name__ == "SteeredLayer"]
    assert steered == ["model.layers.1", "model.layers.2"]
