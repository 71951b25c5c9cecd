"""Tiny random models and a tokenizer, built in code: no download, no file, the same on every machine of one kind.

Each is a few layers of width 32 with seeded weights large enough that its answers depend on every token. They are
untrained; they have the modules, hooks, caches and output types of the real families, which the laws are about.
"""

from typing import Any

import torch
from torch import nn

from dsas.errors import OptionError, closest
from dsas.files.json_values import JsonObject
from dsas.model.foreign import Foreign

WIDTH, LAYERS, HEADS, CONTEXT = 32, 3, 4, 256
END = "<|end|>"

_GROUPED = {"intermediate_size": 64, "num_key_value_heads": 2}
_WIDE_HEADS = {**_GROUPED, "head_dim": 8}

# What each family needs beyond the sizes above. A sliding window, if any, is longer than CONTEXT.
_OPTIONS: dict[str, JsonObject] = {
    "gemma2": {**_WIDE_HEADS, "sliding_window": 2 * CONTEXT},
    "gemma3": {**_WIDE_HEADS, "sliding_window": 2 * CONTEXT},
    "gpt2": {},
    "gpt_neox": {"intermediate_size": 64},
    "llama": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": 2 * CONTEXT},
    "mixtral": {**_GROUPED, "num_local_experts": 4},
    "olmo2": _GROUPED,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": WIDTH},
    "phi3": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _WIDE_HEADS,
}
_TYPES = {"gemma3": "gemma3_text"}
FAMILIES: tuple[str, ...] = tuple(_OPTIONS)


def tiny_model(family: str = "llama", *, seed: int = 0, layers: int = LAYERS, **options: Any) -> nn.Module:
    """Return a random causal language model of one of `FAMILIES`, in float32 and evaluation mode.

    Its vocabulary is that of `tiny_tokenizer`. `options` go to the family's config. The global random state is left as
    it was. Raises OptionError for an unknown family.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if family not in _OPTIONS:
        raise OptionError(f"unknown family {family!r}; closest: {closest(family, FAMILIES)}")
    sizes = {
        "vocab_size": 257,
        "hidden_size": WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.2,
        "init_std": 0.2,
        "eos_token_id": 256,
        "bos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    config = AutoConfig.for_model(_TYPES.get(family, family), **{**sizes, **_OPTIONS[family], **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def tiny_tokenizer() -> Foreign:
    """Return a tokenizer with one token per byte, an end token and, like many, no padding token."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(ByteLevel.alphabet())
    bytes_only = Tokenizer(BPE(vocab={symbol: number for number, symbol in enumerate(alphabet)}, merges=[]))
    bytes_only.pre_tokenizer = ByteLevel(add_prefix_space=False)
    bytes_only.decoder = Decoder()
    return PreTrainedTokenizerFast(tokenizer_object=bytes_only, eos_token=END)
