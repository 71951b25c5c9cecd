"""Which sequence a pass goes on from: what the cache holds, who filled it, and what was never recorded."""

import copy
import warnings
from typing import Any

import pytest
import torch
from makers import Position, logits_of, random_steering
from torch import Tensor
from transformers import DynamicCache

import dsas
from dsas.errors import DsasWarning
from dsas.model.caches import watch_of
from dsas.model.identity import ModelIdentity
from dsas.testing import tiny_model
from dsas.testing.models import WIDTH

PADDED = torch.tensor([[0, 0, 3, 4], [5, 6, 7, 8]])
GENERATED = dsas.Schedule("generated")


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(layers=2)


def run_on(model: Any, cache: Any, *tokens: int, **given: Any) -> None:
    logits_of(model, torch.tensor([tokens]), past_key_values=cache, use_cache=True, **given)


def strengths(applied: Any) -> list[float]:
    return applied.trace().strengths[0, 0].tolist()


def told(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(one.message) for one in caught if issubclass(one.category, DsasWarning)]


def test_a_prompt_that_was_cut_back_to_its_end_is_asked_again_by_one_token_and_longer_by_several(model: Any) -> None:
    with random_steering(model, regulator=GENERATED).apply(model) as applied:
        for tokens, expected in (((9,), [1.0]), ((9, 10), [0.0, 0.0])):
            cache = DynamicCache(config=model.config)
            run_on(model, cache, 1, 2, 3, 4)
            for token in (5, 6):
                run_on(model, cache, token)
            assert strengths(applied) == [0.0] * 4 + [1.0] * 2
            cache.crop(-2)
            run_on(model, cache, *tokens)
            assert strengths(applied) == [0.0] * 4 + expected


def test_a_decision_goes_back_to_what_was_read_when_a_cache_is_cut_inside_of_a_prompt(model: Any) -> None:
    """As CAST does, the regulator takes the mean of what was read after the first token: of 20, and then 40 and 60."""
    steering = random_steering(model, regulator=_MeanOfTokens())
    with steering.apply(model) as applied:
        cache = DynamicCache(config=model.config)
        run_on(model, cache, 10, 20, 60, 90)
        cache.crop(-2)
        run_on(model, cache, 40)
        assert strengths(applied) == [0.0, 20.0, 30.0]
        run_on(model, copy.deepcopy(cache), 60)
        assert strengths(applied) == [0.0, 20.0, 30.0, 40.0]


class _MeanOfTokens(Position):
    """Answers the mean of the row's tokens so far, its first left out."""

    def forward(self, t: Tensor, forward_pass: Any) -> Tensor:
        assert forward_pass.token_ids is not None
        counted = (forward_pass.positions > 0).float()
        new = torch.stack([forward_pass.token_ids * counted, counted], dim=-1).cumsum(1)
        before = forward_pass.carried("sum")
        new = new if before is None else new + before.unsqueeze(1)
        forward_pass.carry("sum", new)
        return (new[..., :1] / new[..., 1:].clamp(min=1)).to(t.device)


def test_tokens_that_ran_while_the_steering_was_off_are_told_of_once_and_counted(model: Any) -> None:
    steering, cache = random_steering(model, regulator=Position()), DynamicCache(config=model.config)
    with steering.apply(model):
        run_on(model, cache, 1, 2, 3)
    run_on(model, cache, 4)
    twin = copy.deepcopy(cache)
    with warnings.catch_warnings(record=True) as caught, steering.apply(model) as applied:
        warnings.simplefilter("always")
        for token in (5, 6):
            run_on(model, cache, token)
        run_on(model, twin, 7)
        run_on(model, copy.deepcopy(cache), 7)
        assert strengths(applied) == [5.0, 6.0, 7.0]
        assert applied.trace().token_ids.tolist() == [[5, 6, 7]]
    (message,) = told(caught)
    assert "already holds 4 tokens" in message


@pytest.mark.parametrize("later", ["itself", "stored", "strength", "sinks", "other"])
def test_a_cache_goes_on_in_silence_under_what_does_the_same_and_no_other(
    model: Any, tmp_path: Any, later: str
) -> None:
    steering, cache = random_steering(model), DynamicCache(config=model.config)
    with steering.apply(model, 0.5):
        run_on(model, cache, 1, 2, 3)
    again = random_steering(model, seed=1) if later == "other" else steering
    if later == "stored":
        steering.save_pretrained(tmp_path / "steering")
        again = dsas.Steering.from_pretrained(tmp_path / "steering")
    options: dict[str, Any] = {"skip_sinks": later == "sinks"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with again.apply(model, 1.0 if later == "strength" else 0.5, **options) as applied:
            run_on(model, cache, 4)
            assert applied.trace().real.shape[1] == (4 if later in ("itself", "stored") else 1)
    assert len(told(caught)) == (later not in ("itself", "stored"))


def test_of_a_cache_that_many_go_on_from_one_after_another_only_the_last_is_kept(model: Any) -> None:
    steering, cache = random_steering(model), DynamicCache(config=model.config)
    for number in range(1, 4):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DsasWarning)
            with steering.apply(model, 0.1 * number):
                run_on(model, cache, number)
    watch = watch_of(cache)
    assert watch is not None
    assert len(watch.held) == 1


def test_under_two_steerings_at_once_a_kept_cache_goes_on_in_silence_in_the_next_block(model: Any) -> None:
    both = random_steering(model, regulator=Position()) | random_steering(model, seed=1, regulator=GENERATED)
    cache = DynamicCache(config=model.config)
    for block in range(2):
        with both.apply(model) as applied:
            run_on(model, cache, 1, 2, 3)
            run_on(model, cache, 4)
            found = [one.trace().strengths[0, 0].tolist() for one in applied]
            assert found == [[*range(1, 5 + 4 * block)], [0.0, 0.0, 0.0, 1.0] * (1 + block)]


def test_a_cache_that_two_steerings_filled_and_one_goes_on_from_is_told_of(model: Any) -> None:
    one, other = random_steering(model, regulator=Position()), random_steering(model, seed=1, regulator=GENERATED)
    cache = DynamicCache(config=model.config)
    with (one | other).apply(model):
        run_on(model, cache, 1, 2, 3)
    with one.apply(model) as applied:
        with pytest.warns(DsasWarning, match="already holds 3 tokens .* under this Steering alone"):
            run_on(model, cache, 4)
        run_on(model, cache, 5)
        assert strengths(applied) == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_what_ran_without_a_record_is_gone_on_from_and_not_told(model: Any) -> None:
    steering, cache = random_steering(model, regulator=_MeanOfTokens()), DynamicCache(config=model.config)
    with steering.apply(model, record=False):
        run_on(model, cache, 10, 20)
    with steering.apply(model) as applied:
        run_on(model, cache, 40)
        assert strengths(applied) == [30.0]


def test_two_of_the_same_steering_at_once_each_have_their_own_record_of_a_cache(model: Any) -> None:
    steering, cache = random_steering(model, regulator=Position()), DynamicCache(config=model.config)
    with steering.apply(model) as one, steering.apply(model) as other:
        for tokens in ((1, 2), (3,)):
            run_on(model, cache, *tokens)
        assert strengths(one) == strengths(other) == [1.0, 2.0, 3.0]


def test_a_pass_that_raised_half_way_and_is_run_again_is_as_if_it_had_run_once(model: Any) -> None:
    class Stop(Exception):
        pass

    def stop(*_call: Any) -> None:
        raise Stop

    with random_steering(model, regulator=_MeanOfTokens()).apply(model) as applied:
        cache = DynamicCache(config=model.config)
        run_on(model, cache, 10, 20)
        last = model.model.layers[1].register_forward_hook(stop)
        with pytest.raises(Stop):
            run_on(model, cache, 40)
        last.remove()
        cache.crop(2 - cache.get_seq_length())
        run_on(model, cache, 40)
        assert applied.trace().strengths[:, 0].tolist() == [[0.0, 20.0, 30.0]] * 2
        assert applied.trace().token_ids.tolist() == [[10, 20, 40]]


def test_a_cache_that_comes_out_of_a_pass_that_was_given_none_goes_on_with_it(model: Any) -> None:
    with random_steering(model, regulator=Position()).apply(model) as applied, torch.no_grad():
        cache = model(torch.tensor([[1, 2, 3]]), use_cache=True).past_key_values
        run_on(model, cache, 4)
        assert strengths(applied) == [1.0, 2.0, 3.0, 4.0]
        logits_of(model, torch.tensor([[5, 6]]))
        assert strengths(applied) == [1.0, 2.0]


def test_padding_of_a_cache_counts_where_the_mask_is_of_the_new_tokens_alone_or_there_is_none(model: Any) -> None:
    with random_steering(model, regulator=Position()).apply(model) as applied:
        for given in ({}, {"attention_mask": torch.ones(2, 1).long()}):
            cache = DynamicCache(config=model.config)
            logits_of(model, PADDED, attention_mask=(PADDED > 0).long(), past_key_values=cache, use_cache=True)
            logits_of(model, torch.tensor([[5], [9]]), past_key_values=cache, use_cache=True, **given)
            assert applied.trace().strengths[0].tolist() == [[0.0, 0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0, 5.0]]


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
@pytest.mark.parametrize("implementation", ["dynamic", "static"])
def test_a_window_smaller_than_the_prompt_changes_no_position(family: str, implementation: str) -> None:
    model: Any = tiny_model(family, sliding_window=3)
    options = {"cache_implementation": "static"} if implementation == "static" else {}
    with random_steering(model, regulator=Position()).apply(model) as applied:
        model.generate(
            PADDED, attention_mask=(PADDED > 0).long(), max_new_tokens=4, min_new_tokens=4, do_sample=False,
            pad_token_id=0, **options,
        )  # fmt: skip
        trace = applied.trace()
    assert trace.strengths[-1].tolist() == [[0, 0, 1, 2, 3, 4, 5], [*range(1, 8)]]


def test_where_nobody_asks_for_places_a_model_may_be_given_anything(model: Any) -> None:
    """As a wrapper does that hands on what it was given in an argument of its own."""

    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(WIDTH, WIDTH)

        def forward(self, states: Tensor) -> Tensor:
            return self.layer(states)

    odd, states = Odd(), torch.randn(1, 2, WIDTH)
    (site,) = dsas.find_sites(odd, "layer")
    steering = dsas.Steering(
        [dsas.Rule(site, dsas.Addition(torch.ones(WIDTH)), dsas.Constant())], ModelIdentity.of(odd)
    )
    plain = odd(states)
    with steering.apply(odd, record=False):
        torch.testing.assert_close(odd(states), plain + 1)
    with steering.apply(odd), pytest.raises(dsas.OptionError, match="without input_ids"):
        odd(states)
