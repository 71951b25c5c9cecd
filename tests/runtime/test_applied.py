"""Applied: hooks are placed and removed in order, also after errors and in copies; how exactly an edit is rounded."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import PROMPTS, Idle, hooks_on, ids_of, logits_of, random_steering
from torch import Tensor, nn

import dsas
from dsas.model.forward_pass import ForwardPass
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.testing.models import WIDTH


@pytest.fixture
def model() -> Any:
    return tiny_model("llama")


@pytest.fixture
def tokenizer() -> Any:
    return tiny_tokenizer()


def test_a_site_that_never_fires_is_reported_when_steering_ends() -> None:
    model = Idle()
    applied = random_steering(model, ["used", "idle"]).apply(model).install()
    model(inputs_embeds=torch.randn(1, 2, WIDTH))
    with pytest.warns(dsas.DsasWarning, match=r"never fired.*\['idle'\]"):
        applied.remove()
    random_steering(model, ["used", "idle"]).apply(model).install().remove()  # the model never ran: nothing to report


def test_an_exception_inside_the_block_comes_out_as_it_is_without_a_warning_about_sites_it_cut_off() -> None:
    model = Idle()
    steering = random_steering(model, ["used", "idle"])
    failing = model.used.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) as raised, steering.apply(model):
        model(inputs_embeds=torch.randn(1, 2, WIDTH))
    assert raised.value.__context__ is None
    failing.remove()
    assert hooks_on(model) == 0
    with pytest.warns(dsas.DsasWarning, match="never fired"), steering.apply(model):
        model(inputs_embeds=torch.randn(1, 2, WIDTH))


def test_a_model_that_runs_on_no_tokens_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH))
    with (
        pytest.raises(
            dsas.DsasError, match=r"without input_ids or inputs_embeds, one of which steering needs \(got \['input'\]\)"
        ),
        random_steering(model, "0").apply(model),
    ):
        model(torch.randn(1, 2, WIDTH))


def test_hooks_come_off_when_putting_them_on_fails_half_way(model: Any) -> None:
    steering = random_steering(model)
    applied = steering.apply(model)
    model.model.layers = model.model.layers[:2]
    with pytest.raises(AttributeError):
        applied.install()
    assert hooks_on(model) == 0


def test_hidden_states_are_what_the_next_layer_sees_whoever_hooked_first(model: Any, tokenizer: Any) -> None:
    """Transformers collects hidden states by hooks of its own, which stay on from their first use."""
    ids, steering = ids_of(tokenizer, PROMPTS[0]), random_steering(model, "model.layers.0", regulator=dsas.Constant())
    fresh = copy.deepcopy(model)
    vector = steering.rules[0].transform.vector
    plain = logits_of_hidden(model, ids)  # theirs first
    with steering.apply(model):
        theirs_first = logits_of_hidden(model, ids)
    with steering.apply(fresh):
        ours_first = logits_of_hidden(fresh, ids)
    torch.testing.assert_close(theirs_first, plain + vector)
    torch.testing.assert_close(ours_first, plain + vector)


def logits_of_hidden(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids, output_hidden_states=True).hidden_states[1]


def test_two_steerings_of_one_site_act_in_the_order_in_which_they_were_applied(model: Any) -> None:
    class Double(dsas.Addition):
        def edit(self, t: Tensor) -> Tensor:
            return t.float()

    site, ids = "model.layers.0", torch.tensor([[1, 2, 3]])
    plain = logits_of_hidden(model, ids)
    add = random_steering(model, site, transform=dsas.Addition(torch.ones(WIDTH)), regulator=dsas.Constant())
    double = random_steering(model, site, transform=Double(torch.ones(WIDTH)), regulator=dsas.Constant())
    for first, second, expected in ((add, double, 2 * (plain + 1)), (double, add, 2 * plain + 1)):
        with first.apply(model), second.apply(model):
            torch.testing.assert_close(logits_of_hidden(model, ids), expected)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_of_a_steered_model_is_a_plain_model_that_can_be_steered(
    model: Any, tokenizer: Any, copied: Callable[[Any], Any]
) -> None:
    ids, steering = ids_of(tokenizer, PROMPTS[0]), random_steering(model)
    plain = logits_of(model, ids)
    with steering.apply(model):
        steered = logits_of(model, ids)
        twin = copied(model)
        assert torch.equal(logits_of(twin, ids), plain)
        assert torch.equal(logits_of(model, ids), steered)
    assert torch.equal(logits_of(twin, ids), plain)
    with steering.apply(twin):
        assert torch.equal(logits_of(twin, ids), steered)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))], ids=["copy", "pickle"]
)
def test_a_steering_in_use_can_be_copied(model: Any, copied: Callable[[Any], Any]) -> None:
    ids, steering = torch.tensor([[1, 2, 3]]), random_steering(model)
    with steering.apply(model):
        steered, twin = logits_of(model, ids), copied(steering)
    with twin.apply(model):
        assert torch.equal(logits_of(model, ids), steered)


def test_a_method_shared_by_two_sites_can_be_stored(model: Any, tmp_path: Path) -> None:
    shared = random_steering(model, transform=dsas.Addition(torch.arange(WIDTH) / 7))
    shared.save_pretrained(tmp_path)
    for rule in dsas.Steering.from_pretrained(tmp_path).rules:
        assert torch.equal(rule.transform.vector, torch.arange(WIDTH) / 7)


def test_a_constant_is_not_rounded_to_the_precision_of_the_model() -> None:
    value = dsas.Constant(0.3)(torch.zeros(1, 2, 4, dtype=torch.bfloat16), ForwardPass(1, 2))
    assert value.flatten().tolist() == [torch.tensor(0.3).item()] * 2


def test_an_edit_in_bfloat16_is_rounded_once() -> None:
    model = Idle().bfloat16()
    model.used = nn.Identity()
    t = torch.linspace(-4, 4, 3 * WIDTH).view(1, 3, WIDTH).bfloat16()
    steering = random_steering(model, "used")
    rule = steering.rules[0]
    with steering.apply(model, 0.37):
        steered = model(inputs_embeds=t)
    gain = torch.sigmoid(t.float() @ rule.regulator.theta + rule.regulator.bias).unsqueeze(-1) * 0.37
    assert torch.equal(steered, (t.float() + gain * rule.transform.vector).bfloat16())
