"""Training on pipelines: gradients through the denoising steps, and what is learned from them."""

from typing import Any

import pytest
import torch
from blocks import check_gradient
from pictures import OPTIONS, close, drawn
from torch import Tensor

pytest.importorskip("diffusers")

import dsas
from dsas.errors import OptionError
from dsas.fitting.collect import collect
from dsas.model.subject import subject_of
from dsas.testing.pipelines import tiny_pipeline
from dsas.training.learning import LearnedParts, learnable
from dsas.training.plan import Plan, Running
from dsas.training.run import Run
from dsas.training.trainer import Data, Trainer

TEXTS = {
    "source": [f"a red dog, {n}" for n in range(5)],
    "control": [f"the sky, {n}" for n in range(5)],
    "target": [f"a blue dog, {n}" for n in range(5)],
}
QUIET = dsas.Running(progress=False)
SITES = ["unet.down_blocks.0.resnets.0", "unet.mid_block.attentions.0.transformer_blocks.0.norm2"]


def train(pipeline: Any, family: str = "sd", **options: Any) -> dsas.Steering:
    drawing = dsas.Drawing(steps=2, options=OPTIONS[family], **options.pop("drawing", {}))
    return dsas.train(pipeline, **{**TEXTS, "running": QUIET, "reading": drawing, **options})


def rules_of(widths: dict[str, int], dtype: torch.dtype) -> list[dsas.Rule]:
    draw, rules = torch.Generator().manual_seed(0), []
    for path, dim in widths.items():
        slope, offset, theta = (0.2 * torch.randn(dim, generator=draw, dtype=dtype) for _ in range(3))
        (site,) = dsas.find_sites(subject_of(tiny_pipeline("sd")).module, path)
        rule = dsas.Rule(site, dsas.Lineas(1 + slope, offset), dsas.Logistic(theta, torch.tensor(0.1, dtype=dtype)))
        rules.append(learnable(rule, torch.device("cpu"), LearnedParts(True, False)))
    return rules


def trainer_on(pipeline: Any, *, batch_size: int, steps: int, branch: Any = "conditional") -> Trainer:
    rules = rules_of({SITES[0]: 8, SITES[1]: 16}, torch.float64)
    drawing = dsas.Drawing(steps=steps, options=OPTIONS["sd"], batch_size=batch_size, branch=branch)
    examples = subject_of(pipeline).examples(drawing, training=True)
    run = Run(examples, [rule.site for rule in rules], TEXTS, None, Running(progress=False))
    target = run.collect(TEXTS["target"])
    data = Data(
        run.batches(TEXTS["source"]), run.batches(TEXTS["control"]), [target[rule.site].double() for rule in rules]
    )
    return Trainer(run.work(), rules, data, Plan(steps=5), control_weight=0.7)


def test_what_is_learned_in_the_text_encoder_needs_no_denoising() -> None:
    pipeline, calls = tiny_pipeline("sd"), []
    pipeline.unet.conv_in.register_forward_hook(lambda *_: calls.append(1))
    steering = train(pipeline, sites="text", steps=3)
    assert not calls
    assert steering.settings["training"]["support"] > 0


@pytest.mark.parametrize(("steps", "branch"), [(1, "conditional"), (2, "conditional"), (2, "unconditional")])
def test_gradients_through_all_denoising_steps_are_those_of_finite_differences(steps: int, branch: Any) -> None:
    pipeline = tiny_pipeline("sd").to(torch.float64)
    trainer = trainer_on(pipeline, batch_size=5, steps=steps, branch=branch)
    check_gradient(trainer, step=1e-5, rel=2e-3, absolute=1e-6, every=10**9)
    trainer.close()
    assert not any(parameter.grad is not None for parameter in subject_of(pipeline).module.parameters())


def test_micro_batches_of_prompts_give_the_gradient_of_all_of_them() -> None:
    pipeline = tiny_pipeline("sd").to(torch.float64)
    whole = trainer_on(pipeline, batch_size=5, steps=2)
    whole.gradient()
    found = {name: value.grad.clone() for name, value in whole.leaves.items() if value.grad is not None}
    whole.close()
    parts = trainer_on(pipeline, batch_size=2, steps=2)
    parts.gradient()
    for name, value in found.items():
        torch.testing.assert_close(parts.leaves[name].grad, value, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_lineas_moves_the_pictures_and_the_model_learns_nothing(family: str) -> None:
    pipeline = tiny_pipeline(family)
    weights = {name: value.clone() for name, value in subject_of(pipeline).module.state_dict().items()}
    plain = drawn(pipeline, family)
    held, rate = dsas.HeldOut(share=0.0), dsas.Optimiser(rate=0.05)
    steering = train(pipeline, family, sites="residual", steps=3, optimiser=rate, held_out=held)
    assert all(torch.equal(value, weights[name]) for name, value in subject_of(pipeline).module.state_dict().items())
    assert torch.equal(drawn(pipeline, family), plain)
    with steering.apply(pipeline):
        assert not close(drawn(pipeline, family), plain)
    assert steering.settings["fitted"] == "end to end: lineas"


def transport_after(steering: dsas.Steering, pipeline: Any) -> float:
    """Return the squared distance of sorted pooled activations, steered source against target, summed over sites."""
    examples = subject_of(pipeline).examples(dsas.Drawing(steps=2, options=OPTIONS["sd"]))
    sites, places = [rule.site for rule in steering.rules], range(5)

    def read(name: str) -> dict[dsas.Site, Tensor]:
        found = collect(examples, TEXTS[name], places, sites, progress=False)
        return {site: value.mean((1, 2)).sort(0).values for site, value in found.items()}

    goal = read("target")
    with steering.apply(pipeline):
        now = read("source")
    return sum(float((now[site] - goal[site]).square().sum(0).mean()) for site in sites)


def test_training_brings_the_source_nearer_to_the_target() -> None:
    pipeline = tiny_pipeline("sd")
    options: dict[str, Any] = {"sites": SITES, "held_out": dsas.HeldOut(share=0.0)}
    few, more = (
        train(pipeline, steps=steps, optimiser=dsas.Optimiser(rate=rate), **options)
        for steps, rate in ((1, 1e-6), (30, 0.02))
    )
    assert transport_after(more, pipeline) < 0.7 * transport_after(few, pipeline)


def test_e2e_dsas_learns_regulators_and_resumes_where_it_was(tmp_path: Any) -> None:
    pipeline = tiny_pipeline("sd")
    options: dict[str, Any] = {
        "objective": dsas.E2E(control_weight=0.0),
        "sites": SITES,
        "steps": 4,
        "held_out": dsas.HeldOut(share=0.0),
    }
    steering = train(pipeline, checkpoint=tmp_path, **options)
    assert {rule.regulator.name for rule in steering.rules} == {"logistic"}
    again = train(pipeline, checkpoint=tmp_path, **options)
    assert again.digest() == steering.digest()
    assert again.settings["training"]["best_step"] == 4


@pytest.mark.parametrize(
    "options",
    [
        {"drawing": {"per_step": True}},
        {"drawing": {"images": 2}},
        {"drawing": {"pooling": "position"}},
        {"drawing": {"branch": "both"}},
    ],
)
def test_what_cannot_be_trained_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="training on a pipeline needs a Drawing of one image per prompt"):
        train(tiny_pipeline("sd"), **options)


def test_checkpointing_which_a_pipeline_does_not_offer_is_refused() -> None:
    with pytest.raises(OptionError, match="does not offer gradient checkpointing: train without it"):
        train(tiny_pipeline("sd"), running=QUIET._replace(checkpointing=True), sites=SITES[:1])


def test_without_a_drawing_one_step_is_trained_through() -> None:
    pipeline, runs = tiny_pipeline("sd"), []
    pipeline.unet.register_forward_hook(lambda *_: runs.append(1) and None)
    steering = dsas.train(pipeline, **TEXTS, sites=SITES[:1], steps=1, held_out=dsas.HeldOut(share=0.0), running=QUIET)
    assert steering.settings["reading"]["steps"] == 1
    assert runs
