"""Activations: pooled vectors against means taken by hand in float64, sinks, early stop, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from makers import hooks_on, ids_of, logits_of
from torch import Tensor, nn

import dsas
from dsas.errors import ActivationError, SiteError
from dsas.model.activations import SINK_RATIO, pooled_activations, sinks
from dsas.model.evaluation_mode import evaluation_mode
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.testing.passes import padded

SITE = dsas.Site("layer")
ROWS = [torch.tensor([1, 2, 3, 4, 5]), torch.tensor([6, 7])]


class Given(nn.Module):
    """A model whose one layer gives activations that were made beforehand."""

    def __init__(self, activations: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.layer = nn.Identity()
        self.activations = activations

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Tensor:
        return self.layer(self.activations)


@pytest.mark.parametrize("pattern", ["*.mlp.gate", "*.mlp.experts", "*.mlp.gate@input"])
def test_routers_and_experts_are_read_text_by_text_and_steered_row_by_row(pattern: str) -> None:
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    texts = {name: [f"{name}{' ' * n}{n}" for n in range(4)] for name in ("source", "control", "target")}
    steering = dsas.fit(
        model, tokenizer, **texts, sites=pattern, reading=dsas.Reading(skip_sinks=False, batch_size=3),
        selection="all", progress=False,
    )  # fmt: skip
    module, seen = model.get_submodule(steering.rules[0].site.path), list[Tensor]()
    if pattern.endswith("input"):
        handle = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0].mean(0)))
    else:
        first = {"*.mlp.gate": lambda output: output[0], "*.mlp.experts": lambda output: output}[pattern]
        handle = module.register_forward_hook(lambda _module, _args, output: seen.append(first(output).mean(0)))
    for text in texts["target"] + texts["source"]:
        logits_of(model, ids_of(tokenizer, text))
    handle.remove()
    expected = torch.stack(seen[:4]).mean(0) - torch.stack(seen[4:]).mean(0)
    torch.testing.assert_close(steering.rules[0].transform.get_buffer("vector"), expected, rtol=1e-4, atol=1e-5)
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    with steering.apply(model, torch.tensor([0.0, 3.0])) as applied:
        steered = logits_of(model, ids)
        trace = applied.trace()
    plain = logits_of(model, ids)
    assert torch.allclose(steered[0], plain[0], atol=1e-5)
    assert torch.allclose(steered[1], plain[1], atol=1e-5) == (pattern == "*.mlp.gate")  # whose logits nobody reads
    assert trace.strengths.shape == (3, 2, 4)
    assert not trace.strengths.isnan().any()
    assert not trace.strengths[:, 0].any()
    assert trace.strengths[:, 1].any()


def pooled(
    model: nn.Module, inputs: Any, sites: list[dsas.Site], *, counted: Any = None, **options: Any
) -> dict[dsas.Site, Tensor]:
    those = inputs["attention_mask"].bool() if counted is None else torch.tensor(counted).bool()
    (found,) = pooled_activations(model, [(inputs, those)], sites, **options)
    return found


def pooled_given(activations: Tensor, mask: list[list[int]], **options: Any) -> np.ndarray:
    inputs = {"input_ids": torch.tensor(mask), "attention_mask": torch.tensor(mask)}
    return pooled(Given(activations), inputs, [SITE], **options)[SITE].numpy()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_mean_is_over_the_real_tokens_but_the_first_whatever_the_padding_side(side: str, family: str) -> None:
    model, site = tiny_model(family), dsas.find_sites(tiny_model(family))[1]
    inputs = padded(ROWS, side, 0)
    if family == "llama":
        del inputs["position_ids"]  # rotary positions are relative: left padding needs none
    found = pooled(model, inputs, [site])[site]
    for row, ids in enumerate(ROWS):
        with torch.no_grad():
            t = model(ids[None], output_hidden_states=True).hidden_states[2][0].double().numpy()
        norms = np.linalg.norm(t, axis=-1)
        counts = (norms <= SINK_RATIO * np.sort(norms)[(len(ids) - 1) // 2]) & (np.arange(len(ids)) > 0)
        np.testing.assert_allclose(found[row].numpy(), t[counts].mean(0), rtol=1e-4, atol=1e-5)


def test_a_token_far_above_the_median_norm_and_the_first_real_one_are_sinks() -> None:
    norms = torch.tensor([[1.0, 2.0, 1.0, 1.0, SINK_RATIO * 0.99], [9.0, 1.0, 1.0, 1.0, SINK_RATIO * 1.01]])
    t = torch.stack([norms, torch.zeros_like(norms)], dim=-1)
    real = torch.tensor([[True] * 5, [False] + [True] * 4])  # the 9 is padding and is no part of the median
    assert sinks(t, real).tolist() == [[True, False, False, False, False], [False, True, False, False, True]]


def test_sinks_are_left_out_of_the_mean_unless_asked_for() -> None:
    t = torch.tensor([[[100.0, 7.0], [1.0, 2.0], [3.0, 6.0], [2.0, 1.0], [500.0, 9.0], [-7.0, -7.0]]])
    mask = [[1, 1, 1, 1, 1, 0]]
    np.testing.assert_allclose(pooled_given(t, mask), [[2.0, 3.0]])
    np.testing.assert_allclose(pooled_given(t, mask, skip_sinks=False), [[606 / 5, 25 / 5]], rtol=1e-6)


def test_a_text_of_one_token_keeps_it_although_it_is_a_sink() -> None:
    np.testing.assert_array_equal(pooled_given(torch.tensor([[[9.0, 9.0], [4.0, 2.0]]]), [[0, 1]]), [[4.0, 2.0]])


@pytest.mark.parametrize("last", [1, 2, 3])
def test_a_token_that_counts_alone_is_read_as_it_is_even_a_sink(last: int) -> None:
    t = torch.randn(1, 4, 3)
    t[0, last] *= 100
    counted = [[place == last for place in range(4)]]
    np.testing.assert_array_equal(pooled_given(t, [[1] * 4], counted=counted), t[:, last].numpy())


def test_only_tokens_that_count_are_in_the_mean_and_sinks_are_told_by_the_whole_row() -> None:
    t = torch.tensor([[[1.0], [1.0], [2.0], [30.0], [4.0]]])
    counted = [[0, 0, 1, 1, 1]]
    np.testing.assert_allclose(pooled_given(t, [[1] * 5], counted=counted), [[3.0]])  # 30 is far above the median, 2
    np.testing.assert_allclose(pooled_given(t, [[1] * 5], counted=counted, skip_sinks=False), [[12.0]])


def test_what_padding_holds_does_not_count_even_when_it_is_not_finite() -> None:
    t = torch.tensor([[[float("nan")], [1.0], [3.0]]])
    np.testing.assert_array_equal(pooled_given(t, [[0, 1, 1]], skip_sinks=False), [[2.0]])


def test_means_of_half_precision_activations_are_taken_in_float32() -> None:
    t = torch.cat([torch.full((1, 2, 1), 1024.0), torch.full((1, 4094, 1), 1025.0)], dim=1).half()
    found = pooled_given(t, [[1] * 4096], skip_sinks=False)
    np.testing.assert_allclose(found, [[1025 - 2 / 4096]], rtol=1e-6)  # in float16 the sum alone would overflow


def test_no_layer_runs_after_the_last_site_and_every_site_is_read_in_one_pass() -> None:
    model, calls = tiny_model(), []
    for name, module in model.named_modules():
        if name in (
            "model.embed_tokens",
            "model.layers.0",
            "model.layers.1",
            "model.layers.2",
            "model.norm",
            "lm_head",
        ):
            module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    sites = dsas.find_sites(model, ["layers.0", "layers.1.mlp"])
    inputs = padded(ROWS, "right", 0)
    list(pooled_activations(model, [(inputs, inputs["attention_mask"].bool())] * 2, sites))
    # model.layers.1 begins and is stopped inside, by its mlp
    assert calls == ["model.embed_tokens", "model.layers.0", "model.layers.1"] * 2


def test_an_activation_that_is_not_finite_is_refused_by_site_and_number_of_texts() -> None:
    t = torch.ones(3, 4, 2)
    t[1, 2, 0] = float("inf")  # its norm would make it a sink, and a sink does not count: it must be seen all the same
    with pytest.raises(ActivationError, match="site layer: 1 of 3 texts have activations that are not finite"):
        pooled_given(t, [[1] * 4] * 3)


def test_every_module_is_left_in_its_own_mode_and_no_hook_stays_on_even_after_an_error() -> None:
    model = tiny_model()
    model.train()
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    seen = []
    model.model.layers[2].register_forward_pre_hook(lambda module, _: seen.append(module.training))
    sites = dsas.find_sites(model)
    pooled(model, padded(ROWS, "right", 0), sites)
    assert seen == [False]
    assert [module.training for module in model.modules()] == before
    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == before
    assert hooks_on(model) == 1


def test_a_site_that_never_fires_is_named() -> None:
    model = tiny_model()
    model.idle = nn.Linear(2, 2)
    with pytest.raises(
        SiteError, match=r"these sites never ran in the forward pass: idle; closest that fired: 'model\.layers\.0'"
    ):
        pooled(model, padded(ROWS, "right", 0), [dsas.Site("model.layers.0"), dsas.Site("idle")])
