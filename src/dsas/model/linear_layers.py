"""Linear layers: which ones read or produce a site, where the code of the model says so, and not the names.

    input     these layers, and nothing else, read the site:                         W (a t + c) = (W a) t + W c
    output    the site is the output of this layer, to the bit:                  a (W x + b) + c
    sum       the site is the output of this layer plus something else:         W x + (b + c) + something

A linear layer's own input and output are clear by themselves. For the others there is one line per decoder layer of
transformers whose code was read; the tests of fusing compare each with steering by hooks, in float64. Dropout, which is
active in training, comes in between, so a layer that has any counts as unknown.

Limitations: no norms that are added to the residual stream (Gemma 2 and 3, OLMo 2), no experts (Mixtral), no parallel
branches.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import nn

from dsas.model.compiled_code import has_own_forward
from dsas.model.sites import Site
from dsas.model.weights import is_plain

Kind = Literal["input", "output", "sum"]


class Behind(NamedTuple):
    """How a site relates to linear layers, by path; modules in `between` would see it edited too early, or not yet."""

    kind: Kind
    linears: tuple[str, ...]
    between: tuple[str, ...] = ()


_SPLIT = {
    "": Behind("sum", ("mlp.down_proj",), ("mlp",)),
    "self_attn": Behind("output", ("self_attn.o_proj",)),
    "mlp": Behind("output", ("mlp.down_proj",)),
    "input_layernorm": Behind("input", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn",)),
    "post_attention_layernorm": Behind("input", ("mlp.gate_proj", "mlp.up_proj"), ("mlp",)),
}
_JOINED = {
    **_SPLIT,
    "input_layernorm": Behind("input", ("self_attn.qkv_proj",), ("self_attn",)),
    "post_attention_layernorm": Behind("input", ("mlp.gate_up_proj",), ("mlp",)),
}
_GPT2 = {
    "": Behind("sum", ("mlp.c_proj",), ("mlp",)),
    "attn": Behind("output", ("attn.c_proj",)),
    "mlp": Behind("output", ("mlp.c_proj",)),
    "ln_1": Behind("input", ("attn.c_attn",), ("attn",)),
    "ln_2": Behind("input", ("mlp.c_fc",), ("mlp",)),
}
LAYERS: dict[str, dict[str, Behind]] = {
    "LlamaDecoderLayer": _SPLIT,
    "MistralDecoderLayer": _SPLIT,
    "Qwen2DecoderLayer": _SPLIT,
    "Qwen3DecoderLayer": _SPLIT,
    "Phi3DecoderLayer": _JOINED,
    "GPT2Block": _GPT2,
}


def behind(model: nn.Module, site: Site) -> Behind | None:
    """Return the linear layers of a site, with whole paths, or None where they are unknown."""
    if is_linear(model.get_submodule(site.path)):
        return Behind(site.side, (site.path,))
    if site.side == "input" or site.parts > 1 or site.index:
        return None
    names = site.path.split(".")
    for depth in range(len(names), 0, -1):
        path = ".".join(names[:depth])
        layer, inside = model.get_submodule(path), ".".join(names[depth:])
        known = LAYERS.get(type(layer).__name__, {}).get(inside)
        if known is None or not type(layer).__module__.startswith("transformers.models."):
            continue
        if any(isinstance(module, nn.Dropout) and module.p > 0 for module in layer.modules()):
            continue
        found = Behind(known.kind, _under(path, known.linears), _under(path, known.between))
        return found if all(is_linear(model.get_submodule(linear)) for linear in found.linears) else None
    return None


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a plain, unchanged linear layer: no subclass, no hooks, real weights."""
    plain = type(module) is nn.Linear or is_transposed(module)
    hooked = module._forward_hooks or module._forward_pre_hooks or has_own_forward(module)
    own = list(module.parameters())
    return plain and not hooked and all(is_plain(one) and one.is_floating_point() and not one.is_meta for one in own)


def is_transposed(module: nn.Module) -> bool:
    """Whether a module is the linear layer of GPT-2, whose weight is (in, out)."""
    kind = type(module)
    return (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")


def _under(path: str, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{path}.{name}" for name in names)
