"""`dsas.train` on tiny language models: what comes out, how it depends on memory options, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import hooks_on, ids_of, logits_of, random_steering, unchecked

import dsas
from dsas.errors import DsasWarning, OptionError, TextsError
from dsas.testing import check_steering, tiny_model, tiny_tokenizer
from dsas.training.learning import LearnedParts, learnable

SOURCE, CONTROL, TARGET = ([f"{start} {n}" for n in range(8)] for start in ("SHUT UP", "the door", "thank you"))


QUIET = dsas.Running(progress=False)
AGAIN = QUIET._replace(checkpointing=True)
ODD, EVEN = ([f"the door {n}" for n in range(start, 30, 2)] for start in (1, 0))


def train(model: Any = None, **options: Any) -> dsas.Steering:
    sets = {"source": SOURCE, "control": CONTROL, "target": TARGET}
    model = tiny_model(layers=2) if model is None else model
    return dsas.train(model, tiny_tokenizer(), **{**sets, "steps": 6, "running": QUIET, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"control": ()},
        {"objective": dsas.LinEAS(regulator="logistic")},
        {"objective": "e2e-dsas"},
        {"objective": dsas.E2E(regulator_form="relu")},
        {"objective": dsas.E2E(regulator_form="relu"), "start": "scratch", "sites": "residual"},
    ],
)
def test_what_is_learned_keeps_the_laws_of_every_steering_and_lowers_the_loss(options: Any, tmp_path: Path) -> None:
    model = tiny_model(layers=2)
    steering = train(model, checkpoint=tmp_path, **options)
    check_steering(steering, model, tiny_tokenizer())
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[5]["term"] < rows[0]["term"]
    assert steering.settings["training"]["support"] > 0
    steering.save_pretrained(tmp_path / "kept")
    assert dsas.Steering.from_pretrained(tmp_path / "kept").digest() == steering.digest()


def test_end_to_end_goes_on_from_what_fit_gives_without_options_history_included(tmp_path: Path) -> None:
    model = tiny_model(layers=2)
    sets = {"source": SOURCE, "control": CONTROL, "target": TARGET}
    fitted = 0.1 * dsas.fit(model, tiny_tokenizer(), **sets, selection="all", progress=False)
    steering = train(model, objective="e2e-dsas", start=fitted, checkpoint=tmp_path)
    check_steering(steering, model, tiny_tokenizer())
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[5]["loss"] < rows[0]["loss"]
    for old, new in zip(fitted.rules, steering.rules, strict=True):
        assert isinstance(old.regulator, dsas.Evidence)
        assert isinstance(new.regulator, dsas.Evidence)
        assert isinstance(new.transform, dsas.Lineas)
        assert new.regulator.memory == old.regulator.memory
        assert not torch.equal(new.regulator.theta, old.regulator.theta)


def test_an_addition_is_learned_on_as_the_affine_map_that_it_is() -> None:
    vector, t = torch.tensor([1.0, -2.0, 0.5]), torch.randn(2, 4, 3)
    rule = dsas.Rule(dsas.Site("site"), dsas.Addition(vector), dsas.Constant())
    learned = learnable(rule, torch.device("cpu"), LearnedParts(regulators=False, vectors=False))
    assert torch.equal(learned.transform.edit(t), vector.expand_as(t))


def test_the_model_is_left_as_it_was_in_training_mode_with_its_flags() -> None:
    model = tiny_model(layers=2).train()
    logits_of(model, ids_of(tiny_tokenizer(), "hello"))  # transformers puts hooks of its own on at the first pass
    hooks = hooks_on(model)
    model.model.embed_tokens.requires_grad_(False)  # pyright: ignore[reportCallIssue]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    train(model, objective="e2e-dsas", running=AGAIN)
    assert all(module.training for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert hooks_on(model) == hooks
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_training_a_model_that_is_steered_just_now_says_so_and_keeps_where() -> None:
    model = tiny_model(layers=2)
    with random_steering(model, [1]).apply(model, 0.5), pytest.warns(DsasWarning, match="leave it before training"):
        inside = train(model)
    assert "model.layers.1" in inside.settings["read while steered at"]
    assert "read while steered at" not in train(model).settings


@pytest.mark.parametrize("objective", ["lineas", "e2e-dsas"])
@pytest.mark.parametrize("options", [{"reading": dsas.Reading(batch_size=3)}, {"running": AGAIN}], ids=str)
def test_micro_batches_and_checkpointing_change_memory_and_not_what_is_learned(objective: Any, options: Any) -> None:
    plain, other = (
        train(tiny_model(layers=2).double(), objective=objective, sites=["norm", "residual"], **given)
        for given in ({}, options)
    )
    for one, two in zip(plain.rules, other.rules, strict=True):
        for name, value in one.transform.named_buffers():
            torch.testing.assert_close(two.transform.get_buffer(name), value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_with_checkpointing_the_backward_pass_runs_the_layers_again(family: str) -> None:
    model, calls = tiny_model(family, layers=2), []
    model.get_submodule("model.layers.1.mlp" if family != "gpt2" else "transformer.h.1.mlp").register_forward_pre_hook(
        lambda *_: calls.append(torch.is_grad_enabled())
    )
    counts = []
    for checkpointing in (False, True):
        calls.clear()
        train(
            model,
            steps=1,
            held_out=dsas.HeldOut(0.0),
            sites="residual",
            running=QUIET._replace(checkpointing=checkpointing),
        )
        counts.append(sum(calls))
    assert counts == [1, 2]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "qwen3"])
def test_a_model_in_bfloat16_is_trained_with_parameters_in_float32(family: str) -> None:
    model = tiny_model(family, layers=2).bfloat16()
    for rule in train(model, objective="e2e-dsas", running=AGAIN).rules:
        for method in (rule.transform, rule.regulator):
            assert all(value.dtype == torch.float32 for value in method.buffers())
            assert all(not value.requires_grad for value in method.buffers())


def test_the_same_call_gives_the_same_bits_and_another_seed_holds_out_other_texts() -> None:
    one, again, other = (train(held_out=dsas.HeldOut(seed=seed)) for seed in (0, 0, 1))
    assert one.digest() == again.digest() != other.digest()
    assert one.settings["texts"] == {
        "source": 6, "control": 6, "target": 8, "held_source": 2, "held_control": 2
    }  # fmt: skip


def test_training_goes_on_from_a_steering_at_its_sites_and_keeps_the_regulators_that_lineas_does_not_learn() -> None:
    model = tiny_model(layers=2)
    first = train(model, objective="e2e-dsas", sites="model.layers.1")
    assert [str(rule.site) for rule in first.rules] == ["model.layers.1"]
    then = train(model, start=first)
    assert [rule.site for rule in then.rules] == [rule.site for rule in first.rules]
    for name, value in first.rules[0].regulator.named_buffers():
        assert torch.equal(then.rules[0].regulator.get_buffer(name), value)
    assert not torch.equal(then.rules[0].transform.get_buffer("offset"), first.rules[0].transform.get_buffer("offset"))


def test_a_control_term_keeps_control_texts_nearer_to_where_they_were() -> None:
    model, tokenizer = tiny_model(layers=2), tiny_tokenizer()
    moved = []
    for weight in (0.0, 30.0):
        steering = train(model, objective=dsas.E2E(control_weight=weight), steps=20, sites="residual")
        ids = ids_of(tokenizer, CONTROL[0])
        plain = logits_of(model, ids)
        with steering.apply(model):
            moved.append(float((logits_of(model, ids) - plain).abs().mean()))
    assert moved[1] < 0.7 * moved[0]


def test_training_that_never_beats_its_start_says_so_and_returns_the_start() -> None:
    with pytest.warns(DsasWarning, match="no step had a lower loss on held-out texts than the start"):
        steering = train(objective=dsas.E2E(control_weight=1e6), steps=3)
    assert steering.settings["training"]["best_step"] == 0
    assert all((rule.transform.get_buffer("offset") == 0).all() for rule in steering.rules)


def test_a_regulator_put_before_learned_transforms_decides_by_its_accuracy_where_they_act() -> None:
    everywhere = train(objective=dsas.LinEAS(regulator="logistic", threshold=0.0))
    assert all(rule.weight == 1 and rule.accuracy is not None for rule in everywhere.rules)
    with pytest.warns(DsasWarning, match="no site reaches threshold=1.0: nothing is steered"):
        nowhere = train(objective=dsas.LinEAS(regulator="logistic", threshold=1.0), source=ODD, control=EVEN)
    assert [rule.weight for rule in nowhere.rules] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "linear"}, "unknown objective 'linear'; closest: 'lineas'"),
        ({"steps": 0}, "steps >= 1"),
        ({"start": "fited"}, "start must be 'fitted', 'scratch' or a Steering, got 'fited'"),
        ({"optimiser": dsas.Optimiser("adam", 0.0)}, "rates > 0"),
        ({"held_out": dsas.HeldOut(0.9)}, "0 <= share <= 0.5"),
        ({"running": dsas.Running(tensorboard=True)}, "tensorboard writes into the checkpoint folder"),
    ],
)
def test_options_out_of_range_are_refused(options: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        unchecked(dsas.train)(tiny_model(layers=2), tiny_tokenizer(), source=SOURCE, control=CONTROL, target=TARGET,
                              **{"steps": 6, "running": QUIET, **options})  # fmt: skip


def test_a_start_that_cannot_be_learned_is_refused_and_control_texts_are_asked_for() -> None:
    model = tiny_model(layers=2)
    turned = dsas.fit(model, tiny_tokenizer(), source=SOURCE, control=CONTROL, target=TARGET, progress=False,
                      transform="rotation")  # fmt: skip
    with pytest.raises(OptionError, match=r"'lineas' transforms or additions of a vector, got Rotation at model.layer"):
        train(model, start=turned)
    cast = dsas.fit(model, tiny_tokenizer(), source=SOURCE, control=CONTROL, target=TARGET, progress=False,
                    transform="lineas", regulator="cast")  # fmt: skip
    with pytest.raises(OptionError, match=r"Cast at model.layers.0 cannot be learned"):
        train(model, start=cast, objective="e2e-dsas")
    marked = [dsas.Example(text, [(0, 4)]) for text in SOURCE]
    with pytest.raises(OptionError, match="training learns from whole texts: remove the spans of the source"):
        train(model, source=marked)
    with pytest.raises(TextsError, match="control texts are needed to learn a regulator"):
        train(model, control=(), objective="e2e-dsas")


def test_a_model_without_gradient_checkpointing_is_refused_when_it_is_asked_for() -> None:
    model = tiny_model(layers=2)
    model.supports_gradient_checkpointing = False  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    with pytest.raises(OptionError, match="a LlamaForCausalLM does not offer gradient checkpointing"):
        train(model, running=AGAIN)
    assert hooks_on(model) == 0
