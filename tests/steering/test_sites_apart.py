"""Two rules at one path are two rules: reports, traces, maps and calibrated weights keep them apart."""

from typing import Any

import pytest
import torch
from makers import logits_of
from pictures import drawn

import dsas
from dsas.model.identity import ModelIdentity
from dsas.model.sites import labels
from dsas.model.subject import subject_of
from dsas.testing import tiny_model
from dsas.testing.models import WIDTH
from dsas.testing.pipelines import tiny_pipeline

PATH = "model.layers.0.mlp"
IDS = torch.tensor([[1, 2, 3]])

# Sites of one path that are not the same, by what they differ in; all of one width.
APART: dict[str, tuple[dsas.Site, dsas.Site]] = {
    "layout": (dsas.Site(PATH), dsas.Site(PATH, layout="picture")),
    "channels": (dsas.Site(PATH, layout="picture"), dsas.Site(PATH, layout="channels")),
    "side": (dsas.Site(PATH), dsas.Site(PATH, side="input")),
    "part": (dsas.Site(PATH, part=0, parts=2), dsas.Site(PATH, part=1, parts=2)),
    "parts": (dsas.Site(PATH, part=1, parts=2), dsas.Site(PATH, part=1, parts=4)),
    "index": (dsas.Site(PATH, index=1), dsas.Site(PATH, index=2)),
}
RUNNING = ("layout", "side", "part")  # of one model: what the others name is not in a llama


def rules_at(sites: tuple[dsas.Site, dsas.Site], values: tuple[float, float] = (0.25, 0.75)) -> list[dsas.Rule]:
    width = WIDTH // sites[0].parts
    return [
        dsas.Rule(site, dsas.Addition(torch.ones(width)), dsas.Constant(value), accuracy=value)
        for site, value in zip(sites, values, strict=True)
    ]


def identity() -> ModelIdentity:
    return ModelIdentity.of(tiny_model())


def test_all_sites_that_one_path_can_have_get_names_of_their_own_and_one_alone_its_plain_name() -> None:
    sites = [
        dsas.Site(PATH, index, side, part, parts, layout)
        for index in (0, 1)
        for side in ("output", "input")
        for part, parts in ((0, 1), (0, 2), (1, 2))
        for layout in ("tokens", "picture", "channels")
    ]
    assert len(set(labels(sites))) == len(sites)
    assert [labels([site])[0] for site in sites] == [str(site) for site in sites]


@pytest.mark.parametrize("what", APART)
def test_the_report_of_what_was_fitted_has_a_line_of_its_own_for_each(what: str) -> None:
    lines = dsas.Steering(rules_at(APART[what]), identity()).report()
    assert len({line.site for line in lines}) == 2
    assert [line.accuracy for line in lines] == [0.25, 0.75]


@pytest.mark.parametrize("what", RUNNING)
def test_the_trace_and_the_report_say_of_each_what_happened_there(what: str) -> None:
    model = tiny_model()
    steering = dsas.Steering(rules_at(APART[what]), ModelIdentity.of(model))
    with steering.apply(model) as applied:
        logits_of(model, IDS)
    trace = applied.trace()
    assert len(set(trace.sites)) == 2
    assert trace.mean().tolist() == [0.25, 0.75]
    assert [line.mean_strength for line in applied.report()] == [0.25, 0.75]
    assert [line.site for line in applied.report()] == list(trace.sites)


def test_the_maps_of_a_picture_say_of_each_what_happened_there() -> None:
    """Outside of U-Nets a "picture" of three dimensions is read as tokens, so both layouts are of one activation."""
    pipeline = tiny_pipeline("sd3")
    path = "transformer.transformer_blocks.0.attn.to_q"
    sites = (dsas.Site(path), dsas.Site(path, layout="picture"))
    rules = [
        dsas.Rule(site, dsas.Addition(torch.ones(16)), dsas.Constant(value))
        for site, value in zip(sites, (0.25, 0.75), strict=True)
    ]
    with dsas.Steering(rules, subject_of(pipeline).identity).apply(pipeline) as applied:
        drawn(pipeline, "sd3")
    maps = applied.maps()
    assert maps.mean().tolist() == [0.25, 0.75]
    assert [float(maps.of(name).mean()) for name in maps.sites] == [0.25, 0.75]


@pytest.mark.parametrize("what", APART)
def test_calibrated_weights_reach_the_rule_that_they_were_found_for(what: str) -> None:
    rules = rules_at(APART[what])
    found = dsas.Steering([rules[0]._replace(weight=0.1), rules[1]._replace(weight=0.9)], identity())
    weights = {line.site: line.weight for line in found.report()}
    calibration = dsas.Calibration(0.5, (), (), None, {}, {}, weights, found.digest(), "", "")
    carried = dsas.Steering(rules, identity()).calibrated(calibration)
    assert [rule.weight for rule in carried.rules] == [0.1, 0.9]


@pytest.mark.parametrize("what", APART)
def test_a_stored_steering_comes_back_with_both(what: str, tmp_path: Any) -> None:
    steering = dsas.Steering(rules_at(APART[what]), identity())
    steering.save_pretrained(tmp_path)
    again = dsas.Steering.from_pretrained(tmp_path)
    assert [rule.site for rule in again.rules] == list(APART[what])
    assert again.digest() == steering.digest()


@pytest.mark.parametrize("what", RUNNING)
def test_a_composition_takes_two_sites_of_one_path_for_two(what: str) -> None:
    steerings = [dsas.Steering([rule], identity()) for rule in rules_at(APART[what])]
    assert (steerings[0] | steerings[1]).conflicts() == []
    assert len((steerings[0] + steerings[1]).rules) == 2
