"""Pipelines of five families: which rows are steered, at which denoising step, and that nothing else is changed."""

import copy
import json
import pickle
import warnings
from typing import Any

import pytest
import torch
from makers import unchecked
from pictures import OPTIONS, PROMPTS, close, drawn, steered_at
from torch import Tensor, nn

pytest.importorskip("diffusers")

import diffusers
from diffusers.schedulers import KarrasDiffusionSchedulers

import dsas
from dsas.errors import DsasWarning, ModelMismatchError, OptionError, StateError, StrengthError
from dsas.model.denoising import denoising_of
from dsas.model.hooks import Hooks
from dsas.model.loading import load_pipeline
from dsas.model.picture_passes import PicturePasses
from dsas.model.pipeline_modules import PipelineModules
from dsas.model.subject import subject_of
from dsas.testing.passes import state_of
from dsas.testing.pipelines import PIPELINES, tiny_pipeline

every_family = pytest.mark.parametrize("family", PIPELINES)
STACKED = [family for family in PIPELINES if family != "flux"]


def modules_of(pipeline: Any) -> list[Any]:
    return [state_of(part) for part in pipeline.components.values() if isinstance(part, nn.Module)]


@every_family
@pytest.mark.parametrize("sites", ["residual", "norm", "attention", "mlp", "text"])
def test_every_shorthand_changes_the_pictures_and_leaves_no_trace_behind(family: str, sites: str) -> None:
    pipeline = tiny_pipeline(family)
    plain, steering = drawn(pipeline, family), steered_at(pipeline, family, sites)
    before = modules_of(pipeline)  # after a first run, in which transformers puts hooks of its own on text encoders
    with steering.apply(pipeline) as applied:
        steered = drawn(pipeline, family)
    assert not close(steered, plain)
    assert torch.equal(drawn(pipeline, family), plain)
    assert modules_of(pipeline) == before
    assert "prepare_latents" not in vars(pipeline)
    assert all(float(mean) > 0 for mean in applied.maps().mean())


@every_family
def test_strength_zero_changes_no_bit_and_puts_nothing_on_the_pipeline(family: str) -> None:
    pipeline = tiny_pipeline(family)
    plain, steering = drawn(pipeline, family), steered_at(pipeline, family)
    before = modules_of(pipeline)
    with steering.apply(pipeline, 0.0):
        assert modules_of(pipeline) == before
        assert "prepare_latents" not in vars(pipeline)
        assert torch.equal(drawn(pipeline, family), plain)


def added(pipeline: Any, family: str, rule: dsas.Rule, rows: Any, **options: Any) -> Tensor:
    """Draw with the rule's vector added by a hook written here, to the rows that `rows(call, batch)` names."""
    module, calls = subject_of(pipeline).module.get_submodule(rule.site.path), []

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        streams = list(output) if isinstance(output, tuple) else [output]
        t = streams[rule.site.index].clone()
        vector = rule.transform.get_buffer("vector")
        where = rows(len(calls), len(t))
        t[where] += vector if t.ndim == 3 else vector.view(1, -1, 1, 1)
        calls.append(None)
        streams[rule.site.index] = t
        return tuple(streams) if isinstance(output, tuple) else t

    handle = module.register_forward_hook(hook)
    try:
        return drawn(pipeline, family, **options)
    finally:
        handle.remove()


@pytest.mark.parametrize("family", STACKED)
@pytest.mark.parametrize(
    ("branch", "rows"),
    [
        ("conditional", lambda _, batch: slice(batch // 2, batch)),
        ("unconditional", lambda _, batch: slice(0, batch // 2)),
        ("both", lambda _, batch: slice(0, batch)),
    ],
)
def test_a_branch_that_is_stacked_is_the_half_of_the_batch_that_it_should_be(
    family: str, branch: Any, rows: Any
) -> None:
    pipeline = tiny_pipeline(family)
    steering = steered_at(pipeline, family, regulator=dsas.Constant(1.0))
    steering = dsas.Steering(steering.rules[:1], steering.model)
    with steering.apply(pipeline, branch=branch):
        found = drawn(pipeline, family)
    assert close(found, added(pipeline, family, steering.rules[0], rows), 1e-5)
    assert not close(found, drawn(pipeline, family))


@pytest.mark.parametrize(
    ("branch", "passes"), [("conditional", {0, 2}), ("unconditional", {1, 3}), ("both", {0, 1, 2, 3})]
)
def test_flux_runs_its_branches_one_after_the_other_and_gives_the_text_stream_first(branch: Any, passes: Any) -> None:
    pipeline, guided = tiny_pipeline("flux"), {"negative_prompt": ["bad", "worse"], "true_cfg_scale": 3.0}
    steering = steered_at(pipeline, "flux", ["transformer.transformer_blocks.0"], regulator=dsas.Constant(1.0))
    assert [str(rule.site) for rule in steering.rules] == ["transformer.transformer_blocks.0[1]"]
    with steering.apply(pipeline, branch=branch):
        found = drawn(pipeline, "flux", **guided)
    wanted = added(
        pipeline, "flux", steering.rules[0], lambda call, batch: slice(0, batch if call in passes else 0), **guided
    )
    assert close(found, wanted, 1e-5)
    assert not close(found, drawn(pipeline, "flux", **guided))


def test_flux_without_a_negative_prompt_is_all_conditional() -> None:
    pipeline = tiny_pipeline("flux")
    steering = steered_at(pipeline, "flux")
    with steering.apply(pipeline) as one, steering.apply(pipeline, 0.0, branch="both"):
        drawn(pipeline, "flux", guidance_scale=3.5)
    assert one.maps().steps == (0, 1)
    with pytest.warns(DsasWarning, match="these sites never fired"), steering.apply(pipeline, branch="unconditional"):
        drawn(pipeline, "flux")


@pytest.mark.parametrize("family", STACKED)
def test_without_guidance_all_rows_are_conditional(family: str) -> None:
    pipeline, off = tiny_pipeline(family), {"guidance_scale": 1.0}
    steering = steered_at(pipeline, family)
    with steering.apply(pipeline):
        conditional = drawn(pipeline, family, **off)
    with steering.apply(pipeline, branch="both"):
        assert torch.equal(drawn(pipeline, family, **off), conditional)
    with pytest.warns(DsasWarning, match="these sites never fired"), steering.apply(pipeline, branch="unconditional"):
        drawn(pipeline, family, **off)


@pytest.mark.parametrize("family", ["sd", "sdxl", "pixart"])
def test_of_the_text_encoders_the_branch_is_the_prompt_or_the_negative_prompt(family: str) -> None:
    pipeline = tiny_pipeline(family)
    steering, negative = steered_at(pipeline, family, "text"), {"negative_prompt": ["bad", "worse"]}
    with steering.apply(pipeline, branch="both"):
        both = drawn(pipeline, family, **negative)
    seen = []
    for branch in ("conditional", "unconditional"):
        with steering.apply(pipeline, branch=branch) as applied:
            seen.append(drawn(pipeline, family, **negative))
        assert len(applied.maps().strengths[0]) == len(PROMPTS)
    assert not close(seen[0], seen[1])
    assert not close(seen[0], both)
    swapped = drawn_with_embeddings(pipeline, steering) if family == "sd" else seen[0]
    assert close(swapped, seen[0], 1e-4)


def drawn_with_embeddings(pipeline: Any, steering: dsas.Steering) -> Tensor:
    """Draw from embeddings of which only those of the prompt were made under steering."""
    with steering.apply(pipeline):
        embeddings, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, True, ["bad", "worse"])
    _, negative = pipeline.encode_prompt(PROMPTS, "cpu", 1, True, ["bad", "worse"])
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    options = {"num_inference_steps": 2, "output_type": "latent", "generator": generators, **OPTIONS["sd"]}
    return pipeline(prompt_embeds=embeddings, negative_prompt_embeds=negative, **options).images


@every_family
def test_a_picture_is_the_same_alone_and_beside_others_with_strengths_of_their_own(family: str) -> None:
    pipeline = tiny_pipeline(family)
    steering = steered_at(pipeline, family, scale=0.3)
    with steering.apply(pipeline, [0.0, 1.0], branch="conditional"):
        together = drawn(pipeline, family, num_images_per_prompt=2)
    for row, (prompt, strength) in enumerate(zip([0, 0, 1, 1], [0.0, 0.0, 1.0, 1.0], strict=True)):
        with steering.apply(pipeline, strength):
            alone = drawn(pipeline, family, [PROMPTS[prompt]], seeds=[row])
        assert close(together[row : row + 1], alone), row


@pytest.mark.parametrize("branch", ["conditional", "unconditional", "both"])
def test_with_both_branches_steered_each_picture_keeps_its_own_strength_in_either(branch: Any) -> None:
    pipeline = tiny_pipeline("sd")
    steering = steered_at(pipeline, "sd", scale=0.3)
    with steering.apply(pipeline, [0.0, 1.0], branch=branch) as applied:
        together = drawn(pipeline, "sd")
    with steering.apply(pipeline, 1.0, branch=branch):
        alone = drawn(pipeline, "sd", PROMPTS[1:], seeds=[1])
    assert close(together[1:], alone)
    assert close(together[:1], drawn(pipeline, "sd", PROMPTS[:1], seeds=[0]))
    assert applied.maps().strength.tolist() == [0.0, 1.0] * (2 if branch == "both" else 1)


class Numbered(dsas.Regulator):
    """Answers 1 + the denoising step."""

    name = "numbered"
    reads_forward_pass = True

    def __init__(self) -> None:
        super().__init__()

    @classmethod
    def fit(cls, source: Tensor, control: Tensor, target: Tensor) -> Any:
        raise NotImplementedError

    def forward(self, t: Tensor, step: Any) -> Tensor:
        assert step.denoising is not None
        return t.new_full((*t.shape[:2], 1), 1.0 + step.denoising.number)


def numbers(pipeline: Any, family: str = "sd", **options: Any) -> list[int]:
    """Return the number that every steered pass had, as a regulator saw it."""
    steering = steered_at(pipeline, family, regulator=Numbered(), scale=0.0)
    steering = dsas.Steering(steering.rules[:1], steering.model)
    seen = []
    with steering.apply(pipeline) as applied:
        applied._recorder.add = lambda _site, _step, value: seen.append(int(value[0, 0, 0]) - 1)  # type: ignore
        drawn(pipeline, family, **options)
    return seen


# DPMSolverSDE needs another package.
KINDS = [kind.name for kind in KarrasDiffusionSchedulers if "SDE" not in kind.name] + ["LCMScheduler", "TCDScheduler"]
SCHEDULE = {"clip_sample": False, "steps_offset": 1, "skip_prk_steps": True}


@pytest.mark.parametrize("scheduler", KINDS)
def test_the_steps_are_counted_from_zero_to_the_last_under_any_scheduler(scheduler: str) -> None:
    pipeline = tiny_pipeline("sd")
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(SCHEDULE)
    seen = numbers(pipeline, num_inference_steps=5)
    assert sorted(set(seen)) == [0, 1, 2, 3, 4]
    assert seen == sorted(seen)
    order = pipeline.scheduler.order
    assert all(seen.count(number) <= max(order, 2) for number in set(seen))
    assert denoising_of(pipeline.scheduler, pipeline.scheduler.timesteps[0]).total == 5


@pytest.mark.parametrize("scheduler", ["LCMScheduler", "TCDScheduler", "DDPMScheduler", "EulerDiscreteScheduler"])
def test_a_picture_to_picture_run_begins_in_the_middle_of_the_schedule(scheduler: str) -> None:
    pipeline = tiny_pipeline("sd")
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(SCHEDULE)
    again = diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    again.set_progress_bar_config(disable=True)
    steering, begun = steered_at(pipeline, "sd"), torch.zeros(2, 3, 16, 16)
    with steering.apply(again) as applied:
        options = {"num_inference_steps": 10, "strength": 0.4, "output_type": "latent"}
        again(PROMPTS, image=begun, generator=[torch.Generator().manual_seed(i) for i in (0, 1)], **options)
    assert applied.maps().steps == (6, 7, 8, 9)
    assert applied.maps().strengths[0].shape == (2, 4, 8, 8)


def test_a_second_order_scheduler_begins_in_the_middle_too() -> None:
    pipeline = tiny_pipeline("sd")
    pipeline.scheduler = diffusers.HeunDiscreteScheduler(steps_offset=1)
    again = diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    again.set_progress_bar_config(disable=True)
    with steered_at(pipeline, "sd").apply(again) as applied:
        again(PROMPTS, image=torch.zeros(2, 3, 16, 16), num_inference_steps=4, strength=0.5, output_type="latent")
    assert applied.maps().steps == (2, 3)


def test_the_extra_pass_of_skipped_layers_is_a_conditional_one() -> None:
    pipeline = tiny_pipeline("sd3")
    steering = steered_at(pipeline, "sd3", ["transformer.transformer_blocks.0"], regulator=dsas.Constant(1.0))
    skipped = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "num_inference_steps": 4}
    with steering.apply(pipeline):
        found = drawn(pipeline, "sd3", **skipped)
    half = added(
        pipeline,
        "sd3",
        steering.rules[0],
        lambda _, batch: slice(batch // 2, batch) if batch == 4 else slice(0, batch),
        **skipped,
    )
    assert close(found, half, 1e-5)


def test_hooks_come_off_when_a_run_is_interrupted() -> None:
    pipeline = tiny_pipeline("sd")
    before = modules_of(pipeline)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), steered_at(pipeline, "sd").apply(pipeline):
        drawn(pipeline, "sd", callback_on_step_end=stop)
    assert modules_of(pipeline) == before
    assert "prepare_latents" not in vars(pipeline)


def test_two_steerings_at_once_come_off_in_either_order() -> None:
    pipeline = tiny_pipeline("sd")
    first, second = steered_at(pipeline, "sd", "norm"), steered_at(pipeline, "sd", "residual")
    before = modules_of(pipeline)
    with (first | second).apply(pipeline, branch="both") as both:
        drawn(pipeline, "sd")
    assert [len(one.maps().sites) for one in both] == [len(first.rules), len(second.rules)]
    one, two = first.apply(pipeline).install(), second.apply(pipeline).install()
    drawn(pipeline, "sd")
    one.remove()
    drawn(pipeline, "sd")
    two.remove()
    assert modules_of(pipeline) == before
    assert "prepare_latents" not in vars(pipeline)


def test_a_schedule_is_told_the_same_in_every_process_and_another_is_not() -> None:
    pipeline = tiny_pipeline("sd")
    told, notes = subject_of(pipeline).module.schedule, pipeline.scheduler.config["_use_default_values"]
    notes.reverse()  # diffusers makes this list of a set of words
    assert subject_of(pipeline).module.schedule == told
    pipeline.scheduler.register_to_config(clip_sample=True)
    assert subject_of(pipeline).module.schedule != told


def test_what_is_stored_is_applied_as_it_was_and_to_no_other_pipeline(tmp_path: Any) -> None:
    pipeline = tiny_pipeline("sd")
    steering = steered_at(pipeline, "sd", regulator=dsas.PerStep([dsas.Constant(1.0), dsas.Constant(0.5)]))
    steering.save_pretrained(tmp_path)
    again = dsas.Steering.from_pretrained(tmp_path)
    with steering.apply(pipeline):
        wanted = drawn(pipeline, "sd")
    with again.apply(pipeline):
        assert torch.equal(drawn(pipeline, "sd"), wanted)
    assert again.digest() == steering.digest()
    with pytest.raises(ModelMismatchError, match="model_class 'UNet2DConditionModel' here, 'FluxTransformer2DModel'"):
        again.apply(tiny_pipeline("flux"))
    with pytest.warns(DsasWarning, match="weights of this UNet2DConditionModel are not those"):
        again.apply(tiny_pipeline("sd", seed=1))


def test_a_site_that_never_fires_is_reported() -> None:
    pipeline = tiny_pipeline("sd")
    steering = steered_at(pipeline, "sd", "text")
    embeddings = pipeline.encode_prompt(PROMPTS, "cpu", 1, True)
    options = {"num_inference_steps": 1, "output_type": "latent", **OPTIONS["sd"]}
    with pytest.warns(DsasWarning, match="never fired"), steering.apply(pipeline):
        pipeline(prompt_embeds=embeddings[0], negative_prompt_embeds=embeddings[1], **options)
    with warnings.catch_warnings(), steering.apply(pipeline):
        warnings.simplefilter("error")
        pipeline.encode_prompt(PROMPTS, "cpu", 1, True)


def test_report_tells_what_the_latest_run_did() -> None:
    pipeline = tiny_pipeline("sd")
    steering = steered_at(pipeline, "sd", ["unet.mid_block.attentions.0", "text"], regulator=dsas.Constant(0.75))
    with steering.apply(pipeline, [0.0, 2.0]) as applied:
        drawn(pipeline, "sd", num_images_per_prompt=2, num_inference_steps=3)
    lines = {line.site: line for line in applied.report()}
    middle, text = lines["unet.mid_block.attentions.0"], lines["text_encoder.encoder.layers.0"]
    assert middle.mean_strength == pytest.approx(0.75)
    assert middle.hits == 2 * 3 * 16
    assert text.hits == 16


def test_with_both_branches_steered_a_site_of_the_prompts_counts_prompts_and_negative_ones() -> None:
    pipeline = tiny_pipeline("sd")
    steering = steered_at(pipeline, "sd", ["unet.mid_block.attentions.0", "text"], regulator=dsas.Constant(0.75))
    with steering.apply(pipeline, [1.0, -1e-6], branch="both") as applied:
        drawn(pipeline, "sd", num_images_per_prompt=2)
        maps = applied.maps()
        guided = {line.site: line for line in applied.report()}
        drawn(pipeline, "sd", guidance_scale=1.0)  # has no negative prompts, so those of the run before are forgotten
        alone = {line.site: line for line in applied.report()}
    text = "text_encoder.encoder.layers.0"
    assert maps.images[maps.sites.index(text)].tolist() == [0, 2, 0, 2]
    assert maps.of(text).amax((1, 2, 3)).tolist() == pytest.approx([0.75, 0, 0.75, 0], abs=1e-5)
    assert (guided[text].hits, alone[text].hits) == (4 * 16, 2 * 16)  # each of 16 tokens, at any strength but 0
    assert guided["unet.mid_block.attentions.0"].hits == 2 * 4 * 2 * 16  # branches, images, steps, positions


class ByHand(diffusers.StableDiffusionPipeline):
    """A pipeline whose run is what a test says."""

    def __call__(self, run: Any) -> Any:  # type: ignore
        self.prepare_latents(2, 4, 16, 16, torch.float32, "cpu", torch.Generator())
        return run()


def by_hand() -> Any:
    return ByHand(**tiny_pipeline("sd").components, requires_safety_checker=False)


@pytest.mark.parametrize("rows", [3, 6])
def test_rows_that_cannot_be_told_apart_are_refused(rows: int) -> None:
    pipeline = by_hand()
    pipeline.scheduler.set_timesteps(2)
    steering = steered_at(tiny_pipeline("sd"), "sd", ["unet.mid_block.attentions.0"])
    latents, text = torch.zeros(rows, 4, 8, 8), torch.zeros(rows, 16, 16)
    run = lambda: pipeline.unet(latents, pipeline.scheduler.timesteps[0], text)  # noqa: E731
    with steering.apply(pipeline), pytest.raises(StateError, match=f"got {rows} rows for 2 pictures.*branch='both'"):
        pipeline(run)
    with steering.apply(pipeline, branch="both"):
        pipeline(run)
    with steering.apply(pipeline, [1.0, 0.5], branch="both") as applied:
        if rows == 6:
            pipeline(run)
            assert applied.maps().strength.tolist() == [1.0, 0.5] * 3
        else:
            with pytest.raises(StrengthError, match="which belongs to which of the 3 rows is unknown here"):
                pipeline(run)


def test_a_site_with_other_rows_than_its_denoiser_is_refused_but_in_both_branches() -> None:
    pipeline = by_hand()
    (site,) = subject_of(pipeline).sites("unet.conv_in")
    given, found = torch.zeros(8, 8, 2, 2), {}
    for branch in ("conditional", "both"):
        reader, hooks = PicturePasses(PipelineModules(pipeline), branch), Hooks()

        def run(reader: PicturePasses = reader) -> Any:
            reader.calls[-1][1]((torch.zeros(4, 4, 8, 8), 1, None), {})
            return reader.at(site, site.read(given), given)

        with hooks:
            reader.watch_runs(hooks, lambda: None)
            if branch == "conditional":
                with pytest.raises(StateError, match=r"site unet.conv_in: 8 rows in a pass of 4.*branch='both'"):
                    pipeline(run)
            else:
                found[branch] = pipeline(run)
    assert (found["both"].rows, found["both"].grid) == (slice(0, 8), (2, 2))


class Unknown(nn.Module):
    def forward(self, sample: Tensor) -> Tensor:
        return sample


class Other:
    """A pipeline of a family that nobody has checked."""

    def __init__(self) -> None:
        self.components = {"unet": Unknown(), "scheduler": None}

    def __call__(self) -> None: ...


def test_a_family_that_nobody_has_checked_is_steered_in_both_branches_or_not_at_all() -> None:
    parts = PipelineModules(Other())
    with pytest.raises(OptionError, match=r"which rows of a Unknown are conditional is known for.*branch='both'"):
        PicturePasses(parts)
    assert len(PicturePasses(parts, "both").calls) == 1
    with pytest.raises(dsas.errors.SiteError, match="'residual' is not known for this pipeline; it has 'text'"):
        dsas.find_sites(parts, "residual")


def test_options_of_texts_and_unknown_branches_are_refused() -> None:
    pipeline = tiny_pipeline("sd")
    steering = steered_at(pipeline, "sd", "text")
    for options in ({"skip_sinks": True}, {"prompt_tokens": 3}):
        with pytest.raises(OptionError, match="are for the tokens of texts"):
            steering.apply(pipeline, **options)
    with pytest.raises(OptionError, match="branch must be one of"):
        unchecked(PicturePasses.__init__)(object.__new__(PicturePasses), PipelineModules(pipeline), "neither")
    with pytest.raises(OptionError, match="expected a torch module or a diffusers pipeline, got int"):
        steering.apply(3)
    with pytest.raises(OptionError, match="has no part named unet or transformer"):
        PipelineModules(type("Empty", (), {"components": {}})())


def test_the_identity_of_a_pipeline_is_that_of_what_draws_and_not_of_what_decodes() -> None:
    pipeline, other = tiny_pipeline("sd"), tiny_pipeline("sd")
    nn.init.zeros_(other.vae.decoder.conv_out.weight)
    assert subject_of(pipeline).identity == subject_of(other).identity
    nn.init.zeros_(other.text_encoder.get_submodule("encoder.layers.0.mlp.fc1").weight)
    assert subject_of(pipeline).identity != subject_of(other).identity
    sizes = {family: subject_of(tiny_pipeline(family)).identity for family in ("sd", "flux")}
    assert [(one.width, one.depth) for one in sizes.values()] == [(16, 2), (32, 2)]


def test_channels_last_is_kept() -> None:
    pipeline = tiny_pipeline("sd")
    plain = drawn(pipeline, "sd")
    pipeline.unet.to(memory_format=torch.channels_last)
    steering, formats = steered_at(pipeline, "sd", ["unet.conv_in"]), []
    with steering.apply(pipeline):
        pipeline.unet.conv_in.register_forward_hook(
            lambda _m, _a, out: formats.append(out.is_contiguous(memory_format=torch.channels_last))
        )
        drawn(pipeline, "sd")
    assert formats == [True, True]
    assert close(drawn(pipeline, "sd"), plain)


def test_a_unet_in_bfloat16_is_steered_in_bfloat16() -> None:
    pipeline = tiny_pipeline("sd")
    steering = steered_at(pipeline, "sd")
    pipeline.to(torch.bfloat16)
    with steering.apply(pipeline):
        assert drawn(pipeline, "sd").dtype == torch.bfloat16


def test_a_copy_of_a_steered_pipeline_is_plain_and_can_be_steered_itself() -> None:
    pipeline = tiny_pipeline("sd")
    plain, steering = drawn(pipeline, "sd"), steered_at(pipeline, "sd")
    with steering.apply(pipeline):
        copies = [copy.deepcopy(pipeline), pickle.loads(pickle.dumps(pipeline))]
        steered = drawn(pipeline, "sd")
        assert all(torch.equal(drawn(one, "sd"), plain) for one in copies)
    for one in copies:
        with steering.apply(one):
            assert torch.equal(drawn(one, "sd"), steered)


def test_a_fused_pipeline_steers_both_branches_when_asked_to_and_is_refused_otherwise() -> None:
    pipeline = tiny_pipeline("sd")
    steering = steered_at(pipeline, "sd", ["unet.mid_block.resnets.0"], regulator=dsas.Constant(1.0))
    with pytest.raises(OptionError, match=r"steers all rows, those of the negative prompt too: give branch='both'"):
        steering.fuse(pipeline)
    with steering.apply(pipeline, branch="both"):
        wanted = drawn(pipeline, "sd")
    with steering.fuse(pipeline, branch="both"):
        assert close(drawn(pipeline, "sd"), wanted)


def test_a_warning_and_a_card_speak_of_pipelines() -> None:
    pipeline = tiny_pipeline("sd")
    steering = steered_at(pipeline, "sd", "text")
    assert 'with steering.apply(pipeline):\n    pipeline("...").images' in steering.card()
    with pytest.warns(DsasWarning, match="look at pictures over strengths"):
        steering.apply(tiny_pipeline("sd", seed=1))


def test_a_folder_of_a_newer_pipeline_is_refused_with_what_is_missing(tmp_path: Any) -> None:
    tiny_pipeline("sd").save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "Flux9Pipeline"}))
    with pytest.raises(OptionError, match=r"no pipeline could be loaded from .*Flux9Pipeline; it may need a newer"):
        load_pipeline(str(tmp_path))
