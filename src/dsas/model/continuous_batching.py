"""Continuous batching: whose tokens are in the packed row that transformers' manager of requests runs.

`generate_batch` and `init_continuous_batching` run parts of many requests side by side in one row. The row says where
parts end, but not of which request they are; the manager knows, and is found because its making is watched.

Requests are numbered in the order in which they were given, or, where the user named them, in which they first ran.

Source: transformers, generation/continuous_batching. Limitations: a manager made before the steering was applied is not
known. Where requests share pages of a prefix, a regulator that reads whole prompts is refused.
"""

import re
import weakref
from typing import Any, NamedTuple

from torch import nn

from dsas.model.foreign import Foreign, Given
from dsas.model.hooks import Hooks
from dsas.model.sequence import Sequences

UNKNOWN_REQUESTS = (
    "this row holds the tokens of several requests, and whose they are cannot be told: make the manager of continuous "
    "batching (generate_batch, init_continuous_batching) while the steering is applied"
)
_SHARED = (
    "a request continues from tokens that another one has put into the cache, of which a regulator that reads whole "
    "prompts knows nothing: use ContinuousBatchingConfig(allow_block_sharing=False) and one answer for each prompt"
)


_COUNTED = re.compile(r"req_(\d+)")  # what the manager calls the requests that the user gave no name


class Part(NamedTuple):
    """What a row holds of one request: row, first column and length; how many of its tokens came before; its prompt."""

    span: tuple[int, int, int]
    start: int
    sequences: Sequences
    prompt: int


class ContinuousBatching:
    """The managers of one model, and the sequence of every request that is alive."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._managers: weakref.WeakSet[Foreign] = weakref.WeakSet()
        self._requests: weakref.WeakKeyDictionary[Foreign, dict[str, tuple[Any, Sequences]]]
        self._requests = weakref.WeakKeyDictionary()
        self._numbers: weakref.WeakKeyDictionary[Foreign, dict[str, int]] = weakref.WeakKeyDictionary()

    def watch(self, hooks: Hooks) -> None:
        """Let every manager of the model be seen when it is made."""
        for module in self._model.modules():
            if callable(getattr(type(module), "init_continuous_batching", None)):
                hooks.on_result(module, "init_continuous_batching", self._managers.add)

    def parts(self, cache: Given) -> list[Part] | None:
        """Return what the pass that runs over this cache holds of each request; None where its manager is not known."""
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
        """Return the sequence of a request after its first `start` tokens; another answer continues its prompt's."""
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
