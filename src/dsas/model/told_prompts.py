"""Told prompts: where the prompt of each row ends, in a pass that reads a prompt together with its answer.

Such a pass looks like one long prompt. Measures that read given answers know where the prompt ends and say it here, so
that regulators that depend on it (`forward_pass.prompt`) see what they would see while the answer is generated.
`Steering.apply(prompt_tokens=...)` takes precedence; a pass that continues from a cache ignores it.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Int
from torch import Tensor

_LOCAL = threading.local()


@contextmanager
def told_prompts(tokens: Sequence[int]) -> Iterator[None]:
    """Tell the passes of this thread how many real tokens each row's prompt has."""
    before = prompts_told()
    _LOCAL.tokens = torch.tensor(list(tokens))
    try:
        yield
    finally:
        _LOCAL.tokens = before


def prompts_told(known: Int[Tensor, " row"] | None = None) -> Int[Tensor, " row"] | None:
    """Return the known lengths of the prompts, else those told to this thread, or None."""
    found: Tensor | None = getattr(_LOCAL, "tokens", None)
    return found if known is None else known
