"""Layers: where language models keep their decoder, its layers, and the parts of a layer that shorthands name.

Families name the same parts differently. A shorthand takes, in every layer, the first of the names below that the layer
has; layers without one are skipped, and a shorthand that no layer has is unknown. docs/howto/models.md lists the result
for the causal families of transformers; `benchmarks/families.py` builds each of them and checks it.

| shorthand | what it names |
|---|---|
| residual | a layer: the residual stream after it |
| norm | the norm added to the stream after the feed-forward, or else the one before it, or the layer's only one |
| attention | the attention, or what takes its place: a state space, a convolution, a recurrence |
| mlp | the feed-forward, mixtures of experts included |
| heads | the input of the attention's output projection: its heads side by side |
"""

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from dsas.errors import SiteError

SHORTHANDS: tuple[str, ...] = ("residual", "norm", "attention", "mlp", "heads")
_LISTS = re.compile(r"(?:.*\.)?(?:layers|layer|h|blocks|block)")
# In a layer of BERT, "attention" is a block with a residual of its own, and "attention.self" its attention.
_ATTENTION = """self_attn self_attention attn.attention attn self_att multi_head_attention attention.self
    attention""".split()  # noqa: SIM905
_NORM = """post_feedforward_layernorm post_attention_layernorm ln_2 norm_2 ln2 ffn_norm mlp_norm pre_ff_layernorm
    pre_feedforward_layernorm feedforward_layernorm channel_pre_norm layernorm2 norm_ffn final_layer_norm
    attention.output.LayerNorm ln_mlp input_layernorm ln_1 norm""".split()  # noqa: SIM905
_PARTS: dict[str, Sequence[str]] = {
    "norm": _NORM,
    "attention": [*_ATTENTION, "linear_attn", "mixer", "mamba", "temporal_block", "conv", "mlstm_layer"],
    "mlp": ["mlp", "block_sparse_moe", "feed_forward", "ffn", "mlp_block", "fc2", "output.dense"],
    "heads": _ATTENTION,
}
_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "wo", "Wo", "o", "out_lin", "output.dense")
# Models that keep each part of their layers in a list of its own, by the decoder's class.
_BESIDE = {"XLMModel": {"residual": "layer_norm2", "norm": "layer_norm1", "attention": "attentions", "mlp": "ffns"}}
_MIXES = re.compile("AltUp|HyperConnection")  # modules of layers that mix several residual streams
_FLAT = ("OPTDecoderLayer",)  # layers whose norm and feed-forward return (batch * token, dim)


def decoder_of(model: nn.Module) -> nn.Module:
    """Return the module that runs the decoder layers, which every language-model head calls exactly once per pass."""
    find, find_head = (getattr(model, f"get_{part}", None) for part in ("decoder", "output_embeddings"))
    decoder = find() if callable(find) else None
    if decoder is not None and callable(find_head) and decoder is find_head():  # the head of ModernBERT
        decoder = getattr(model, "base_model", None)
    return decoder if isinstance(decoder, nn.Module) else model


def tokens_ahead(model: nn.Module) -> int:
    """Return how many tokens of its own a decoder puts before a text, inside itself (CPM-Ant)."""
    found = getattr(decoder_of(model), "prompt_length", 0)
    return found if isinstance(found, int) else 0


def encoder_of(model: nn.Module, decoder: nn.Module) -> nn.Module | None:
    """Return the encoder of a model that has one as well as a decoder."""
    config, find = getattr(model, "config", None), getattr(model, "get_encoder", None)
    if not getattr(config, "is_encoder_decoder", False) or not callable(find):
        return None
    encoder = find()
    return encoder if isinstance(encoder, nn.Module) and encoder is not decoder and encoder is not model else None


def layer_paths(model: nn.Module) -> list[str]:
    """Return the paths of the decoder's layers, in order; none if they have no known name."""
    decoder, found = decoder_of(model), list[str]()
    prefix = next((path for path, module in model.named_modules() if module is decoder), "")
    for path, module in decoder.named_modules():
        inside = any(f"{path}.".startswith(f"{layer}.") for layer in found)
        if isinstance(module, nn.ModuleList) and _LISTS.fullmatch(path) and not inside:
            found += [f"{path}.{number}" for number in range(len(module))]
    return [f"{prefix}.{path}" if prefix else path for path in found]


def part_paths(model: nn.Module, shorthand: str) -> list[str]:
    """Return the paths of the modules that a shorthand names. Raises SiteError where it is unknown for a model."""
    layers = layer_paths(model)
    beside = [] if layers else _lists_beside(model, shorthand)
    if beside:
        return beside
    if shorthand == "residual":
        found = layers
    else:
        flat = _FLAT if shorthand in ("norm", "mlp") else ()
        able = [path for path in layers if type(model.get_submodule(path)).__name__ not in flat]
        found = [part for path in able for part in _first(model, path, _PARTS[shorthand])]
        if shorthand == "heads":
            around = [path.removesuffix(".self") for path in found]
            found = [part for path in around for part in _first(model, path, _PROJECTIONS)]
    if found:
        return found
    paths = [path for path, _ in model.named_modules() if path]
    raise SiteError(
        f"the shorthand {shorthand!r} is not known for {type(model).__name__}; name the modules by path or glob, "
        f"for example one of {', '.join(map(repr, paths[:6]))}"
    )


def _lists_beside(model: nn.Module, shorthand: str) -> list[str]:
    """Return the modules that a shorthand names in a decoder with lists of parts instead of a list of layers."""
    decoder = decoder_of(model)
    own = _BESIDE.get(type(decoder).__name__, {}).get("attention" if shorthand == "heads" else shorthand)
    if own is None:
        return []
    path = next((path for path, module in model.named_modules() if module is decoder), "")
    heads = ".out_lin" if shorthand == "heads" else ""
    return [f"{path}.{own}.{n}{heads}".lstrip(".") for n, _ in enumerate(decoder.get_submodule(own).children())]


def check_one_stream(model: nn.Module, path: str) -> None:
    """Raise SiteError for a layer whose residual has several streams, so that it is not a single activation."""
    layer = model.get_submodule(path)
    mixed = next((type(part).__name__ for part in layer.children() if _MIXES.search(type(part).__name__)), None)
    if mixed:
        raise SiteError(
            f"{path!r} ({type(layer).__name__}) keeps a residual of several streams ({mixed}), which is not a single "
            "activation: steer what is added to it, with sites='mlp' or sites='attention'"
        )


def head_count(model: nn.Module, path: str) -> int:
    """Return the number of heads in the input of the output projection at `path`. Raises SiteError."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    attention, projection = (model.get_submodule(one) for one in (path.rpartition(".")[0], path))
    size = getattr(attention, "v_head_dim", None) or getattr(attention, "head_dim", None)
    width = getattr(projection, "in_features", None)
    count = int(getattr(text, "num_attention_heads", 0))
    if isinstance(size, int) and isinstance(width, int) and size > 0 and width % size == 0:
        count = width // size
    if count < 1:
        raise SiteError(f"neither {path!r} nor the config of {type(model).__name__} says how many heads it has")
    return count


def _first(model: nn.Module, path: str, names: Sequence[str]) -> list[str]:
    """Return the path of the first of these names that a module has, if any."""
    own = dict(model.get_submodule(path).named_modules())
    return next(([f"{path}.{name}"] for name in names if name in own), [])
