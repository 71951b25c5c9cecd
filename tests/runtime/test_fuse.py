"""Fusion: the same activations as steering by hooks, in weights where that is exact; and it is undone completely."""

import copy
import inspect
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from makers import Position, hooks_on, logits_of, random_steering
from torch import Tensor

import dsas
from dsas.model.identity import ModelIdentity
from dsas.model.linear_layers import LAYERS
from dsas.testing import FAMILIES, tiny_model
from dsas.testing.models import WIDTH

IDS = torch.arange(24).view(2, 12)
NO_DROPOUT = {"gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}}
FOLDING = ("gpt2", "llama", "mistral", "phi3", "qwen2", "qwen3")
LINEAR = ".*(c_fc|gate_proj|gate_up_proj)"


def model_of(family: str, dtype: torch.dtype = torch.float64) -> Any:
    return tiny_model(family, layers=2, **NO_DROPOUT.get(family, {})).to(dtype)


def affine(dim: int = WIDTH) -> dsas.Lineas:
    return dsas.Lineas(1 + 0.3 * torch.randn(dim), 0.3 * torch.randn(dim))


def constant_steering(model: Any, sites: Any, *, multiplied: bool) -> dsas.Steering:
    width = WIDTH // dsas.find_sites(model, sites)[0].parts
    rules = [
        dsas.Rule(site, affine(width) if multiplied else dsas.Addition(torch.randn(width)), dsas.Constant(0.7), 0.9)
        for site in dsas.find_sites(model, sites)
    ]
    return dsas.Steering(rules, ModelIdentity.of(model))


def check_same(steering: dsas.Steering, model: Any, tolerance: float = 1e-10) -> list[Any]:
    """Require that fused logits are those of hooks, up to rounding (float64's by default), and return the report."""
    plain = logits_of(model, IDS)
    with steering.apply(model, 0.6, record=False):
        applied = logits_of(model, IDS)
    with steering.fuse(model, 0.6) as fused:
        assert hooks_on(model) == 0
        torch.testing.assert_close(logits_of(model, IDS), applied, rtol=tolerance, atol=tolerance)
    assert torch.equal(logits_of(model, IDS), plain)
    assert not torch.allclose(applied, plain, atol=1e-3)
    return fused.report()


@pytest.mark.parametrize("multiplied", [True, False], ids=["affine", "addition"])
@pytest.mark.parametrize("sites", [*dsas.model.sites.SHORTHANDS, "re:.*(ln_1|input_layernorm)", f"re:{LINEAR}@input"])
@pytest.mark.parametrize("family", FOLDING)
def test_what_is_folded_does_what_hooks_do_in_every_known_family(family: str, sites: str, multiplied: bool) -> None:
    model = model_of(family)
    report = check_same(constant_steering(model, sites, multiplied=multiplied), model)
    expected = "wrapped" if sites == "residual" and multiplied else "folded"
    assert {line.status for line in report} == {expected}
    assert all(bool(line.why) == (line.status == "wrapped") for line in report)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_fused_somehow_with_any_method_that_reads_no_positions(family: str) -> None:
    model = model_of(family, torch.float32)
    logistic = check_same(random_steering(model, ["residual", "attention"]), model, 1e-4)
    assert {line.why for line in logistic} == {"its regulator looks at the token"}
    additions = random_steering(model, "residual", regulator=dsas.Constant())
    expected = "folded" if family in FOLDING else "wrapped"
    assert {line.status for line in check_same(additions, model, 1e-4)} == {expected}


def test_every_decoder_layer_of_the_table_is_one_that_these_tests_run() -> None:
    def layers_of(model: Any) -> set[str]:
        return {type(module).__name__ for module in model.modules()} & set(LAYERS)

    assert set.union(*(layers_of(model_of(family)) for family in FOLDING)) == set(LAYERS)


@pytest.mark.parametrize(
    "method",
    [dsas.Rotation(*torch.linalg.qr(torch.randn(WIDTH, 2)).Q.T, torch.tensor(0.7)), dsas.Custom(lambda t: 0.5 * t)],
    ids=["rotation", "function"],
)
def test_a_transform_that_is_not_affine_is_wrapped(method: dsas.Transform) -> None:
    model = model_of("llama")
    steering = random_steering(model, ["mlp", "re:.*o_proj@input"], transform=method, regulator=dsas.Constant(0.5))
    assert {line.why for line in check_same(steering, model)} == {"its transform is not affine everywhere"}


def test_sites_that_lie_between_another_and_its_layer_are_seen() -> None:
    model = model_of("llama")
    sites = ["residual", "mlp", "re:.*o_proj@input", "attention", "norm", "re:.*gate_proj@input"]
    report = check_same(constant_steering(model, sites[:1], multiplied=False), model)
    assert {line.status for line in report} == {"folded"}
    for number in range(2, len(sites) + 1):
        report = check_same(constant_steering(model, sites[:number], multiplied=number % 2 > 0), model)
        assert {line.status for line in report if line.site == "model.layers.0"} == {"wrapped"}
    assert any("is steered, too" in line.why for line in report)


def test_a_wrapped_module_keeps_its_path_its_class_its_parameters_and_its_signature() -> None:
    model = model_of("llama")
    layer = model.model.layers[0]
    kind, names, called = type(layer), list(model.state_dict()), inspect.signature(layer.forward)
    with random_steering(model).fuse(model):
        assert isinstance(layer, kind)
        assert type(layer) is not kind
        assert list(model.state_dict()) == names
        assert inspect.signature(layer.forward) == called
        hidden = model(IDS, output_hidden_states=True).hidden_states[1]
        steered = logits_of(copy.deepcopy(model), IDS)
        assert torch.equal(steered, logits_of(model, IDS))
    assert type(layer) is kind
    with random_steering(model).apply(model):
        torch.testing.assert_close(model(IDS, output_hidden_states=True).hidden_states[1], hidden)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_undo_gives_back_the_very_parameters(dtype: torch.dtype) -> None:
    model = model_of("llama", dtype)
    before = {name: (id(value), value.clone()) for name, value in model.named_parameters()}
    kinds = [type(module) for module in model.modules()]
    steering = constant_steering(model, ["mlp", "re:.*o_proj@input"], multiplied=True)
    fused = steering.fuse(model)
    changed = [name for name, value in model.named_parameters() if name not in before or before[name][0] != id(value)]
    assert len(changed) == 2 * 4  # two layers, each with two linear layers that got a weight and a bias
    assert all(value.dtype == dtype for value in model.parameters())
    fused.undo()
    fused.undo()
    after = {name: (id(value), value.clone()) for name, value in model.named_parameters()}
    assert list(after) == list(before)
    assert all(after[name][0] == one and torch.equal(after[name][1], value) for name, (one, value) in before.items())
    assert [type(module) for module in model.modules()] == kinds


def test_a_fold_in_bfloat16_is_rounded_once() -> None:
    model = model_of("llama", torch.bfloat16)
    steering = constant_steering(model, "re:.*layers.0.mlp.down_proj", multiplied=True)
    rule, weight = steering.rules[0], model.model.layers[0].mlp.down_proj.weight.double()
    factor = torch.tensor(0.6) * 0.9 * 0.7
    offset, slope = (factor * value for value in rule.transform.coefficients()[:2])
    with steering.fuse(model, 0.6):
        linear = model.model.layers[0].mlp.down_proj
        torch.testing.assert_close(linear.weight.double(), (1 + slope.double())[:, None] * weight, rtol=2**-8, atol=0)
        torch.testing.assert_close(linear.bias, offset.bfloat16(), rtol=2**-7, atol=0)


def test_an_exception_inside_the_block_and_one_while_fusing_leave_the_model_as_it_was() -> None:
    model = model_of("llama")
    plain, steering = logits_of(model, IDS), random_steering(model, regulator=dsas.Constant())
    with pytest.raises(KeyboardInterrupt), steering.fuse(model):
        raise KeyboardInterrupt
    assert torch.equal(logits_of(model, IDS), plain)
    last = model.model.layers[1]
    last.forward = partial(last.forward)
    with pytest.raises(dsas.DsasError, match=r"forward of model\.layers\.1 was replaced on the object"):
        random_steering(model).fuse(model)
    del last.forward
    assert torch.equal(logits_of(model, IDS), plain)


def test_layers_that_are_shared_or_hooked_are_wrapped_and_say_so() -> None:
    model = model_of("llama")
    first, second = model.model.layers
    second.mlp.down_proj.weight = first.mlp.down_proj.weight
    additions = random_steering(model, "residual", regulator=dsas.Constant())
    assert {line.why for line in check_same(additions, model)} == {
        "the layer that it would be folded into, or its weights, are used elsewhere, too"
    }
    model = model_of("llama")
    seen = []
    watch = model.model.layers[0].mlp.register_forward_hook(lambda _m, _a, output: seen.append(output))
    with random_steering(model, "residual", regulator=dsas.Constant()).fuse(model) as fused:
        assert [line.status for line in fused.report()] == ["wrapped", "folded"]
    watch.remove()
    watch = model.model.layers[0].mlp.down_proj.register_forward_hook(lambda *_: None)
    with random_steering(model, "residual", regulator=dsas.Constant()).fuse(model) as fused:
        assert fused.report()[0].why == "no linear layer is known to read or produce it"
    watch.remove()


def test_dropout_between_keeps_a_layer_from_being_folded_into() -> None:
    model = tiny_model("gpt2", layers=1)
    with random_steering(model, "residual", regulator=dsas.Constant()).fuse(model) as fused:
        assert fused.report()[0].status == "wrapped"


def test_fusions_come_off_in_the_reverse_order_or_fail_clearly() -> None:
    model = model_of("llama")
    plain, steering = logits_of(model, IDS), random_steering(model, regulator=dsas.Constant())
    first = steering.fuse(model)
    once = logits_of(model, IDS)
    with pytest.warns(dsas.DsasWarning, match="not those the Steering was fitted on"):
        second = steering.fuse(model)
    with pytest.raises(dsas.DsasError, match="2 modules, such as a Linear, were changed after fusing"):
        first.undo()
    second.undo()
    assert torch.equal(logits_of(model, IDS), once)
    first.undo()
    assert torch.equal(logits_of(model, IDS), plain)
    first = constant_steering(model, "mlp", multiplied=True).fuse(model)
    model.bfloat16()
    with pytest.raises(dsas.DsasError, match="changed after fusing"):
        first.undo()
    model.double()
    first.undo()


def test_strength_0_fuses_nothing_and_rows_and_positions_are_refused() -> None:
    model = model_of("llama")
    parameters = [id(value) for value in model.parameters()]
    with random_steering(model).fuse(model, 0.0) as fused:
        assert fused.report() == []
        assert [id(value) for value in model.parameters()] == parameters
    rows: Any = [1.0, 2.0]
    with pytest.raises(dsas.DsasError, match=r"one number without gradient, got \[1\.0, 2\.0\]"):
        random_steering(model).fuse(model, rows)
    with pytest.raises(dsas.DsasError, match=r"Position\(\) at model\.layers\.0 reads token positions: use apply"):
        random_steering(model, regulator=Position()).fuse(model)


@pytest.mark.compile
@pytest.mark.parametrize("regulator", [dsas.Constant(), None], ids=["folded", "wrapped"])
def test_compiled_code_is_fused_and_plain_again(regulator: Any) -> None:
    model = model_of("llama", torch.float32)
    steering, plain = random_steering(model, regulator=regulator), logits_of(model, IDS)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(logits_of(compiled, IDS, use_cache=False), plain)
    with steering.apply(model):
        steered: Tensor = logits_of(model, IDS)
    with steering.fuse(compiled):
        torch.testing.assert_close(logits_of(compiled, IDS, use_cache=False), steered)
    torch.testing.assert_close(logits_of(compiled, IDS, use_cache=False), plain)


def test_what_saving_a_fused_model_would_lose_is_said_and_what_it_keeps_is_kept(tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM

    for family, stored in (("llama", False), ("gpt2", True)):
        model = model_of(family, torch.float32)
        fusion = constant_steering(model, "residual", multiplied=False).fuse(model, 1.0)
        assert {(line.status, line.stored) for line in fusion.report()} == {("folded", stored)}
        steered, folder = logits_of(model, IDS), tmp_path / family
        if stored:
            model.save_pretrained(folder)
            assert torch.allclose(logits_of(AutoModelForCausalLM.from_pretrained(folder), IDS), steered, atol=1e-5)
        else:
            with pytest.warns(dsas.DsasWarning, match=r"2 sites, such as model.layers.0, are lost when it is loaded"):
                model.save_pretrained(folder)
        fusion.undo()
        model.save_pretrained(folder)  # and no warning


@pytest.mark.parametrize("sites", ["residual", "*.mlp@input"])
def test_copies_and_pickles_of_a_fused_model_steer_as_it_does_twice_fused_and_undone_too(sites: str) -> None:
    model = tiny_model()
    with random_steering(model, sites).fuse(model, 0.5), random_steering(model, sites, seed=1).fuse(model, 0.3):
        fused = logits_of(model, IDS)
        kept = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    assert not torch.equal(logits_of(model, IDS), fused)
    assert all(torch.equal(logits_of(other, IDS), fused) for other in kept)
