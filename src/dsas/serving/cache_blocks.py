"""Cache blocks: where vLLM keeps the keys and values of a request's tokens, in both generations of its runners.

A runner has a block table for each group of layers: the blocks of a request in columns, `size` tokens each. Requests
are identified by the runner's own numbers. In the first generation, which keeps its tables on the host, these are
places in the batch; in the second, which keeps its tables on the device, they are numbers of states, and block ids are
noted when they are sent there.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dsas.errors import OptionError
from dsas.model.foreign import Foreign, Given

Blocks = Callable[[int, np.ndarray, np.ndarray], np.ndarray]  # group, numbers of requests, columns -> ids of blocks


class CacheGroup(NamedTuple):
    """A group of layers of the KV cache: its number, its number of blocks, and the tokens per block."""

    number: int
    blocks: int
    size: int


def cache_group(config: Foreign, *, prefix_caching: bool) -> CacheGroup:
    """Return the group whose blocks evidence is stored by, from vLLM's configuration of the KV cache.

    Layers with full attention come first, then those with a sliding window, whose last block always exists. Raises
    OptionError where there is neither, or where partly filled blocks may be reused.
    """
    kinds = [_kinds(group.kv_cache_spec) for group in config.kv_cache_groups]
    if prefix_caching and any("MambaSpec" in names for names in kinds):
        raise OptionError(
            "the regulator 'evidence' cannot be served with a prefix cache on a model with Mamba layers: start the "
            "server with --no-enable-prefix-caching"
        )
    for wanted in ("FullAttentionSpec", "SlidingWindowSpec"):
        for number, names in enumerate(kinds):
            if wanted in names:
                size = config.kv_cache_groups[number].kv_cache_spec.block_size
                return CacheGroup(number, config.num_blocks, size)
    raise OptionError(
        "the regulator 'evidence' can be served on models with an attention cache only: fit 'probe' for this one"
    )


def follow_cache(runner: Foreign, made: Callable[[CacheGroup], None], *, prefix_caching: bool) -> Blocks:
    """Return a lookup of the blocks of a runner's requests; `made` is called for every KV cache that the runner makes.

    Only the last one counts: runners first make small ones for trials.
    """
    initialize: Callable[..., Foreign] = runner.initialize_kv_cache
    noted: dict[int, list[list[int]]] = {}

    def initialize_kv_cache(config: Foreign, *args: Given, **kwargs: Given) -> None:
        initialize(config, *args, **kwargs)
        if hasattr(runner, "block_tables"):
            _note(runner.block_tables, noted)
        made(cache_group(config, prefix_caching=prefix_caching))

    def of_batch(group: int, places: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return runner.input_batch.block_table[group].get_numpy_array()[places, columns]

    def of_states(group: int, numbers: np.ndarray, columns: np.ndarray) -> np.ndarray:
        pairs = zip(numbers.tolist(), columns.tolist(), strict=True)
        return np.array([noted[number][group][column] for number, column in pairs], dtype=np.int64)

    runner.initialize_kv_cache = initialize_kv_cache
    return of_states if hasattr(runner, "model_state") else of_batch


def _note(tables: Any, noted: dict[int, list[list[int]]]) -> None:
    """Note the blocks that a runner of the second generation gives to its requests."""
    append: Callable[..., None] = tables.append_block_ids

    def append_block_ids(number: int, ids: Sequence[Sequence[int]], overwrite: bool) -> None:
        append(number, ids, overwrite)
        if overwrite:
            noted[number] = [[] for _ in ids]
        for known, more in zip(noted[number], ids, strict=True):
            known.extend(more)

    tables.append_block_ids = append_block_ids


def _kinds(spec: Any) -> Sequence[str]:
    """Return the class names of a group's layers, which vLLM wraps in one class if they differ in size."""
    layers = spec.kv_cache_specs.values() if hasattr(spec, "kv_cache_specs") else [spec]
    return [kind.__name__ for layer in layers for kind in type(layer).__mro__]
