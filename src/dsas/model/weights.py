"""Weights: the tensors that a model computes with, under plain names, wherever they are held.

Adapters (PEFT) count while they are active: those that are switched off, not chosen, or merged into the weights do not.
A tensor that represents others is read as values if possible: dequantised, or the local part of a sharded one. FSDP2
keeps the outermost weights whole after a pass; they are sharded again first, so that they compare as before. 4-bit
weights of bitsandbytes are not read as values: it repacks them for the CPU in the first pass and rounds their scales
then.

Limitations: whether prompt learning is switched off is not visible. Weights that are neither parameters nor persistent
buffers of packed integers are not seen.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from dsas.model.foreign import Foreign
from dsas.model.wrappers import core_path, plain, sharded_modules

_PACKED = (torch.int32, torch.int8, torch.uint8)  # dtypes in which GPTQ, AWQ and the like keep weights as buffers


class Weight(NamedTuple):
    """A tensor that a model computes with: its plain name, its name in the model, and the adapter it belongs to."""

    plain: str
    name: str
    tensor: Tensor
    adapter: str = ""


def acting_weights(model: nn.Module) -> list[Weight]:
    """Return the weights that the model computes with, by plain name."""
    for module in sharded_modules(model):
        if hasattr(module, "reshard"):
            cast(Foreign, module).reshard()
    modules = dict(model.named_modules())
    adapted = {path for path, module in modules.items() if {"base_layer", "original_module"} & module._modules.keys()}
    core, found = core_path(model), list[Weight]()
    for name, tensor in [*model.named_parameters(), *_packed(modules)]:
        around = next((path for path in _outwards(name) if path in adapted), None)
        whole, adapter = (name, "") if around is None else _acting(around, name, modules[around])
        if whole:
            found.append(Weight(plain(whole, core), name, tensor, adapter))
    return sorted(found, key=lambda weight: weight.plain)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds its values itself and does not represent others."""
    return type(tensor) in (Tensor, nn.Parameter)


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of the weights that a tensor represents, however they are packed."""
    packing: Foreign = getattr(tensor, "quant_state", None)
    return tuple(tensor.shape if packing is None else packing.shape)


def values_of(tensor: Tensor) -> Tensor | None:
    """Return the values of a tensor that may represent others, or None if they cannot be read."""
    if getattr(tensor, "quant_state", None) is not None:
        return None
    held: Foreign = tensor.detach()
    try:
        if hasattr(held, "to_local"):
            held = held.to_local()
        if type(held).dequantize is not Tensor.dequantize:
            held = held.dequantize()
        return held.as_subclass(Tensor)
    except (NotImplementedError, RuntimeError, TypeError, AssertionError):
        return None


def part_of(model: nn.Module) -> str:
    """Return which process this is if each holds a part of the weights; empty if this one holds all."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return ""
    weights: list[Foreign] = [tensor for tensor in model.parameters() if hasattr(tensor, "to_local")]
    sharded = bool(sharded_modules(model)) or any(tensor.to_local().numel() < tensor.numel() for tensor in weights)
    return f"process {distributed.get_rank()} of {distributed.get_world_size()}" if sharded else ""


def how_kept(weights: Sequence[Weight]) -> list[str]:
    """Return, as phrases, how these differ from a model's plain weights, and how far they can be compared."""
    adapters = sorted({weight.adapter for weight in weights} - {""})
    said = [f"adapters are active: {', '.join(adapters)}"] if adapters else []
    if any(weight.name.startswith("prompt_encoder.") for weight in weights):
        said.append("virtual tokens come before the text")
    for kind in dict.fromkeys(type(weight.tensor) for weight in weights if not is_plain(weight.tensor)):
        one = next(weight.tensor for weight in weights if type(weight.tensor) is kind)
        said.append(f"weights are of type {kind.__name__}, compared {_how_compared(one)}")
    plain_ones = [weight.tensor for weight in weights if is_plain(weight.tensor)]
    packed = {str(tensor.dtype) for tensor in plain_ones if not tensor.is_floating_point()}
    return [*said, f"weights are packed as {', '.join(sorted(packed))}"] if packed else said


def _how_compared(tensor: Tensor) -> str:
    values = values_of(tensor)
    if values is None:
        return "by name and shape alone"
    if hasattr(tensor, "to_local"):
        return "by their local values"
    return "dequantised" if values.is_floating_point() else "as they are packed, without their scales"


def _acting(around: str, name: str, holder: Foreign) -> tuple[str, str]:
    """Return the plain name of an adapted module's tensor and its adapter; no name if it is inactive."""
    head = f"{around}." if around else ""
    kind, _, rest = name.removeprefix(head).partition(".")
    at_work = [] if getattr(holder, "disable_adapters", False) else list(getattr(holder, "active_adapters", ()))
    if kind == "base_layer":
        return name, ""
    if kind == "original_module":
        return ("" if at_work else name), ""
    adapter, _, inside = rest.partition(".")
    if adapter not in at_work or adapter in getattr(holder, "merged_adapters", ()):
        return "", ""
    return (head + inside if kind == "modules_to_save" else name), adapter


def _packed(modules: dict[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    for path, module in modules.items():
        for name, tensor in module._buffers.items():
            packed = tensor is not None and tensor.dtype in _PACKED and tensor.ndim == 2
            if tensor is not None and packed and name not in module._non_persistent_buffers_set:
                yield (f"{path}.{name}" if path else name), tensor


def _outwards(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
    yield ""
