"""Fitting on pipelines: which activations of which pictures are read, and what is fitted to them."""

from typing import Any

import numpy as np
import pytest
import torch
from pictures import OPTIONS, close, drawn
from torch import Tensor, nn

pytest.importorskip("diffusers")

import diffusers

import dsas
from dsas.errors import ActivationError, OptionError, SiteError, TextsError
from dsas.fitting.collect import collect
from dsas.model.drawing import Prompts, draw
from dsas.model.picture_activations import chosen_positions, drawn_activations
from dsas.model.subject import subject_of
from dsas.testing.pipelines import PIPELINES, tiny_pipeline

SETS = {
    "source": [f"a red dog, {n}" for n in range(5)],
    "control": [f"the sky, {n}" for n in range(5)],
    "target": [f"a blue dog, {n}" for n in range(5)],
}


def fit(pipeline: Any, family: str = "sd", **options: Any) -> dsas.Steering:
    drawing = dsas.Drawing(steps=2, options=OPTIONS[family], **options.pop("drawing", {}))
    return dsas.fit(pipeline, **{**SETS, "selection": "all", "progress": False, "reading": drawing, **options})


def read_by_hand(pipeline: Any, site: dsas.Site, prompt: str, seed: int) -> np.ndarray:
    """Return the spatial means (step, dim) of the conditional row of one picture that is drawn alone, float64."""
    seen = []

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        t = (output[site.index] if isinstance(output, tuple) else output)[
            -1
        ].double()  # the conditional row is the last
        seen.append((t.flatten(1).mean(1) if t.ndim == 3 else t.mean(0)).numpy())

    handle = subject_of(pipeline).module.get_submodule(site.path).register_forward_hook(hook)
    drawn(pipeline, "sd", [prompt], seeds=[seed])
    handle.remove()
    return np.stack(seen)


def test_the_difference_of_means_is_that_of_pictures_drawn_one_by_one() -> None:
    pipeline = tiny_pipeline("sd")
    sites = ["unet.mid_block.attentions.0", "unet.mid_block.attentions.0.transformer_blocks.0.norm2"]
    steering = fit(pipeline, sites=sites, drawing={"seed": 7, "batch_size": 3})
    for rule in steering.rules:
        means = {
            name: np.mean(
                [read_by_hand(pipeline, rule.site, prompt, 7 + n) for n, prompt in enumerate(members)], (0, 1)
            )
            for name, members in SETS.items()
        }
        expected = means["target"] - means["source"]
        np.testing.assert_allclose(rule.transform.get_buffer("vector").numpy(), expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("family", PIPELINES)
def test_a_fitted_steering_is_applied_stored_and_the_same_again(family: str, tmp_path: Any) -> None:
    pipeline = tiny_pipeline(family)
    plain = drawn(pipeline, family)
    steering = fit(pipeline, family, drawing={"per_step": True})
    assert torch.equal(drawn(pipeline, family), plain)
    steering.save_pretrained(tmp_path)
    again = dsas.Steering.from_pretrained(tmp_path)
    with again.apply(pipeline, 5.0):
        steered = drawn(pipeline, family)
    with steering.apply(pipeline, 5.0):
        assert torch.equal(drawn(pipeline, family), steered)
    assert not close(steered, plain, 1e-4)
    assert fit(tiny_pipeline(family), family, drawing={"per_step": True}).digest() == steering.digest()
    assert again.settings["reading"]["options"] == OPTIONS[family]
    assert again.settings["regulator"] == "logistic a step"


def activations(pipeline: Any, site: str, **options: Any) -> Tensor:
    """Return (prompt, step, sample, dim) of the source prompts at one site."""
    subject = subject_of(pipeline)
    examples = subject.examples(dsas.Drawing(steps=2, options=OPTIONS["sd"], **options))
    (found,) = subject.sites(site)
    return collect(examples, SETS["source"], range(5), [found], progress=False)[found]


def test_what_is_read_of_a_picture_depends_neither_on_its_batch_nor_on_the_pictures_beside_it() -> None:
    pipeline = tiny_pipeline("sd")
    alone, batched = (activations(pipeline, "unet.conv_norm_out", batch_size=size) for size in (1, 5))
    assert alone.shape == (5, 2, 1, 8)
    assert close(batched, alone)
    assert not close(alone[:1], alone[1:2])
    twice = activations(pipeline, "unet.conv_norm_out", images=2)
    assert twice.shape == (5, 2, 2, 8)
    assert close(twice[:1, :, :1], alone[:1])
    assert not close(twice[:, :, 0], twice[:, :, 1])


def test_a_branch_is_read_and_both_are_averaged() -> None:
    pipeline = tiny_pipeline("sd")
    one, other, both = (
        activations(pipeline, "unet.conv_norm_out", branch=name) for name in ("conditional", "unconditional", "both")
    )
    assert not close(one, other)
    assert close(both, (one + other) / 2)


def test_single_positions_are_read_where_they_are_in_every_picture() -> None:
    pipeline = tiny_pipeline("sd")
    every = activations(pipeline, "unet.conv_norm_out", pooling="position", positions=1000)
    some = activations(pipeline, "unet.conv_norm_out", pooling="position", positions=5)
    assert every.shape == (5, 2, 64, 8)
    assert torch.equal(some, every[:, :, chosen_positions(64, 5)])
    assert close(every.mean(2, keepdim=True), activations(pipeline, "unet.conv_norm_out"))
    assert sorted(chosen_positions(64, 64).tolist()) == list(range(64))


def test_a_second_order_scheduler_gives_one_vector_a_step() -> None:
    pipeline = tiny_pipeline("sd")
    pipeline.scheduler = diffusers.HeunDiscreteScheduler(steps_offset=1)
    assert activations(pipeline, "unet.conv_norm_out").shape == (5, 2, 1, 8)


def test_each_step_has_the_regulator_that_its_own_samples_give() -> None:
    pipeline = tiny_pipeline("sd")
    (rule,) = fit(pipeline, sites="unet.conv_norm_out", drawing={"per_step": True}).rules
    examples = subject_of(pipeline).examples(dsas.Drawing(steps=2, options=OPTIONS["sd"]))
    read = {
        name: collect(examples, members, range(5), [rule.site], progress=False)[rule.site]
        for name, members in SETS.items()
    }
    assert isinstance(rule.regulator, dsas.PerStep)
    accuracies = []
    for step, regulator in enumerate(rule.regulator.regulators):
        wanted = dsas.Logistic.fit(*(read[name][:, step, 0] for name in SETS))
        torch.testing.assert_close(
            regulator.get_buffer("theta"), wanted.regulator.get_buffer("theta"), rtol=0.02, atol=1e-3
        )
        accuracies.append(wanted.accuracy)
    assert rule.accuracy == pytest.approx(sum(accuracies) / 2)


def test_positions_teach_transform_and_regulator_and_no_picture_is_in_two_folds() -> None:
    pipeline = tiny_pipeline("sd")
    seen = []

    def regulator(source: Tensor, control: Tensor, target: Tensor, *, groups: Tensor) -> Any:
        seen.append((source.shape, control.shape, target.shape, groups.tolist()))
        return dsas.Constant.fit(source, control, target)

    def transform(source: Tensor, target: Tensor) -> dsas.Transform:
        seen.append((source.shape, target.shape))
        return dsas.Addition.fit(source, target)

    fit(
        pipeline, sites="unet.conv_norm_out", regulator=regulator, transform=transform,
        drawing={"pooling": "position", "positions": 3},
    )  # fmt: skip
    groups = [picture for picture in range(10) for _ in range(2 * 3)]
    assert seen == [((30, 8), (30, 8), (5, 8), groups), ((30, 8), (30, 8))]
    (rule,) = fit(
        pipeline, sites="unet.conv_norm_out", regulator="cast", drawing={"pooling": "position", "positions": 64}
    ).rules
    (means,) = fit(pipeline, sites="unet.conv_norm_out", regulator="cast").rules
    torch.testing.assert_close(*(one.regulator.get_buffer("condition") for one in (rule, means)), rtol=1e-3, atol=1e-4)


def test_the_text_encoder_runs_once_and_has_one_regulator_for_all_steps() -> None:
    steering = fit(tiny_pipeline("sd"), sites=["text", "unet.conv_norm_out"], drawing={"per_step": True})
    kinds = [type(rule.regulator).__name__ for rule in steering.rules]
    assert kinds == ["Logistic", "Logistic", "Logistic", "PerStep"]


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_what_is_fitted_in_the_text_encoders_needs_no_denoising(family: str) -> None:
    pipeline, calls = tiny_pipeline(family), []
    both = fit(pipeline, family, sites=["text", "norm"])
    first = pipeline.unet.conv_in if family == "sd" else pipeline.transformer.pos_embed
    first.register_forward_hook(lambda *_: calls.append(1))
    alone = fit(pipeline, family, sites="text")
    assert not calls
    assert dsas.Steering(both.rules[: len(alone.rules)], both.model).digest() == alone.digest()


def test_an_interrupted_collection_goes_on_from_where_it_was(tmp_path: Any) -> None:
    pipeline, runs = tiny_pipeline("sd"), []
    whole = fit(pipeline, sites="unet.conv_norm_out", drawing={"batch_size": 5})
    run = pipeline.prepare_latents

    def counted(*args: Any, **kwargs: Any) -> Any:
        runs.append(1)
        if len(runs) == 2:
            raise KeyboardInterrupt
        return run(*args, **kwargs)

    pipeline.prepare_latents = counted
    options = {"sites": "unet.conv_norm_out", "checkpoint": tmp_path, "drawing": {"batch_size": 5}}
    with pytest.raises(KeyboardInterrupt):
        fit(pipeline, **options)
    assert pipeline.prepare_latents is counted
    assert fit(pipeline, **options).digest() == whole.digest()
    assert len(runs) == 4  # three batches, of which the second was run twice
    pipeline.scheduler = diffusers.EulerDiscreteScheduler(steps_offset=1)
    fit(pipeline, **options)
    assert len(runs) == 7


def test_modes_and_the_progress_bar_are_left_as_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = tiny_pipeline("sd")
    pipeline.unet.train()
    pipeline.set_progress_bar_config(desc="mine")
    fit(pipeline, sites="unet.conv_norm_out")
    assert capsys.readouterr().err == ""
    assert pipeline._progress_bar_config == {"desc": "mine"}
    assert pipeline.unet.training
    assert not pipeline.text_encoder.training
    del pipeline._progress_bar_config
    fit(pipeline, sites="unet.conv_norm_out")
    assert not hasattr(pipeline, "_progress_bar_config")


def test_a_site_that_does_not_fire_in_the_branch_is_named() -> None:
    pipeline = tiny_pipeline("sdxl")
    with pytest.raises(SiteError, match=r"these sites never ran in the unconditional branch: text_encoder"):
        fit(pipeline, "sdxl", sites="text", drawing={"branch": "unconditional"})


def test_an_activation_that_is_not_finite_names_its_site() -> None:
    pipeline = tiny_pipeline("sd")
    nn.init.constant_(pipeline.unet.conv_in.bias, float("nan"))
    parts, drawing = subject_of(pipeline).module, dsas.Drawing(steps=2, options=OPTIONS["sd"])
    reading = drawn_activations(parts, [Prompts([0], ["a"], [0])], dsas.find_sites(parts, "unet.conv_in"), drawing)
    with pytest.raises(ActivationError, match=r"site unet.conv_in: 2 of 2"):
        next(reading)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"drawing": {"positions": 0}}, OptionError, "needs steps, images, batch_size, positions >= 1"),
        ({"drawing": {"seed": 10**30}}, OptionError, "a seed of less than 64 bits"),
        ({"reading": dsas.Drawing(options={"generator": 1})}, OptionError, r"options must not hold \['generator'\]"),
        ({"reading": dsas.Reading()}, OptionError, "a pipeline is read by a dsas.Drawing, got a Reading"),
        ({"tokenizer": object()}, OptionError, "a pipeline has its own tokenizers"),
        ({"source": [dsas.Example("a dog", ((2, 5),))] * 4}, OptionError, "a pipeline is fitted on whole prompts"),
        ({"source": ["one"]}, TextsError, "at least 4"),
        (
            {"sites": "unet.conv_im"},
            SiteError,
            "closest: 'unet.conv_in'.*shorthands: residual, norm, attention, mlp, text",
        ),
        ({"regulator": "per-step"}, OptionError, r"dsas.Drawing\(per_step=True\)"),
    ],
)
def test_what_cannot_be_fitted_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit(tiny_pipeline("sd"), **options)


def test_a_language_model_goes_with_a_tokenizer_and_a_reading() -> None:
    from dsas.testing import tiny_model, tiny_tokenizer

    with pytest.raises(OptionError, match="a language model is read with its tokenizer: pass tokenizer="):
        dsas.fit(tiny_model(), **SETS)
    with pytest.raises(OptionError, match=r"a language model is read by a dsas\.Reading, got a Drawing"):
        dsas.fit(tiny_model(), tiny_tokenizer(), **SETS, reading=dsas.Drawing())


def test_pictures_are_drawn_by_the_pipelines_own_call() -> None:
    pipeline = tiny_pipeline("sd")
    batch, drawing = Prompts([0, 1], ["a", "b"], [3, 4]), dsas.Drawing(steps=2, options=OPTIONS["sd"], seed=2)
    assert torch.equal(draw(pipeline, batch, drawing), drawn(pipeline, "sd", ["a", "b"], seeds=[5, 6]))
    assert draw(pipeline, batch, drawing, output_type="np").shape == (2, 16, 16, 3)
