"""Custom: any function or module of the user's as a transform, T(t) = function(t).

    halve = dsas.Custom(lambda t: 0.5 * t)
    steering = dsas.fit(model, tokenizer, source=..., control=..., transform=halve)

The same function serves every site. It is code, so it cannot be stored: saving raises. A method that should be stored,
fitted from texts, or named on the command line must be a subclass of `dsas.Transform`.
"""

from collections.abc import Callable
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from dsas.errors import OptionError
from dsas.methods.base import Samples
from dsas.transforms.base import Transform


@final
class Custom(Transform):
    """Replaces every token by what a function returns for it, float32 (batch, token, dim) in and out."""

    name: ClassVar[str] = "custom"
    stored: ClassVar[bool] = False
    not_served: ClassVar[str] = "it is code, and a server takes only numbers"

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        """Keep the function, or the module, which then moves to the device of the activations."""
        super().__init__()
        self.keep(function=function)

    @classmethod
    def fit(cls, source: Samples, target: Samples) -> "Custom":
        """Raise OptionError: a function is given, not fitted."""
        raise OptionError("a Custom transform is not fitted from texts: give dsas.fit the object, Custom(function)")

    def edit(self, t: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Return function(t) - t. Raises OptionError when the function changes the shape."""
        wide = t.to(torch.promote_types(t.dtype, torch.float32))
        function: Callable[[Tensor], Tensor] = self.function  # pyright: ignore[reportAssignmentType]
        changed = function(wide)
        if changed.shape != t.shape:
            raise OptionError(
                f"a transform must keep the shape of its input {tuple(t.shape)}, got {tuple(changed.shape)}"
            )
        return changed - wide
