"""Caches: which sequences a cache holds, stored on the cache itself, so that they live, move and are copied with it.

A cache is the object that a decoder takes and returns: a transformers `Cache`, the state of Mamba, or RWKV's list of
tensors, the first of which carries the sequences. A deep copy gets sequences of its own, and methods that cut the cache
or choose its rows (`crop`, `reset`, `reorder_cache`, `batch_select_indices`, `batch_repeat_interleave`) do the same to
its sequences. Nothing here keeps a cache alive.

Limitations: a cache that is rebuilt by hand from its tensors counts as a new one.
"""

import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dsas.model.foreign import Arguments, Foreign, Given, Options
from dsas.model.sequence import Sequences

NAMES = ("past_key_values", "cache_params", "state", "past", "layer_past", "mems", "past_buckets_states")
_MARK = "_dsas_sequences"


class Held(NamedTuple):
    """Sequences of one cache, what steers them, and the reader of passes that keeps them, if it still exists."""

    reader: "weakref.ref[Any]"
    by: object
    sequences: Sequences

    @property
    def is_open(self) -> bool:
        """Whether the reader's Steering is still applied."""
        return getattr(self.reader(), "active", False)


class _Ends:
    """Marks the last time that the work of any reader ended: a new object each time."""

    last = object()


_ends = _Ends()


def reader_ended() -> None:
    """Let every cache check again which readers have finished, after one of them has."""
    _ends.last = object()


class Watch:
    """What a cache carries: its sequences, one set per applied Steering, and its methods that change rows."""

    def __init__(self, cache: Foreign) -> None:
        self.held: list[Held] = []
        self._looked = object()  # the last end of a reader when `forget` looked
        self._stand_on(cache)

    def _stand_on(self, cache: Foreign) -> None:
        self._owner: weakref.ref[Any] | None = weakref.ref(cache)
        setattr(cache, _MARK, self)
        names = [name for name in _FOLLOW if callable(getattr(type(cache), name, None)) and name not in vars(cache)]
        if names:
            vars(cache).update({name: _Followed(self, name) for name in names}, __getstate__=_Plain(self))

    @property
    def owner(self) -> Foreign:
        """The cache; None when it no longer exists or is not known yet."""
        return None if self._owner is None else self._owner()

    def claim(self, cache: Foreign) -> bool:
        """Return whether this belongs to `cache`; after a copy, it belongs to the first cache that asks."""
        if self._owner is None:
            self._stand_on(cache)
        return self.owner is cache

    def of(self, reader: object, by: object) -> Sequences | None:
        """Return the sequences that a reader keeps here or takes over from a reader that has finished, or None."""
        for held in self.held:
            if held.reader() is reader:
                return held.sequences
        for held in self.held:
            if not held.is_open and held.by == by:
                self.held = [other for other in self.held if other is not held]
                self.keep(reader, by, held.sequences)
                return held.sequences
        return None

    def forget(self) -> int:
        """Forget the sequences of readers that have finished, after a pass that they did not see.

        Returns how many columns they had seen. Every reader calls it in every pass, so it checks only if
        a reader has ended since the last check.
        """
        if len(self.held) < 2 or self._looked is _ends.last:
            return 0
        self._looked = _ends.last
        closed = [held for held in self.held if not held.is_open]
        self.held = [held for held in self.held if held.is_open]
        return max((held.sequences.length for held in closed), default=0)

    def keep(self, reader: object, by: object, sequences: Sequences) -> None:
        """Keep these sequences for a reader, in place of what it had."""
        others = [held for held in self.held if held.reader() is not reader]
        self.held = [*others, Held(weakref.ref(reader), by, sequences)]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Watch":
        other, copied = Watch.__new__(Watch), memo.get(id(self.owner))
        other.held = [held._replace(sequences=held.sequences.fork()) for held in self.held]
        other._looked = object()
        other._owner = None
        if copied is not None:  # a tensor's attributes are copied before the tensor itself is known
            other._stand_on(copied)
        return other

    def __reduce__(self) -> Arguments:
        return type(None), ()


class _Followed:
    """A method of a cache; the cache's sequences follow what it does."""

    def __init__(self, watch: Watch, name: str) -> None:
        self._watch, self._name = watch, name
        self.__name__ = name

    def __call__(self, *args: Given, **kwargs: Given) -> Foreign:
        cache = self._watch.owner
        result = getattr(type(cache), self._name)(cache, *args, **kwargs)
        for held in self._watch.held:
            _FOLLOW[self._name](held.sequences, cache, next(iter((*args, *kwargs.values())), None))
        return result


class _Plain:
    """The contents of copies and pickles of a cache: all but the methods above, which a copy gets anew."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __call__(self) -> Foreign:
        cache = self._watch.owner
        kind: Foreign = type(cache)
        state: Options = kind.__getstate__(cache)
        return {name: value for name, value in state.items() if not isinstance(value, (_Followed, _Plain))}


def carrier_of(given: Given) -> Foreign:
    """Return the object that can carry sequences: the cache, or the first tensor in a list or tuple; or None."""
    while isinstance(given, (list, tuple)):
        given = next((part for part in given if isinstance(part, (Tensor, list, tuple))), None)
    return given if given is not None and hasattr(given, "__dict__") else None


def watch_of(carrier: Foreign) -> Watch | None:
    """Return what a cache carries, or None for an unknown cache."""
    watch = getattr(carrier, _MARK, None)
    return watch if isinstance(watch, Watch) and watch.claim(carrier) else None


def watch_on(carrier: Foreign) -> Watch:
    """Return what a cache carries; create it where there is none yet."""
    return watch_of(carrier) or Watch(carrier)


def length_of(cache: Given) -> int | None:
    """Return the number of columns in a cache: 0 for an empty one or None, and None where it cannot tell."""
    if cache is None:
        return 0
    count: Foreign = getattr(cache, "get_seq_length", None)
    try:
        if callable(count):
            length: Foreign = count()
            return int(length)
    except (ValueError, TypeError):  # a cache without attention does not count columns
        pass
    previous: Foreign = getattr(cache, "has_previous_state", None)
    with suppress(ValueError):
        if previous is False or (callable(previous) and not previous()):
            return 0
    offset = getattr(cache, "seqlen_offset", None)
    return offset if isinstance(offset, int) else None


def counted(given: Options, columns: int) -> int | None:
    """Return the number of columns in a cache that does not count them, from the other arguments; None if unknown."""
    place, mask = given.get("cache_position"), given.get("attention_mask")
    if isinstance(place, Tensor) and place.numel():
        return int(place.flatten()[0])
    return mask.shape[1] - columns if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] > columns else None


_IN_CACHE = ("PREFIX_TUNING", "CARTRIDGE")  # PEFT's ways to tune keys and values of virtual tokens


def virtual_columns(model: nn.Module, length: int) -> int:
    """Return how many leading columns of a cache are virtual tokens that PEFT has put into it."""
    kind, count = _virtual_tokens(model)
    return length if kind in _IN_CACHE and count == length else 0


def prompt_columns(model: object) -> int:
    """Return how many virtual tokens PEFT puts before a prompt, as embeddings."""
    kind, count = _virtual_tokens(model)
    return 0 if kind in _IN_CACHE else count


def _virtual_tokens(model: object) -> tuple[str, int]:
    """Return the kind of PEFT's active adapter, and its number of virtual tokens."""
    config = getattr(model, "active_peft_config", None)
    return str(getattr(config, "peft_type", "")).rpartition(".")[2], int(getattr(config, "num_virtual_tokens", 0) or 0)


def cache_in(output: Given) -> Foreign:
    """Return the cache that a decoder's output holds, or None."""
    for name in NAMES:
        found = getattr(output, name, None)
        if found is not None:
            return found
    if isinstance(output, tuple):
        return next((part for part in output if hasattr(part, "get_seq_length")), None)
    return None


def _crop(sequences: Sequences, cache: Foreign, removed: Given) -> None:
    length = length_of(cache)
    sequences.crop(sequences.length + min(0, removed) if length is None else length)


def _reset(sequences: Sequences, cache: Foreign, given: Given) -> None:
    sequences.crop(0)


def _select(sequences: Sequences, cache: Foreign, rows: Given) -> None:
    chosen = torch.as_tensor(rows).detach().cpu()
    sequences.select(chosen.nonzero().flatten() if chosen.dtype == torch.bool else chosen)


def _repeat(sequences: Sequences, cache: Foreign, repeats: Given) -> None:
    sequences.select(torch.arange(sequences.batch).repeat_interleave(int(repeats)))


_FOLLOW: dict[str, Callable[[Sequences, Foreign, Given], None]] = {
    "crop": _crop,
    "reset": _reset,
    "reorder_cache": _select,
    "batch_select_indices": _select,
    "batch_repeat_interleave": _repeat,
}
