"""A Steering is never changed: what happened is told by each Applied, what was fitted by the Steering."""

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from makers import Idle, logits_of, random_steering
from pictures import drawn, steered_at

import dsas
from dsas.errors import StateError
from dsas.model.identity import ModelIdentity
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.testing.models import WIDTH
from dsas.testing.pipelines import tiny_pipeline

IDS = torch.tensor([[1, 2, 3]])
TEXTS = {name: [f"{name} {n} over the hills" for n in range(8)] for name in ("tune", "held")}


@contextmanager
def unchanged(steering: dsas.Steering) -> Iterator[None]:
    """Require that nothing that belongs to a Steering is another thing, or has another value, after the block."""
    before, digest, lines = dict(vars(steering)), steering.digest(), steering.report()
    values = copy.deepcopy((steering.settings, steering.calibration))
    tensors = {name: value.clone() for name, value in steering._artifact().tensors.items()}
    yield
    assert vars(steering).keys() == before.keys()
    assert [name for name, value in vars(steering).items() if value is not before[name]] == []
    assert (steering.settings, steering.calibration) == values
    assert all(torch.equal(value, tensors[name]) for name, value in steering._artifact().tensors.items())
    assert steering.digest() == digest
    assert steering.report() == lines


def applying(steering: dsas.Steering, model: Any, _folder: Path) -> None:
    with steering.apply(model, [0.0, 2.0], skip_sinks=True, record="doses") as applied:
        logits_of(model, IDS.repeat(2, 1))
    applied.trace()


def installing(steering: dsas.Steering, model: Any, _folder: Path) -> None:
    applied = steering.apply(model, 3.0).install()
    logits_of(model, IDS)
    applied.remove()


def failing(steering: dsas.Steering, model: Any, _folder: Path) -> None:
    with pytest.raises(IndexError), steering.apply(model):
        model(torch.tensor([[10**6]]))


def fusing(steering: dsas.Steering, model: Any, _folder: Path) -> None:
    with steering.fuse(model, 0.5) as fused:
        logits_of(model, IDS)
    fused.report()


def composing(steering: dsas.Steering, model: Any, _folder: Path) -> None:
    both = steering | steering
    with both.apply(model, (0.5, 1.0)):
        logits_of(model, IDS)
    both.conflicts()


def adding(steering: dsas.Steering, _model: Any, _folder: Path) -> None:
    assert (2.0 * steering + steering).digest() != steering.digest()


def storing(steering: dsas.Steering, _model: Any, folder: Path) -> None:
    steering.save_pretrained(folder / "steering")
    assert dsas.Steering.from_pretrained(folder / "steering").digest() == steering.digest()


def copying(steering: dsas.Steering, model: Any, _folder: Path) -> None:
    with steering.apply(model):
        logits_of(model, IDS)
        for twin in (copy.copy(steering), copy.deepcopy(steering), pickle.loads(pickle.dumps(steering))):
            assert twin.digest() == steering.digest()
            assert vars(twin).keys() == vars(steering).keys()


def telling(steering: dsas.Steering, _model: Any, _folder: Path) -> None:
    steering.report()
    steering.card()
    repr(steering)


def explaining(steering: dsas.Steering, model: Any, _folder: Path) -> None:
    dsas.explain(model, tiny_tokenizer(), steering, prompt="over the hills", generate=3, next_tokens=2)


def calibrating(steering: dsas.Steering, model: Any, _folder: Path) -> None:
    options = {"budget": dsas.Budget("kl", 0.05), "per": "site", "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whether other texts keep the budget is of no account here
        found = dsas.calibrate(model, tiny_tokenizer(), steering, tune=TEXTS["tune"], held_out=TEXTS["held"], **options)
    carried = steering.calibrated(found)
    assert carried is not steering
    assert carried.strength == found.strength


ACTS = [applying, installing, failing, fusing, composing, adding, storing, copying, telling, explaining, calibrating]


@pytest.mark.parametrize("act", ACTS)
def test_nothing_that_is_done_with_a_steering_changes_it(
    act: Callable[[dsas.Steering, Any, Path], None], tmp_path: Path
) -> None:
    model = tiny_model(layers=2)
    steering = random_steering(model)
    with unchanged(steering):
        act(steering, model, tmp_path)


def test_steering_a_pipeline_does_not_change_the_steering() -> None:
    pipeline = tiny_pipeline("sd")
    steering = steered_at(pipeline, "sd", ["unet.mid_block.attentions.0"])
    with unchanged(steering), steering.apply(pipeline, [0.0, 1.0], branch="both") as applied:
        drawn(pipeline, "sd")
        applied.maps()


def test_four_threads_at_once_get_an_applied_each_and_change_nothing() -> None:
    models = [tiny_model(layers=2) for _ in range(4)]
    steering = random_steering(models[0], "model.layers.0", regulator=dsas.Constant())
    found: dict[int, Any] = {}
    together = Barrier(4)

    def run(number: int) -> None:
        for _ in range(5):
            together.wait()
            with steering.apply(models[number], 1.0 + number) as applied:
                logits_of(models[number], torch.ones(1, 2 + number, dtype=torch.long))
            found.setdefault(number, []).append((applied, applied.report()))

    with unchanged(steering):
        threads = [Thread(target=run, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len({id(applied) for each in found.values() for applied, _ in each}) == 20
    for number, each in found.items():
        for _applied, (line,) in each:
            assert (line.mean_strength, line.hits) == (1.0 + number, 2 + number)


def rule(path: str, weight: float = 1.0, accuracy: float | None = None) -> dsas.Rule:
    return dsas.Rule(dsas.Site(path), dsas.Addition(torch.ones(WIDTH)), dsas.Constant(), weight, accuracy)


def test_each_applied_tells_of_itself_and_not_of_the_latest() -> None:
    model = tiny_model()
    steering = dsas.Steering([rule("model.layers.0")], ModelIdentity.of(model))
    with steering.apply(model, 2.0) as first:
        logits_of(model, IDS)
    with steering.apply(model, 0.5) as second:
        logits_of(model, torch.tensor([[1, 2, 3, 4]]))
    assert [(line.mean_strength, line.hits) for line in first.report()] == [(2.0, 3)]
    assert [(line.mean_strength, line.hits) for line in second.report()] == [(0.5, 4)]


def test_what_happened_has_one_line_for_each_rule_and_says_of_those_not_selected_why() -> None:
    model = tiny_model()
    rules = [rule("model.layers.0", 1.0, 0.9), rule("model.layers.1", 0.0, 0.62), rule("model.layers.2", 0.0)]
    steering = dsas.Steering(rules, ModelIdentity.of(model))
    with steering.apply(model, 2.0) as applied:
        logits_of(model, IDS)
    lines = applied.report()
    assert [line.site for line in lines] == [str(one.site) for one in rules]
    assert [(line.mean_strength, line.hits) for line in lines] == [(2.0, 3), (None, None), (None, None)]
    assert [line.status for line in lines] == [
        "steered",
        "not steered: not selected, with a held-out accuracy of 0.62",
        "not steered: its weight is 0",
    ]
    assert [line.status for line in steering.report()] == [line.status for line in lines]


def test_a_site_that_never_fired_is_reported_as_such_and_has_no_strength_not_even_zero() -> None:
    model = Idle()
    applied = random_steering(model, ["used", "idle"], regulator=dsas.Constant()).apply(model).install()
    model(inputs_embeds=torch.randn(1, 2, WIDTH))
    with pytest.warns(dsas.DsasWarning, match="never fired"):
        applied.remove()
    used, idle = applied.report()
    assert (used.mean_strength, used.hits, used.status) == (1.0, 2, "steered")
    assert (idle.mean_strength, idle.hits) == (None, None)
    assert "never fired" in idle.status


def test_a_site_that_fired_and_was_never_steered_has_a_strength_of_zero() -> None:
    """A regulator that said no to every token is no site that was left out."""
    model = tiny_model()
    steering = random_steering(model, "model.layers.0", regulator=dsas.Schedule("generated"))
    with steering.apply(model, prompt_tokens=3) as applied:
        logits_of(model, IDS)
    (line,) = applied.report()
    assert (line.mean_strength, line.hits, line.status) == (0.0, 0, "steered")


@pytest.mark.parametrize("options", [{"strength": 0.0}, {"record": False}], ids=["strength 0", "not recorded"])
def test_where_nothing_was_recorded_no_strength_is_reported(options: Any) -> None:
    model = tiny_model()
    steering = random_steering(model)
    with steering.apply(model, **options) as applied:
        logits_of(model, IDS)
    assert [(line.mean_strength, line.hits) for line in applied.report()] == [(None, None)] * 3
    with pytest.raises(StateError):
        applied.trace()


def test_of_a_pipeline_what_happened_is_told_site_by_site_too() -> None:
    pipeline = tiny_pipeline("sd")
    steering = steered_at(pipeline, "sd", ["unet.mid_block.attentions.0", "text"], regulator=dsas.Constant(0.75))
    with steering.apply(pipeline, [0.0, 2.0]) as applied:
        drawn(pipeline, "sd", num_images_per_prompt=2, num_inference_steps=3)
    lines = {line.site.partition(".")[0]: line for line in applied.report()[::-1]}
    assert lines["unet"].mean_strength == pytest.approx(0.75)
    assert (lines["unet"].hits, lines["text_encoder"].hits) == (2 * 3 * 16, 16)
