"""Caches: what is known of a sequence is cut, chosen, copied and forgotten with the cache that holds it."""

import copy
import gc
import inspect
import io
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from makers import Position, logits_of, random_steering
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, StaticCache
from transformers.modeling_outputs import CausalLMOutput

import dsas
from dsas.errors import DsasWarning
from dsas.model.caches import Watch, carrier_of, length_of, watch_on
from dsas.model.sequence import Sequences
from dsas.runtime.applied import Applied
from dsas.testing import tiny_model
from dsas.testing.models import WIDTH

MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
IDS = torch.tensor([[0, 0, 3, 4], [5, 6, 7, 8]])


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(layers=1)


@pytest.fixture
def steering(model: Any) -> dsas.Steering:
    return random_steering(model, regulator=Position())


def filled(model: Any, cache: Any = None) -> Any:
    """Return a cache of two rows of four tokens, of which the first begins with two of padding."""
    cache = DynamicCache(config=model.config) if cache is None else cache
    logits_of(model, IDS, attention_mask=MASK, past_key_values=cache, use_cache=True)
    return cache


def run_on(model: Any, cache: Any, *tokens: int) -> None:
    """Run one column of these tokens, without a mask."""
    logits_of(model, torch.tensor(tokens).unsqueeze(-1), past_key_values=cache, use_cache=True)


def seen(applied: Applied) -> tuple[list[list[int]], list[list[float]]]:
    """Return the tokens and the positions, from 1, that the last sequences had, 0 for padding."""
    trace = applied.trace()
    assert trace.token_ids is not None
    return trace.token_ids.tolist(), trace.strengths[0].tolist()


CROPPED = list(inspect.signature(DynamicCache.crop).parameters)[1]  # releases name it differently


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        (lambda cache: cache.crop(-1), None),
        (lambda cache: [cache.crop(**{CROPPED: -1}), cache.batch_repeat_interleave(1)], None),
        (lambda cache: [_cut(layer) for layer in cache.layers], None),
        (lambda cache: cache.reorder_cache(torch.tensor([1, 0])), [1, 0]),
        (lambda cache: cache.reorder_cache(beam_idx=torch.tensor([1, 1])), [1, 1]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
        (lambda cache: cache.batch_select_indices(torch.tensor([False, True])), [1]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1]),
    ],
    ids=["crop", "crop by name", "cut by hand", "beams", "beams by name", "one row", "row by mask", "repeated"],
)
def test_what_is_done_to_a_cache_is_done_to_its_record_and_padding(
    model: Any, steering: dsas.Steering, change: Callable[[Any], object], rows: list[int] | None
) -> None:
    with steering.apply(model) as applied:
        cache = filled(model)
        change(cache)
        kept = 3 if rows is None else 4
        rows = [0, 1] if rows is None else rows
        run_on(model, cache, *(20 + row for row in rows))
        ids, positions = seen(applied)
    places = [[0, 0, 1, 2], [1, 2, 3, 4]]
    assert ids == [[*IDS[row, :kept].tolist(), 20 + row] for row in rows]
    assert positions == [[*places[row][:kept], places[row][kept - 1] + 1] for row in rows]


def _cut(layer: Any) -> None:
    layer.keys, layer.values = layer.keys[..., :3, :], layer.values[..., :3, :]


def test_a_cache_that_was_reset_is_empty_and_holds_new_sequences_of_any_number_of_rows(
    model: Any, steering: dsas.Steering
) -> None:
    with steering.apply(model) as applied:
        cache = filled(model, StaticCache(config=model.config, max_cache_len=8))
        cache.reset()
        assert not applied.has_trace
        run_on(model, cache, 7, 8)
        assert seen(applied) == ([[7], [8]], [[1.0], [1.0]])


@pytest.mark.parametrize("kind", ["dynamic", "static", "of encoder and decoder"])
def test_a_copy_of_a_cache_goes_on_by_itself_and_so_does_a_copy_of_the_copy(model: Any, kind: str) -> None:
    read = model if kind != "of encoder and decoder" else Answering()
    cache = StaticCache(config=model.config, max_cache_len=8) if kind == "static" else DynamicCache()
    cache = EncoderDecoderCache(cache, DynamicCache()) if read is not model else cache
    with random_steering(read, "*layers.0", regulator=Position()).apply(read) as applied:
        first = copy.deepcopy(filled(read, cache))
        second = copy.deepcopy(first)
        first.reorder_cache(torch.tensor([1, 0]))
        for which, new in ((cache, [20, 21]), (first, [31, 30]), (second, [40, 41]), (cache, [22, 23])):
            run_on(read, which, *new)
            ids, positions = seen(applied)
            rows, before = ([1, 0], []) if which is first else ([0, 1], [20, 21] if new[0] == 22 else [])
            assert ids == [
                [*IDS[row].tolist(), *before[row : row + 1], token] for row, token in zip(rows, new, strict=True)
            ]
            assert [line[-1] for line in positions] == [[3.0, 5.0][row] + len(before) / 2 for row in rows]


class Answering(nn.Module):
    """A decoder that takes a cache of two kinds and keeps its tokens in the first."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layers = nn.Embedding(257, WIDTH), nn.ModuleList([nn.Linear(WIDTH, WIDTH)])

    def forward(
        self, input_ids: Tensor, attention_mask: Any = None, past_key_values: Any = None, use_cache: Any = None
    ) -> Any:
        x = self.embedding(input_ids)
        past_key_values.self_attention_cache.update(x.unsqueeze(1), x.unsqueeze(1), 0)
        return CausalLMOutput(logits=self.layers[0](x))


def test_a_list_of_tensors_such_as_rwkv_has_for_a_state_is_known_by_its_first_and_copied_with_it() -> None:
    state = [torch.zeros(1, 4), torch.zeros(1, 4)]
    carrier, reader = carrier_of(state), _Reader()
    assert carrier is state[0]
    kept = Sequences(1, unseen=5)
    _watch(carrier).keep(reader, None, kept)
    twin = carrier_of(copy.deepcopy(state))
    forked = _watch(twin).of(reader, None)
    assert forked is not None
    assert forked is not kept
    forked.crop(2)
    assert (kept.length, forked.length) == (5, 2)
    assert _watch(carrier).of(reader, None) is kept
    assert carrier_of([]) is carrier_of((None, ())) is None


class _Reader:
    active = True


def _watch(carrier: Any) -> Watch:
    watch = watch_on(carrier)
    assert watch is not None
    return watch


def test_a_steering_takes_over_what_one_like_it_kept_whose_work_is_done_and_nothing_else() -> None:
    watch, working, done = _watch(DynamicCache()), _Reader(), [_Reader(), _Reader(), _Reader()]
    ours, kept = Sequences(1), [Sequences(1) for _ in done]
    watch.keep(working, "a", ours)
    for number, by in enumerate("bbc"):
        watch.keep(done[number], by, kept[number])
        done[number].active = False
    later = [_Reader() for _ in range(4)]
    assert watch.of(later[0], "a") is None  # what one at work has is its own
    assert [watch.of(later[number], "b") for number in (1, 2, 3, 1)] == [kept[0], kept[1], None, kept[0]]
    gone = weakref.ref(done.pop())
    assert gone() is None
    watch.forget()
    assert watch.of(_Reader(), "c") is None
    assert watch.of(working, "a") is ours
    assert watch.of(later[2], "b") is kept[1]


def stored(cache: Any) -> bytes:
    file = io.BytesIO()
    torch.save(cache, file)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_stored_cache_is_a_plain_cache_that_can_be_read_without_dsas(
    model: Any, steering: dsas.Steering, kind: str, tmp_path: Any
) -> None:
    with steering.apply(model):
        cache = filled(model)
        data = pickle.dumps(cache) if kind == "pickle" else stored(cache)
    (tmp_path / "cache").write_bytes(data)
    program = f"""
import sys, pickle, torch
sys.modules["dsas"] = None
read = {"pickle.load(open(sys.argv[1], 'rb'))" if kind == "pickle" else "torch.load(sys.argv[1], weights_only=False)"}
read.crop(-1)
read.batch_repeat_interleave(2)
print(read.get_seq_length(), len(read.layers[0].keys), [name for name, value in vars(read).items() if callable(value)])
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "cache")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(maxsplit=2) == ["3", "4", "[]\n"]


@pytest.mark.parametrize(
    "copied", [lambda cache: pickle.loads(pickle.dumps(cache)), copy.copy], ids=["stored", "shallow"]
)
def test_a_cache_that_was_read_from_a_file_or_copied_in_part_is_another_one_and_is_followed_from_then_on(
    model: Any, steering: dsas.Steering, copied: Callable[[Any], Any]
) -> None:
    with steering.apply(model) as applied:
        cache = filled(model)
        twin = copied(cache)
        del cache
        twin.crop(-1)
        assert twin.get_seq_length() == 3
        with pytest.warns(DsasWarning, match="already holds 3 tokens"):
            run_on(model, twin, 7, 8)
        twin.reorder_cache(torch.tensor([1, 0]))
        run_on(model, twin, 8, 9)
        assert seen(applied)[0] == [[8, 8], [7, 9]]


def test_nothing_that_is_kept_of_a_cache_keeps_it_alive(model: Any, steering: dsas.Steering) -> None:
    gc.collect()
    gc.disable()
    try:
        with steering.apply(model) as applied:
            cache = filled(model)
            twin = copy.deepcopy(cache)
            loaded = pickle.loads(pickle.dumps(twin))
            cache.crop(-1)
            dead = [weakref.ref(one) for one in (cache, twin, loaded)]
            del cache, twin, loaded
            assert [one() for one in dead] == [None] * 3
            assert seen(applied)[0] == IDS[:, :3].tolist()
    finally:
        gc.enable()


def test_a_cache_that_was_watched_works_as_before_when_the_steering_is_off(model: Any, steering: dsas.Steering) -> None:
    with steering.apply(model):
        cache = filled(model)
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.crop(-2)
    run_on(model, cache, 1, 2)
    assert cache.get_seq_length() == 3


class Silent:
    """Knows nothing of its length."""


class WithoutAttention:
    """As caches of recurrent layers alone: whoever asks for a length is refused."""

    def __init__(self, *, used: bool) -> None:
        self._used = used

    def get_seq_length(self) -> int:
        raise ValueError("no attention layer")

    def has_previous_state(self) -> bool:
        return self._used


class OfMamba:
    seqlen_offset = 7


@pytest.mark.parametrize(
    ("cache", "length"),
    [
        (None, 0),
        (Silent(), None),
        (OfMamba(), 7),
        (WithoutAttention(used=False), 0),
        (WithoutAttention(used=True), None),
        (DynamicCache(), 0),
    ],
)
def test_a_cache_that_does_not_count_is_empty_only_where_it_says_so(cache: Any, length: int | None) -> None:
    assert length_of(cache) == length


def test_a_static_cache_says_how_many_columns_are_used(model: Any) -> None:
    assert length_of(filled(model, StaticCache(config=model.config, max_cache_len=8))) == 4
    assert isinstance(carrier_of(torch.zeros(1)), Tensor)
