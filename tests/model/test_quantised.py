"""Quantised forms of a model, as the libraries that quantise make them: relatives of it, exact to themselves.

torchao and quanto are used where they are installed. The packages of GPTQ and AWQ do not install here: a stand-in has
the attributes of their layers (qweight, qzeros, scales, g_idx), not their kernels. GGUF is written and read in full.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import logits_of, random_steering
from torch import Tensor, nn

import dsas
from dsas.errors import DsasWarning
from dsas.model.identity import ModelIdentity
from dsas.model.weights import acting_weights, how_kept
from dsas.testing import tiny_model, tiny_tokenizer

IDS = torch.tensor([[3, 1, 4, 1, 5]])
SETS: Any = {
    **{name: [f"{word} {number}" for number in range(4)] for name, word in
       {"source": "bad", "control": "fine", "target": "good"}.items()},
    "selection": "all", "progress": False,
}  # fmt: skip


class PackedLinear(nn.Module):
    """Weights of 4 bits in groups of 16, eight to an integer, under the names of GPTQ's and AWQ's layers."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, self.bias = linear.weight.detach().T, linear.bias
        self.in_features, self.out_features = weight.shape
        groups = weight.reshape(-1, 16, self.out_features)
        low, scales = groups.amin(1), (groups.amax(1) - groups.amin(1)) / 15
        zeros = (-low / scales).round().clamp(0, 15)
        steps = (groups / scales[:, None] + zeros[:, None]).round().clamp(0, 15)
        self.register_buffer("qweight", _packed(steps.reshape(-1, self.out_features).int()))
        self.register_buffer("qzeros", _packed(zeros.int().T).T.contiguous())
        self.register_buffer("scales", scales.half())
        self.register_buffer("g_idx", torch.arange(self.in_features, dtype=torch.int32) // 16)

    def forward(self, x: Tensor) -> Tensor:
        own: Any = self
        steps, zeros = _unpacked(own.qweight).float(), _unpacked(own.qzeros.T).T.float()
        return x @ ((steps - zeros[own.g_idx]) * own.scales.float()[own.g_idx])


def _packed(steps: Tensor) -> Tensor:
    return sum(steps[place::8].long() << (4 * place) for place in range(8)).to(torch.int32)  # type: ignore


def _unpacked(words: Tensor) -> Tensor:
    return torch.stack([(words >> (4 * place)) & 15 for place in range(8)], 1).flatten(0, 1)


def packed() -> Any:
    model: Any = tiny_model()
    for layer in model.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(layer.mlp, name, PackedLinear(getattr(layer.mlp, name)))
    return model


def torchao(name: str) -> Callable[[], Any]:
    def made() -> Any:
        quantization = pytest.importorskip("torchao.quantization")
        model = tiny_model()
        quantization.quantize_(model, getattr(quantization, name)())
        return model

    return made


def quanto(name: str) -> Callable[[], Any]:
    def made() -> Any:
        library = pytest.importorskip("optimum.quanto")
        model = tiny_model()
        library.quantize(model, weights=getattr(library, name), exclude="lm_head")
        library.freeze(model)
        return model

    return made


def vector_of(rule: dsas.Rule) -> Any:
    transform: Any = rule.transform
    return transform.vector


FORMS = {
    "gptq-like": (packed, "weights are packed as torch.int32"),
    "torchao-int8": (torchao("Int8WeightOnlyConfig"), "weights are of type Int8Tensor, compared dequantised"),
    "torchao-int4": (
        torchao("Int8DynamicActivationIntxWeightConfig"),
        "weights are of type IntxUnpackedToInt8Tensor, compared dequantised",
    ),
    "torchao-float8": (torchao("Float8WeightOnlyConfig"), "weights are of type Float8Tensor, compared dequantised"),
    "quanto-int8": (quanto("qint8"), "weights are of type WeightQBytesTensor, compared dequantised"),
    "quanto-int4": (quanto("qint4"), "weights are of type WeightQBitsTensor, compared dequantised"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_quantised_form_is_a_relative_that_is_steered_as_it_is_and_fits_itself(form: str) -> None:
    make, said = FORMS[form]
    model, again, plain = make(), make(), tiny_model()
    assert said in how_kept(acting_weights(model))
    steering = random_steering(plain, regulator=dsas.Constant())
    with pytest.warns(DsasWarning, match=said.split(",", maxsplit=1)[0]), steering.apply(model, 0.5):
        got = logits_of(model, IDS)
    handles = []
    for rule in steering.rules:
        added = 0.5 * vector_of(rule)
        layer = model.get_submodule(rule.site.path)
        handles.append(layer.register_forward_hook(lambda _module, _args, output, added=added: output + added))
    torch.testing.assert_close(got, logits_of(model, IDS))
    for handle in handles:
        handle.remove()
    fitted = dsas.fit(model, tiny_tokenizer(), **SETS)
    assert fitted.model.compare(ModelIdentity.of(again)) == "exact"
    assert fitted.model.compare(ModelIdentity.of(plain)) == "relative"


def test_a_gguf_file_of_eight_bits_is_loaded_as_a_relative(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    plain: Any = tiny_model(num_key_value_heads=4)
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    config = plain.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "model.layers": "blk",
    }  # fmt: skip
    for name, weight in plain.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        values = weight.numpy().astype(np.float32)
        if values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32).eval()
    steering = random_steering(plain)
    with pytest.warns(DsasWarning, match="weights of this LlamaForCausalLM are not those"):
        steering.apply(model, 0.5)
    fitted = dsas.fit(model, tiny_tokenizer(), **SETS)
    assert fitted.model.compare(ModelIdentity.of(plain)) == "relative"
