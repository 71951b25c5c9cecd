"""A served module keeps its kind and gives what it gave, with the edit of each token's own row added."""

from types import MethodType

import numpy as np
import pytest
import torch
from makers import random_steering
from torch import Tensor, nn

import dsas
from dsas.errors import ActivationError, ModelMismatchError, OptionError
from dsas.serving.carried import ancestors_of
from dsas.serving.modules import SiteStep, served_module, served_path, steer_module, table_of
from dsas.serving.parts import Parts
from dsas.serving.rule_rows import row_of
from dsas.serving.tables import SiteTable
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
    assert steer_module(model, path, SiteTable(len(rules), WIDTH, Parts(projections=1)), tokens)
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


def test_a_forward_that_a_module_was_given_on_its_own_is_steered_and_no_other_is_called() -> None:
    one, t, model, tokens = rule(), torch.randn(TOKENS, WIDTH), Served(), TokenBuffers(1, TOKENS)
    model.mlp.forward = MethodType(lambda _module, x: 2 * x, model.mlp)  # as vLLM fuses layers of transformers' classes
    table = SiteTable(1, WIDTH, Parts(projections=1))
    table.put(1, row_of(one))
    assert steer_module(model, "mlp", table, tokens)
    tokens.fill([RequestRow((1,), (0.7,))], torch.tensor([TOKENS]).numpy())
    torch.testing.assert_close(model.mlp(t), 2 * t + expected(one, 2 * t, 0.7), rtol=0, atol=1e-5)


def test_a_forward_that_belongs_to_something_else_is_refused_since_steering_would_be_left_out() -> None:
    model = Served()
    model.mlp.forward = nn.Identity().forward
    with pytest.raises(OptionError, match="site mlp cannot be served: the forward of its module was replaced"):
        steer_module(model, "mlp", SiteTable(1, WIDTH, Parts(projections=1)), TokenBuffers(1, TOKENS))


def test_a_batch_of_one_that_a_model_keeps_is_steered_and_told_of_like_tokens_alone() -> None:
    t, found = torch.randn(TOKENS, WIDTH), []
    for given in (t, t[None]):
        model, tokens = Served(), TokenBuffers(1, TOKENS, reports=True)
        table = SiteTable(1, WIDTH, Parts(projections=1))
        table.put(1, row_of(rule()))
        steer_module(model, "mlp", table, tokens)
        tokens.fill([RequestRow((1,), (0.7,))], torch.tensor([TOKENS]).numpy())
        found.append((model.mlp(given).reshape(TOKENS, WIDTH), tokens.values.clone()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][1].abs().min() > 0


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
    assert not steer_module(model, "layers.1", SiteTable(1, WIDTH, Parts()), TokenBuffers(1, 1))
    assert table_of(model, "layers.1") is table_of(model, "norm") is None


def test_a_path_that_is_not_there_is_refused_with_the_closest() -> None:
    with pytest.raises(ModelMismatchError, match=r"no module 'layer\.0'; closest: 'layers\.0'"):
        served_module(Served(), "layer.0")


def test_evidence_is_refused_at_a_module_that_the_model_has_at_two_places() -> None:
    model, tokens = Served(), TokenBuffers(1, TOKENS, adding=1)
    model.again = model.mlp
    for name, parts in (("evidence", Parts(projections=1, evidence=1)), ("cast", Parts(prompt=1))):
        with pytest.raises(OptionError, match=rf"'{name}' at mlp cannot be served: .* more than once .*\(mlp, again\)"):
            steer_module(model, "mlp", SiteTable(1, WIDTH, parts), tokens)
    assert steer_module(model, "mlp", SiteTable(1, WIDTH, Parts(projections=1)), tokens)


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
    parts = Parts(projections=1, evidence=1)
    steer_module(model, "mlp", SiteTable(len(memories), WIDTH, parts), tokens)
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


def test_a_site_is_found_where_the_served_model_keeps_the_decoder() -> None:
    def model_of(**children: nn.Module) -> nn.Module:
        module = nn.Module()
        for name, child in children.items():
            module.add_module(name, child)
        return module

    layers, blocks = (nn.ModuleList(nn.Identity() for _ in range(size)) for size in (3, 5))
    decoder = model_of(layers=layers, norm=nn.Identity())
    model = model_of(
        vision_tower=model_of(blocks=blocks), language_model=model_of(model=decoder, lm_head=nn.Identity())
    )
    wanted = "language_model.model.layers.1"
    assert served_path(model, "model.layers.1", "model", 3) == wanted  # fitted on the causal model
    assert (
        served_path(model, "model.language_model.layers.1", "model.language_model", 3) == wanted
    )  # fitted on the whole
    assert served_path(model, wanted, "model", 3) == wanted
    assert served_path(model, "lm_head", "model", 3) == "lm_head"
    twice = model_of(first=model_of(layers=layers), second=model_of(layers=layers))
    assert served_path(twice, "model.layers.1", "model", 3) == "model.layers.1"  # which of them, nobody knows


@pytest.mark.compile
def test_compiled_code_does_what_eager_code_does_in_steps_of_any_length_though_it_is_traced_at_the_longest() -> None:
    """Rows that read projections, neurons, places and prompts: none may take the length of a step for a constant."""
    model, tokens = Served(), TokenBuffers(1, 12, reports=True, places=1)
    tokens.read_prompts(1, 3, WIDTH)
    first, second = torch.linalg.qr(torch.randn(WIDTH, 2)).Q.T
    vector, zero = torch.randn(WIDTH), torch.tensor(0.0)
    halves = dsas.Product([dsas.HalfSpace(vector, zero), dsas.Logistic(0.3 * vector, zero)])
    site = dsas.Site("mlp")
    rows = [
        row_of(dsas.Rule(site, dsas.Rotation(first, second, torch.tensor(1.0)), halves)),
        row_of(dsas.Rule(site, dsas.Ablation(first, zero), dsas.Posterior(vector, vector, vector))),
        row_of(dsas.Rule(site, dsas.Addition(vector), dsas.Schedule("prompt")))._replace(place=1),
        row_of(dsas.Rule(site, dsas.Addition(vector), dsas.Cast(vector, torch.tensor(0.1)))),
    ]
    table = SiteTable(len(rows), WIDTH, Parts.of(rows))
    for slot, row in enumerate(rows, 1):
        table.put(slot, row)
    steer_module(model, "mlp", table, tokens)
    compiled = torch.compile(model.mlp, fullgraph=True)
    for count in (12, 5, 8):
        t = torch.randn(count, WIDTH)
        torch._dynamo.mark_dynamic(t, 0)
        tokens.places[:, 1, :count] = torch.randint(0, 2, (count,)).float()
        tokens.prompt_counted[:count] = torch.arange(count) > 0
        tokens.prompt_counts[:count] = torch.arange(count).float()
        tokens.prompt_rows.fill_(1)
        tokens.prompt_last[1] = count
        for slot in range(len(rows) + 1):
            tokens.fill([RequestRow((slot,), (0.7,))], np.array([count]))
            tokens.prompt_sums.zero_()
            wanted, sums, values = model.mlp(t), tokens.prompt_sums.clone(), tokens.values.clone()
            tokens.prompt_sums.zero_()
            tokens.values.zero_()
            with torch._dynamo.config.patch(error_on_recompile=count < 12):
                torch.testing.assert_close(compiled(t), wanted, rtol=0, atol=1e-5)
            torch.testing.assert_close(tokens.prompt_sums, sums, rtol=0, atol=1e-5)
            torch.testing.assert_close(tokens.values, values, rtol=0, atol=1e-5)
