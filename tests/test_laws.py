"""Every law, on every transform with every regulator, in every way in which they act, on models and on pipelines."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from makers import random_steering
from pictures import drawn, steered_at, widths
from torch import Tensor

import dsas
from dsas.errors import OptionError
from dsas.fitting.method_names import regulator_fit, transform_fit
from dsas.model.subject import subject_of
from dsas.testing import (
    FAMILIES,
    WAYS,
    check_compiled,
    check_pipeline,
    check_regulator,
    check_steering,
    check_transform,
    tiny_model,
    tiny_tokenizer,
)
from dsas.testing.models import WIDTH
from dsas.testing.pipelines import PIPELINES, tiny_pipeline

PROMPTS = ("A fox ran", "Hi")
SITES = ["re:.*\\.0\\.mlp", "model.layers.1"]
TRANSFORMS = list(dsas.TRANSFORMS)
REGULATORS = [
    *(name for name in dsas.REGULATORS if name not in ("product", "per-step", "clean")),
    "logistic*posterior",
    "cast*schedule",
]
STEPPED = (
    "cast",
    "schedule",
    "turns",
    "cast*schedule",
    "evidence",
    "held",
)  # regulators that read the step, which nothing fused has
# Each transform and each regulator at least once.
PAIRS = [
    (TRANSFORMS[number % len(TRANSFORMS)], REGULATORS[number % len(REGULATORS)])
    for number in range(max(len(TRANSFORMS), len(REGULATORS)))
]
FUSED_PAIRS = [
    *((transform, "constant") for transform in TRANSFORMS),
    *(("lineas", name) for name in REGULATORS if name not in (*STEPPED, "constant")),
]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_keeps_the_laws(name: str) -> None:
    check_transform(dsas.TRANSFORMS[name])


@pytest.mark.parametrize("name", [name for name in REGULATORS if "*" not in name])
def test_every_regulator_keeps_the_laws(name: str) -> None:
    check_regulator(dsas.REGULATORS[name])


@pytest.mark.parametrize(
    "regulator",
    [
        dsas.Product([dsas.Logistic(torch.randn(16), torch.tensor(0.1)), dsas.Constant(0.5)]),
        dsas.Product([dsas.Schedule("all", 1, 4), dsas.HalfSpace(torch.randn(16), torch.tensor(0.0))]),
        dsas.Schedule("prompt"),
        dsas.Schedule("all", start=2),
        dsas.Cast(torch.randn(16), torch.tensor(0.3), above=False),
        dsas.Posterior(torch.randn(16), torch.randn(16), torch.randn(16)),
        dsas.Clean(dsas.Logistic(torch.randn(16), torch.tensor(0.1))),
        dsas.Held(dsas.Evidence(torch.randn(16), torch.tensor(0.1), torch.tensor(0.0))),
        dsas.Held(dsas.Posterior(torch.randn(16), torch.randn(16), torch.randn(16))),
    ],
    ids=repr,
)
def test_regulators_made_by_hand_keep_the_laws(regulator: dsas.Regulator) -> None:
    check_regulator(regulator)


def test_a_function_as_a_transform_keeps_the_laws() -> None:
    check_transform(dsas.Custom(lambda t: 0.5 * t + 1))


def fitted(transform: str, regulator: str, width: int) -> tuple[dsas.Transform, dsas.Regulator]:
    """Return methods that are fitted on random activations of a width."""
    source, control, target = (torch.randn(n, width) + shift for n, shift in ((12, 0.5), (9, -0.5), (10, -0.4)))
    return transform_fit(transform)(source, target), regulator_fit(regulator)(source, control, target).regulator


def steering_of(model: Any, transform: str, regulator: str, sites: Any = SITES) -> dsas.Steering:
    how, when = fitted(transform, regulator, WIDTH // dsas.find_sites(model, sites)[0].parts)
    return random_steering(model, sites, transform=how, regulator=when)


def check(steering: Any, model: Any, way: Any = "apply") -> None:
    check_steering(steering, model, tiny_tokenizer(), prompts=PROMPTS, way=way)


# Language models


@pytest.mark.parametrize("regulator", REGULATORS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_every_transform_with_every_regulator_keeps_the_laws_on_a_model(transform: str, regulator: str) -> None:
    model = tiny_model(layers=2)
    check(steering_of(model, transform, regulator), model)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_every_transform_keeps_the_laws_where_later_sites_read_clean(transform: str) -> None:
    model = tiny_model(layers=3)
    how, when = fitted(transform, "logistic", WIDTH)
    check(random_steering(model, transform=how, regulator=dsas.Clean(when)), model)


@pytest.mark.parametrize(("transform", "regulator"), PAIRS)
def test_what_is_installed_keeps_the_laws(transform: str, regulator: str) -> None:
    model = tiny_model(layers=2)
    check(steering_of(model, transform, regulator), model, "install")


@pytest.mark.parametrize(("transform", "regulator"), FUSED_PAIRS)
def test_what_is_fused_keeps_the_laws_and_does_what_is_done_when_applied(transform: str, regulator: str) -> None:
    model = tiny_model(layers=2)
    check(steering_of(model, transform, regulator), model, "fuse")


@pytest.mark.parametrize("regulator", STEPPED)
def test_what_cannot_be_fused_is_refused_and_leaves_the_model_as_it_was(regulator: str) -> None:
    model = tiny_model(layers=2)
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(OptionError, match=r"reads token positions: use apply\(\) instead"):
        steering_of(model, "caa", regulator).fuse(model)
    assert [type(module) for module in model.modules()] == kinds


@pytest.mark.parametrize("number", range(0, len(PAIRS), 2))
def test_a_composition_keeps_the_laws(number: int) -> None:
    """Both act at the last layer, the second on what the first has done there."""
    model = tiny_model(layers=2)
    first = steering_of(model, *PAIRS[number])
    second = steering_of(model, *PAIRS[(number + 1) % len(PAIRS)], sites=["model.layers.0", "model.layers.1"])
    check(first | second, model, "install" if number % 4 else "apply")


@pytest.mark.parametrize("way", ["apply", "fuse"])
@pytest.mark.parametrize("regulator", ["constant", "logistic*posterior"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_heads_are_steered_by_the_laws(family: str, regulator: str, way: str) -> None:
    model = tiny_model(family, layers=2)
    check(steering_of(model, "iti", regulator, "heads"), model, way)


@pytest.mark.parametrize("way", ["apply", "fuse"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_models_can_be_steered_by_the_laws(family: str, way: str) -> None:
    model = tiny_model(family, layers=2)
    sites = ["residual", "attention"] + (["norm", "mlp"] if family != "opt" else [])
    check(random_steering(model, sites, regulator=dsas.Constant(0.5) if way == "fuse" else None), model, way)


@pytest.mark.compile
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_compiled_models_are_steered_whenever_steering_comes_and_goes(family: str, way: Any) -> None:
    model = tiny_model(family, layers=2)
    check_compiled(random_steering(model), model, tiny_tokenizer(), backend="eager", way=way)


@pytest.mark.compile
def test_compiled_models_are_steered_by_compositions_whenever_they_come_and_go() -> None:
    model = tiny_model(layers=2)
    both = random_steering(model) | random_steering(model, seed=1)
    check_compiled(both, model, tiny_tokenizer(), backend="eager")


# Pipelines

PLACES = {
    "sd": ["unet.mid_block.attentions.0", "unet.up_blocks.1.resnets.0"],
    "sdxl": ["unet.mid_block.attentions.0", "unet.up_blocks.1.resnets.0"],
}


def draw(pipeline: Any, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    families = {type(tiny).__name__: family for family, tiny in ((name, pipeline_of(name)) for name in PIPELINES)}
    return drawn(pipeline, families[type(pipeline).__name__], list(prompts), seeds=list(seeds))


@cache
def pipeline_of(family: str) -> Any:
    return tiny_pipeline(family)


@pytest.mark.parametrize(
    ("family", "way"),
    [*((family, way) for family in PIPELINES for way in ("apply", "fuse")), ("sd", "install"), ("flux", "composition")],
)
def test_every_family_of_pipelines_can_be_steered_by_the_laws(family: str, way: str) -> None:
    pipeline = pipeline_of(family)
    steering: Any = steered_at(pipeline, family, PLACES.get(family, "residual"), scale=0.3)
    if way == "composition":
        check_pipeline(steering | steered_at(pipeline, family, "text", scale=0.3), pipeline, draw)
    else:
        check_pipeline(steering, pipeline, draw, way=way)


@pytest.mark.parametrize(("transform", "regulator"), [*PAIRS, ("caa", "per-step")])
def test_each_transform_and_each_regulator_keeps_the_laws_on_a_pipeline(transform: str, regulator: str) -> None:
    pipeline, rules = pipeline_of("pixart"), []
    for site, width in widths(pipeline, "pixart", "residual").items():
        how, when = fitted(transform, "constant" if regulator == "per-step" else regulator, width)
        if regulator == "per-step":
            when = dsas.PerStep([when, dsas.Constant(0.5)])
        rules.append(dsas.Rule(site, how, when))
    check_pipeline(dsas.Steering(rules, subject_of(pipeline).identity), pipeline, draw)
