"""An answer ends where an offline replay of its regulator says so, for each row of a batch and in every turn anew."""

import pytest
import torch
from makers import random_steering

import dsas
from dsas.errors import OptionError, StateError
from dsas.testing import tiny_model, tiny_tokenizer

WINDOW, NEW = 4, 24
PROMPTS = ["The quick brown fox", "Hi", "Who goes there, friend or foe?"]


def lengths_of(rows: torch.Tensor, prompt: int, pad: int) -> list[int]:
    """Return how many tokens each row has after its prompt, padding left out."""
    answers = rows[:, prompt:]
    return [int((row != pad).nonzero().max()) + 1 for row in answers]


def test_each_row_ends_one_token_after_the_first_window_above_the_threshold_in_every_call() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    steering = random_steering(model, "residual", seed=3, weight=0.7)
    tokenizer.pad_token = tokenizer.eos_token
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
    prompt = inputs["input_ids"].shape[1]
    pad = tokenizer.pad_token_id
    given = {**inputs, "do_sample": False, "pad_token_id": pad, "eos_token_id": pad}
    with steering.apply(model, 0.5) as applied:
        assert not (model.generate(**given, max_new_tokens=NEW + 1)[:, prompt:] == pad).any()
        values = applied.trace().strengths[:, :, prompt:].mean(0) / 0.5
    means = values.unfold(-1, WINDOW, 1).mean(-1)  # (row, NEW - WINDOW + 1)
    threshold = float(means.flatten().quantile(0.8))
    wanted = []
    for row in means:
        over = (row > threshold).nonzero().flatten().tolist()
        wanted.append(min(over[0] + WINDOW + 1, NEW) if over else NEW)
    assert len(set(wanted)) > 1 or wanted[0] < NEW
    with steering.apply(model, 0.5) as applied:
        guard = dsas.Guard(applied, threshold, WINDOW)
        for _ in range(2):
            rows = model.generate(**given, max_new_tokens=NEW, stopping_criteria=[guard])
            assert lengths_of(rows, prompt, pad) == wanted


@pytest.mark.parametrize("way", ["embeddings", "without a cache", "new tokens over a cache"])
def test_an_answer_ends_at_the_same_token_however_its_prompt_is_given(way: str) -> None:
    model, ids = tiny_model("llama"), torch.randint(1, 250, (1, 9), generator=torch.Generator().manual_seed(0))
    steering = random_steering(model, "residual", seed=3)
    given = {"do_sample": False, "pad_token_id": 0, "eos_token_id": 0, "max_new_tokens": NEW}
    with steering.apply(model, 0.5) as applied:
        model.generate(ids, **given)
        means = applied.trace().strengths[:, 0, 9:].mean(0).unfold(-1, WINDOW, 1).mean(-1) / 0.5
        threshold = float(means.sort().values[-5:-3].mean())
        wanted = int((means > threshold).nonzero()[0]) + WINDOW + 1
        assert WINDOW + 1 < wanted < NEW
    with steering.apply(model, 0.5) as applied:
        guard = {"stopping_criteria": [dsas.Guard(applied, threshold, WINDOW)], **given}
        if way == "embeddings":
            found = model.generate(inputs_embeds=model.get_input_embeddings()(ids), **guard)
        elif way == "without a cache":
            found = model.generate(ids, use_cache=False, **guard)[:, 9:]
        else:
            cache = model(ids[:, :5], use_cache=True).past_key_values
            mask = torch.ones_like(ids)
            found = model.generate(ids[:, 5:], attention_mask=mask, past_key_values=cache, **guard)[:, 4:]
    assert found.shape[1] == wanted


def test_beams_which_are_not_the_rows_that_were_read_are_refused() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    given = {**tokenizer("Hi", return_tensors="pt"), "num_beams": 2, "max_new_tokens": 4}
    with random_steering(model).apply(model, 0.5) as applied, pytest.raises(StateError, match="use num_beams=1"):
        model.generate(**given, stopping_criteria=[dsas.Guard(applied, 0.5, 1)])


def test_a_guard_that_could_not_see_anything_is_an_error() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    steering, inputs = random_steering(model), tokenizer("Hi", return_tensors="pt")
    for strength, record, said in ((0.0, True, "strength 0 applies nothing"), (1.0, False, "recording is off")):
        with steering.apply(model, strength, record=record) as applied, pytest.raises(StateError, match=said):
            model.generate(**inputs, max_new_tokens=3, stopping_criteria=[dsas.Guard(applied, 0.5, 1)])
    for above, window in ((-1.0, 4), (float("nan"), 4), (0.5, 0)):
        with pytest.raises(OptionError, match="expected above >= 0 and window >= 1"):
            dsas.Guard(steering.apply(model), above, window)
