"""Text: sets that are checked, batches that are padded without touching the tokenizer, chat templates."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from makers import unchecked
from tokenizers.processors import TemplateProcessing

from dsas.errors import OptionError, TextsError
from dsas.model.examples import check_texts
from dsas.model.token_batches import batches, chat_prompts, pad_token, token_spans, tokenize
from dsas.testing import tiny_tokenizer


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", "b", "c"], "source must hold at least 4 texts, got 3"),
        ([], "source must hold at least 4 texts, got 0"),
        (["a", "b", "  \n", "d"], r"source\[2\] must be a text that is not empty, got '  \\n'"),
        (["a", None, "c", "d"], r"source\[1\] must be a text that is not empty, got None"),
        ("a bare string", "source must be a list of texts, got one text; put it into a list"),
    ],
)
def test_a_set_of_texts_that_cannot_be_used_is_named(texts: Any, message: str) -> None:
    with pytest.raises(TextsError, match=message):
        unchecked(check_texts)("source", texts)


def test_a_set_of_texts_that_can_be_used_is_kept_as_it_is() -> None:
    assert check_texts("source", ("a", "b", "a", " d ")) == ["a", "b", "a", " d "]


@pytest.mark.parametrize("side", ["left", "right"])
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12), size=st.integers(1, 5))
def test_batches_hold_every_row_once_and_padding_only_where_the_mask_says(
    side: Any, lengths: list[int], size: int
) -> None:
    rows = [[100 * number + place for place in range(1, length + 1)] for number, length in enumerate(lengths)]
    found, widths = {}, []
    for batch in batches(rows, size, pad=-1, side=side):
        assert len(batch.rows) <= size
        widths.append(batch.tokens.shape[1])
        for row, tokens, mask in zip(batch.rows, batch.tokens, batch.mask, strict=True):
            found[row] = tokens[mask].tolist()
            assert bool((tokens[~mask] == -1).all())
            assert bool(mask[-1 if side == "left" else 0])
            assert bool(mask.any())
    assert found == dict(enumerate(rows))
    assert widths == sorted(widths, reverse=True)


def test_no_batch_is_wider_than_its_longest_row() -> None:
    widths = [batch.tokens.shape[1] for batch in batches([[1] * 9, [1], [1] * 2, [1] * 8], 2, pad=0, side="left")]
    assert widths == [9, 2]


def test_a_tokenizer_without_a_padding_token_is_padded_by_its_end_and_left_as_it_is() -> None:
    tokenizer = tiny_tokenizer()
    assert pad_token(tokenizer) == tokenizer.eos_token_id == 256
    assert tokenizer.pad_token is None
    tokenizer.pad_token = "!"
    assert pad_token(tokenizer) == tokenizer("!")["input_ids"][0]
    tokenizer.pad_token = tokenizer.eos_token = None
    assert pad_token(tokenizer) == 0


def test_texts_become_rows_of_token_numbers_and_texts_without_tokens_are_named() -> None:
    tokenizer = tiny_tokenizer()
    assert list(map(len, tokenize(tokenizer, ["ab", "é"]))) == [2, 2]
    with pytest.raises(TextsError, match=r"at least one token; these have none: \[1\]"):
        tokenize(tokenizer, ["ab", ""])
    with pytest.raises(TextsError, match="expected a list of texts, got one text: 'ab'"):
        unchecked(tokenize)(tokenizer, "ab")
    with pytest.raises(TextsError, match="expected at least one text, got none"):
        tokenize(tokenizer, [])


def test_chat_prompts_are_the_users_turn_of_the_template_ready_for_the_answer() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(OptionError, match="no chat template"):
        chat_prompts(tokenizer, ["hello"])
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}" + (
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert chat_prompts(tokenizer, ["hello", "you"]) == ["<user>hello<assistant>", "<user>you<assistant>"]


def test_a_batch_of_less_than_one_row_is_refused() -> None:
    with pytest.raises(OptionError, match="batch size of at least 1, got 0"):
        next(batches([[1]], 0, pad=0, side="left"))
    assert list(batches([], 3, pad=0, side="left")) == []
    assert next(batches([[1]], 3, pad=0, side="left")).tokens.dtype == torch.long


def test_a_token_is_covered_when_it_shares_a_character_with_a_span() -> None:
    covered = token_spans(tiny_tokenizer(), ["abcde", "xy"], [[(1, 3), (4, 5)], []])
    assert covered == [[False, True, True, False, True], [False, False]]


def test_special_tokens_are_neither_covered_nor_uncovered() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", tokenizer.eos_token_id)]
    )
    assert token_spans(tokenizer, ["ab"], [[(0, 1)]]) == [[None, True, False]]


def test_spans_need_a_tokenizer_that_tells_where_its_tokens_are() -> None:
    with pytest.raises(OptionError, match="spans need a fast tokenizer"):
        token_spans(object(), ["a"], [[(0, 1)]])
