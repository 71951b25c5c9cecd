import copy

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from dsas.errors import OptionError, TextsError
from dsas.evaluation import generations
from dsas.evaluation.generations import Sampling, batch_count, sample_batch, sample_continuations

GREEDY = Sampling(temperature=0.0, new_tokens=6)
PROMPTS = ["w3", "w4 w5 w6 w7 w8 w9 w10", "w11 w12 w13", "w14 w15", "w16 w17 w18 w19 w20"]


def by_hand(model, prompt: str, penalty: float, new_tokens: int) -> str:
    """Continue one prompt alone by the likeliest token, with the penalty written out."""
    row = [int(word[1:]) for word in prompt.split()]
    start = len(row)
    for _ in range(new_tokens):
        with torch.no_grad():
            scores = model(torch.tensor([row])).logits[0, -1].tolist()
        for token in set(row):
            scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
        best = max(range(len(scores)), key=scores.__getitem__)
        if best == 0:
            break
        row.append(best)
    return " ".join(f"w{token}" for token in row[start:])


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_prompt_gets_the_same_text_alone_and_padded_in_a_batch(llama, tokenizer, batch_size, caplog):
    sampling = GREEDY._replace(batch_size=batch_size, repetition_penalty=1.5)
    (found,) = sample_continuations(llama, tokenizer, PROMPTS, seeds=(0,), sampling=sampling)
    assert found == [by_hand(llama.eval(), prompt, 1.5, 6) for prompt in PROMPTS]
    assert caplog.records == []


@pytest.mark.parametrize("first_sorted", [1, 4, 128])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 1.0])
def test_tokens_come_as_often_as_transformers_would_draw_them(llama, tokenizer, monkeypatch, top_p, first_sorted):
    monkeypatch.setattr(generations, "FIRST_SORTED", first_sorted)
    rows, prompt = 4000, torch.tensor([[int(word[1:]) for word in PROMPTS[1].split()]])
    sampling = Sampling(temperature=1.7, top_p=top_p, repetition_penalty=1.3, new_tokens=1, batch_size=rows)
    (texts,) = sample_continuations(llama, tokenizer, [PROMPTS[1]] * rows, seeds=(0,), sampling=sampling)
    found = torch.tensor([texts.count(f"w{token}") for token in range(llama.config.vocab_size)]) / rows
    with torch.no_grad():
        scores = llama.eval()(prompt).logits[:, -1].float()
    for step in (RepetitionPenaltyLogitsProcessor(1.3), TemperatureLogitsWarper(1.7), TopPLogitsWarper(top_p)):
        scores = step(prompt, scores)
    wanted = scores.softmax(-1)[0]
    wanted[0] = 0  # the end of the text: it comes out as no text at all
    assert ((found > 0) <= (wanted > 0)).all()
    assert ((found - wanted).abs() <= 4.5 * (wanted * (1 - wanted) / rows).sqrt()).all()


def test_the_tokenizer_adds_no_special_tokens_when_told_so(llama, tokenizer):
    with_end = copy.deepcopy(tokenizer)
    with_end._tokenizer.post_processor = TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 0)])
    plain, bare, ended = (
        sample_continuations(llama, t, PROMPTS, seeds=(0,), sampling=GREEDY._replace(special_tokens=special))
        for t, special in ((tokenizer, True), (with_end, False), (with_end, True))
    )
    assert plain == bare != ended
    batch = sample_batch(llama, with_end, PROMPTS, 0, seed=0, sampling=GREEDY._replace(special_tokens=False))
    assert [[batch[row] for row in range(len(PROMPTS))]] == bare


def test_padding_with_the_end_token_does_not_make_the_end_less_likely(llama, tokenizer):
    with torch.no_grad():
        llama.lm_head.weight[0] = 0
        llama.lm_head.weight[1:] *= 1e-3
    alone = sample_continuations(llama, tokenizer, ["w3"], seeds=(0,), sampling=GREEDY)[0][0]
    padded = sample_continuations(llama, tokenizer, ["w3", PROMPTS[1]], seeds=(0,), sampling=GREEDY)[0][0]
    assert padded == alone


def test_every_token_can_come_for_there_is_no_top_k(llama, tokenizer):
    llama.generation_config.top_k = 5
    sampling = Sampling(temperature=1e4, top_p=1.0, new_tokens=1, batch_size=1000)
    (texts,) = sample_continuations(llama, tokenizer, ["w3"] * 1000, seeds=(0,), sampling=sampling)
    assert len(set(texts)) == 90


def test_next_to_temperature_0_the_likeliest_token_comes_and_nothing_overflows(llama, tokenizer):
    found = [
        sample_continuations(llama, tokenizer, PROMPTS, seeds=(0,), sampling=GREEDY._replace(temperature=temperature))
        for temperature in (0.0, 1e-60)
    ]
    assert found[1] == found[0]


def test_seeds_differ_the_same_seed_repeats_and_the_global_numbers_go_on(llama, tokenizer):
    sampling = Sampling(top_p=1.0)
    before = torch.get_rng_state()
    first, second = sample_continuations(llama, tokenizer, PROMPTS, seeds=(1, 2), sampling=sampling)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(1)
    assert sample_continuations(llama, tokenizer, PROMPTS, seeds=(1,), sampling=sampling) == [first]
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_batches_drawn_one_by_one_in_any_order_give_the_texts_of_one_call(llama, tokenizer):
    prompts, sampling = [f"w{i} " * (1 + i % 4) + f"w{i}" for i in range(3, 14)], Sampling(new_tokens=4, batch_size=4)
    (whole,) = sample_continuations(llama, tokenizer, prompts, seeds=(7,), sampling=sampling)
    before = torch.get_rng_state()
    found = {}
    for number in reversed(range(batch_count(prompts, sampling))):
        found |= sample_batch(llama, tokenizer, prompts, number, seed=7, sampling=sampling)
    assert [found[row] for row in range(len(prompts))] == whole
    assert torch.equal(torch.get_rng_state(), before)


def test_progress_counts_the_texts(llama, tokenizer):
    counts: list[int] = []
    sample_continuations(
        llama, tokenizer, PROMPTS, seeds=(0, 1), sampling=GREEDY._replace(batch_size=3), progress=counts.append
    )
    assert counts == [3, 5, 8, 10]


def test_the_mode_of_the_model_is_as_before(llama, tokenizer):
    llama.train()
    sample_continuations(llama, tokenizer, ["w3"], seeds=(0,), sampling=GREEDY)
    assert llama.training


def test_a_prompt_without_tokens_is_refused(llama, tokenizer):
    with pytest.raises(TextsError, match=r"none: \[1\]"):
        sample_continuations(llama, tokenizer, ["w3", " "])


@pytest.mark.parametrize(
    "change", [{"temperature": -1.0}, {"top_p": 0.0}, {"new_tokens": 0}, {"repetition_penalty": 0.0}]
)
def test_a_sampling_out_of_range_is_refused(llama, tokenizer, change):
    with pytest.raises(OptionError, match=next(iter(change))):
        sample_continuations(llama, tokenizer, ["w3"], sampling=Sampling(**change))
