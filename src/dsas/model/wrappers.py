"""Wrappers: what other libraries put around a model or its modules, and the paths of modules without them.

| library | around the model | around its modules |
|---|---|---|
| torch.compile | `_orig_mod` | `_orig_mod` |
| DataParallel, DistributedDataParallel | `module` | |
| FSDP, activation checkpointing | `_fsdp_wrapped_module`, `_checkpoint_wrapped_module` | the same |
| FSDP2 | only the class gets another name | the same |
| PEFT | `base_model`, and below it `model` except for prompt learning | `base_layer`, `original_module` |

A plain path is a module's path in the model itself, without any of these.
"""

from torch import nn

_AROUND = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_INSIDE = {*_AROUND, "base_layer", "original_module"}


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside wrappers that only call it: torch.compile's and those of data parallelism."""
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        elif isinstance(model, nn.DataParallel) or type(model).__name__ == "DistributedDataParallel":
            model = model.get_submodule("module")
        else:
            return model


def core_path(model: nn.Module) -> str:
    """Return where the model itself is below its wrappers: "" when it has none."""
    path: list[str] = []
    while name := _inner(model):
        path.append(name)
        model = model.get_submodule(name)
    return ".".join(path)


def core_of(model: nn.Module) -> nn.Module:
    """Return the model itself, without its wrappers."""
    return model.get_submodule(core_path(model))


def sharded_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules that FSDP, old or new, gathers before they run and shards again afterwards."""
    names = {"FSDPModule", "FullyShardedDataParallel"}
    return [module for module in model.modules() if names & {kind.__name__ for kind in type(module).__mro__}]


def plain(path: str, core: str = "") -> str:
    """Return a plain path; core: where the model is below its wrappers."""
    inside = path.removeprefix(core).removeprefix(".") if f"{path}.".startswith(f"{core}.") else path
    return ".".join(name for name in inside.split(".") if name not in _INSIDE)


def plain_paths(model: nn.Module) -> dict[str, str]:
    """Return the path of every module of the model by its plain path; for a wrapped module, the wrapper's path."""
    core, found = core_path(model), dict[str, str]()
    for path, _ in model.named_modules():
        if not core or f"{path}.".startswith(f"{core}."):
            found.setdefault(plain(path, core), path)
    return found


def class_name(module: nn.Module) -> str:
    """Return the original name of a module's class, which FSDP2 and the like replace by their own."""
    kinds = [kind for kind in type(module).__mro__ if issubclass(kind, nn.Module)]
    return next(kind for kind in kinds if not kind.__module__.startswith("torch.distributed")).__name__


def _inner(model: nn.Module) -> str:
    """Return the name under which a wrapper keeps the wrapped module, or an empty one for no wrapper."""
    names = _AROUND
    if isinstance(model, nn.DataParallel) or type(model).__name__ == "DistributedDataParallel":
        names = ("module",)
    elif type(model).__module__.startswith("peft."):
        names = ("base_model", "model")
    return next((name for name in names if name in model._modules), "")
