"""Which layers' cache blocks index the kept sums, and which blocks runners of both generations give to requests."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from served import (
    BLOCK,
    First,
    FullAttentionSpec,
    MambaSpec,
    Second,
    Served,
    SlidingWindowSpec,
    kv_cache,
    request,
)

from dsas.errors import OptionError
from dsas.serving.cache_blocks import CacheGroup, cache_group, follow_cache


def test_sums_are_kept_by_the_blocks_of_layers_whose_last_block_is_always_there() -> None:
    full, window = FullAttentionSpec(block_size=16), SlidingWindowSpec(block_size=8)
    mamba, mixed = MambaSpec(block_size=4), SimpleNamespace(block_size=32, kv_cache_specs={"a": full, "b": full})
    given = [(full,), (window, full), (window, window), (mamba, full), (mixed,)]
    found = [cache_group(kv_cache(*specs), prefix_caching=False) for specs in given]
    assert [(cache.number, cache.size) for cache in found] == [(0, 16), (1, 16), (0, 8), (1, 16), (0, 32)]
    assert cache_group(kv_cache(full), prefix_caching=True) == CacheGroup(0, 24, 16)
    with pytest.raises(OptionError, match="Mamba layers: start the server with --no-enable-prefix-caching"):
        cache_group(kv_cache(mamba, full), prefix_caching=True)
    with pytest.raises(OptionError, match="on models with an attention cache only: fit 'probe'"):
        cache_group(kv_cache(mamba), prefix_caching=False)


@pytest.mark.parametrize("kind", [First, Second])
def test_the_blocks_of_requests_are_those_that_the_runner_has_given_them_last(kind: Any) -> None:
    runner, made = kind(Served()), []
    blocks = follow_cache(runner, made.append, prefix_caching=True)
    for config in (kv_cache(FullAttentionSpec(block_size=16)), kv_cache()):  # a small one first, to try things
        runner.initialize_kv_cache(config)
    assert made == [CacheGroup(0, 24, 16), CacheGroup(1, 24, BLOCK)]
    for own in ([[9, 8, 7], [6]], [[5, 4], [3, 2, 1]]):
        runner.run({"a": request(), "b": request()}, [1, 1], [1, 1], own)
    numbers = np.array([0, 1] if kind is First else [1, 0])
    assert blocks(1, numbers, np.array([1, 2])).tolist() == [4, 1]
    assert blocks(1, numbers[1:], np.array([0])).tolist() == [3]
    assert blocks(1, numbers[:0], np.array([], dtype=int)).tolist() == []
