"""Continuous batching: which request each token belongs to in the packed row that transformers' manager runs.

`generate_batch` and `init_continuous_batching` run parts of many requests side by side in one row. The row says where
parts end, but not which request they belong to; the manager knows, and is found because its creation is watched.

Requests are numbered in the order in which they were given or, where the user named them, first ran.

Source: transformers, generation/continuous_batching. Limitations: a manager created before the Steering was applied is
not known. Where requests share pages of a prefix, a regulator that reads whole prompts is refused.
"""

import re
import weakref
from typing import Any, NamedTuple

from torch import nn

from dsas.model.foreign import Foreign, Given
from dsas.model.hooks import Hooks
from dsas.model.sequence import Sequences

UNKNOWN_REQUESTS = (
    "this row holds the tokens of several requests, and which belong to which is unknown: create the manager of "
    "continuous batching (generate_batch, init_continuous_batching) while the Steering is applied"
)
_SHARED = (
    "a request continues from tokens that another one has put into the cache, which a regulator that reads whole "
    "prompts has not seen: use ContinuousBatchingConfig(allow_block_sharing=False) and one answer for each prompt"
)


_COUNTED = re.compile(r"req_(\d+)")  # the names that the manager gives to requests without one


class Part(NamedTuple):
    """The part of a request in a row: row, first column and length; the number of its earlier tokens; its prompt."""

    span: tuple[int, int, int]
    start: int
    sequences: Sequences
    prompt: int


class ContinuousBatching:
    """The managers of one model, and the sequence of every live request."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._managers: weakref.WeakSet[Foreign] = weakref.WeakSet()
        self._requests: weakref.WeakKeyDictionary[Foreign, dict[str, tuple[Any, Sequences]]]
        self._requests = weakref.WeakKeyDictionary()
        self._numbers: weakref.WeakKeyDictionary[Foreign, dict[str, int]] = weakref.WeakKeyDictionary()

    def watch(self, hooks: Hooks) -> None:
        """Watch the creation of the model's managers."""
        for module in self._model.modules():
            if callable(getattr(type(module), "init_continuous_batching", None)):
                hooks.on_result(module, "init_continuous_batching", self._managers.add)

    def parts(self, cache: Given) -> list[Part] | None:
        """Return the part of each request in the pass over this cache; None where its manager is not known."""
        running = self._running(cache)
        if running is None:
            return None
        known = self._requests.setdefault(cache, {})
        for number in [number for number, (alive, _) in known.items() if alive() is None]:
            del known[number]
        parts, column = [], 0
        for request in running:
            state, length = request.state, request.query_length
            start = state.position_offset - length
            sequences = self._sequences(cache, state.request_id, start)
            known[state.request_id] = weakref.ref(state), sequences
            prompt = state._true_initial_tokens or len(state.initial_tokens)
            parts.append(Part((0, column, length), start, sequences, prompt))
            column += length
        return parts

    def _sequences(self, cache: Foreign, name: str, start: int) -> Sequences:
        """Return the sequence of a request after its first `start` tokens; further answers continue its prompt's."""
        known, (prompt, _, _) = self._requests[cache], name.partition("__child#")
        for other in (name, prompt):
            if other in known and known[other][1].length == start:
                sequences = known[other][1]
                return sequences if other == name else sequences.fork()
        sequences = Sequences(1, unseen=start)
        sequences.refusal = _SHARED if start else ""
        numbers = self._numbers.setdefault(cache, {})
        counted = _COUNTED.fullmatch(prompt)
        sequences.number = int(counted[1]) if counted else numbers.setdefault(prompt, len(numbers))
        return sequences

    def _running(self, cache: Given) -> list[Foreign] | None:
        for manager in self._managers:
            processor = getattr(manager, "batch_processor", None)
            if processor is None or getattr(processor, "cache", None) is not cache:
                continue
            batch = processor.inputs_and_outputs
            if hasattr(batch, "io_pairs"):
                batch = batch.io_pairs[batch.current_pair].host_io
            return list(batch.requests_in_batch)
        return None
