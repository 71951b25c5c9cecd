"""Firing: what regulators do on kinds of text, against numbers worked out by hand from known activations."""

import numpy as np
import pytest
import torch
from makers import random_steering
from torch import Tensor
from torch.nn.functional import sigmoid

import dsas
from dsas.evaluation import firing
from dsas.evaluation.firing import FiringReport, fires_on
from dsas.testing import tiny_model, tiny_tokenizer

TEXTS = {"rude": ["You fool", "go away!"], "plain": ["Good day", "How are you?", "Fine"]}


def gates(model: torch.nn.Module, steering: dsas.Steering, text: str) -> Tensor:
    """Return the regulator at every site and token, read from the unsteered hidden states."""
    ids = torch.tensor([tiny_tokenizer()(text)["input_ids"]])
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states[1:]
    found = []
    for rule, state in zip(steering.rules, states, strict=False):
        assert isinstance(rule.regulator, dsas.Logistic)
        found.append(sigmoid(state[0] @ rule.regulator.theta + rule.regulator.bias))
    return torch.stack(found)


def test_values_shares_and_auroc_are_those_of_the_gates_on_the_unsteered_model() -> None:
    model = tiny_model(layers=3)
    steering = random_steering(model, ["model.layers.0", "model.layers.1"])
    report = fires_on(model, tiny_tokenizer(), steering, TEXTS, progress=False)
    expected = {kind: [gates(model, steering, text) for text in texts] for kind, texts in TEXTS.items()}
    means = {}
    for kind, one in zip(TEXTS, report.kinds, strict=True):
        every = torch.cat(expected[kind], dim=1)
        assert (one.kind, one.value.n, one.tokens) == (kind, len(TEXTS[kind]), every.shape[1])
        assert one.value.mean == pytest.approx(float(every.mean()), abs=1e-5)
        assert one.above_half.mean == pytest.approx(float((every > 0.5).float().mean()))
        assert report.by_site[kind] == pytest.approx(every.mean(1).tolist(), abs=1e-5)
        means[kind] = every.mean(0)
    higher = (means["rude"][:, None] > means["plain"]).float().mean()
    assert report.kinds[0].auroc is None
    assert report.kinds[1].auroc is not None
    assert report.kinds[1].auroc.mean == pytest.approx(float(higher))
    assert report.kinds[1].auroc.low <= float(higher) <= report.kinds[1].auroc.high


def test_ties_count_half_and_a_regulator_that_is_constant_tells_nothing_apart_and_is_warned_about() -> None:
    model = tiny_model(layers=1)
    steering = random_steering(model, regulator=dsas.Constant(0.7))
    report = fires_on(model, tiny_tokenizer(), steering, TEXTS, progress=False)
    assert report.kinds[1].auroc is not None
    assert tuple(report.kinds[1].auroc)[:3] == (0.5, 0.5, 0.5)
    assert report.kinds[0].value.mean == pytest.approx(0.7)
    (warning,) = report.warnings()
    assert warning.startswith("fires on plain at 100% of its value on rude")
    assert "control set" in warning


def test_a_text_counts_by_its_tokens_and_intervals_come_from_whole_texts() -> None:
    model = tiny_model(layers=1)
    steering = random_steering(model, regulator=dsas.Schedule("all", 0, 2))
    report = fires_on(model, tiny_tokenizer(), steering, {"mixed": ["ab", "abcdefgh"] * 20}, progress=False)
    found = report.kinds[0].value
    assert found.mean == pytest.approx(4 / 10)  # the first two tokens of each, of 2 and of 8
    draws = np.random.default_rng(1).binomial(40, 0.5, 4000)
    spread = np.quantile(80 / (2 * draws + 8 * (40 - draws)), [0.025, 0.975])
    np.testing.assert_allclose([found.low, found.high], spread, atol=0.02)


def test_nothing_is_steered_while_it_is_measured() -> None:
    model = tiny_model(layers=2)
    steering = random_steering(model)
    both = fires_on(model, tiny_tokenizer(), steering, TEXTS, progress=False)
    alone = dsas.Steering([steering.rules[1]], steering.model)
    second = fires_on(model, tiny_tokenizer(), alone, TEXTS, progress=False)
    assert both.by_site["rude"][1] == pytest.approx(second.by_site["rude"][0], abs=1e-6)


def test_what_cannot_be_measured_is_refused() -> None:
    model = tiny_model(layers=1)
    with pytest.raises(dsas.OptionError, match="at least one kind"):
        fires_on(model, tiny_tokenizer(), random_steering(model), {})
    with pytest.raises(dsas.OptionError, match="weights are all 0"):
        fires_on(model, tiny_tokenizer(), random_steering(model, weight=0.0), TEXTS)
    with pytest.raises(dsas.TextsError):
        fires_on(model, tiny_tokenizer(), random_steering(model), {"none": []})


def test_texts_that_are_cut_are_warned_about_by_kind_and_those_of_the_very_length_are_not() -> None:
    model, tokenizer = tiny_model(layers=1), tiny_tokenizer()
    steering = random_steering(model)
    texts = {"rude": ["abcd", "abc"], "plain": ["abcd", "abcde", "abcdef"]}
    with pytest.warns(dsas.DsasWarning, match=r"^2 of 3 texts of plain were cut to max_tokens=4") as told:
        report = fires_on(model, tokenizer, steering, texts, max_tokens=4, progress=False)
    assert len(told) == 1
    assert [one.tokens for one in report.kinds] == [7, 12]
    answers = [{"prompt": "a long question", "completion": "abcde"}, {"prompt": "another", "completion": "abc"}]
    with pytest.warns(dsas.DsasWarning, match=r"^1 of 2 texts of rude were cut to max_tokens=4"):
        fires_on(model, tokenizer, steering, {"rude": answers}, max_tokens=4, progress=False)


def test_general_text_is_what_the_model_writes_and_is_warned_about_as_any_other_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = ["Good day", "How are you?", "Fine", "Well"]
    monkeypatch.setattr(firing, "general_texts", lambda _model, _tokenizer, n, **_options: written[:n])
    model = tiny_model(layers=1)
    steering = random_steering(model)
    report = firing.general_firing(model, tiny_tokenizer(), steering, TEXTS["rude"] * 9, n=3, progress=False)
    expected = {"source": (TEXTS["rude"] * 2)[:3], "general text": written[:3]}
    assert report == fires_on(model, tiny_tokenizer(), steering, expected, progress=False)
    same = random_steering(model, regulator=dsas.Constant(0.7))
    (warning,) = firing.general_firing(model, tiny_tokenizer(), same, ["You fool"], n=2, progress=False).warnings()
    assert warning.startswith("fires on general text at 100% of its value on source: put texts like these")


def test_a_report_is_plain_data() -> None:
    model = tiny_model(layers=1)
    plain = fires_on(model, tiny_tokenizer(), random_steering(model), TEXTS, progress=False).as_dict()
    assert plain["kinds"][1]["auroc"].keys() == {"mean", "low", "high", "n"}
    assert plain["by_site"].keys() == TEXTS.keys()
    assert isinstance(FiringReport((), (), {}).sites, tuple)
