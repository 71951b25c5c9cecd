"""Evidence and probe against the golden numbers; how evidence adds up; and where its threshold lies."""

from typing import Any

import numpy as np
import pytest
import torch
from makers import check_golden_regulator, random_steering
from torch import Tensor

import dsas
from dsas.errors import OptionError
from dsas.methods.linear_boundary import Labelled, held_out_accuracy, separate_ridge
from dsas.methods.tuned_boundary import TokenScores, Tuning
from dsas.model.forward_pass import ForwardPass
from dsas.model.sequence import Sequences
from dsas.testing import tiny_model, tiny_tokenizer


def by_hand(regulator: dsas.Evidence, t: Tensor) -> np.ndarray:
    """Return what one row gives, token by token, in float64."""
    scores = t.double().numpy() @ regulator.theta.double().numpy() + float(regulator.bias)
    values = [0.0]
    for place in range(1, len(scores)):
        weights = regulator.memory ** np.arange(place - 1, -1, -1)
        evidence = weights @ scores[1 : place + 1] / (weights.sum() + regulator.prior)
        values.append(1 / (1 + np.exp(float(regulator.cut) - evidence)))
    return np.array(values)


@pytest.mark.parametrize("memory", [1.0, 0.9, 0.0])
def test_a_long_row_is_what_a_loop_over_its_tokens_gives_whole_and_in_chunks(memory: float) -> None:
    regulator = dsas.Evidence(torch.randn(8), torch.tensor(0.3), torch.tensor(-0.2), 2.0, memory)
    t = torch.randn(1, 200, 8)
    whole = regulator(t, ForwardPass(1, 200))
    np.testing.assert_allclose(whole[0, :, 0].numpy(), by_hand(regulator, t[0]), atol=1e-5)
    history, found = Sequences(1), []
    for start, end in ((0, 70), (70, 71), (71, 200)):
        history.begin(start, end - start)
        found.append(regulator(t[:, start:end], ForwardPass(1, end - start, past=start, history=history)))
        history.end()
    torch.testing.assert_close(torch.cat(found, 1), whole)


def test_by_turn_the_next_prompt_begins_with_no_evidence() -> None:
    arguments = torch.randn(4), torch.tensor(0.0), torch.tensor(0.0), 4.0, 1.0
    t, history = torch.randn(1, 9, 4), Sequences(1)
    found: dict[bool, list[Tensor]] = {True: [], False: []}
    for start, end in ((0, 4), (4, 5), (5, 9)):  # a prompt, a token that was generated, the next prompt
        history.begin(start, end - start)
        for by_turn, values in found.items():
            step = ForwardPass(1, end - start, past=start, history=history).part(int(by_turn))
            values.append(dsas.Evidence(*arguments, by_turn=by_turn)(t[:, start:end], step))
        history.end()
    torch.testing.assert_close(torch.cat(found[False], 1), dsas.Evidence(*arguments)(t, ForwardPass(1, 9)))
    torch.testing.assert_close(found[True][0], found[False][0])
    padded = torch.cat([torch.zeros(1, 1, 4), t[:, 5:]], 1)  # its tokens, all of them after a row's first
    alone = dsas.Evidence(*arguments)(padded, ForwardPass(1, 5))[:, 1:]
    torch.testing.assert_close(found[True][2], alone)


@pytest.mark.parametrize("method", [dsas.Evidence, dsas.Probe])
def test_the_mean_over_tokens_of_texts_left_out_is_the_share_that_was_asked_for(method: Any) -> None:
    """Tokens that scatter ten times as much as the means of their texts: the cut by pooled vectors is far too low."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(120, 30, 16, generator=generator)
    source, control = tokens[:60] + 0.6, tokens[60:]
    fitted = method.fit(source.mean(1), control.mean(1), control.mean(1), false_positives=0.05)
    folds = fitted.untuned.held_out
    scores = [
        folds.boundaries[fold].scores(text.double().numpy())
        for text, fold in zip(
            tokens + torch.cat([torch.full((60, 1, 1), 0.6), torch.zeros(60, 1, 1)]), folds.folds, strict=True
        )
    ]
    tuned = fitted.untuned.tune(TokenScores(scores[:60], scores[60:]))
    assert np.concatenate(tuned.values.control).mean() == pytest.approx(0.05, abs=1e-6)

    def mean(regulator: dsas.Regulator, t: Tensor) -> float:
        # a token before each row, which is not counted
        whole = torch.cat([torch.zeros(len(t), 1, 16), t], 1)
        return float(regulator(whole, ForwardPass(*whole.shape[:2]))[:, 1:].mean())

    fresh = torch.randn(300, 30, 16, generator=generator)
    assert mean(tuned.regulator, fresh) == pytest.approx(0.05, abs=0.015)
    assert mean(tuned.regulator, fresh + 0.6) > 0.4
    if method is dsas.Probe:
        assert mean(fitted.regulator, fresh) > 0.15


def test_tokens_of_one_text_are_left_out_together_and_each_text_knows_the_boundary_drawn_without_it() -> None:
    """The last text has no token, and the tokens of each come in two pieces."""
    groups = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 8, 4, 5, 6, 8])
    x = torch.randn(16, 3) + torch.tensor([1.0] * 8 + [0.0] * 8).unsqueeze(-1)
    held_out = dsas.Evidence.fit(x[:8], x[8:], x[8:], groups=groups).untuned.held_out
    assert held_out.folds.shape == (9,)
    assert held_out.accuracy == held_out_accuracy(Labelled.of(x[:8], x[8:]), separate_ridge, groups=groups.numpy())
    for text in set(groups.tolist()):
        others = groups != text
        boundary = held_out.boundaries[int(held_out.folds[text])]
        fold = [one for one in set(groups.tolist()) if held_out.folds[one] == held_out.folds[text]]
        left = ~torch.isin(groups, torch.tensor(fold))
        assert not bool((left & ~others).any())
        drawn = separate_ridge(Labelled(x[left].double().numpy(), np.repeat([1, 0], 8)[left.numpy()]))
        np.testing.assert_allclose(boundary.theta, drawn.theta, atol=1e-9)


def test_what_is_tuned_does_not_depend_on_the_units_of_the_scores() -> None:
    scores = TokenScores(
        *(list(np.random.default_rng(seed).normal(shift, 2, (5, 12))) for seed, shift in ((0, 1), (1, 0)))
    )
    boundary = dsas.Probe.fit(torch.randn(8, 4) + 1, torch.randn(8, 4), torch.randn(2, 4)).untuned
    one = boundary.tune(scores).values
    other = boundary.tune(scores.mapped(lambda own: 50 * own - 7)).values
    np.testing.assert_allclose(np.stack(one.source), np.stack(other.source), atol=1e-9)


def test_sets_that_are_alike_fire_at_the_share_asked_for_everywhere() -> None:
    same = torch.ones(8, 16)
    fitted = dsas.Probe.fit(same, same, same)
    assert fitted.accuracy == 0.5
    torch.testing.assert_close(fitted.regulator(same[None], ForwardPass(1, 8)), torch.full((1, 8, 1), 0.02))


@pytest.mark.parametrize(
    "options", [{"false_positives": 0.0}, {"false_positives": 1.0}, {"sharpness": 0.0}, {"inverse_penalty": 0.0}]
)
def test_settings_outside_their_ranges_are_refused(options: dict[str, float]) -> None:
    for method in (dsas.Evidence, dsas.Probe):
        with pytest.raises(OptionError, match=r"expected 0 < false_positives < 1|inverse_penalty must be > 0"):
            method.fit(torch.randn(6, 4), torch.randn(6, 4), torch.randn(6, 4), **options)  # type: ignore
    for prior, memory in ((-1.0, 1.0), (1.0, 1.5)):
        with pytest.raises(OptionError, match="expected prior >= 0 and 0 <= memory <= 1"):
            dsas.Evidence(torch.randn(4), torch.tensor(0.0), torch.tensor(0.0), prior, memory)
        with pytest.raises(OptionError, match="prior >= 0 and 0 <= memory <= 1"):
            Tuning(prior=prior, memory=memory).check()


@pytest.mark.parametrize("memory", [1.0, 0.9])
def test_projection_cut_values_and_accuracy_are_those_of_the_reference(memory: float) -> None:
    check_golden_regulator(dsas.Evidence, f"evidence {memory}", tolerance=1e-2)


def test_a_probe_s_numbers_are_those_of_the_reference() -> None:
    check_golden_regulator(dsas.Probe, "probe", tolerance=1e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("memory", [1.0, 0.8])
def test_the_short_way_and_the_general_one_steer_models_of_other_dtypes_alike(
    dtype: torch.dtype, memory: float
) -> None:
    model = tiny_model().to(dtype)
    steering = random_steering(model)
    rules = [
        rule._replace(
            regulator=dsas.Evidence(rule.regulator.theta, rule.regulator.bias, torch.tensor(0.2), 2.0, memory)
        )
        for rule in steering.rules
    ]
    ids, mask = torch.randint(1, 60, (2, 70)), torch.ones(2, 70, dtype=torch.long)
    mask[1, :5] = 0
    found = []
    for record in (True, "doses"):  # doses go the general way
        with torch.no_grad(), dsas.Steering(rules, steering.model).apply(model, 0.5, record=record) as applied:
            model(ids, attention_mask=mask)
        found.append(applied.trace().strengths)
    torch.testing.assert_close(*found, rtol=0, atol=1e-5 if dtype == torch.float64 else 2e-2)
    assert float(found[0].std()) > 0.01


def test_what_each_token_says_by_itself_is_recorded_beside_what_the_row_so_far_says() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    steering = random_steering(model)
    rules = [
        rule._replace(regulator=dsas.Evidence(rule.regulator.theta, rule.regulator.bias, torch.tensor(0.2)))
        for rule in steering.rules[:2]
    ]
    rules = [rules[0], rules[1], steering.rules[2]]
    mixed = dsas.Steering(rules, steering.model)
    trace = dsas.explain(model, tokenizer, mixed, text="Who goes there?", strength=0.5)
    assert trace.alone is not None
    assert trace.regulators is not None
    ids = torch.tensor([tokenizer("Who goes there?")["input_ids"]])
    found: list[Tensor] = []
    hook = model.model.layers[0].register_forward_hook(lambda _m, _a, out: found.append(out))
    with torch.no_grad():
        model(ids)
    hook.remove()
    first = rules[0].regulator
    torch.testing.assert_close(trace.alone[0, 0], torch.sigmoid(found[0][0] @ first.theta + first.bias - first.cut))
    assert not torch.equal(trace.alone[0], trace.regulators[0])
    assert torch.equal(trace.alone[2], trace.regulators[2])  # a logistic one has nothing but the token
    assert set(trace.row().values) == {"strength", "regulator", "dose", "alone"}
    assert dsas.explain(model, tokenizer, steering, text="Who?", strength=0.5).alone is None
