"""A served module keeps its kind and gives what it gave, with the edit of each token's own row added."""

import numpy as np
import pytest
import torch
from makers import random_steering
from torch import Tensor, nn

import dsas
from dsas.errors import ActivationError, ModelMismatchError, OptionError
from dsas.serving.carried import ancestors_of
from dsas.serving.modules import SiteStep, served_module, steer_module, table_of
from dsas.serving.tables import Parts, SiteTable, row_of
from dsas.serving.tokens import RequestRow, TokenBuffers, identity_row
from dsas.testing.models import WIDTH, tiny_model

TOKENS = 6


class PPMissingLayer(nn.Identity):
    """What vLLM puts where a layer is on another pipeline stage."""


class Layer(nn.Module):
    """A decoder layer as servers have it: hidden and residual, whose sum is the residual stream."""

    def forward(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return hidden, residual


class Pair(nn.Module):
    """A fused norm: the first is the norm's output, the second no part of it."""

    def forward(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return hidden, residual


class Served(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), PPMissingLayer()])
        self.norm, self.mlp = Pair(), nn.Identity()


def rule(seed: int = 0) -> dsas.Rule:
    return random_steering(tiny_model("llama"), "residual", seed=seed).rules[0]


def steered(path: str, *rules: dsas.Rule, together: int = 1) -> tuple[Served, TokenBuffers]:
    model, tokens = Served(), TokenBuffers(together, TOKENS)
    assert steer_module(model, path, slots=len(rules), width=WIDTH, parts=Parts(gate=True), tokens=tokens)
    table = table_of(model, path)
    assert isinstance(table, SiteTable)
    for slot, one in enumerate(rules, 1):
        table.put(slot, row_of(one))
    return model, tokens


def expected(rule: dsas.Rule, t: Tensor, strength: float) -> Tensor:
    step = dsas.model.forward_pass.ForwardPass(1, len(t))
    return strength * (rule.regulator(t[None], step) * rule.transform.edit(t[None]))[0]


def test_a_layer_is_steered_by_the_sum_of_hidden_and_residual() -> None:
    one, (h, r) = rule(), torch.randn(2, TOKENS, WIDTH)
    model, tokens = steered("layers.0", one)
    tokens.fill([RequestRow((1,), (0.7,))], torch.tensor([TOKENS]).numpy())
    hidden, residual = model.layers[0](h, r)
    assert residual is r
    torch.testing.assert_close(hidden + residual, h + r + expected(one, h + r, 0.7), rtol=0, atol=1e-5)


def test_a_norm_is_steered_by_its_own_output() -> None:
    one, (h, r) = rule(), torch.randn(2, TOKENS, WIDTH)
    model, tokens = steered("norm", one)
    tokens.fill([RequestRow((1,), (0.7,))], torch.tensor([TOKENS]).numpy())
    torch.testing.assert_close(model.norm(h, r)[0], h + expected(one, h, 0.7), rtol=0, atol=1e-5)


def test_a_plain_tensor_stays_one_and_in_its_dtype() -> None:
    one, t = rule(), torch.randn(TOKENS, WIDTH).bfloat16()
    model, tokens = steered("mlp", one)
    tokens.fill([RequestRow((1,), (0.7,))], torch.tensor([TOKENS]).numpy())
    wanted = (t.float() + expected(one, t.float(), 0.7)).bfloat16()
    assert torch.equal(model.mlp(t), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unsteered_tokens_change_no_bit_beside_steered_ones(dtype: torch.dtype) -> None:
    h, r = (torch.randn(TOKENS, WIDTH).to(dtype) for _ in range(2))
    model, tokens = steered("layers.0", rule())
    tokens.fill([identity_row(1), RequestRow((1,), (3.0,)), identity_row(1)], torch.tensor([2, 1, 3]).numpy())
    hidden, _ = model.layers[0](h, r)
    assert [bool(torch.equal(hidden[i], h[i])) for i in range(TOKENS)] == [True, True, False, True, True, True]


def test_several_steerings_act_one_after_another() -> None:
    rules, t = [rule(1), rule(2)], torch.randn(TOKENS, WIDTH)
    model, tokens = steered("mlp", *rules, together=2)
    tokens.fill([RequestRow((2, 1), (0.5, 0.9))], torch.tensor([TOKENS]).numpy())
    first = t + expected(rules[1], t, 0.5)
    torch.testing.assert_close(model.mlp(t), first + expected(rules[0], first, 0.9), rtol=0, atol=1e-5)


def test_the_module_is_still_of_its_class_and_classes_are_made_once() -> None:
    (one, _), (two, _) = steered("layers.0"), steered("layers.0")
    assert isinstance(one.layers[0], Layer)
    assert type(one.layers[0]) is type(two.layers[0]) is not Layer


def test_a_module_of_another_pipeline_stage_is_left_out() -> None:
    model = Served()
    assert served_module(model, "layers.1") is served_module(model, "layers.1.mlp") is None
    assert not steer_module(model, "layers.1", slots=1, width=WIDTH, parts=Parts(), tokens=TokenBuffers(1, 1))
    assert table_of(model, "layers.1") is table_of(model, "norm") is None


def test_a_path_that_is_not_there_is_refused_with_the_closest() -> None:
    with pytest.raises(ModelMismatchError, match=r"no module 'layer\.0'; closest: 'layers\.0'"):
        served_module(Served(), "layer.0")


def test_evidence_is_refused_at_a_module_that_the_model_has_at_two_places() -> None:
    model, tokens = Served(), TokenBuffers(1, TOKENS, adding=1)
    model.again = model.mlp
    given = {"slots": 1, "width": WIDTH, "tokens": tokens}
    with pytest.raises(OptionError, match=r"'evidence' at mlp cannot be served: .* more than once .*\(mlp, again\)"):
        steer_module(model, "mlp", parts=Parts(gate=True, evidence=True), **given)
    assert steer_module(model, "mlp", parts=Parts(gate=True), **given)


def test_a_layer_that_gives_three_values_is_refused() -> None:
    step = SiteStep("layers.0", SiteTable(1, WIDTH, Parts()), TokenBuffers(1, 1), sums=True)
    with pytest.raises(ActivationError, match=r"layers\.0 gives 3 values, expected \(hidden, residual\)"):
        step(tuple(torch.zeros(3, 1, WIDTH)))


def test_what_later_steps_write_leaves_shorter_steps_alone() -> None:
    tokens = TokenBuffers(1, TOKENS)
    addresses = tokens.slots.data_ptr(), tokens.strengths.data_ptr()
    tokens.fill([RequestRow((2,), (0.5,))], torch.tensor([TOKENS]).numpy())
    tokens.fill([RequestRow((1,), (0.25,)), identity_row(1)], torch.tensor([1, 2]).numpy())
    assert tokens.slots.tolist() == [[1, 0, 0, 2, 2, 2]]
    assert tokens.strengths.tolist() == [[0.25, 0, 0, 0.5, 0.5, 0.5]]
    assert addresses == (tokens.slots.data_ptr(), tokens.strengths.data_ptr())


@pytest.mark.compile
def test_compiled_code_adds_up_evidence_over_steps_of_any_length_though_it_is_traced_at_the_longest() -> None:
    """With the compiler that serves, which has its own idea of elementary functions near 0."""
    memories, model, tokens, zero = (1.0, 0.999, 0.5, 0.0), Served(), TokenBuffers(1, 12, adding=1), torch.tensor(0.0)
    parts = Parts(gate=True, evidence=True)
    steer_module(model, "mlp", slots=len(memories), width=WIDTH, parts=parts, tokens=tokens)
    table = table_of(model, "mlp")
    assert isinstance(table, SiteTable)
    rules = [
        rule()._replace(regulator=dsas.Evidence(torch.randn(WIDTH), zero, zero, memory=memory)) for memory in memories
    ]
    for slot, one in enumerate(rules, 1):
        table.put(slot, row_of(one))
    compiled = torch.compile(model.mlp, fullgraph=True)
    for count in (12, 5, 8):
        ancestors = ancestors_of(np.arange(count), *tokens.ancestors.shape[1:])
        tokens.ancestors[:count] = torch.from_numpy(ancestors)
        tokens.positions[:count] = torch.arange(count)
        t = torch.randn(count, WIDTH)
        torch._dynamo.mark_dynamic(t, 0)
        for slot, one in enumerate(rules, 1):
            tokens.fill([RequestRow((slot,), (0.7,))], np.array([count]))
            tokens.sums.zero_()
            with torch._dynamo.config.patch(error_on_recompile=count < 12):
                got = compiled(t)
            torch.testing.assert_close(got, t + expected(one, t, 0.7), rtol=0, atol=1e-5)
