"""ForwardPass: positions and real tokens of a pass, from masks of every kind in which a decoder may be given one."""

from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor

from dsas.errors import DsasWarning, OptionError
from dsas.model.forward_pass import ForwardPass
from dsas.model.sites import Site
from dsas.model.token_passes import TokenPasses
from dsas.testing import tiny_model

IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def test_without_a_mask_every_token_is_real_and_counting_goes_on_after_the_cache() -> None:
    step = ForwardPass(2, 3, past=4)
    assert step.real.all()
    assert step.positions.tolist() == [[4, 5, 6]] * 2


def test_padding_on_either_side_is_not_counted() -> None:
    step = ForwardPass(2, 4, mask=torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]]))
    assert step.positions.tolist() == [[-1, -1, 0, 1], [0, 1, 2, -1]]
    assert step.real.tolist() == [[False, False, True, True], [True, True, True, False]]


def test_padding_in_the_cache_is_not_counted_either() -> None:
    step = ForwardPass(2, 1, past=3, mask=torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]))
    assert step.positions.tolist() == [[1], [3]]


def test_a_mask_longer_than_what_has_run_as_static_caches_have_it_is_cut() -> None:
    step = ForwardPass(1, 2, mask=torch.tensor([[0, 1, 0, 0, 0]]))
    assert step.positions.tolist() == [[-1, 0]]


@pytest.mark.parametrize("kind", ["boolean", "additive", "dictionary"])
def test_padding_is_read_from_masks_that_were_prepared_for_attention(kind: str) -> None:
    causal = torch.ones(3, 3, dtype=torch.bool).tril()
    mask: Any = torch.tensor([[0, 1, 1], [1, 1, 1]], dtype=torch.bool)[:, None, None, :] & causal
    if kind == "additive":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    if kind == "dictionary":
        mask = {"sliding_attention": torch.ones_like(mask), "full_attention": mask}
    step = TokenPasses(tiny_model()).read((), {"input_ids": IDS, "attention_mask": mask})
    assert step is not None
    assert step.positions.tolist() == [[-1, 0, 1], [0, 1, 2]]


def test_embeddings_are_read_as_tokens_without_numbers() -> None:
    step = TokenPasses(tiny_model()).read((), {"inputs_embeds": torch.zeros(2, 5, 32)})
    assert step is not None
    assert (step.batch, step.tokens, step.token_ids) == (2, 5, None)


LAYER = Site("model.layers.0")


def test_each_thread_reads_its_own_step() -> None:
    reader = TokenPasses(tiny_model())
    reader.read((), {"input_ids": IDS})
    thread = Thread(target=lambda: reader.read((), {"input_ids": IDS, "attention_mask": torch.zeros(2, 3)}))
    thread.start()
    thread.join()
    assert reader.at(LAYER, torch.zeros(2, 3, 32), None).real.all()


def test_a_batch_of_another_shape_than_the_decoder_saw_gets_a_plain_step() -> None:
    reader = TokenPasses(tiny_model())
    mask: Tensor = torch.tensor([[0, 1, 1], [0, 1, 1]])
    reader.read((), {"input_ids": IDS, "attention_mask": mask})
    assert reader.at(LAYER, torch.zeros(2, 3, 32), None).positions[0, 0] == -1
    assert reader.at(LAYER, torch.zeros(4, 3, 32), None).positions[0, 0] == 0


def test_positions_are_right_when_the_decoder_is_called_with_positional_arguments() -> None:
    decoder = tiny_model("gpt2").transformer
    reader = TokenPasses(decoder)
    ids, mask = torch.tensor([[1, 2, 3]]), torch.tensor([[0, 1, 1]])
    cache = decoder(ids, use_cache=True).past_key_values
    with pytest.warns(DsasWarning, match="already holds 3 tokens"):
        step = reader.read((ids, cache, torch.ones(1, 6)), {})  # GPT-2 takes the cache second and the mask third
    assert step is not None
    assert (step.past, step.positions.tolist()) == (3, [[3, 4, 5]])
    plain = reader.read((ids,), {"attention_mask": mask})
    assert plain is not None
    assert plain.positions.tolist() == [[-1, 0, 1]]


class Cache:
    """Knows how many columns it holds, and nothing else."""

    def __init__(self) -> None:
        self.length = 0

    def get_seq_length(self) -> int:
        return self.length


def passes(model: Any, lengths: list[int], prompt_tokens: Tensor | None = None) -> list[ForwardPass]:
    """Run passes of these many tokens over one cache, as a reader of steps sees them."""
    reader, cache = TokenPasses(model, prompt_tokens), Cache()
    steps = []
    for length in lengths:
        step = reader.read((), {"input_ids": torch.zeros(2, length).long(), "past_key_values": cache})
        assert step is not None
        steps.append(step)
        _ = step.prompt_lengths  # as known at the time
        for one in step.history.each:
            one.end()
        cache.length += length
    return steps


@pytest.mark.parametrize(
    ("lengths", "prompt"),
    [
        ([4, 1, 1], [1, 1, 1, 1, 0, 0]),
        ([3, 3, 1, 1], [1] * 6 + [0, 0]),
        ([4], [1] * 4),
        ([4, 1, 3, 1], [1, 1, 1, 1, 0, 1, 1, 1, 0]),
        ([1, 1, 1], [1, 0, 0]),
    ],
)
def test_a_prompt_ends_before_a_pass_of_one_token_over_a_cache_and_several_after_that_begin_another(
    lengths: list[int], prompt: list[int]
) -> None:
    found = torch.cat([step.prompt for step in passes(tiny_model(), lengths)], dim=1)
    assert found.int().tolist() == [prompt] * 2


def test_where_the_user_says_it_the_prompt_is_as_long_as_said_for_every_row_and_in_whatever_pieces() -> None:
    said = torch.tensor([2, 5])
    for lengths in ([6], [1] * 6, [4, 2]):
        found = torch.cat([step.prompt for step in passes(tiny_model(), lengths, said)], dim=1)
        assert found.sum(1).tolist() == [2, 5]
    with pytest.raises(OptionError, match="3 prompt lengths were given but the batch has 2 rows"):
        _ = passes(tiny_model(), [6], torch.tensor([1, 2, 3]))[0].prompt


def test_padding_is_no_part_of_a_prompt() -> None:
    step = ForwardPass(2, 3, mask=torch.tensor([[0, 1, 1], [1, 1, 1]]))
    assert step.prompt.tolist() == [[False, True, True], [True, True, True]]
    assert step.prompt_lengths.tolist() == [2, 3]


def after_a_pass_that_carried() -> tuple[TokenPasses, Cache]:
    """Return a reader and a cache of three columns, in whose pass "seen" was carried."""
    reader, cache = TokenPasses(tiny_model()), Cache()
    first = reader.read((), {"input_ids": IDS, "past_key_values": cache})
    assert first is not None
    first.carry("seen", torch.ones(2, 3, 1))
    for one in first.history.each:
        one.end()
    cache.length = 3
    return reader, cache


def test_what_a_regulator_carries_is_of_one_site_and_one_call_and_ends_with_the_rows_it_is_about() -> None:
    reader, cache = after_a_pass_that_carried()
    later = reader.read((), {"input_ids": IDS[:, :1], "past_key_values": cache})
    assert later is not None
    assert later.carried("seen").tolist() == [[1.0], [1.0]]
    assert later.carried("other") is None
    assert later.part(1).carried("seen") is None
    later.ask(0)
    assert later.carried("seen") is None
    plain = reader.read((), {"input_ids": IDS})
    assert plain is not None
    assert plain.carried("seen") is None


def test_a_batch_of_another_size_over_a_cache_is_about_other_rows_and_begins_with_nothing_remembered() -> None:
    reader, cache = after_a_pass_that_carried()
    with pytest.warns(DsasWarning, match="already holds 3 tokens"):
        other = reader.read((), {"input_ids": torch.zeros(3, 1).long(), "past_key_values": cache})
    assert other is not None
    assert other.carried("seen") is None
