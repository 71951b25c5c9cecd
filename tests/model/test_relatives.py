"""A Steering on the relatives of the model it was fitted on: wrapped, adapted, quantised, sharded, part of another."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from makers import logits_of, random_steering
from torch import Tensor, nn

import dsas
from dsas.errors import DsasWarning, ModelMismatchError
from dsas.model.identity import ModelIdentity, fingerprint
from dsas.model.weights import acting_weights, how_kept
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.testing.models import WIDTH

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
IDS = torch.tensor([[3, 1, 4, 1, 5]])
VECTOR = torch.linspace(-1, 1, WIDTH)


def adding(model: nn.Module) -> dsas.Steering:
    """Return a Steering that adds VECTOR after every layer."""
    rules = [dsas.Rule(site, dsas.Addition(VECTOR), dsas.Constant()) for site in dsas.find_sites(model)]
    return dsas.Steering(rules, ModelIdentity.of(model))


def by_hand(model: Any, layers: nn.ModuleList) -> Tensor:
    """Return the logits of a model after each of whose layers VECTOR is added."""
    handles = [layer.register_forward_hook(lambda _module, _args, output: output + VECTOR) for layer in layers]
    try:
        return logits_of(model, IDS)
    finally:
        for handle in handles:
            handle.remove()


def steered(steering: dsas.Steering, model: Any) -> Tensor:
    with steering.apply(model, 1.0):
        return logits_of(model, IDS)


def lora(**options: Any) -> Any:
    peft = pytest.importorskip("peft")
    config = {"r": 2, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    torch.manual_seed(0)
    return peft.get_peft_model(tiny_model(), peft.LoraConfig(**{**config, **options})).eval()


def llava(layers: int = 3) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": layers, "num_attention_heads": 4}
    seen = CLIPVisionConfig(**sizes, image_size=28, patch_size=14)
    config = LlavaConfig(vision_config=seen, text_config=LlamaConfig(**sizes, vocab_size=300), image_token_index=299)
    return LlavaForConditionalGeneration(config).eval()


@pytest.mark.compile
@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda model: torch.compile(nn.DataParallel(model), backend="eager")], ids=["dp", "both"]
)
def test_wrappers_that_only_call_a_model_are_the_model_exactly(wrap: Any) -> None:
    model = tiny_model()
    wrapped = wrap(tiny_model())
    steering = random_steering(model)
    assert steering.model.compare(dsas.fit(wrapped, tiny_tokenizer(), **SETS).model) == "exact"
    assert torch.equal(steered(steering, wrapped), steered(steering, model))


@pytest.mark.compile
def test_a_compiled_layer_keeps_its_place_and_so_do_the_modules_inside_it() -> None:
    model = tiny_model()
    rules = [dsas.Rule(dsas.Site(f"model.layers.1{tail}"), dsas.Addition(VECTOR), dsas.Constant())
             for tail in ("", ".mlp")]  # fmt: skip
    steering, plain = dsas.Steering(rules, ModelIdentity.of(model)), tiny_model()
    model.model.layers[1] = torch.compile(model.model.layers[1], backend="eager")  # type: ignore
    assert torch.allclose(steered(steering, model), steered(steering, plain), atol=1e-5)
    assert steering.model.compare(ModelIdentity.of(model)) == "exact"


SETS: Any = {
    **{name: [f"{word} {number}" for number in range(4)] for name, word in
       {"source": "bad", "control": "fine", "target": "good"}.items()},
    "selection": "all", "progress": False,
}  # fmt: skip


def test_an_adapter_at_work_is_named_and_one_that_is_off_leaves_the_model_exact() -> None:
    steering, model = adding(tiny_model()), lora()
    with pytest.warns(DsasWarning, match="adapters are active: default"):
        got = steered(steering, model)
    assert torch.equal(got, by_hand(model, model.base_model.model.model.layers))
    with model.disable_adapter():
        assert torch.equal(steered(steering, model), steered(steering, tiny_model()))


def test_what_was_fitted_under_an_adapter_steers_the_bare_and_the_merged_model_at_the_same_layers() -> None:
    steering = adding(lora())
    assert steering.rules[0].site.path == "base_model.model.model.layers.0"
    for other in (tiny_model(), lora().merge_and_unload()):
        with pytest.warns(DsasWarning, match="weights of this LlamaForCausalLM are not those"):
            assert torch.equal(steered(steering, other), by_hand(other, other.model.layers))
    with warnings.catch_warnings():
        warnings.simplefilter("error", DsasWarning)
        steered(steering, lora())


def test_an_adapter_that_is_merged_in_place_is_the_merged_model_and_the_chosen_one_of_several_counts_alone() -> None:
    peft = pytest.importorskip("peft")
    model = lora()
    before = fingerprint(model)
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    assert fingerprint(model) == before
    model.set_adapter("other")
    assert fingerprint(model) != before
    model.set_adapter("default")
    model.merge_adapter()
    assert fingerprint(model) == fingerprint(lora().merge_and_unload()) != before


def test_a_layer_that_is_trained_whole_stands_in_place_of_the_original_while_its_adapter_is_on() -> None:
    model = lora(modules_to_save=["lm_head"])
    (head,) = [weight for weight in acting_weights(model) if weight.plain == "lm_head.weight"]
    assert "modules_to_save" in head.name
    with model.disable_adapter():
        assert fingerprint(model) == fingerprint(tiny_model())


def test_virtual_tokens_of_prompt_tuning_are_not_the_text_that_a_steering_is_fitted_on() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    model = peft.get_peft_model(tiny_model(), config).eval()
    steering = dsas.fit(model, tiny_tokenizer(), sites="layers.0", reading=dsas.Reading(skip_sinks=False), **SETS)
    kept: list[Tensor] = []
    handle = model.base_model.model.layers[0].register_forward_hook(lambda *given: kept.append(given[2][0, 5:].mean(0)))
    for text in (*SETS["target"], *SETS["source"]):
        model(**tiny_tokenizer()(text, return_tensors="pt"))
    handle.remove()
    expected = torch.stack(kept[:4]).mean(0) - torch.stack(kept[4:]).mean(0)
    torch.testing.assert_close(steering.rules[0].transform.vector, expected, rtol=1e-4, atol=1e-5)


def test_a_steering_passes_between_a_decoder_and_the_multimodal_model_that_contains_it() -> None:
    model, steering = llava(), adding(tiny_model())
    with pytest.warns(DsasWarning, match="the model is a LlavaForConditionalGeneration"):
        got = steered(steering, model)
    assert torch.equal(got, by_hand(model, model.model.language_model.layers))
    other: Any = tiny_model()
    with pytest.warns(DsasWarning, match="the model is a LlamaForCausalLM"):
        got = steered(adding(model), other)
    assert torch.equal(got, by_hand(other, other.model.layers))


def test_sites_of_a_vision_tower_are_refused_on_a_model_of_texts_and_never_taken_for_its_layers() -> None:
    model = llava()
    site = dsas.find_sites(model, "vision_tower.**.layers.1")[0]
    steering = dsas.Steering([dsas.Rule(site, dsas.Addition(VECTOR), dsas.Constant())], ModelIdentity.of(model))
    with pytest.raises(ModelMismatchError, match=r"no module '.*vision_tower.*layers.1' \(1 sites are missing\)"):
        steering.apply(tiny_model())


def test_a_model_inside_of_a_module_of_the_users_own_is_named_where_it_fits() -> None:
    class Valued(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.policy, self.value = model, torch.nn.Linear(32, 1)

    steering = adding(tiny_model())
    with pytest.raises(ModelMismatchError, match=r"or give the LlamaForCausalLM that is in it as \.policy"):
        steering.apply(Valued(tiny_model()))
    with pytest.raises(ModelMismatchError, match=r"fit one on this model$"):
        steering.apply(Valued(tiny_model(layers=2)))


def test_a_multimodal_model_of_another_depth_is_refused() -> None:
    with pytest.raises(ModelMismatchError, match="depth 3 here, 2 in the model given; fit one on this model"):
        adding(tiny_model()).apply(llava(layers=2))


class Int8(Tensor):
    """Weights in whole steps of 1/8 that only `dequantize` tells, as quantised tensors are."""

    @staticmethod
    def __new__(cls, values: Tensor) -> "Int8":
        made = Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)  # type: ignore
        made.packed = (values.detach() * 8).round().to(torch.int8)
        return made

    def dequantize(self) -> Tensor:  # type: ignore
        return self.packed.float() / 8  # type: ignore

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        if func is torch.ops.aten.linear.default or func is torch.ops.aten.mm.default:
            return func(*[one.dequantize() if isinstance(one, Int8) else one for one in args])
        if func is torch.ops.aten.t.default:
            return args[0].dequantize().T
        raise NotImplementedError(str(func))


def quantised(model: Any) -> Any:
    for layer in model.model.layers:
        layer.mlp.down_proj.weight = nn.Parameter(Int8(layer.mlp.down_proj.weight), requires_grad=False)
    return model


def test_quantised_weights_are_compared_dequantised_and_the_same_ones_are_the_same_model() -> None:
    model = quantised(tiny_model())
    assert "weights are of type Int8, compared dequantised" in how_kept(acting_weights(model))
    assert fingerprint(model) == fingerprint(quantised(tiny_model())) != fingerprint(tiny_model())
    assert fingerprint(model) != fingerprint(quantised(tiny_model(seed=1)))
    with pytest.warns(DsasWarning, match="weights are of type Int8, compared dequantised"):
        got = steered(adding(tiny_model()), model)
    assert torch.equal(got, by_hand(model, model.model.layers))
    assert {line.status for line in adding(model).fuse(model, 1.0).report()} == {"wrapped"}


class Packed(nn.Parameter):
    """Weights as bitsandbytes keeps them in 4 bits: bytes of any shape beside what says of which weights."""

    quant_state: Any


def in_four_bits(packing: Tensor, shape: tuple[int, int]) -> Any:
    model: Any = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2))
    model[0].weight = Packed(packing, requires_grad=False)
    model[0].weight.quant_state = SimpleNamespace(shape=torch.Size(shape))
    for own in model[1].parameters():
        nn.init.ones_(own)
    return model


def test_weights_in_four_bits_are_the_same_ones_after_they_were_packed_anew_for_the_cpu() -> None:
    packing = torch.arange(6, dtype=torch.uint8)
    model, anew = in_four_bits(packing[:, None], (3, 4)), in_four_bits(packing.flip(0).view(3, 2), (3, 4))
    assert fingerprint(model) == fingerprint(anew) != fingerprint(in_four_bits(packing[:, None], (4, 3)))
    assert how_kept(acting_weights(model)) == ["weights are of type Packed, compared by name and shape alone"]
    nn.init.zeros_(anew[1].bias)
    assert fingerprint(model) != fingerprint(anew)


def test_integers_that_stand_for_weights_are_not_said_to_be_dequantised() -> None:
    model: Any = nn.Linear(4, 3)
    model.weight = Packed(torch.zeros(3, 4, dtype=torch.int8), requires_grad=False)
    said = "weights are of type Packed, compared as they are packed, without their scales"
    assert how_kept(acting_weights(model)) == [said]


def test_weights_packed_into_integers_tell_two_models_apart() -> None:
    made = [nn.Linear(2, 3) for _ in range(3)]
    for module, word in zip(made, (7, 8, 7), strict=True):
        module.register_buffer("qweight", torch.full((4, 2), word, dtype=torch.int32))
        module.weight, module.bias = None, None  # type: ignore
    first, second, third = map(fingerprint, made)
    assert first == third != second
    assert how_kept(acting_weights(made[0])) == ["weights are packed as torch.int32"]


def test_a_model_that_fsdp2_has_sharded_is_the_model() -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model: Any = tiny_model()
        for module in (*model.model.layers, model):
            fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
        assert type(model).__name__ == "FSDPLlamaForCausalLM"
        steering = adding(tiny_model())
        assert steering.model.compare(ModelIdentity.of(model)) == "exact"
        assert torch.equal(steered(steering, model), steered(steering, tiny_model()))
        assert "DTensor, compared by their local values" in " ".join(how_kept(acting_weights(model)))
    finally:
        dist.destroy_process_group()
