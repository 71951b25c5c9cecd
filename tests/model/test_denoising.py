"""Denoising steps: found under schedulers and families that pass the step in different ways."""

import inspect
from typing import Any

import pytest
import torch
from pictures import PROMPTS, drawn
from torch import nn

pytest.importorskip("diffusers")

import diffusers

import dsas
from dsas.model.denoising import denoising_of
from dsas.model.subject import subject_of
from dsas.testing.newer_pipelines import NEWER_OPTIONS
from dsas.testing.pipelines import tiny_pipeline


def numbers(scheduler: Any, steps: int) -> list[int]:
    """Return the step that each call of a loop over the schedule is, told before the scheduler has stepped."""
    scheduler.set_timesteps(steps)
    sample, found = torch.zeros(1, 4, 2, 2), []
    for timestep in scheduler.timesteps:
        step = denoising_of(scheduler, timestep)
        assert step is not None
        assert step.total == steps
        found.append(step.number)
        scheduler.step(torch.ones_like(sample), timestep, sample)
    return found


@pytest.mark.parametrize(
    ("scheduler", "options", "wanted"),
    [
        # Three Runge-Kutta steps of four calls each, then one call per step.
        ("PNDMScheduler", {}, [0] * 4 + [1] * 4 + [2] * 4 + [3, 4, 5]),
        ("PNDMScheduler", {"skip_prk_steps": True}, [0, 1, 1, 2, 3, 4, 5]),
        ("HeunDiscreteScheduler", {}, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5]),
        ("KDPM2DiscreteScheduler", {}, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5]),
        ("FlowMatchHeunDiscreteScheduler", {}, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5]),
        ("FlowMatchEulerDiscreteScheduler", {}, [0, 1, 2, 3, 4, 5]),
        ("DDIMScheduler", {}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_each_call_is_of_the_step_that_its_scheduler_takes(scheduler: str, options: Any, wanted: list[int]) -> None:
    assert numbers(getattr(diffusers, scheduler)(**options), 6) == wanted


@pytest.mark.parametrize(
    "way",
    [lambda t: t, lambda t: t / 1000, lambda t: 1 - t / 1000],
    ids=["as it is", "of one", "of one, from the other end"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_before_the_first_step_the_timestep_is_found_however_the_family_writes_it(way: Any, dtype: torch.dtype) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    for place, timestep in enumerate(scheduler.timesteps):
        found = denoising_of(scheduler, way(timestep.expand(2)).to(dtype))
        assert found is None or found.number in (0, place)  # 0.25 may be the one quarter or the other
    assert denoising_of(scheduler, way(scheduler.timesteps[:1]).to(dtype)).number == 0  # type: ignore
    assert denoising_of(scheduler, 0.123) is None


def test_the_index_of_an_earlier_run_is_not_believed_outside_of_a_run() -> None:
    scheduler = diffusers.EulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    for timestep in scheduler.timesteps[:2]:
        scheduler.step(torch.zeros(1, 1, 2, 2), timestep, torch.zeros(1, 1, 2, 2))
    first = scheduler.timesteps[0]
    assert denoising_of(scheduler, first, running=False).number == 0  # type: ignore
    assert denoising_of(scheduler, first, running=True).number == 2  # type: ignore


class Numbered(dsas.Regulator):
    """Answers 1 + the denoising step."""

    name = "numbered"
    reads_forward_pass = True

    def __init__(self) -> None:
        super().__init__()

    @classmethod
    def fit(cls, source: Any, control: Any, target: Any) -> Any:
        raise NotImplementedError

    def forward(self, t: torch.Tensor, step: Any) -> torch.Tensor:
        return t.new_full((*t.shape[:2], 1), 1.0 + step.denoising.number)


def steps_of(pipeline: Any, site: str, width: int, run: Any) -> list[float]:
    """Return 1 + the step of each step that a run's map of one site has."""
    (found,) = subject_of(pipeline).sites(site)
    rule = dsas.Rule(found, dsas.Addition(torch.zeros(width)), Numbered())
    with dsas.Steering([rule], subject_of(pipeline).identity).apply(pipeline) as applied:
        run()
    return applied.maps().strengths[0].mean((0, 2, 3)).tolist()


def test_the_first_step_of_flux_control_is_the_first() -> None:
    base = tiny_pipeline("flux")
    wide = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=32, out_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    ).eval()  # fmt: skip
    names = inspect.signature(diffusers.FluxControlPipeline.__init__).parameters
    parts = {name: part for name, part in base.components.items() if name in names}
    pipeline = diffusers.FluxControlPipeline(**{**parts, "transformer": wide})
    pipeline.set_progress_bar_config(disable=True)
    options = {"height": 16, "width": 16, "max_sequence_length": 16, "output_type": "latent", "num_inference_steps": 4}

    def run():
        return pipeline(["a dog"], control_image=torch.ones(1, 3, 16, 16), **options)

    assert steps_of(pipeline, "transformer.transformer_blocks.0", 32, run) == [1, 2, 3, 4]


def test_of_two_denoisers_each_knows_its_own_steps() -> None:
    pipeline, options = tiny_pipeline("wan"), {**NEWER_OPTIONS["wan"], "output_type": "latent"}

    def run():
        return pipeline(PROMPTS, num_inference_steps=4, **options)

    early = steps_of(pipeline, "transformer.blocks.0", 24, run)
    late = steps_of(pipeline, "transformer_2.blocks.0", 24, run)
    assert [one + other for one, other in zip(early, late, strict=True)] == [1, 2, 3, 4]
    assert early[0] == 1
    assert late[-1] == 4
    assert early[-1] == late[0] == 0  # there the other one ran
    assert any(path.startswith("transformer_2.") for path in map(str, subject_of(pipeline).sites("residual")))


def test_a_refiner_goes_on_at_the_step_where_the_base_ended() -> None:
    base = tiny_pipeline("sdxl")
    parts = {name: part for name, part in base.components.items() if isinstance(part, nn.Module) or part is not None}
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline(**parts, add_watermarker=False)
    refiner.set_progress_bar_config(disable=True)
    begun: list[torch.Tensor] = []
    site = ("unet.mid_block.resnets.0", 16)
    first = steps_of(base, *site, lambda: begun.append(drawn(base, "sdxl", num_inference_steps=5, denoising_end=0.6)))
    rest = steps_of(
        refiner, *site,
        lambda: refiner(PROMPTS, image=begun[0], num_inference_steps=5, denoising_start=0.6, output_type="latent"),
    )  # fmt: skip
    assert first + rest == [1, 2, 3, 4, 5]
