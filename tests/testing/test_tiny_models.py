"""Tiny models are the same for the same seed, and their tokenizer takes every text."""

import pytest
import torch

import dsas
from dsas.testing import tiny_model, tiny_tokenizer


def test_a_tiny_model_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    one, again, other = (tiny_model(seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_an_unknown_family_of_tiny_models_is_refused_with_the_closest_names() -> None:
    with pytest.raises(dsas.DsasError, match="'lama'; closest: 'llama'"):
        tiny_model("lama")


def test_the_tiny_tokenizer_has_no_padding_token_and_gives_every_text_back() -> None:
    tokenizer = tiny_tokenizer()
    text = "Grüße, 世界!\n"
    assert tokenizer.pad_token is None
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_making_a_tiny_model_leaves_the_global_random_state_as_it_was() -> None:
    state = torch.random.get_rng_state()
    tiny_model()
    assert torch.equal(torch.random.get_rng_state(), state)
