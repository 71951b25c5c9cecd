"""Held: in a prompt the regulator itself, and after it the value at the prompt's last token."""

from functools import partial
from typing import Any

import pytest
import torch
from makers import random_steering

import dsas
from dsas.errors import OptionError
from dsas.methods.base import same
from dsas.model.forward_pass import ForwardPass
from dsas.model.sequence import Sequences
from dsas.testing import tiny_model, tiny_tokenizer

LOGISTIC = dsas.Logistic(torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.tensor(0.2))


@pytest.mark.parametrize(
    "inner", [LOGISTIC, dsas.Posterior(torch.randn(4), torch.randn(4), torch.randn(4))], ids=["token", "neuron"]
)
def test_each_row_holds_the_value_of_the_last_token_of_its_own_prompt(inner: dsas.Regulator) -> None:
    t, mask = torch.randn(3, 6, 4), torch.ones(3, 6)
    mask[1, :2], mask[2, 5:] = 0, 0  # padding on the left, and on the right
    history = Sequences(3, prompt_tokens=torch.tensor([2, 3, 9]))
    history.begin(0, 6)
    step = ForwardPass(3, 6, mask=mask, history=history)
    found, own = dsas.Held(inner)(t, step), inner(t, step)
    torch.testing.assert_close(found[0], own[0, [0, 1, 1, 1, 1, 1]])
    torch.testing.assert_close(found[1, 2:], own[1, [2, 3, 4, 4]])
    torch.testing.assert_close(found[2, :5], own[2, :5])  # all of it is its prompt
    assert not found[1, :2].any()
    assert not found[2, 5:].any()


def test_a_conversation_over_one_cache_decides_anew_at_each_prompt() -> None:
    t, history, found = torch.randn(1, 9, 4), Sequences(1), []
    for start, end in ((0, 3), (3, 4), (4, 5), (5, 8), (8, 9)):  # a prompt and two tokens after it, and so once more
        history.begin(start, end - start)
        found.append(dsas.Held(LOGISTIC)(t[:, start:end], ForwardPass(1, end - start, past=start, history=history)))
        history.end()
    own = LOGISTIC(t, ForwardPass(1, 9))[0, :, 0]
    torch.testing.assert_close(torch.cat(found, 1)[0, :, 0], own[[0, 1, 2, 2, 2, 5, 6, 7, 7]])


def test_generation_is_steered_by_the_prompt_alone_and_text_without_a_prompt_as_without_holding() -> None:
    model = tiny_model(layers=2)
    plain = random_steering(model, regulator=dsas.Logistic(torch.randn(32), torch.tensor(0.1)))
    held = dsas.Steering([rule._replace(regulator=dsas.Held(rule.regulator)) for rule in plain.rules], plain.model)
    ids = torch.randint(1, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    with held.apply(model, 0.5) as applied:
        model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    strengths = applied.trace().strengths
    torch.testing.assert_close(strengths[..., 7:], strengths[..., 6:7].expand(-1, -1, 3))
    assert float((strengths[..., 1:7] - strengths[..., :6]).abs().max()) > 0.1
    found = []
    for one in (plain, held):
        with one.apply(model, 0.5), torch.no_grad():
            found.append(model(ids).logits)
    assert torch.equal(*found)


def test_what_is_fitted_to_be_held_is_what_is_fitted_without_and_is_tuned_by_the_same_tokens() -> None:
    model, tokenizer = tiny_model(layers=2), tiny_tokenizer()
    sets = {
        name: [f"{start} {n} {n}" for n in range(8)]
        for name, start in (("source", "SHUT UP"), ("control", "the door"), ("target", "thank you"))
    }
    fit: Any = partial(dsas.fit, model, tokenizer, **sets, progress=False, selection="all")
    plain, held = fit(), fit(regulator="held")
    assert held.settings["held_out_tokens"] == plain.settings["held_out_tokens"]
    for one, other in zip(held.rules, plain.rules, strict=True):
        assert isinstance(one.regulator, dsas.Held)
        assert same(one.regulator.regulator, other.regulator)
    logistic = fit(regulator=partial(dsas.Held.fit, of=dsas.Logistic.fit)).rules[0].regulator
    assert isinstance(logistic.regulator, dsas.Logistic)
    with pytest.raises(OptionError, match="a server holds the value of 'evidence' alone, not of 'logistic'"):
        logistic.served_form()
