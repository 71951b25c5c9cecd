"""CAST against the golden numbers; which side of its threshold steers; and how long a row's decision is held."""

from typing import Any

import numpy as np
import pytest
import torch
from makers import check_golden_regulator, golden, random_steering
from torch import Tensor

import dsas
from dsas.model.forward_pass import ForwardPass
from dsas.model.sequence import Sequences
from dsas.regulators.cast import best_cut, similarity
from dsas.testing import tiny_model
from dsas.testing.models import WIDTH
from dsas.testing.passes import padded

ALONG = torch.tensor([1.0, 0.0])  # a token (1, y) is as similar to this as the cosine of its angle, about
YES, NO = torch.tensor([1.0, 0.1]), torch.tensor([0.1, 1.0])


def row(*tokens: Tensor) -> Tensor:
    return torch.stack(tokens)[None]


def cast(**options: Any) -> dsas.Cast:
    return dsas.Cast(ALONG, torch.tensor(0.5), **options)


ONE = cast()


def cast_of(history: Sequences, t: Tensor, past: int) -> list[float]:
    """Return what one and the same object says of the next tokens of a sequence."""
    history.begin(past, t.shape[1])
    found = ONE(t, ForwardPass(*t.shape[:2], past=past, history=history)).flatten().tolist()
    history.end()
    return found


def test_direction_threshold_side_and_decisions_are_those_of_the_reference() -> None:
    regulator = check_golden_regulator(dsas.Cast, "cast")
    condition = regulator.get_buffer("condition").double().numpy()
    expected = golden()["regulators"]["cast"]["fitted"]["projector"]  # the sign is of no account
    np.testing.assert_allclose(np.outer(condition, condition), expected, atol=1e-5)


def test_the_similarity_is_the_cosine_to_the_squashed_projection_whatever_the_length_of_the_condition() -> None:
    m, condition = torch.randn(7, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    projected = np.outer(condition, condition) / float(condition @ condition) @ m.numpy().T
    squashed = np.tanh(projected).T
    cosines = (m.numpy() * squashed).sum(1) / np.linalg.norm(m, axis=1) / np.linalg.norm(squashed, axis=1)
    for factor in (1.0, -1.0, 30.0):
        np.testing.assert_allclose(similarity(m, factor * condition).numpy(), cosines, rtol=1e-12)


def test_a_decision_on_the_prompt_is_held_for_every_generated_token_whatever_it_is() -> None:
    history = Sequences(1)
    assert cast_of(history, row(NO, YES, YES), 0) == [0, 1, 1]
    for past in (3, 4, 5):
        assert cast_of(history, row(NO), past) == [1.0]
    history = Sequences(1)
    assert cast_of(history, row(YES, NO, NO), 0) == [0, 0, 0]
    for past in (3, 4):
        assert cast_of(history, row(10 * YES), past) == [0.0]


def test_the_decision_held_is_that_of_the_whole_prompt_and_not_of_its_last_token() -> None:
    history = Sequences(1)
    assert cast_of(history, row(NO, 3 * YES, 0.5 * NO), 0) == [0, 1, 1]
    assert cast_of(history, row(30 * NO, NO), 3) == [0.0, 0.0]  # a second chunk of the prompt changes the mean


def test_a_prompt_in_chunks_is_decided_on_as_in_one_piece() -> None:
    regulator = dsas.Cast(torch.randn(8), torch.tensor(0.4))
    t = torch.randn(5, 12, 8) + 0.3
    whole = regulator(t, ForwardPass(5, 12, history=Sequences(5, prompt_tokens=torch.tensor([9]))))
    assert 0 < float(whole.mean()) < 1
    history, found, past = Sequences(5, prompt_tokens=torch.tensor([9])), [], 0
    for piece in t.split([4, 1, 3, 1, 2, 1], dim=1):
        history.begin(past, piece.shape[1])
        found.append(regulator(piece, ForwardPass(5, piece.shape[1], past=past, history=history)))
        past += piece.shape[1]
    assert torch.equal(torch.cat(found, dim=1), whole)
    assert torch.equal(whole[:, 9:], whole[:, 8:9].expand(-1, 3, -1))  # held from the prompt's end on


def test_a_new_sequence_knows_nothing_of_the_one_before() -> None:
    history = Sequences(1)
    assert cast_of(history, row(YES, YES, YES), 0) == [0, 1, 1]
    assert cast_of(history, row(NO, NO, NO), 0) == [0, 0, 0]
    assert cast_of(Sequences(1), row(NO), 3) == [0.0]  # and a history of its own has no memory either


def test_two_sites_with_one_regulator_do_not_share_a_decision() -> None:
    history, regulator = Sequences(1), cast()
    history.begin(0, 2)
    for site, token in enumerate((YES, NO)):
        forward_pass = ForwardPass(1, 2, history=history)
        forward_pass.site = site
        regulator(row(token, token), forward_pass)
    history.begin(2, 1)
    for site, expected in enumerate((1.0, 0.0)):
        forward_pass = ForwardPass(1, 1, past=2, history=history)
        forward_pass.site = site
        assert float(regulator(row(NO), forward_pass)) == expected


def test_padding_and_the_first_real_token_do_not_count() -> None:
    noise = 100 * NO
    for tokens, mask in (((noise, noise, noise, YES), [0, 0, 1, 1]), ((noise, YES, noise, noise), [1, 1, 0, 0])):
        values = cast()(row(*tokens), ForwardPass(1, 4, mask=torch.tensor([mask]))).flatten()
        assert values[torch.tensor(mask, dtype=torch.bool)].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("above", [True, False])
def test_smaller_never_means_larger(above: bool) -> None:
    """With `above` False the rows below the threshold are steered, and no row that lies above it."""
    regulator, threshold = dsas.Cast(ALONG, torch.tensor(0.5), above=above), 0.5
    angles = torch.linspace(0.01, 1.56, 50)
    tokens = torch.stack([angles.cos(), angles.sin()], dim=1)
    values = regulator(tokens[:, None].expand(-1, 2, -1), ForwardPass(50, 2))[:, 1, 0]
    assert torch.equal(values == 1, (angles.cos() > threshold) == above)


@pytest.mark.parametrize("source_is_similar", [True, False])
def test_the_side_that_is_steered_is_the_one_on_which_the_source_lies(source_is_similar: bool) -> None:
    """The spread along one axis is the first direction; either set may be the one that lies along it."""
    long = torch.tensor([[8.0, 1.0], [-9.0, 1.0], [9.0, 1.0], [-8.0, 1.0], [7.0, 1.0]])
    short = torch.tensor([[0.1, 1.0], [-0.1, 1.0], [0.2, 1.0], [-0.2, 1.0], [0.0, 1.0]])
    source, control = (long, short) if source_is_similar else (short, long)
    regulator, accuracy = dsas.Cast.fit(source, control, control)
    assert accuracy == 1.0
    assert regulator.above == source_is_similar
    for pooled, expected in ((source, 1.0), (control, 0.0)):
        values = regulator(pooled[:, None].expand(-1, 2, -1), ForwardPass(5, 2))[:, 1]
        assert torch.equal(values, torch.full((5, 1), expected))


def test_the_cut_is_the_best_of_all_by_brute_force() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        values, labels = random.integers(0, 12, size=15) / 4, np.array([1] * 6 + [0] * 9)
        cut, above = best_cut(values, labels)

        def accuracy(cut: float, above: bool, values: Any = values, labels: Any = labels) -> float:
            said = (values > cut) == above
            return (said[labels == 1].mean() + (~said[labels == 0]).mean()) / 2

        middles = (np.unique(values)[1:] + np.unique(values)[:-1]) / 2
        best = max(accuracy(middle, side) for middle in middles for side in (True, False))
        assert accuracy(cut, above) == pytest.approx(best)
        assert cut in middles


def test_samples_that_are_all_alike_give_the_accuracy_of_a_guess() -> None:
    same = torch.ones(6, 4)
    assert dsas.Cast.fit(same, same, same).accuracy == 0.5


@pytest.mark.parametrize("use_cache", [True, False])
def test_in_generation_a_rows_decision_is_the_one_of_its_prompt_alone(use_cache: bool) -> None:
    model: Any = tiny_model()
    rows = [torch.arange(start, start + length) for start, length in ((5, 7), (90, 3), (150, 5), (60, 6))]
    pooled: list[Tensor] = []
    model.model.embed_tokens.register_forward_hook(lambda _m, _i, output: pooled.append(output.detach()))
    for ids in rows:
        model(ids[None])
    condition = torch.randn(WIDTH)
    scores = [float(similarity(t[0, 1:].mean(0), condition)) for t in pooled]
    threshold = torch.tensor(sorted(scores)[1] / 2 + sorted(scores)[2] / 2)
    expected = [float(score > threshold) for score in scores]
    steering = random_steering(model, "model.embed_tokens", regulator=dsas.Cast(condition, threshold))
    inputs = padded(rows, "left", 0)
    with steering.apply(model, prompt_tokens=list(map(len, rows))) as applied:
        model.generate(
            inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=use_cache,
            max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
        trace = applied.trace()
    assert sorted(expected) == [0, 0, 1, 1]
    for number, (ids, decision) in enumerate(zip(rows, expected, strict=True)):
        values = trace.strengths[0, number][trace.real[number]]
        assert values[len(ids) - 1 :].tolist() == [decision] * 4
