"""Maps: applied strengths in the picture, per site, denoising step and position."""

from typing import Any

import pytest
import torch
from pictures import PROMPTS, drawn, steered_at

pytest.importorskip("diffusers")

import diffusers

import dsas
from dsas.errors import OptionError, StateError
from dsas.model.hooks import Hooks
from dsas.model.subject import subject_of
from dsas.testing import tiny_model
from dsas.testing.pipelines import tiny_pipeline


def test_a_map_is_the_regulator_at_every_position_of_the_conditional_branch() -> None:
    pipeline = tiny_pipeline("sd")
    steering = steered_at(pipeline, "sd", ["unet.down_blocks.0.resnets.0"], scale=0.0)
    module, (rule,), seen = subject_of(pipeline).module, steering.rules, []
    with steering.apply(pipeline, [0.5, 2.0]) as applied, Hooks() as hooks:
        hooks.at_site(module, rule.site, lambda given: seen.append(rule.site.read(given).clone()) and None)
        drawn(pipeline, "sd")
    (found,) = applied.maps().strengths
    assert found.shape == (2, 2, 8, 8)
    for step, t in enumerate(seen):
        expected = torch.sigmoid(t[2:].double() @ rule.regulator.get_buffer("theta").double())  # its bias is 0
        expected = expected * torch.tensor([[0.5], [2.0]])
        torch.testing.assert_close(found[:, step].flatten(1).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(16, 32), (32, 16), (24, 32)])
@pytest.mark.parametrize("family", ["sd", "sd3", "flux", "pixart"])
def test_positions_without_a_shape_get_that_of_the_latents(family: str, height: int, width: int) -> None:
    pipeline = tiny_pipeline(family)
    steering = steered_at(pipeline, family)
    with steering.apply(pipeline) as applied:
        drawn(pipeline, family, height=height, width=width)
    for grid in applied.maps().strengths:
        ratio = grid.shape[2] * width / (grid.shape[3] * height)
        assert ratio == pytest.approx(1.0, abs=0.35)
        assert grid.shape[2] > 1


def test_the_stream_of_the_prompt_is_no_picture() -> None:
    pipeline = tiny_pipeline("flux")
    with steered_at(pipeline, "flux", "transformer.transformer_blocks.*@text").apply(pipeline) as applied:
        drawn(pipeline, "flux")
    assert [grid.shape for grid in applied.maps().strengths] == [(2, 2, 1, 16)] * 2
    with pytest.raises(StateError, match="only sites of the prompt"):
        applied.maps().heat(16, 16)


def test_a_step_that_runs_the_denoiser_twice_is_their_mean() -> None:
    pipeline = tiny_pipeline("sd")
    pipeline.scheduler = diffusers.HeunDiscreteScheduler(steps_offset=1)
    steering, passes = steered_at(pipeline, "sd", ["unet.conv_in"]), []
    with steering.apply(pipeline) as applied:
        keep = applied._recorder.add  # type: ignore

        def add(site: int, step: Any, *values: torch.Tensor) -> None:
            passes.append(values[0])
            keep(site, step, *values)

        applied._recorder.add = add  # type: ignore
        drawn(pipeline, "sd", num_inference_steps=2)
    assert len(passes) == 3
    (found,) = applied.maps().strengths
    torch.testing.assert_close(found[:, 0].flatten(1), (passes[0] + passes[1]).mean(-1) / 2)
    torch.testing.assert_close(found[:, 1].flatten(1), passes[2].mean(-1))


def test_where_guidance_ends_during_a_run_a_map_is_the_mean_of_the_branches_of_each_picture() -> None:
    pipeline = tiny_pipeline("sd")
    steering = steered_at(pipeline, "sd", ["unet.mid_block.attentions.0"], regulator=dsas.Constant(0.5))

    def end(pipeline: Any, step: int, _time: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            pipeline._guidance_scale = 0.0
            given["prompt_embeds"] = given["prompt_embeds"].chunk(2)[1]
        return given

    ended = {"callback_on_step_end": end, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with steering.apply(pipeline, [1.0, 3.0], branch="both") as applied:
        drawn(pipeline, "sd", num_inference_steps=3, **ended)
    (found,) = applied.maps().strengths
    assert found.mean((2, 3)).tolist() == [[0.5] * 3, [1.5] * 3]
    assert applied.maps().strength.tolist() == [1.0, 3.0]


def test_a_new_run_replaces_the_one_before_it() -> None:
    pipeline = tiny_pipeline("sd")
    with steered_at(pipeline, "sd", ["text", "unet.conv_in"]).apply(pipeline) as applied:
        drawn(pipeline, "sd", num_inference_steps=3)
        assert applied.maps().steps == (0, 1, 2)
        drawn(pipeline, "sd", PROMPTS[:1], num_inference_steps=1)
    maps = applied.maps()
    assert (maps.steps, maps.of("unet.conv_in").shape) == ((0,), (1, 1, 8, 8))
    assert maps.of("text_encoder.encoder.layers.0").shape == (1, 1, 1, 16)
    with pytest.raises(OptionError, match=r"no site 'unet.conv' was recorded; closest: 'unet.conv_in'"):
        maps.of("unet.conv")


def test_heat_is_the_mean_over_sites_and_steps_at_the_size_asked_for() -> None:
    small, large = torch.tensor([[[[1.0, 3.0], [1.0, 3.0]]] * 2]), torch.zeros(1, 2, 4, 4)
    large[:, 1] = 4.0
    maps = dsas.Maps(("a", "b"), (small, large), (3, 5), torch.ones(1))
    assert maps.heat(4, 4)[0, 0].tolist() == [1.5, 1.5, 2.5, 2.5]
    assert maps.heat(4, 4, step=3)[0, 0].tolist() == [0.5, 0.5, 1.5, 1.5]
    assert maps.mean().tolist() == [2.0, 2.0]
    assert maps.hits(2.0).tolist() == [4, 16]
    with pytest.raises(OptionError, match="step 4 did not run; those that did: 3, 5"):
        maps.heat(4, 4, step=4)


def test_doses_are_kept_when_asked_for() -> None:
    pipeline = tiny_pipeline("sd")
    steering = steered_at(pipeline, "sd", ["unet.conv_in"], regulator=dsas.Constant(0.5))
    with steering.apply(pipeline, 3.0, record="doses") as applied:
        drawn(pipeline, "sd")
    maps = applied.maps()
    assert maps.strengths[0].unique().tolist() == [1.5]
    assert maps.regulators[0].unique().tolist() == [0.5]
    assert maps.doses[0].shape == maps.strengths[0].shape
    assert bool((maps.doses[0] > 0).all())


def test_maps_are_of_pipelines_and_traces_of_texts() -> None:
    pipeline, model = tiny_pipeline("sd"), tiny_model()
    steering = steered_at(pipeline, "sd", ["unet.conv_in"])
    with pytest.raises(StateError, match="use maps\\(\\) instead of trace"):
        steering.apply(pipeline).trace()
    with pytest.raises(StateError, match="nothing was recorded"):
        steering.apply(pipeline).maps()
    with pytest.raises(StateError, match="recording is off"):
        steering.apply(pipeline, record=False).maps()
    rules = [dsas.Rule(dsas.Site("model.layers.0"), dsas.Addition(torch.ones(32)), dsas.Constant(1.0))]
    of_text = dsas.Steering(rules, dsas.model.identity.ModelIdentity.of(model))
    with pytest.raises(StateError, match="use trace\\(\\) instead of maps"):
        of_text.apply(model).maps()
