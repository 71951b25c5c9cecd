"""Device map: where the parts of a model compute, and where weights are that are not in the model.

Accelerate spreads a model over devices (`device_map`), and keeps what fits on no device in main memory or on disk. Such
weights are on the device "meta" between passes; a hook of accelerate on their module, or on a module around it, holds
them and knows where they compute. Nothing is imported from accelerate: its hooks are read by their attributes.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def device_of(model: nn.Module, path: str = "") -> torch.device:
    """Return where the module at `path` computes: on the device of its first parameter, or of a module around it.

    For a whole model, this is where the model begins.
    """
    for around in _outwards(path):
        for name, parameter in model.get_submodule(around).named_parameters(prefix=around):
            if not parameter.is_meta:
                return parameter.device
            for hook, _ in _hooks_over(model, name):
                if hook.execution_device is not None:
                    return torch.device(hook.execution_device)
            return parameter.device
    return torch.device("cpu")


def stored(model: nn.Module, name: str, parameter: Tensor) -> Tensor:
    """Return the parameter of that name with its values; on "meta" when there are none."""
    if parameter.is_meta:
        for hook, key in _hooks_over(model, name):
            if hook.offload and hook.weights_map is not None:
                return hook.weights_map[key]
    return parameter


def _outwards(path: str) -> Iterator[str]:
    """Give a module's path and those of the modules around it, the model's own, "", last."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def _hooks_over(model: nn.Module, name: str) -> Iterator[tuple[Any, str]]:
    """Give accelerate's hooks that place a parameter, innermost first, each with its name for the parameter."""
    for around in _outwards(name.rpartition(".")[0]):
        hook = getattr(model.get_submodule(around), "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):  # several hooks on one module are one hook that holds them
            if hasattr(one, "execution_device"):
                yield one, name[len(around) + 1 :] if around else name
