import numpy as np
import pytest
import torch

from dsas.errors import OptionError, TextsError
from dsas.evaluation.perplexity import perplexity

TEXTS = ["w3 w4 w5", "w9 w8 w7 w6 w5 w4 w3 w2", "w10 w10", "w20 w3 w41 w5 w60", "w7 w7 w7 w1"]


def by_hand(model, rows: list[list[int]]) -> np.ndarray:
    """Work out each row alone, from the model's logits on, in float64."""
    found = []
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([row])).logits[0].double().numpy()
        chance = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        picked = [chance[place, token] for place, token in enumerate(row[1:])]
        found.append(np.exp(-np.mean(np.log(picked))))
    return np.array(found)


def rows_of(texts: list[str]) -> list[list[int]]:
    return [[int(word[1:]) for word in text.split()] for text in texts]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_it_equals_the_definition_in_float64_for_any_batch_size(llama, tokenizer, batch_size):
    result = perplexity(llama, tokenizer, TEXTS, batch_size=batch_size)
    expected = by_hand(llama.eval(), rows_of(TEXTS))
    np.testing.assert_allclose(result.per_text, expected, rtol=1e-5)
    assert result.mean == pytest.approx(expected.mean(), rel=1e-5)
    predicted = [len(row) - 1 for row in rows_of(TEXTS)]
    assert result.tokens.tolist() == predicted
    np.testing.assert_allclose(result.losses, np.log(expected), rtol=1e-5)
    assert result.of_tokens == pytest.approx(np.exp(np.average(np.log(expected), weights=predicted)), rel=1e-5)


def test_texts_are_cut_to_max_tokens(llama, tokenizer):
    cut = perplexity(llama, tokenizer, TEXTS, max_tokens=3).per_text
    np.testing.assert_allclose(cut, by_hand(llama.eval(), [row[:3] for row in rows_of(TEXTS)]), rtol=1e-5)


def test_the_mode_of_every_module_and_the_tokenizer_are_as_before(llama, tokenizer):
    llama.train()
    llama.lm_head.eval()
    side, padding = tokenizer.padding_side, tokenizer.pad_token_id
    perplexity(llama, tokenizer, TEXTS)
    assert [name for name, module in llama.named_modules() if not module.training] == ["lm_head"]
    assert (tokenizer.padding_side, tokenizer.pad_token_id) == (side, padding) == ("right", None)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([], "got none"),
        (["w3 w4", ""], r"none: \[1\]"),
        (["w3 w4", "w3"], r"short: \[1\], the first of them 'w3'"),
        ("w3", "one text"),
    ],
)
def test_texts_with_nothing_to_predict_are_refused(llama, tokenizer, texts, said):
    with pytest.raises(TextsError, match=said):
        perplexity(llama, tokenizer, texts)


def test_max_tokens_below_two_is_refused(llama, tokenizer):
    with pytest.raises(OptionError, match="max_tokens >= 2"):
        perplexity(llama, tokenizer, TEXTS, max_tokens=1)
