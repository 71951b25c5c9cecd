"""dsas: steer a generative model only when and where it is needed (arXiv 2512.03661).

steering = dsas.fit(model, tokenizer, source=unwanted, control=neutral, target=wanted)
with steering.apply(model, strength=1.0):
    model.generate(...)

What is public is in `dsas.public`. It is imported on first use, so that the command line can show its help and complete
its options without waiting for torch.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dsas.parallel.foreign_imports import unnoticed
from dsas.version import VERSION as __version__  # noqa: F401

with unnoticed():
    import_module("rich.style")  # the only dependency that draws a random number when it is imported

if TYPE_CHECKING:
    from dsas.public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Take the public names from `dsas.public`, all of them when the first is asked for."""
    there = vars(import_module("dsas.public")).items()
    offered = {known: one for known, one in there if not known.startswith("_") and not isinstance(one, ModuleType)}
    globals().update(offered, __all__=sorted([*offered, "__version__"]))
    if name not in globals():
        raise AttributeError(f"module 'dsas' has no attribute {name!r}")
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
