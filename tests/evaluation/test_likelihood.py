import numpy as np
import pytest
import torch

from dsas.errors import OptionError
from dsas.evaluation.likelihood import Row, log_probabilities, rows_after
from dsas.testing import FAMILIES, tiny_model, tiny_tokenizer

ROWS = [Row([3, 4, 5, 6], 2), Row([9, 8, 7, 6, 5, 4, 3], 6), Row([3, 4, 5, 9], 3), Row([7, 7], 1), Row([5, 6], 2)]


def by_hand(model, row: Row) -> np.ndarray:
    """Work out a row alone, from all logits of the whole row, in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.tokens])).logits[0].double().numpy()
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.array([logs[place - 1, row.tokens[place]] for place in range(row.first, len(row.tokens))])


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_equals_the_definition_in_float64_in_any_batch_and_family(family, batch_size):
    model = tiny_model(family)
    found = log_probabilities(model, ROWS, pad=0, batch_size=batch_size)
    for logs, row in zip(found, ROWS, strict=True):
        np.testing.assert_allclose(logs.numpy(), by_hand(model, row), rtol=1e-4, atol=1e-5)


def test_logits_are_made_only_where_something_is_predicted_and_alike_beginnings_are_run_once():
    model = tiny_model("llama")
    made = []
    model.lm_head.register_forward_hook(lambda _module, _args, output: made.append(tuple(output.shape)))
    log_probabilities(model, [Row([*range(1, 41), last], 40) for last in (5, 6, 7)], pad=0, batch_size=8)
    assert made == [(1, 1, 257)]


def test_a_model_that_cannot_be_asked_for_some_logits_gives_all_and_the_same_numbers(monkeypatch):
    model = tiny_model("llama")
    expected = log_probabilities(model, ROWS, pad=0, batch_size=3)
    forward = model.forward
    monkeypatch.setattr(
        model,
        "forward",
        lambda input_ids, attention_mask, use_cache: forward(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache
        ),
    )
    for one, other in zip(log_probabilities(model, ROWS, pad=0, batch_size=3), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_model_in_training_is_measured_without_dropout_and_left_in_training(llama):
    llama.train()
    found = log_probabilities(llama, ROWS, pad=0, batch_size=2)
    assert llama.training
    np.testing.assert_allclose(found[0].numpy(), by_hand(llama.eval(), ROWS[0]), rtol=1e-5)


@pytest.fixture
def merging(tokenizer):
    """A tokenizer that makes one token of "ab" and of a space with the letter after it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<s>", "</s>", "a", "b", "c", "Ġ", "ab", "Ġa"]
    core = Tokenizer(models.BPE({name: n for n, name in enumerate(names)}, [("a", "b"), ("Ġ", "a")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


def test_tokens_are_told_by_their_characters_and_one_across_the_boundary_goes_where_asked(merging):
    prompts, texts = ["ca", "c", "c ", "", "c"], ["bc", " ac", "ac", "cb", ""]
    given = rows_after(merging, prompts, texts, straddling="given")
    judged = rows_after(merging, prompts, texts, straddling="judged")
    # <s> c ab c </s>: "ab" lies across; <s> c Ġa c </s>: the space is the text's, then the prompt's; <s> c b; <s> c
    assert [row.tokens[row.first :] for row in given] == [[4], [7, 4], [4], [4, 3], []]
    assert [row.tokens[row.first :] for row in judged] == [[6, 4], [7, 4], [7, 4], [4, 3], []]
    assert [row.tokens for row in given[:2]] == [[0, 4, 6, 4], [0, 4, 7, 4]]
    without = rows_after(merging, prompts, texts, straddling="judged", special_tokens=False)
    assert [row.tokens[row.first :] for row in without] == [[6, 4], [7, 4], [7, 4], [3], []]


def test_a_letter_of_several_tokens_is_judged_whole():
    (row,) = rows_after(tiny_tokenizer(), ["x"], ["é"], straddling="given")
    assert (row.first, len(row.tokens)) == (1, 3)


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(OptionError, match="fast tokenizer"):
        rows_after(Slow(), ["a"], ["b"], straddling="given")
