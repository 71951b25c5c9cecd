"""Guidance: the branch of every row, against hooks, in families that differ in structure."""

from typing import Any

import pytest
import torch
from pictures import PROMPTS, drawn, steered_at
from pipeline_families import UNGUIDED, branch_found, constant_at, draw, first_site

pytest.importorskip("diffusers")

import diffusers

import dsas
from dsas.errors import OptionError, StateError
from dsas.model.guidance import Call, Guidance
from dsas.model.subject import subject_of
from dsas.testing.newer_pipelines import NEWER_OPTIONS
from dsas.testing.pipelines import NEWER_PIPELINES, tiny_pipeline


@pytest.mark.parametrize("branch", ["conditional", "unconditional"])
@pytest.mark.parametrize("family", [*NEWER_PIPELINES, "sdxl", "flux"])
def test_the_steered_rows_are_those_that_depend_on_their_prompt(family: str, branch: Any) -> None:
    if family in UNGUIDED and branch == "unconditional":
        pytest.skip("its guidance is distilled")
    assert branch_found(tiny_pipeline(family), family, branch)


@pytest.mark.parametrize("family", ["flux2", "chroma", "auraflow"])
def test_a_block_of_both_streams_in_one_sequence_is_steered_in_the_one_that_is_named(family: str) -> None:
    pipeline = tiny_pipeline(family)
    path = "transformer.single_transformer_blocks.0"
    module, width = subject_of(pipeline).module, first_width(pipeline, family, path)
    (text,), (image,) = (subject_of(pipeline).sites(path + which) for which in ("@text", "@image"))
    whole, found = [], {}
    for site in (None, text, image):
        rule = dsas.Rule(site or image, dsas.Addition(torch.ones(width)), dsas.Constant(1.0))
        seen: list[torch.Tensor] = []
        with dsas.Steering([rule], subject_of(pipeline).identity).apply(pipeline, 1.0 if site else 0.0, branch="both"):
            handle = module.get_submodule(path).register_forward_hook(lambda _m, _a, out, seen=seen: seen.append(out))
            draw(pipeline, family, num_inference_steps=1)
            handle.remove()
        found[site], whole = (seen[0], whole) if site else (whole, seen[0])
    tokens = {
        site: ((found[site] - whole).abs().amax((0, 2)) > 0.5).nonzero().flatten().tolist() for site in (text, image)
    }
    assert sorted(tokens[text] + tokens[image]) == list(range(whole.shape[1]))
    assert max(tokens[text]) < min(tokens[image])
    with pytest.raises(OptionError, match="one of two streams in one sequence"):
        constant_at(pipeline, family, path).fuse(pipeline, branch="both")


def first_width(pipeline: Any, family: str, path: str) -> int:
    return constant_at(pipeline, family, path).rules[0].transform.get_buffer("vector").shape[0]


def test_a_video_is_steered_per_frame_and_position_and_each_with_its_own_strength() -> None:
    for family, shape in (("animatediff", (6, 2, 4, 4)), ("wan", (2, 2, 12, 4))):
        pipeline = tiny_pipeline(family)
        steering = constant_at(pipeline, family, [first_site(pipeline)])
        plain = draw(pipeline, family)
        with steering.apply(pipeline):
            whole = draw(pipeline, family)
        with steering.apply(pipeline, [0.0, 1.0]) as applied:
            mixed = draw(pipeline, family)
        torch.testing.assert_close(mixed[0], plain[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mixed[1], whole[1], rtol=1e-4, atol=1e-5)
        (line,) = applied.report()
        assert line.mean_strength == pytest.approx(0.5 if family == "animatediff" else 0.25)  # one of two denoisers
        maps = applied.maps()
        assert maps.strengths[0].shape == shape
        frames = 3 if family == "animatediff" else 1  # in rows of their own
        assert maps.images[0].tolist() == [0] * frames + [1] * frames
        assert maps.heat(16, 16).mean((1, 2)).gt(0).tolist() == [False] * frames + [True] * frames


@pytest.mark.parametrize("family", ["z-image", "lumina2"])
def test_where_text_and_image_are_one_stream_a_map_has_no_height(family: str) -> None:
    pipeline = tiny_pipeline(family)
    steering = constant_at(pipeline, family, ["residual", "norm"])
    with steering.apply(pipeline) as applied:
        draw(pipeline, family)
    assert {grid.shape[2] for grid in applied.maps().strengths} == {1}


def test_where_rows_are_positions_of_a_video_a_branch_is_refused() -> None:
    pipeline = tiny_pipeline("animatediff")
    steering = constant_at(pipeline, "animatediff", "unet.mid_block.motion_modules.0.transformer_blocks.0")
    with steering.apply(pipeline), pytest.raises(StateError, match=r"it is unknown which are conditional.*both"):
        draw(pipeline, "animatediff")


def test_a_pass_of_one_branch_beside_a_stacked_one_is_that_of_the_half_whose_text_it_gets() -> None:
    text = torch.arange(4.0).view(4, 1, 1)  # the negative prompts' rows, then the prompts'
    for branch, mine, other in (("conditional", text[2:], text[:2]), ("unconditional", text[:2], text[2:])):
        guidance = Guidance(None, "unconditional first", branch, is_named=False)  # type: ignore
        guidance.chosen(Call("unet", 4, 2, text=text))
        assert guidance.chosen(Call("unet", 2, 2, text=mine)).rows == slice(0, 2)
        assert guidance.chosen(Call("unet", 2, 2, text=list(other))).rows == slice(0, 0)
        assert "not known" in guidance.chosen(Call("unet", 2, 2, text=text[1:3])).refusal


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_perturbed_attention_is_refused_with_and_without_guidance(guidance_scale: float) -> None:
    base = tiny_pipeline("sd")
    pipeline = diffusers.StableDiffusionPAGPipeline(
        **base.components, requires_safety_checker=False, pag_applied_layers="mid"
    )
    pipeline.set_progress_bar_config(disable=True)
    with steered_at(base, "sd").apply(pipeline), pytest.raises(StateError, match="not known which are conditional"):
        drawn(pipeline, "sd", pag_scale=2.0, guidance_scale=guidance_scale)


def test_the_attention_of_sd35_is_both_of_each_block_and_each_is_steered_by_branch() -> None:
    pipeline = tiny_pipeline("sd3.5")
    sites = subject_of(pipeline).sites("attention")
    assert [site.path.rpartition(".")[2] for site in sites] == ["attn", "attn2"] * 2
    plain, found = draw(pipeline, "sd3.5"), []
    for branch in ("conditional", "unconditional"):
        with constant_at(pipeline, "sd3.5", [sites[1]]).apply(pipeline, branch=branch):
            found.append(draw(pipeline, "sd3.5"))
    assert not torch.allclose(found[0], plain)
    assert not torch.allclose(found[0], found[1])


def test_a_third_pass_at_one_place_of_the_schedule_belongs_to_no_branch() -> None:
    guidance = Guidance(None, "apart", "conditional", is_named=False)
    calls = [Call("transformer", 2, 2, place=place) for place in (0, 0, 0, 1, 1)]
    found = [guidance.chosen(call) for call in calls]
    assert [one.rows.stop for one in found if not one.refusal] == [2, 0, 2, 0]
    assert "conditional in a run with guidance" in found[2].refusal


@pytest.mark.parametrize(
    ("named", "wanted"), [("cond", 2), ("uncond", 0), ("pred_cond_skip", 2), ("uncond_stg", None), ("", None)]
)
def test_a_pass_that_is_named_is_what_its_name_says(named: str, wanted: int | None) -> None:
    chosen = Guidance(None, None, "conditional", is_named=True).chosen(Call("transformer", 2, 2, named=named))
    assert (None if chosen.refusal else chosen.rows.stop) == wanted


def test_every_way_to_draw_a_family_makes_two_pictures() -> None:
    assert len(PROMPTS) == 2
    assert set(NEWER_OPTIONS) == set(NEWER_PIPELINES)
