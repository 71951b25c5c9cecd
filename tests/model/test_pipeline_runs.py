"""Runs of a pipeline: what is steered by branch inside of one, and refused outside of it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from pictures import OPTIONS, PROMPTS, close, drawn, steered_at
from torch import Tensor

pytest.importorskip("diffusers")

import diffusers

import dsas
from dsas.errors import StateError, StrengthError
from dsas.model.subject import subject_of
from dsas.testing.pipelines import tiny_pipeline

MIDDLE = "unet.mid_block.resnets.0"
OUT: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}


def constant(pipeline: Any, site: str, width: int = 16) -> dsas.Steering:
    (found,) = subject_of(pipeline).sites(site)
    vector = 3 * torch.randn(width, generator=torch.Generator().manual_seed(0))
    return dsas.Steering([dsas.Rule(found, dsas.Addition(vector), dsas.Constant(1.0))], subject_of(pipeline).identity)


def seeds(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def by_a_sibling(pipeline: Any) -> None:
    sibling = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipeline)
    sibling.set_progress_bar_config(disable=True)
    sibling(PROMPTS, image=torch.rand(2, 3, 16, 16), strength=1.0, generator=seeds(2), **OUT)


def by_hand(pipeline: Any) -> None:
    pipeline.scheduler.set_timesteps(2)
    pipeline.unet(torch.randn(4, 4, 8, 8), pipeline.scheduler.timesteps[0], torch.randn(4, 16, 16))


@pytest.mark.parametrize("run", [by_a_sibling, by_hand])
@pytest.mark.parametrize("before", ["nothing", "a run", "a run that failed"])
def test_a_pass_outside_of_a_run_of_the_steered_pipeline_is_refused_but_in_both_branches(
    run: Callable[[Any], None], before: str
) -> None:
    pipeline = tiny_pipeline("sd")
    steering = constant(pipeline, MIDDLE)
    with steering.apply(pipeline):
        if before == "a run":
            drawn(pipeline, "sd")
        if before == "a run that failed":
            with pytest.raises(ZeroDivisionError):
                drawn(pipeline, "sd", callback_on_step_end=lambda *_: {}[1 // 0])
        with pytest.raises(StateError, match=r"called outside a run of this StableDiffusionPipeline.*branch='both'"):
            run(pipeline)
        drawn(pipeline, "sd")
    with steering.apply(pipeline, branch="both"):
        run(pipeline)
    with steering.apply(pipeline, [0.0, 1.0], branch="both"), pytest.raises(StrengthError, match="is unknown here"):
        run(pipeline)


def test_a_run_that_had_begun_before_it_was_steered_is_refused_and_the_next_one_is_not() -> None:
    pipeline = tiny_pipeline("sd")
    steering = constant(pipeline, MIDDLE)
    with steering.apply(pipeline):
        wanted = drawn(pipeline, "sd")
    late = steering.apply(pipeline)

    def install(_pipeline: Any, step: int, *_: Any) -> dict[str, Tensor]:
        if step == 0:
            late.install()
        return {}

    with pytest.raises(StateError, match=r"had begun before it was steered.*branch='both'"):
        drawn(pipeline, "sd", callback_on_step_end=install)
    assert torch.equal(drawn(pipeline, "sd"), wanted)
    late.remove()


class Unprepared(diffusers.StableDiffusionPipeline):
    """A pipeline that makes its noise itself."""

    def __call__(self) -> None:  # type: ignore
        by_hand(self)


def test_a_run_that_prepares_no_latents_is_refused_and_says_so() -> None:
    pipeline = Unprepared(**tiny_pipeline("sd").components, requires_safety_checker=False)
    with constant(pipeline, MIDDLE).apply(pipeline), pytest.raises(StateError, match="did not prepare its latents"):
        pipeline()


def test_prompts_that_are_encoded_one_by_one_are_each_steered_and_an_encoder_that_is_called_itself_is_refused() -> None:
    pipeline = tiny_pipeline("sd")
    steering = constant(pipeline, "text_encoder.encoder.layers.1")

    def encode(text):
        return pipeline.encode_prompt(text, "cpu", 1, False)[0]

    texts = ["a red dog", "a blue cat", ["two", "more"]]
    plain, picture = [encode(text) for text in texts], drawn(pipeline, "sd")
    with steering.apply(pipeline):
        assert [torch.equal(encode(text), one) for text, one in zip(texts, plain, strict=True)] == [False] * 3
        assert not torch.equal(drawn(pipeline, "sd"), picture)
        with pytest.raises(StateError, match=r"text_encoder was called outside of the pipeline's encode_prompt.*both"):
            pipeline.text_encoder(torch.ones(1, 5, dtype=torch.long))
    with steering.apply(pipeline, branch="unconditional"):
        assert all(torch.equal(encode(text), one) for text, one in zip(texts, plain, strict=True))


@pytest.mark.parametrize(
    ("family", "site"), [("sd", "text_encoder.encoder.layers.1"), ("flux", "text_encoder_2.encoder.block.1")]
)
def test_a_run_that_failed_leaves_nothing_behind(family: str, site: str) -> None:
    pipeline = tiny_pipeline(family)
    guided: dict[str, Any] = {"true_cfg_scale": 3.0} if family == "flux" else {}
    steering = constant(pipeline, site, 32 if family == "flux" else 16)

    def draw(count=2):
        return drawn(pipeline, family, seeds=range(count), negative_prompt=["bad", "worse"], **guided)

    wanted = {}
    for branch in ("conditional", "unconditional"):
        with steering.apply(pipeline, branch=branch):
            wanted[branch] = draw()
    assert not close(wanted["conditional"], wanted["unconditional"])
    for branch in ("conditional", "unconditional"):
        with steering.apply(pipeline, branch=branch):
            with pytest.raises(ValueError, match="list of generators of length 3"):  # after the prompts were encoded
                draw(3)
            assert torch.equal(draw(), wanted[branch]), branch


def test_a_negative_prompt_beside_embeddings_of_the_prompt_is_the_negative_one() -> None:
    pipeline = tiny_pipeline("sd")
    steering = constant(pipeline, "text_encoder.encoder.layers.1")
    (embeds, _), options = pipeline.encode_prompt(PROMPTS, "cpu", 1, False), {**OUT, **OPTIONS["sd"]}

    def draw():
        return pipeline(prompt_embeds=embeds, negative_prompt=["bad", "worse"], generator=seeds(2), **options).images

    plain = draw()
    with steering.apply(pipeline, branch="unconditional"):
        assert not torch.equal(draw(), plain)
    with pytest.warns(dsas.DsasWarning, match="never fired"), steering.apply(pipeline):
        assert torch.equal(draw(), plain)


def controlled() -> Any:
    torch.manual_seed(0)
    net = diffusers.ControlNetModel(
        in_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), block_out_channels=(8, 16),
        layers_per_block=1, cross_attention_dim=16, attention_head_dim=(1, 2), norm_num_groups=4,
        conditioning_embedding_out_channels=(8, 16),
    )  # fmt: skip
    torch.nn.init.normal_(net.controlnet_mid_block.weight)
    parts = tiny_pipeline("sd").components
    pipeline = diffusers.StableDiffusionControlNetPipeline(**parts, controlnet=net, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_site_in_a_controlnet_has_branches_steps_and_pictures_as_the_denoiser() -> None:
    pipeline = controlled()
    steering = constant(pipeline, "controlnet.mid_block.attentions.0")

    def draw():
        return drawn(pipeline, "sd", image=torch.ones(2, 3, 16, 16))

    plain, steered = draw(), {}
    for branch in ("conditional", "unconditional", "both"):
        with steering.apply(pipeline, branch=branch):
            steered[branch] = draw()
    assert not close(steered["conditional"], steered["unconditional"])
    assert not close(steered["conditional"], steered["both"])
    for branch in ("conditional", "both"):
        with steering.apply(pipeline, [0.0, 1.0], branch=branch) as applied:
            mixed = draw()
        assert close(mixed[:1], plain[:1], 1e-5), branch
        assert close(mixed[1:], steered[branch][1:], 1e-5), branch
        assert applied.maps().strengths[0].shape == (2 if branch == "conditional" else 4, 2, 4, 4)
    with steering.apply(pipeline), pytest.raises(StateError, match="got 2 rows for 2 pictures"):
        drawn(pipeline, "sd", image=torch.ones(2, 3, 16, 16), guess_mode=True)


def test_a_site_in_a_part_whose_rows_nobody_knows_is_refused() -> None:
    pipeline = tiny_pipeline("sd")
    steering = constant(pipeline, "vae.decoder.mid_block.resnets.0", 8)
    with pytest.raises(StateError, match=r"nothing is known of the rows of the vae.*'both'"), steering.apply(pipeline):
        drawn(pipeline, "sd", output_type="pt")
    with steering.apply(pipeline, branch="both"):
        drawn(pipeline, "sd", output_type="pt")


def test_a_denoiser_that_was_replaced_after_apply_is_noticed() -> None:
    pipeline = tiny_pipeline("sd")
    with steered_at(pipeline, "sd").apply(pipeline):
        drawn(pipeline, "sd")
        pipeline.unet = tiny_pipeline("sd", seed=1).unet
        with pytest.raises(StateError, match="the unet of this StableDiffusionPipeline was replaced"):
            drawn(pipeline, "sd")


@pytest.mark.parametrize("site", ["unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q", MIDDLE])
def test_an_adapter_that_was_loaded_after_apply_is_noticed(site: str) -> None:
    peft = pytest.importorskip("peft")
    pipeline = tiny_pipeline("sd")
    with constant(pipeline, site).apply(pipeline):
        pipeline.unet.add_adapter(peft.LoraConfig(target_modules=["to_q"], init_lora_weights=False))
        if site == MIDDLE:
            with pytest.warns(dsas.DsasWarning, match="modules were added to the model"):
                drawn(pipeline, "sd")
            drawn(pipeline, "sd")
        else:
            with pytest.raises(StateError, match=r"1 steered modules, such as .*to_q, were replaced"):
                drawn(pipeline, "sd")


@pytest.mark.parametrize("way", ["apply", "fuse"])
def test_a_block_that_diffusers_skips_in_some_passes_is_refused_until_it_is_not(way: str) -> None:
    cached = pytest.importorskip("diffusers.hooks").FirstBlockCacheConfig(threshold=1e9)
    pipeline = tiny_pipeline("flux")
    blocks, plain = steered_at(pipeline, "flux", "transformer.transformer_blocks.0"), drawn(pipeline, "flux")
    pipeline.transformer.enable_cache(cached)

    def applied() -> None:
        with blocks.apply(pipeline, branch="both"):
            drawn(pipeline, "flux")

    run = applied if way == "apply" else partial(blocks.fuse, pipeline, 1.0, branch="both")
    with pytest.raises(StateError, match=r"FBC\w+ of diffusers skips this module .* call disable_cache"):
        run()
    pipeline.transformer.disable_cache()
    with blocks.apply(pipeline):
        assert not close(drawn(pipeline, "flux"), plain)


def test_a_modular_pipeline_is_steered_in_the_branch_that_its_guider_prepares() -> None:
    from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks

    base = tiny_pipeline("sdxl")
    pipeline = StableDiffusionXLAutoBlocks().init_pipeline()
    pipeline.update_components(**{name: part for name, part in base.components.items() if part is not None})
    pipeline.set_progress_bar_config(disable=True)
    options = {"output": "images", "output_type": "latent", "height": 16, "width": 16, "num_inference_steps": 1}
    steering, found = constant(pipeline, MIDDLE), {}
    for branch in (None, "conditional", "unconditional", "both"):
        calls: list[Tensor] = []
        applied = steering.apply(pipeline, 0.0 if branch is None else 1.0, branch=branch or "both")  # type: ignore
        with applied:
            watch = pipeline.unet.mid_block.resnets[0].register_forward_hook(
                lambda _m, _a, out, calls=calls: calls.append(out)
            )
            pipeline(prompt=PROMPTS, generator=seeds(2), **options)
            watch.remove()
        found[branch] = calls
    steered = {
        branch: [not torch.equal(one, plain) for one, plain in zip(calls, found[None], strict=True)]
        for branch, calls in found.items()
    }
    assert steered["conditional"] == [True, False]
    assert steered["unconditional"] == [False, True]
    assert steered["both"] == [True, True]
    texts = {name: [f"{name} {number}" for number in range(4)] for name in ("source", "control", "target")}
    reading = dsas.Drawing(steps=1, options={"height": 16, "width": 16}, batch_size=2)
    fitted = dsas.fit(pipeline, **texts, sites=MIDDLE, reading=reading, selection="all", progress=False)
    assert len(fitted.rules) == 1
