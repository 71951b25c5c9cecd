"""Merged: a fused model on disk, as plain transformers loads it, with no trace of dsas.

Folded edits are in weights and biases. A bias that a layer did not have before needs a flag of the model's config, such
as attention_bias and mlp_bias of Llama: a flag is turned on if transformers then makes a model with the needed biases,
and the other biases that it adds are written as zeros.

Limitations: edits that are in no weight, and biases for which the family has no flag (Mistral, Qwen 2, Phi 3 and the
MLP of Qwen 3), are refused by name.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsas.errors import OptionError
from dsas.model.foreign import Model

FLAGS = ("attention_bias", "mlp_bias", "use_bias", "bias")


def save_merged(model: Model, new: Iterable[str], folder: str | Path) -> None:
    """Write a model with newly added biases into a folder.

    new: paths of the layers that got one. Raises OptionError, naming a layer, where the config has no flag for it, or
    for a model that is not one of transformers.
    """
    if not callable(getattr(model, "save_pretrained", None)) or not hasattr(model, "config"):
        raise OptionError(f"only transformers models can be saved, got {type(model).__name__}")
    wanted = {f"{path}.bias" for path in new}
    state, flags = dict(model.state_dict()), list[str]()
    if wanted:
        flags, zeros = _flags_for(model, wanted)
        shapes = {name: tensor for name, tensor in zeros.items() if name not in state}
        beside = next(value for value in state.values() if value.is_floating_point())
        state |= {name: beside.new_zeros(tensor.shape) for name, tensor in shapes.items()}
    with _turned_on(model.config.get_text_config(), flags):
        model.save_pretrained(folder, state_dict=state)


def _flags_for(model: Model, wanted: set[str]) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Return the flags that add the needed biases, and all biases that they add, without their values."""
    had, flags, brought = _parameters(model, []), list[str](), dict[str, torch.Tensor]()
    text = model.config.get_text_config()
    for flag in FLAGS:
        if getattr(text, flag, None) is not False:
            continue
        with suppress(Exception):  # raised by the family's own code for a flag that it does not take
            found = {name: one for name, one in _parameters(model, [flag]).items() if name not in had}
            if found.keys() & wanted and all(name.endswith(".bias") for name in found):
                flags.append(flag)
                brought |= found
    missing = sorted(wanted - brought.keys())
    if missing:
        raise OptionError(
            f"{len(missing)} layers, such as {missing[0].removesuffix('.bias')}, would need a bias, for which the "
            f"config of {type(model).__name__} has no flag: apply the Steering to the model instead"
        )
    return flags, brought


def _parameters(model: Model, flags: list[str]) -> dict[str, torch.Tensor]:
    """Return the parameters (without values) of the model that transformers makes with these flags."""
    config = copy.deepcopy(model.config)
    for flag in flags:
        setattr(config.get_text_config(), flag, True)
    with torch.device("meta"):
        made: nn.Module = type(model)(config)
    return dict(made.named_parameters())


@contextmanager
def _turned_on(config: Any, flags: list[str]) -> Iterator[None]:
    """Set flags of a config inside a block."""
    try:
        for flag in flags:
            setattr(config, flag, True)
        yield
    finally:
        for flag in flags:
            setattr(config, flag, False)
