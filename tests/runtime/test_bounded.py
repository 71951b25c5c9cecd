"""Nothing is kept of finished requests, however many there were."""

import copy
import gc
import weakref
from collections import Counter
from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest
import torch
from makers import logits_of, random_steering
from torch import Tensor
from transformers import DynamicCache

import dsas
from dsas.testing import tiny_model

PREFIX = torch.arange(1, 9)[None]
REQUESTS = 1_000  # benchmarks/sequences.py serves 10,000


@pytest.fixture
def model() -> Any:
    return tiny_model("llama", layers=1)


@pytest.fixture
def steering(model: Any) -> dsas.Steering:
    """Return one that needs to know where the prompt ends, and so a history."""
    return random_steering(model, regulator=dsas.Schedule("generated"))


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Let no cycle of references be found: what is freed is freed at once."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def filled(model: Any, ids: Tensor = PREFIX) -> DynamicCache:
    """Return a cache that holds these tokens."""
    cache = DynamicCache(config=model.config)
    logits_of(model, ids, past_key_values=cache, use_cache=True)
    return cache


def serve(model: Any, prefix: DynamicCache, number: int) -> None:
    """Run a request of two tokens and one that is generated over a copy of a cached prefix."""
    cache = copy.deepcopy(prefix)
    for tokens in ([number % 256, 3], [5]):
        logits_of(model, torch.tensor([tokens]), past_key_values=cache, use_cache=True)


def alive() -> Counter[str]:
    """Return how many tensors, caches, and objects of each class of dsas there are."""
    kinds = Counter(type(thing) for thing in gc.get_objects())
    return Counter(
        {
            f"{kind.__module__}.{kind.__qualname__}": count
            for kind, count in kinds.items()
            if str(kind.__module__).startswith("dsas.") or issubclass(kind, (Tensor, DynamicCache))
        }
    )


@pytest.mark.parametrize("record", [True, "doses", False])
def test_a_thousand_requests_over_one_prefix_leave_no_more_than_a_hundred_do(
    model: Any, steering: dsas.Steering, record: Any
) -> None:
    with steering.apply(model, record=record) as applied:
        prefix = filled(model)
        for number in range(1, (REQUESTS if record is True else 200) + 1):
            serve(model, prefix, number)
            if number == 100:
                gc.collect()
                after_a_hundred = alive()
        gc.collect()
        assert alive() == after_a_hundred
        assert applied.has_trace == bool(record)


@pytest.mark.usefixtures("no_collector")
def test_what_is_kept_of_a_sequence_goes_with_its_cache_and_waits_for_no_collector(
    model: Any, steering: dsas.Steering
) -> None:
    with steering.apply(model) as applied:
        prefix = filled(model)
        for number in range(1, 101):
            serve(model, prefix, number)
            if number == 20:
                after_twenty = alive()
        assert alive() == after_twenty
        dead = weakref.ref(prefix)
        del prefix
        assert dead() is None
        assert applied.trace().strengths[0, 0, -3:].tolist() == [0.0, 0.0, 1.0]  # the last sequence outlives its cache


@pytest.mark.usefixtures("no_collector")
def test_a_steering_that_was_taken_off_can_still_be_asked_and_is_freed_when_nobody_holds_it(
    model: Any, steering: dsas.Steering
) -> None:
    applied = steering.apply(model).install()
    cache = filled(model)
    applied.remove()
    held = weakref.ref(cache), weakref.ref(applied)
    del cache
    assert held[0]() is None
    assert applied.trace().token_ids.tolist() == PREFIX.tolist()
    del applied
    assert held[1]() is None


def test_a_thread_per_request_leaves_nothing_behind(model: Any, steering: dsas.Steering) -> None:
    with steering.apply(model) as applied:
        prefix = filled(model)
        for number in range(1, 121):
            thread = Thread(target=serve, args=(model, prefix, number))
            thread.start()
            thread.join()
            if number == 20:
                gc.collect()
                after_twenty = alive()
        gc.collect()
        assert alive() == after_twenty
        assert applied.trace().token_ids.tolist() == PREFIX.tolist()  # what this thread ran itself


def test_many_caches_that_are_alive_keep_one_history_each(model: Any, steering: dsas.Steering) -> None:
    """Forty conversations are read in turn, as a server that batches nothing does, and then forgotten."""
    with steering.apply(model) as applied:
        gc.collect()
        before = alive()
        caches = [filled(model, PREFIX + number) for number in range(40)]
        for _ in range(3):
            for cache in caches:
                logits_of(model, torch.tensor([[7]]), past_key_values=cache, use_cache=True)
                assert applied.trace().strengths[0, 0, PREFIX.shape[1] :].min() == 1.0
        caches.clear()
        del cache
        logits_of(model, PREFIX)
        gc.collect()
        grown = alive() - before
        assert max(grown.values(), default=0) < 40, grown
