"""Evaluation mode: how a model is run when it is read and not trained."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from dsas.model.device_map import device_of
from dsas.parallel.interruption import to_the_end

_HOLDING = threading.RLock()
_held: "WeakKeyDictionary[nn.Module, set[object]]" = WeakKeyDictionary()  # blocks that switched training mode off


def on_device(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch of model inputs on the device where the model begins."""
    device = device_of(model)
    return {name: value.to(device) for name, value in batch.items()}


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Run the model without dropout inside the block, and restore the mode of each module after the last block.

    Blocks may overlap, in one thread or several.
    """
    block = object()
    try:
        with _HOLDING:
            for module in model.modules():
                if module.training or module in _held:
                    _held.setdefault(module, set()).add(block)
            model.eval()
        yield
    finally:
        to_the_end(partial(_release, model, block))


def _release(model: nn.Module, block: object) -> None:
    with _HOLDING:
        for module in model.modules():
            blocks = _held.get(module)
            if blocks is None or block not in blocks:
                continue
            if len(blocks) == 1:
                module.training = True
                del _held[module]
            blocks.discard(block)
