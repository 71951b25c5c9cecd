from typing import Any

import numpy as np
import pytest
import torch
from makers import templated

from dsas.errors import DsasWarning, OptionError, TextsError
from dsas.evaluation.judged import judged
from dsas.testing import tiny_model

PROMPTS = ["w3 w4", "w9 w8 w7 w6", "w5"]
CONTINUATIONS = [[" w5 w6 w7", " w1", ""], [" w2", " w3 w3 w3 w3 w4", " w8 w9"]]


def by_hand(model, prompt: str, text: str) -> float:
    row, first = ([int(word[1:]) for word in part.split()] for part in (prompt + text, prompt))
    with torch.no_grad():
        logits = model(torch.tensor([row])).logits[0].double().numpy()
    chance = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return float(-np.mean([np.log(chance[place - 1, row[place]]) for place in range(len(first), len(row))]))


@pytest.mark.parametrize("batch_size", [1, 2, 6])
def test_nats_equal_the_definition_in_float64_for_any_batch_size(llama, tokenizer, batch_size):
    result = judged(llama, tokenizer, PROMPTS, CONTINUATIONS, batch_size=batch_size)
    llama.eval()
    expected = np.array(
        [[by_hand(llama, p, c) if c else np.nan for p, c in zip(PROMPTS, seed, strict=True)] for seed in CONTINUATIONS]
    ).T
    np.testing.assert_allclose(result.nats, expected, rtol=1e-5)
    np.testing.assert_array_equal(result.tokens, [[3, 1], [1, 5], [0, 2]])
    assert result.mean == pytest.approx(np.nanmean(expected), rel=1e-5)
    assert result.empty == 1


def test_the_prompt_is_read_but_not_judged(llama, tokenizer):
    one, other = (judged(llama, tokenizer, [prompt], [[" w9 w2"]]) for prompt in ("w3 w4", "w4 w4"))
    assert abs(one.mean - other.mean) > 1e-3
    assert one.tokens.item() == 2


def test_continuations_that_are_all_empty_are_counted_and_have_no_mean(llama, tokenizer):
    result = judged(llama, tokenizer, PROMPTS, [["", "", ""]])
    assert np.isnan(result.mean)
    assert (result.empty, result.tokens.sum()) == (3, 0)


@pytest.mark.parametrize(
    ("prompts", "continuations"),
    [([], [[]]), (["w3"], []), ("w3", [["w4"]]), (["w3"], [["w4", "w5"]]), (["w3"], ["w"])],
)
def test_continuations_that_do_not_match_the_prompts_are_refused(llama, tokenizer, prompts, continuations):
    with pytest.raises(TextsError, match="for every seed"):
        judged(llama, tokenizer, prompts, continuations)


def test_a_batch_of_nothing_is_refused(llama, tokenizer):
    with pytest.raises(OptionError, match="batch size"):
        judged(llama, tokenizer, PROMPTS, CONTINUATIONS, batch_size=0)


def test_a_prompt_that_the_chat_template_rendered_is_read_as_it_is():
    tokenizer = templated("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}", specials=("<|im_start|>",))
    prompt = "<|im_start|>hello"
    model: Any = tiny_model()
    model.resize_token_embeddings(len(tokenizer))
    with pytest.warns(DsasWarning, match="look as if a chat template"):
        expected = judged(model, tokenizer, [prompt], [[" you"]]).mean
    assert judged(model, tokenizer, [prompt], [[" you"]], special_tokens=False).mean == expected
