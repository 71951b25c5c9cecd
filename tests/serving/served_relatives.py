"""Relatives of a tiny Llama as vLLM serves them: with adapters beside it, quantised, or reading pictures."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from dsas.testing import tiny_model, tiny_tokenizer

RANK, ALPHA, GROUP = 4, 8, 32
ADAPTED = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")
QUANTISED = {  # as the package compressed-tensors has it: 4 bits and a factor for every 32 weights of a row
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "input_activations": None,
            "output_activations": None,
            "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP},
        }
    },
}


def llama() -> Any:
    """Return the model that all of them are relatives of, with heads that vLLM's attention for CPUs takes."""
    return tiny_model("llama", head_dim=32)


def qwen3_moe() -> Any:
    """Return a mixture of experts that every token asks two of four of."""
    qwen: Any = tiny_model("qwen3", head_dim=32)
    sizes = qwen.config.to_dict()
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "decoder_sparse_step": 1}
    for name in ("model_type", "architectures", "transformers_version", "layer_types"):
        sizes.pop(name, None)
    config = AutoConfig.for_model("qwen3_moe", **{**sizes, **experts, "mlp_only_layers": []})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def write_adapter(folder: Path, seed: int) -> Any:
    """Write an adapter in PEFT's format, and return the model with its product added to the weights."""
    model, generator, stored = llama(), torch.Generator().manual_seed(seed), {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(ADAPTED):
            into = torch.randn(RANK, module.in_features, generator=generator) / 8
            out = torch.randn(module.out_features, RANK, generator=generator) / 8
            stored |= {f"base_model.model.{name}.lora_{key}.weight": one for key, one in (("A", into), ("B", out))}
            module.weight.data += ALPHA / RANK * out @ into
    folder.mkdir()
    save_file(stored, folder / "adapter_model.safetensors")
    targets = [name.rpartition(".")[2] for name in ADAPTED]
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0}
    config |= {"target_modules": targets, "bias": "none", "base_model_name_or_path": None}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return model


def write_quantised(folder: Path) -> Any:
    """Write the model with all weights of its layers in 4 bits, and return it with what these bits mean."""
    model = llama()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            groups = module.weight.data.unflatten(1, (-1, GROUP))
            factors = groups.abs().amax(-1).bfloat16().float() / 7
            numbers = (groups / factors[..., None]).round().clamp(-8, 7)
            del stored[f"{name}.weight"]
            stored[f"{name}.weight_packed"] = packed(numbers.flatten(1).int() + 8)
            stored[f"{name}.weight_scale"] = factors
            stored[f"{name}.weight_shape"] = torch.tensor(module.weight.shape)
            module.weight.data = (numbers * factors[..., None]).flatten(1)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": QUANTISED}))
    return model


def packed(numbers: Tensor) -> Tensor:
    """Return numbers from 0 to 15, (rows, columns), eight of a row in one of 32 bits, the first in the lowest."""
    places = 4 * torch.arange(8)
    whole = (numbers.long().unflatten(1, (-1, 8)) << places).sum(-1)
    return torch.where(whole >= 2**31, whole - 2**32, whole).int()
