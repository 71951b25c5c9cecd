"""A generated token's short form of evidence gives what the whole row at once does, however the cache is treated."""

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from makers import random_steering
from test_edit import Watch
from torch import Tensor
from transformers import DynamicCache

import dsas
from dsas.errors import StateError
from dsas.model.forward_pass import ForwardPass
from dsas.model.passed import Turn
from dsas.runtime.summing import Decoding
from dsas.runtime.ways import Ways
from dsas.testing import tiny_model

IDS = torch.randint(1, 250, (3, 14), generator=torch.Generator().manual_seed(0))
PROMPT = 6
LAYERS = 4


def steering_of(model: Any, transform: dsas.Transform | None = None, **options: Any) -> dsas.Steering:
    generator = torch.Generator().manual_seed(1)
    theta = 0.3 * torch.randn(32, generator=generator)
    regulator = dsas.Evidence(theta, torch.tensor(0.2), torch.tensor(0.1), **options)
    return random_steering(model, regulator=regulator, transform=transform)


def step(model: Any, ids: Tensor, cache: Any, mask: Tensor | None = None) -> Tensor:
    return model(input_ids=ids, attention_mask=mask, past_key_values=cache).logits


def token_by_token(model: Any, ids: Tensor, cache: Any, mask: Tensor | None = None) -> Tensor:
    found = []
    for token in range(ids.shape[1]):
        seen = None if mask is None else mask[:, : mask.shape[1] - ids.shape[1] + token + 1]
        found.append(step(model, ids[:, token : token + 1], cache, seen))
    return torch.cat(found, 1)


@pytest.mark.parametrize(
    ("strength", "padded", "options", "transform"),
    [
        (0.7, False, {}, None),
        (0.7, False, {"memory": 1.0, "prior": 0.0}, dsas.Lineas(1.1 * torch.ones(32), torch.ones(32))),
        ([0.7], False, {"by_turn": True}, None),
        ([0.7, 0.7, 0.7], False, {"memory": 0.5}, None),
        ([0.2, 0.0, 0.9], False, {}, None),
        ([0.7, 0.1, 0.4], True, {}, dsas.Lineas(1.1 * torch.ones(32), torch.ones(32))),
    ],
)
@torch.no_grad()
def test_tokens_one_by_one_are_steered_as_the_whole_row_is_and_their_trace_is_the_same(
    strength: Any, padded: bool, options: dict[str, Any], transform: dsas.Transform | None
) -> None:
    model, ids = tiny_model("llama", layers=LAYERS), IDS[: len(strength) if isinstance(strength, list) else 1]
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :4], mask[1, :1] = 0, 0
    steering, cache = steering_of(model, transform, **options), DynamicCache()
    with steering.apply(model, strength) as applied:
        whole = step(model, ids, None, mask)
        expected = applied.trace()
    with steering.apply(model, strength) as applied:
        step(model, ids[:, :PROMPT], cache, mask[:, :PROMPT])
        step(model, ids[:, PROMPT : PROMPT + 1], cache, mask[:, : PROMPT + 1])  # every hook's first look
        with Watch() as watch:
            last = token_by_token(model, ids[:, PROMPT + 1 :], cache, mask)
        trace = applied.trace()
    torch.testing.assert_close(last, whole[:, PROMPT + 1 :], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(trace.strengths, expected.strengths, rtol=1e-5, atol=1e-6)
    counted = Counter(watch.seen)
    assert counted["sigmoid_"] == 0  # that is the long form's
    assert counted["sigmoid"] == LAYERS * (ids.shape[1] - PROMPT - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_token_takes_no_more_launches_at_a_site_than_with_a_logistic_regulator(dtype: torch.dtype) -> None:
    seen = {}
    for layers in (2, 4):
        model = tiny_model("llama", layers=layers).to(dtype)
        evidence, logistic = steering_of(model), random_steering(model)
        for steering in (evidence, logistic):
            cache = DynamicCache()
            with steering.apply(model, 0.5, record=False):
                step(model, IDS[:1, :PROMPT], cache)
                token_by_token(model, IDS[:1, PROMPT : PROMPT + 2], cache)
                with Watch() as watch:
                    step(model, IDS[:1, PROMPT + 2 : PROMPT + 3], cache)
            seen[steering, layers] = len(watch.seen)
        seen[layers] = seen.pop((evidence, layers)) - seen.pop((logistic, layers))
    assert seen[2] == seen[4] <= 8  # what a pass takes, however many sites it has


@torch.no_grad()
def test_a_cache_that_is_cut_copied_or_reordered_half_way_goes_on_as_the_whole_rows_do() -> None:
    model, steering = tiny_model("llama", layers=2), steering_of(tiny_model("llama", layers=2))
    order, cache = torch.tensor([2, 0, 0]), DynamicCache()
    with steering.apply(model, 0.7):
        whole = step(model, IDS, None)
        step(model, IDS[:, :PROMPT], cache)
        token_by_token(model, IDS[:, PROMPT : PROMPT + 5], cache)
        cache.crop(-3)
        once_more = token_by_token(model, IDS[:, PROMPT + 2 : PROMPT + 4], cache)
        other = copy.deepcopy(cache)
        cache.reorder_cache(order)
        reordered = token_by_token(model, IDS[order, PROMPT + 4 :], cache)
        copied = token_by_token(model, IDS[:, PROMPT + 4 :], other)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(once_more, whole[:, PROMPT + 2 : PROMPT + 4], **close)
    torch.testing.assert_close(reordered, whole[order, PROMPT + 4 :], **close)
    torch.testing.assert_close(copied, whole[:, PROMPT + 4 :], **close)


def test_other_modes_strengths_and_ways_in_between_leave_the_sums_as_they_are() -> None:
    model, steering, cache = tiny_model("llama", layers=2), steering_of(tiny_model("llama", layers=2)), DynamicCache()
    with steering.apply(model, 0.7) as applied:
        whole = step(model, IDS[:1], None).detach()
        with torch.inference_mode():
            step(model, IDS[:1, :PROMPT], cache)
            token_by_token(model, IDS[:1, PROMPT : PROMPT + 2], cache)
        found = []
        for place, mode in enumerate((torch.no_grad, torch.inference_mode, torch.enable_grad, torch.no_grad)):
            if place == 3:  # the long form, for one token, and the short one again
                applied.strength = [0.7]
                applied.strength = 0.7
            with mode():
                found.append(step(model, IDS[:1, PROMPT + 2 + place : PROMPT + 3 + place], cache))
    torch.testing.assert_close(torch.cat(found, 1), whole[:, PROMPT + 2 : PROMPT + 6], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_pass_that_was_cut_short_counts_for_nothing() -> None:
    model, steering, cache = tiny_model("llama", layers=2), steering_of(tiny_model("llama", layers=2)), DynamicCache()
    with steering.apply(model, 0.7):
        whole = step(model, IDS[:1], None)
        step(model, IDS[:1, :PROMPT], cache)
        token_by_token(model, IDS[:1, PROMPT : PROMPT + 2], cache)
        handle = model.model.norm.register_forward_pre_hook(lambda *_: 1 / 0)  # type: ignore
        with pytest.raises(ZeroDivisionError):
            step(model, IDS[:1, -1:], cache)
        handle.remove()
        cache.crop(-1)
        last = token_by_token(model, IDS[:1, PROMPT + 2 :], cache)
    torch.testing.assert_close(last, whole[:, PROMPT + 2 :], rtol=1e-4, atol=1e-4)


def test_a_site_that_runs_twice_where_it_ran_once_is_refused() -> None:
    ways = Ways(steering_of(tiny_model("llama", layers=2)).rules, torch.tensor(0.5), skip_sinks=False, detail=False)
    together: Any = ways.now[0]

    decoding = Decoding(together.together, ForwardPass(1, 1), Turn(0), torch.zeros(2, 1, 1, 1), torch.ones(1, 1))
    decoding.gain(0, torch.zeros(1, 1, 32))
    with pytest.raises(StateError, match="ran twice"):
        decoding.gain(0, torch.zeros(1, 1, 32))
