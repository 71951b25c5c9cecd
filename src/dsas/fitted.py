"""Fitted: what transforms and regulators have in common, a module whose constructor arguments are all there is to it.

Every constructor argument is kept unchanged as the attribute of the same name: a tensor as a buffer, anything else
plain. So storage, `repr` and equality need no code in the methods themselves, and "not fitted yet" has no spelling.
"""

import inspect
from typing import Any, ClassVar, final

from torch import Tensor, nn


class Fitted(nn.Module):
    """A module that its constructor arguments rebuild exactly.

    Contract: `__init__` calls `super().__init__()`, then `keep(**arguments)` with every argument it takes: tensors are
    float32 buffers, everything else is JSON (numbers, strings, booleans, lists of them).
    """

    name: ClassVar[str]

    @final
    def keep(self, **arguments: Any) -> None:
        """Keep constructor arguments: tensors as buffers, everything else as plain attributes."""
        for key, value in arguments.items():
            if isinstance(value, Tensor):
                self.register_buffer(key, value)
            else:
                setattr(self, key, value)

    @final
    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments; `type(self)(**self.arguments())` is an equal object."""
        return {key: getattr(self, key) for key in inspect.signature(type(self)).parameters}

    @final
    def __repr__(self) -> str:
        shown = {
            key: f"<tensor {'x'.join(map(str, value.shape)) or 'scalar'}>" if isinstance(value, Tensor) else repr(value)
            for key, value in self.arguments().items()
        }
        return f"{type(self).__name__}({', '.join(f'{key}={value}' for key, value in shown.items())})"
