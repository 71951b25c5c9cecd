"""Clean: what a regulator reads where earlier sites have steered, against hooks written here."""

from functools import partial
from typing import Any

import pytest
import torch
from makers import random_steering
from torch import Tensor
from torch.nn.functional import sigmoid

import dsas
from dsas.errors import OptionError
from dsas.methods.base import same
from dsas.model.forward_pass import ForwardPass
from dsas.testing import tiny_model, tiny_tokenizer

STRENGTH = 0.7
IDS = torch.randint(1, 60, (2, 9), generator=torch.Generator().manual_seed(0))


def cleaned(steering: dsas.Steering) -> dsas.Steering:
    return dsas.Steering([r._replace(regulator=dsas.Clean(r.regulator)) for r in steering.rules], steering.model)


def strengths(model: Any, steering: dsas.Steering, ids: Tensor = IDS, **options: Any) -> Tensor:
    with steering.apply(model, STRENGTH, **options) as applied, torch.no_grad():
        model(ids)
    return applied.trace().strengths


def by_hand(model: Any, steering: dsas.Steering, ids: Tensor) -> Tensor:
    """Return the strengths (site, row, token) that logistic regulators come to when they read clean."""
    found: list[Tensor] = []
    added: list[Tensor] = []

    def hook(_module: Any, _args: Any, t: Tensor, *, rule: dsas.Rule) -> Tensor:
        read = t - sum(added)
        gain = STRENGTH * rule.weight * sigmoid(read @ rule.regulator.theta + rule.regulator.bias)
        added.append(gain[..., None] * rule.transform.vector)
        found.append(gain)
        return t + added[-1]

    modules = [model.get_submodule(rule.site.path) for rule in steering.rules]
    hooks = [m.register_forward_hook(partial(hook, rule=r)) for m, r in zip(modules, steering.rules, strict=True)]
    with torch.no_grad():
        model(ids)
    for one in hooks:
        one.remove()
    return torch.stack(found)


def test_values_are_those_of_tokens_without_the_sum_of_what_sites_before_have_added() -> None:
    model = tiny_model(layers=4)
    steering = random_steering(model)
    expected = by_hand(model, steering, IDS)
    torch.testing.assert_close(strengths(model, cleaned(steering)), expected, rtol=0, atol=1e-5)
    assert float((strengths(model, steering) - expected).abs().max()) > 1e-3


def test_where_layers_add_nothing_every_site_reads_what_the_unsteered_model_has() -> None:
    model = tiny_model(layers=3)
    for layer in model.model.layers[1:]:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    steering = random_steering(model)
    with torch.no_grad():
        t = model.model(IDS, output_hidden_states=True).hidden_states[1]
    expected = [STRENGTH * sigmoid(t @ r.regulator.theta + r.regulator.bias) for r in steering.rules]
    torch.testing.assert_close(strengths(model, cleaned(steering)), torch.stack(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("evidence", [False, True])
def test_a_row_is_read_clean_alike_alone_in_a_padded_batch_and_token_by_token(evidence: bool) -> None:
    model = tiny_model(layers=3)
    steering = random_steering(model)
    if evidence:
        numbers = [(rule.regulator.theta, rule.regulator.bias, torch.tensor(0.1)) for rule in steering.rules]
        rules = [r._replace(regulator=dsas.Evidence(*n)) for r, n in zip(steering.rules, numbers, strict=True)]
        steering = dsas.Steering(rules, steering.model)
    steering = cleaned(steering)
    row = IDS[:1, :6]
    alone = strengths(model, steering, row)[:, 0]
    padded = torch.cat([torch.cat([torch.zeros(1, 3, dtype=torch.long), row], 1), IDS[1:]])
    mask = torch.ones_like(padded)
    mask[0, :3] = 0
    with steering.apply(model, STRENGTH) as applied, torch.no_grad():
        model(padded, attention_mask=mask)
        batched = applied.trace().strengths[:, 0, 3:]
        cache = None
        for place in range(row.shape[1]):
            cache = model(row[:, place : place + 1], past_key_values=cache, use_cache=True).past_key_values
        one_by_one = applied.trace().strengths[:, 0]
    torch.testing.assert_close(batched, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(one_by_one, alone, rtol=0, atol=1e-5)


def test_a_product_with_a_clean_factor_reads_clean_and_storage_keeps_it(tmp_path: Any) -> None:
    model = tiny_model(layers=3)
    steering = random_steering(model)
    times = cleaned(steering).within(dsas.Constant(1.0))
    torch.testing.assert_close(strengths(model, times), by_hand(model, steering, IDS), rtol=0, atol=1e-5)
    times.save_pretrained(tmp_path / "kept")
    assert torch.equal(strengths(model, dsas.Steering.from_pretrained(tmp_path / "kept")), strengths(model, times))


def test_two_passes_of_one_apply_and_two_steerings_at_once_know_nothing_of_each_other() -> None:
    model = tiny_model(layers=3)
    steering = cleaned(random_steering(model))
    with steering.apply(model, STRENGTH) as applied, torch.no_grad():
        model(IDS)
        first = applied.trace().strengths
        model(IDS)
        assert torch.equal(applied.trace().strengths, first)
        nothing = [rule._replace(transform=dsas.Addition(torch.zeros(32))) for rule in steering.rules]
        with dsas.Steering(nothing, steering.model).apply(model, 1.0):
            model(IDS)
        torch.testing.assert_close(applied.trace().strengths, first)


def test_what_is_fitted_to_read_clean_is_what_is_fitted_without_and_is_tuned_by_the_same_tokens() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    sets = {
        name: [f"{start} {n} {n}" for n in range(8)]
        for name, start in (("source", "SHUT UP"), ("control", "the door"), ("target", "thank you"))
    }
    fit = partial(dsas.fit, model, tokenizer, **sets, progress=False)
    plain = fit(selection="all")
    clean = fit(selection="all", regulator=partial(dsas.Clean.fit, of=dsas.Evidence.fit))
    assert clean.settings["regulator"] == "clean"
    assert clean.settings["held_out_tokens"] == plain.settings["held_out_tokens"]
    for one, other in zip(clean.rules, plain.rules, strict=True):
        assert isinstance(one.regulator, dsas.Clean)
        assert same(one.regulator.regulator, other.regulator)
    logistic = fit(regulator=partial(dsas.Clean.fit, of=dsas.Logistic.fit)).rules[0]
    assert isinstance(logistic.regulator.regulator, dsas.Logistic)
    assert logistic.accuracy is not None
    with pytest.raises(OptionError, match=r"model\.layers\.0\.mlp is not on it: use sites=\"residual\""):
        fit(sites="mlp", regulator=partial(dsas.Clean.fit, of=dsas.Evidence.fit))
    with pytest.raises(OptionError, match=r"functools\.partial\(dsas\.Clean\.fit, of="):
        fit(regulator="clean")
    with pytest.raises(OptionError, match=r"of=dsas\.Evidence\.fit"):
        fit(regulator=dsas.Clean.fit)


def test_a_pass_keeps_what_was_added_to_tokens_that_are_alike_alone() -> None:
    step = ForwardPass(1, 3)
    t = torch.ones(1, 3, 4)
    assert step.without_additions(t) is t
    step.add(t)
    step.part(1).add(2 * t)
    torch.testing.assert_close(step.without_additions(10 * t), 7 * t)
    other = torch.ones(1, 2, 4)
    assert step.without_additions(other) is other
    step.add(other)
    torch.testing.assert_close(step.without_additions(other), torch.zeros(1, 2, 4))
