"""Evaluation mode: how a model is run when it is read and not trained."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from dsas.model.device_map import device_of


def on_device(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch of model inputs on the device where the model begins."""
    device = device_of(model)
    return {name: value.to(device) for name, value in batch.items()}


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Run the model without dropout inside the block, and give each module its own mode back afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
