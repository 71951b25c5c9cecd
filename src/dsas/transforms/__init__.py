"""HOW: one transform a file. `TRANSFORMS` is the registry that fit, storage, the CLI and the laws read."""

from dsas.transforms.addition import Addition
from dsas.transforms.base import Transform

TRANSFORMS: dict[str, type[Transform]] = {method.name: method for method in (Addition,)}

__all__ = ["TRANSFORMS", "Addition", "Transform"]
