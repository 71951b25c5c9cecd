"""Code made by torch.compile: steered, plain again, and never silently wrong."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from makers import Position, logits_of, random_steering
from torch import Tensor

import dsas
from dsas.model.identity import ModelIdentity
from dsas.testing import tiny_model
from dsas.testing.passes import padded


@pytest.mark.compile
@pytest.mark.parametrize("form", ["module", "method", "function", "layer"])
def test_compiled_code_of_every_form_is_steered_and_is_plain_again(form: str) -> None:
    model, ids = tiny_model("llama", layers=2), torch.tensor([[1, 2, 3, 4]])
    steering, plain = random_steering(model), logits_of(model, ids)
    with steering.apply(model):
        steered = logits_of(model, ids)
    torch.compiler.reset()
    run: Callable[[], Tensor] = lambda: logits_of(model, ids)  # noqa: E731
    if form == "module":
        compiled = torch.compile(model, backend="eager")
        run = lambda: logits_of(compiled, ids)  # noqa: E731
    elif form == "method":
        model.compile(backend="eager")
    elif form == "layer":
        model.model.layers[1] = torch.compile(model.model.layers[1], backend="eager")
    else:
        function = torch.compile(lambda tokens: model(tokens, use_cache=False).logits * 1.0, backend="eager")
        run = lambda: function(ids).detach()  # noqa: E731
    torch.testing.assert_close(run(), plain)
    with steering.apply(model, record=False):
        torch.testing.assert_close(run(), steered)
    torch.testing.assert_close(run(), plain)
    torch.compiler.reset()
    with steering.apply(model):
        torch.testing.assert_close(run(), steered)
    torch.testing.assert_close(run(), plain)


@pytest.mark.compile
def test_a_compiled_model_has_the_identity_of_the_model_and_is_steered_through_its_wrapper() -> None:
    model, ids = tiny_model("llama", layers=1), torch.tensor([[1, 2, 3]])
    steering, before = random_steering(model), ModelIdentity.of(model)
    with steering.apply(model):
        steered = logits_of(model, ids)
    compiled: Any = torch.compile(model, backend="eager")
    with steering.apply(compiled):
        torch.testing.assert_close(logits_of(compiled, ids), steered)
    model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")
    assert ModelIdentity.of(model) == before


@pytest.mark.compile
@pytest.mark.parametrize("skip_sinks", [True, False], ids=["sinks", "regulator"])
@pytest.mark.parametrize("form", ["module", "layer"])
def test_where_token_positions_are_needed_compiled_code_gives_way_and_is_not_wrong(form: str, skip_sinks: bool) -> None:
    model, inputs = tiny_model("llama", layers=2), padded([torch.arange(5), torch.arange(7, 9)], "left", 0)
    steering = random_steering(model, regulator=dsas.Constant() if skip_sinks else Position())
    real = inputs.pop("attention_mask")
    with steering.apply(model, 0.1, skip_sinks=skip_sinks):
        expected = logits_of(model, inputs["input_ids"], attention_mask=real)[real.bool()]
    compiled: Any = model
    if form == "module":
        compiled = torch.compile(model, backend="eager")
    else:
        model.model.layers[1] = torch.compile(model.model.layers[1], backend="eager")
    with steering.apply(model, 0.1, skip_sinks=skip_sinks):
        steered = logits_of(compiled, inputs["input_ids"], attention_mask=real)[real.bool()]
    torch.testing.assert_close(steered, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.compile
def test_a_compiled_denoiser_is_steered_at_each_step_as_an_uncompiled_one() -> None:
    pytest.importorskip("diffusers")
    from pictures import close, drawn, steered_at

    from dsas.testing.pipelines import tiny_pipeline

    pipeline = tiny_pipeline("sd3")
    each = dsas.PerStep([dsas.Constant(0.2), dsas.Constant(0.0), dsas.Constant(1.0)])
    steering, options = steered_at(pipeline, "sd3", regulator=each), {"num_inference_steps": 3}
    plain = drawn(pipeline, "sd3", **options)
    with steering.apply(pipeline, [0.5, 1.0]):
        steered = drawn(pipeline, "sd3", **options)
    torch.compiler.reset()
    pipeline.transformer = torch.compile(pipeline.transformer, backend="eager")
    assert close(drawn(pipeline, "sd3", **options), plain)
    with steering.apply(pipeline, [0.5, 1.0]) as applied:
        for _ in range(2):
            assert close(drawn(pipeline, "sd3", **options), steered)
    assert applied.maps().strengths[0].mean((0, 2, 3)).tolist() == pytest.approx([0.15, 0.0, 0.75])
    assert close(drawn(pipeline, "sd3", **options), plain)


class Counts:
    """A compiler that makes no code of its own and counts how often it was asked to."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, graph: Any, _inputs: object) -> Any:
        self.made += 1
        return graph.forward


@pytest.mark.compile
def test_only_the_steered_model_is_compiled_again_and_once_for_all_steerings_of_one_kind() -> None:
    torch.compiler.reset()
    model, ids, ours, others = tiny_model("llama", layers=2), torch.tensor([[1, 2, 3, 4]]), Counts(), Counts()
    steerings = [random_steering(model, seed=seed) for seed in range(12)]  # more than torch compiles one function for
    steered = []
    for steering in steerings:
        with steering.apply(model):
            steered.append(logits_of(model, ids))
    plain = logits_of(model, ids)
    compiled: Any = torch.compile(model, backend=ours)
    bystander = torch.compile(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.GELU()), backend=others)
    bystander(torch.ones(2, 3))
    torch.testing.assert_close(logits_of(compiled, ids), plain)
    for steering, expected in zip(steerings, steered, strict=True):
        with steering.apply(model, record=False):
            torch.testing.assert_close(logits_of(compiled, ids), expected)
            bystander(torch.ones(2, 3))
        torch.testing.assert_close(logits_of(compiled, ids), plain)
        bystander(torch.ones(2, 3))
    assert (ours.made, others.made) == (2, 1)


@pytest.mark.compile
def test_a_model_fused_or_hooked_while_compiled_code_stands_is_what_it_would_be_uncompiled() -> None:
    torch.compiler.reset()
    model, ids = tiny_model("llama", layers=2), torch.tensor([[1, 2, 3, 4]])
    first, second = random_steering(model, seed=1), random_steering(model, seed=2)
    plain = logits_of(model, ids)
    with first.apply(model), second.fuse(model, 0.2):
        both = logits_of(model, ids)
    compiled: Any = torch.compile(model, backend="eager")
    torch.testing.assert_close(logits_of(compiled, ids), plain)
    applied = first.apply(model, record=False).install()
    fused = second.fuse(model, 0.2)
    torch.testing.assert_close(logits_of(compiled, ids), both)
    applied.remove()
    fused.undo()
    torch.testing.assert_close(logits_of(compiled, ids), plain)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.compile
def test_a_compiled_denoiser_is_compiled_once_for_all_strengths_and_a_whole_graph_says_why_it_cannot_be() -> None:
    pytest.importorskip("diffusers")
    from pictures import drawn, steered_at
    from torch._dynamo.utils import counters

    from dsas.testing.pipelines import tiny_pipeline

    pipeline = tiny_pipeline("sd")
    steering, inner = steered_at(pipeline, "sd", "residual"), pipeline.unet
    torch.compiler.reset()
    counters.clear()
    pipeline.unet = torch.compile(inner, backend="eager")
    found = []
    for strength in (1.0, 0.5, 2.0):
        with steering.apply(pipeline, strength) as applied:
            drawn(pipeline, "sd")
            applied.strength = 0.3
            drawn(pipeline, "sd")
        found.append(counters["frames"]["total"])
    assert found[0] == found[1] == found[2]
    torch.compiler.reset()
    pipeline.unet = torch.compile(inner, backend="eager", fullgraph=True)
    said = r"a compiled graph cannot know which rows of a batch are conditional"
    with pytest.raises(Exception, match=said), steering.apply(pipeline):
        drawn(pipeline, "sd")
