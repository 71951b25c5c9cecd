"""Fit: what it returns for known activations, what it selects, and which texts and options it refuses."""

import threading
import warnings
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from makers import hooks_on, random_steering, unchecked
from torch import Tensor

import dsas
from dsas.errors import DsasWarning, OptionError, TextsError
from dsas.model.forward_pass import ForwardPass
from dsas.model.identity import ModelIdentity
from dsas.regulators.base import FittedRegulator
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.testing.models import WIDTH

SOURCE, CONTROL, TARGET = ([f"{start} {n}" for n in range(6)] for start in ("SHUT UP", "the door", "thank you"))


def fit(model: Any = None, **options: Any) -> dsas.Steering:
    sets = {"source": SOURCE, "control": CONTROL, "target": TARGET}
    model = tiny_model() if model is None else model
    return dsas.fit(model, tiny_tokenizer(), **{**sets, "progress": False, **options})


def marked(span: tuple[int, int]) -> list[dsas.Example]:
    return [dsas.Example(text, (span,)) for text in SOURCE]


def words(letters: str, count: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return ["".join(random.choice(list(letters), size=12)) for _ in range(count)]


def test_a_direction_planted_in_the_embeddings_is_found_and_only_texts_that_hold_it_are_steered() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    direction = torch.nn.functional.normalize(torch.randn(WIDTH), dim=0)
    upper = torch.tensor(tokenizer("ABCDEFGHIJ")["input_ids"])
    model.model.embed_tokens.weight.data[upper] += 3.0 * direction
    site = dsas.Site("model.embed_tokens")
    steering = fit(model, source=words("ABCDEFGHIJ", 24, 0), control=words("abcdefghij", 24, 1),
                   target=words("abcdefghij", 24, 2), sites=site)  # fmt: skip
    (rule,) = steering.rules
    assert rule.accuracy == 1.0
    vector = rule.transform.get_buffer("vector")
    assert float(vector @ direction) == pytest.approx(-3.0, abs=0.5)
    assert float(vector @ direction / vector.norm()) < -0.95
    for text, least, most in (("ABCDEFGHIJ" * 2, 0.9, 1.0), ("abcdefghij" * 2, 0.0, 0.1)):
        with steering.apply(model) as applied, torch.no_grad():
            model(torch.tensor([tokenizer(text)["input_ids"]]))
        strengths = applied.trace().strengths[:, :, 1:]  # evidence begins with the second token
        assert least <= float(strengths.mean()) <= most
        assert bool(((strengths > 0.5) == (least > 0.5)).all())


def test_the_vector_is_the_difference_of_means_of_the_embeddings_but_the_first_taken_by_hand() -> None:
    model, tokenizer, site = tiny_model(), tiny_tokenizer(), dsas.Site("model.embed_tokens")
    table = model.model.embed_tokens.weight.detach().double().numpy()
    means = [
        np.mean([table[tokenizer(text)["input_ids"][1:]].mean(0) for text in texts], 0) for texts in (SOURCE, TARGET)
    ]
    vector = fit(model, sites=site).rules[0].transform.get_buffer("vector").numpy()
    np.testing.assert_allclose(vector, means[1] - means[0], rtol=1e-4, atol=1e-6)


def test_a_text_twice_in_a_set_counts_twice() -> None:
    model, site = tiny_model(), dsas.Site("model.layers.0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twice = fit(model, source=[*SOURCE, SOURCE[0], SOURCE[0]], sites=site).rules[0].transform.get_buffer("vector")
    once = fit(model, sites=site).rules[0].transform.get_buffer("vector")
    alone = fit(model, source=SOURCE[:1] * 4, sites=site).rules[0].transform.get_buffer("vector")
    torch.testing.assert_close(8 * twice, 6 * once + 2 * alone, rtol=1e-4, atol=1e-4)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_the_settings_say_how_it_was_made() -> None:
    settings = fit(regulator="constant", selection="smooth", reading=dsas.Reading(batch_size=3)).settings
    assert settings == {
        "transform": "caa",
        "regulator": "constant",
        "selection": "smooth",
        "texts": {"source": 6, "control": 6, "target": 6},
        "examples": "text",
        "reading": {"tokens": "auto", "skip_sinks": True, "batch_size": 3, "max_tokens": 512},
        "fitted": "at once",
        "labels": "texts",
    }
    assert fit(selection=dsas.Threshold(0.6)).settings["selection"] == "threshold 0.6"
    incremental = dsas.Reading(incremental=True)
    product = fit(regulator="logistic * posterior", selection=dsas.Top(2), reading=incremental).settings
    assert (product["regulator"], product["selection"]) == ("logistic*posterior", "top 2")
    assert product["fitted"] == "incrementally"


@pytest.mark.parametrize("least", [75.0, -0.1, float("nan")])
def test_selections_of_impossible_values_are_refused(least: float) -> None:
    with pytest.raises(OptionError, match="a threshold is an accuracy from 0 to 1, got"):
        dsas.Threshold(least)
    with pytest.raises(OptionError, match="Top needs a count of at least 1, got 0"):
        dsas.Top(0)


def test_without_a_target_the_control_texts_are_the_target_and_that_is_said() -> None:
    with pytest.warns(DsasWarning, match="no target texts were given: the control texts are the target"):
        without = fit(target=None)
    assert without.digest() == fit(target=CONTROL).digest() != fit().digest()


@pytest.mark.parametrize("name", ["control", "target"])
def test_identical_sets_are_refused_in_whatever_order_and_shared_texts_are_counted(name: str) -> None:
    with pytest.raises(TextsError, match=f"source and {name} hold the same texts: nothing distinguishes them"):
        fit(**{name: SOURCE[::-1]})
    with pytest.warns(DsasWarning, match=f"2 texts are both in source and in {name}, for example 'SHUT UP 0'"):
        fit(**{name: [*CONTROL, *SOURCE[:2]]})


@pytest.mark.parametrize("name", ["source", "control", "target"])
def test_a_set_that_is_too_small_or_holds_an_empty_text_is_refused_by_name(name: str) -> None:
    with pytest.raises(TextsError, match=f"{name} must hold at least 4 texts, got 3"):
        fit(**{name: ["a", "b", "c"]})
    with pytest.raises(TextsError, match=rf"{name}\[1\] must be a text that is not empty"):
        fit(**{name: ["a", "", "c", "d"]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": "cca"}, "unknown transform 'cca'; closest: 'caa'"),
        ({"regulator": "logistics"}, "unknown regulator 'logistics'; closest: 'logistic'"),
        ({"selection": "tpo"}, "unknown selection 'tpo'; closest: 'top'"),
        ({"regulator": "logistic*nothing"}, "unknown regulator 'nothing'; closest: "),
        ({"regulator": "product"}, "write a product as the names of its factors"),
        ({"transform": torch.nn.ReLU()}, r"got a bare ReLU; wrap it as dsas.Custom\(module\)"),
        ({"regulator": torch.nn.ReLU()}, "a ReLU is not a regulator: make it a subclass of dsas.Regulator"),
    ],
)
def test_unknown_methods_and_options_are_refused_before_the_model_runs(options: Any, message: str) -> None:
    sets = {"source": SOURCE, "control": CONTROL, "target": TARGET}
    with pytest.raises(OptionError, match=message):
        unchecked(dsas.fit)(torch.nn.Identity(), None, **sets, **options)


def test_a_method_may_be_a_function_with_the_signature_of_fit() -> None:
    one = fit(regulator=partial(dsas.Logistic.fit, components=1))
    again = fit(regulator=partial(dsas.Logistic.fit, components=1), transform=dsas.Addition.fit)
    assert one.digest() == again.digest() != fit().digest()
    assert again.settings["transform"] == "caa"


def of_accuracy(value: float | None) -> Any:
    def made(source: Tensor, control: Tensor, target: Tensor) -> FittedRegulator:
        return FittedRegulator(dsas.Constant(), value)

    return made


@pytest.mark.parametrize(
    ("accuracy", "selection", "weight"),
    [
        (0.75, "threshold", 1.0),
        (0.9, "threshold", 1.0),
        (0.9, "smooth", 0.8),
        (0.75, "smooth", 0.5),
        (0.1, "all", 1.0),
        (None, "threshold", 1.0),
        (None, "smooth", 1.0),
    ],
)
def test_the_weight_of_a_site_follows_from_its_held_out_accuracy(
    accuracy: float | None, selection: Any, weight: float
) -> None:
    for rule in fit(regulator=of_accuracy(accuracy), selection=selection).rules:
        assert rule.weight == pytest.approx(weight)
        assert rule.accuracy == accuracy


@pytest.mark.parametrize(("accuracy", "selection"), [(0.7499, "threshold"), (0.5, "smooth"), (0.3, "smooth")])
def test_when_no_site_is_selected_a_warning_says_so_and_nothing_is_steered(accuracy: float, selection: Any) -> None:
    with pytest.warns(
        DsasWarning, match=r"best held-out accuracy 0\.\d\d, selection '\w+( 0.75)?'\): nothing will be steered"
    ):
        steering = fit(regulator=of_accuracy(accuracy), selection=selection)
    assert [rule.weight for rule in steering.rules] == [0.0] * 3


def test_a_fit_goes_on_from_a_checkpoint_and_gives_the_same_steering(tmp_path: Any) -> None:
    model, passes = tiny_model(), []
    expected = fit(model).digest()
    model.model.register_forward_pre_hook(lambda *_: passes.append(1))
    assert fit(model, checkpoint=tmp_path).digest() == expected
    ran = len(passes)
    assert fit(model, checkpoint=tmp_path).digest() == expected
    assert ran == len(passes) > 0


def test_the_best_sites_are_steered_and_their_accuracy_is_measured_if_the_regulator_learns_nothing() -> None:
    for regulator in ("logistic", "constant"):
        rules = fit(regulator=regulator, selection=dsas.Top(1), sites=["residual", "mlp"]).rules
        (chosen,) = [rule for rule in rules if rule.weight > 0]
        assert chosen.accuracy == max(rule.accuracy or 0.0 for rule in rules)
        assert len(rules) == 6


def test_heads_are_fitted_one_by_one_at_the_input_of_the_output_projection() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    seen: list[Tensor] = []
    model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda _module, args: seen.append(args[0][0]))
    for text in (*SOURCE, *TARGET):
        with torch.no_grad():
            model(torch.tensor([tokenizer(text)["input_ids"]]))
    pooled = torch.stack([t[1:].double().mean(0) for t in seen])
    expected = pooled[len(SOURCE) :].mean(0) - pooled[: len(SOURCE)].mean(0)
    model = tiny_model()
    steering = fit(model, sites="heads", transform="caa", regulator="constant", reading=dsas.Reading(skip_sinks=True))
    rules = [rule for rule in steering.rules if rule.site.path.startswith("model.layers.1.")]
    assert [str(rule.site) for rule in rules] == [f"model.layers.1.self_attn.o_proj@input#{h}/4" for h in range(4)]
    found = torch.cat([rule.transform.get_buffer("vector") for rule in rules]).double()
    assert float((found - expected).norm() / expected.norm()) < 0.2  # sinks by norm are left out as well


def by_hand(model: Any, transform: str, regulator: str) -> list[dsas.Rule]:
    """Fit incrementally as the definition has it: a new pass for every site, with the rules so far applied."""
    rules: list[dsas.Rule] = []
    for layer in range(3):
        site = f"model.layers.{layer}"
        unsteered = fit(model, sites=site, transform=Keep.fit, regulator="constant").rules[0].transform
        goal = unsteered.get_buffer("target")
        steering = dsas.Steering(rules, ModelIdentity.of(model)) if rules else None
        with steering.apply(model) if steering else nullcontext():
            both = fit(model, sites=site, target=CONTROL, transform=Keep.fit, regulator="constant").rules[0].transform
        source, control = both.get_buffer("source"), both.get_buffer("target")
        fitted = dsas.REGULATORS[regulator].fit(source, control, goal)
        rules.append(
            dsas.Rule(dsas.Site(site), dsas.TRANSFORMS[transform].fit(source, goal), fitted.regulator, 1.0, None)
        )
    return rules


class Keep(dsas.Transform):
    """Keeps what it was fitted on."""

    def __init__(self, source: Tensor, target: Tensor) -> None:
        super().__init__()
        self.keep(source=source, target=target)

    @classmethod
    def fit(cls, source: Tensor, target: Tensor) -> "Keep":
        return cls(source, target)

    def edit(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)


@pytest.mark.filterwarnings("ignore:a Steering is applied to this model")
@pytest.mark.parametrize(("transform", "regulator"), [("linear-act", "constant"), ("caa", "logistic"), ("caa", "cast")])
def test_an_incremental_fit_is_that_of_one_site_after_another_in_one_pass(transform: str, regulator: str) -> None:
    model = tiny_model()
    expected, passes = by_hand(model, transform, regulator), []
    model.model.register_forward_pre_hook(lambda *_: passes.append(1))
    reading = dsas.Reading(batch_size=4, incremental=True)
    steering = fit(model, transform=transform, regulator=regulator, selection="all", reading=reading)
    assert len(passes) == 3 + 2  # source and control in three batches, target in two, each once
    at_once = fit(tiny_model(), transform=transform, regulator=regulator, selection="all")
    for rule, by_definition, other in zip(steering.rules, expected, at_once.rules, strict=True):
        for method, same in ((rule.transform, by_definition.transform), (rule.regulator, by_definition.regulator)):
            for name, value in method.state_dict().items():
                torch.testing.assert_close(value, same.state_dict()[name], rtol=2e-3, atol=2e-3)
        first = rule.site.path.endswith("0")
        values = zip(rule.transform.buffers(), other.transform.buffers(), strict=True)
        assert first == all(torch.allclose(value, plain, rtol=1e-3, atol=1e-3) for value, plain in values)


def test_an_interrupted_incremental_fit_leaves_no_hook_and_no_thread() -> None:
    model, threads, hooks = tiny_model(), threading.active_count(), hooks_on(tiny_model())

    def interrupt(source: Tensor, target: Tensor) -> dsas.Transform:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, transform=interrupt, reading=dsas.Reading(batch_size=2, incremental=True))
    assert (threading.active_count(), hooks_on(model), model.training) == (threads, hooks, False)


def test_an_error_inside_the_model_ends_an_incremental_fit_with_that_error() -> None:
    model = tiny_model()

    def fail(*_arguments: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise ZeroDivisionError

    model.model.layers[2].register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        fit(model, reading=dsas.Reading(incremental=True), sites=["model.layers.0", "model.layers.2"])
    assert hooks_on(model) == 1


def test_with_spans_the_regulator_learns_from_tokens_and_finds_those_that_texts_alone_cannot_tell() -> None:
    """Every source text is half plain; labels of whole texts would have the plain half count as unwanted, too."""
    model, tokenizer, site = tiny_model(), tiny_tokenizer(), dsas.Site("model.embed_tokens")
    plain, loud = words("abcdefghij", 24, 0), words("ABCDEFGHIJ", 24, 1)
    source = [dsas.Example(one + two, ((12, 24),)) for one, two in zip(plain, loud, strict=True)]
    sets = {"source": source, "control": words("abcdefghij", 24, 2), "target": words("abcdefghij", 24, 3)}
    rule = fit(model, **sets, sites=site, regulator=partial(dsas.Logistic.fit, components=20)).rules[0]
    assert (rule.accuracy or 0.0) > 0.95
    table = model.model.embed_tokens(torch.arange(257)[None])
    answers = rule.regulator(table, ForwardPass(1, 257))[0, :, 0].detach()
    capitals, small = (tokenizer(letters)["input_ids"] for letters in ("ABCDEFGHIJ", "abcdefghij"))
    assert float(answers[capitals].min()) > 0.5 > float(answers[small].max())


@pytest.mark.parametrize("name", ["evidence", "probe"])
def test_with_spans_a_tuned_boundary_is_drawn_between_tokens_and_still_fires_as_seldom_as_was_asked(name: str) -> None:
    """Plain letters stand in source and control alike, so that means of texts put half of their weight on them."""
    model, site = tiny_model(), dsas.Site("model.embed_tokens")
    plain, loud = words("abcdefghij", 24, 0), words("ABCDEFGHIJ", 24, 1)
    source = [dsas.Example(one + two, ((12, 24),)) for one, two in zip(plain, loud, strict=True)]
    sets = {"source": source, "control": words("abcdefghij", 24, 2), "target": words("abcdefghij", 24, 3)}
    steering = fit(model, **sets, sites=site, regulator=name)
    assert (steering.rules[0].accuracy or 0.0) > 0.95
    assert steering.settings["labels"] == "tokens"
    held = steering.settings["held_out_tokens"]
    assert held["control"] == pytest.approx(0.02, abs=1e-3)
    assert held["source"] > 0.3
    assert held["texts"] == [24, 24]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"source": marked((3, 99))}, TextsError, r"source\[0\]: expected spans with 0 <= start < stop <= the length"),
        ({"source": marked((3, 3))}, TextsError, r"source\[0\]: expected spans .* got \(3, 3\)"),
        (
            {"control": [dsas.Example("the door", ((0, 2),))] * 4},
            TextsError,
            "a source text shows the behaviour; remove those of control",
        ),
        (
            {"source": marked((0, 2)), "reading": dsas.Reading(incremental=True)},
            OptionError,
            "without incremental=True",
        ),
        ({"source": marked((0, 2)), "regulator": "cast"}, OptionError, "cannot learn from spans.*use 'logistic'"),
    ],
)
def test_spans_that_cannot_be_used_are_refused(options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        fit(**options)


@pytest.mark.compile
def test_a_compiled_model_is_fitted_as_the_model_it_wraps() -> None:
    model, compiled = tiny_model(), torch.compile(tiny_model(), backend="eager")
    assert fit(compiled).digest() == fit(model).digest()


def test_a_fit_of_a_model_that_is_steered_just_now_says_so_and_afterwards_no_more() -> None:
    model = tiny_model()
    first = fit(model, selection="all")
    with (
        first.apply(model, 0.5),
        pytest.warns(dsas.DsasWarning, match="a Steering is applied to this model at 4 modules, so its activations"),
    ):
        inside = fit(model, selection="all")
    paths = ["model", *(f"model.layers.{number}" for number in range(3))]
    assert inside.settings["read while steered at"] == paths
    assert fit(model, selection="all").settings == first.settings


@pytest.mark.parametrize("regulator", [dsas.Constant(), None], ids=["folded", "wrapped"])
def test_a_fit_of_a_model_that_a_steering_is_fused_into_says_so_too(regulator: Any) -> None:
    model = tiny_model()
    with (
        random_steering(model, [1], regulator=regulator).fuse(model, 0.5),
        pytest.warns(dsas.DsasWarning, match="at 1 modules, so its activations are steered; leave it before fitting"),
    ):
        inside = fit(model, selection="all")
    assert inside.settings["read while steered at"] == ["model.layers.1"]
    assert "read while steered at" not in fit(model, selection="all").settings


def test_what_is_fitted_without_gradients_can_be_trained_later() -> None:
    with torch.inference_mode():
        steering = fit(tiny_model(), selection="all")
    tensors = [value for rule in steering.rules for value in (*rule.transform.buffers(), *rule.regulator.buffers())]
    assert [value for value in tensors if value.is_inference()] == []
