"""Sequences: the results for a row when earlier passes were not its own, or are taken back."""

import copy

import torch
from torch import Tensor

from dsas.model.foreign import Foreign, Model
from dsas.testing.laws import close, require
from dsas.testing.passes import Pass
from dsas.testing.ways import Way, strengths_of

ALL = 10**6  # more tokens than any prompt here has


def check_sequences(way: Way, model: Model, ids: list[Tensor], alone: list[Pass]) -> None:
    """Law 9: over a cached prefix and copies of it, with two caches in turn, after a cut: as the row alone.

    ids, alone: rows, and the result for each alone, all of it prompt.
    """
    place = max(range(len(ids)), key=lambda number: len(ids[number]))
    row, other, half, whole = ids[place], ids[place - 1], len(ids[place]) // 2, alone[place]
    with way.on(model, prompt_tokens=ALL) as acting:

        def went_on(cache: Foreign, how: str) -> None:
            logits = _run(model, row[half:], cache).logits[0]
            require(9, close(logits, whole.logits[half:]), f"a row has other logits {how} than alone")
            for strengths in strengths_of(acting):
                same = close(strengths, whole.strengths[:, -strengths.shape[-1] :])
                require(9, same, f"a row gets other strengths {how} than alone")

        prefix, beside = _run(model, row[:half]).past_key_values, None
        for piece in other.split(2):  # another sequence, in between
            beside = _run(model, piece, beside).past_key_values
        first, second = copy.deepcopy(prefix), copy.deepcopy(prefix)
        went_on(first, "over a copy of a cached prefix, after another row")
        _run(model, other, second)
        second.crop(-len(other))
        went_on(second, "after other tokens were cut off its cache")
        went_on(prefix, "over a cached prefix whose copies went on before it")


def _run(model: Model, ids: Tensor, cache: Foreign = None) -> Foreign:
    with torch.no_grad():
        return model(input_ids=ids[None], past_key_values=cache, use_cache=True)
