"""Tokenizing: rows of token numbers without touching the tokenizer, and never a second BOS."""

from typing import Any

import pytest
from makers import templated, unchecked

from dsas.errors import DsasWarning, OptionError, TextsError
from dsas.model.chat_template import chat_prompts
from dsas.model.tokenizing import encode, pad_token, tokenize
from dsas.testing import tiny_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role | upper }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[ASSISTANT] {% endif %}"
)


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


def test_half_a_character_is_told_before_the_tokenizer_sees_it() -> None:
    with pytest.raises(TextsError, match=r"text 1 holds a lone surrogate, .*: 'hm .udcff'"):
        tokenize(tiny_tokenizer(), ["ab", "hm \udcff"])  # as `dsas generate` gets an argument that is no UTF-8


def test_chat_prompts_are_the_users_turn_of_the_template_ready_for_the_answer() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(OptionError, match="no chat template"):
        chat_prompts(tokenizer, ["hello"])
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}" + (
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert chat_prompts(tokenizer, ["hello", "you"]) == ["<user>hello<assistant>", "<user>you<assistant>"]


@pytest.fixture
def chat() -> Any:
    """A tokenizer that puts <s> before every text, and whose template does so, too."""
    return templated(TEMPLATE, specials=("<s>", "</s>"), bos="<s>")


def test_a_text_that_the_template_rendered_gets_the_tokens_of_the_template_and_no_second_bos(chat: Any) -> None:
    turn = [{"role": "user", "content": "hello"}]
    rendered = chat.apply_chat_template(turn, tokenize=False)
    assert rendered == "<s>[USER] hello\n"
    with pytest.warns(DsasWarning, match="1 texts look as if a chat template had rendered them.*pass conversations"):
        (row,) = tokenize(chat, [rendered])
    assert row == chat.apply_chat_template(turn, return_dict=False)
    assert row.count(chat.bos_token_id) == 1


def test_a_rendered_text_without_its_bos_gets_the_one_that_the_template_has(chat: Any) -> None:
    with pytest.warns(DsasWarning, match="no BOS beside the template's"):
        (row,) = tokenize(chat, ["[USER] hello\n"])
    assert row == chat("<s>[USER] hello\n", add_special_tokens=False)["input_ids"]


def test_where_the_template_has_no_bos_a_rendered_text_gets_none() -> None:
    chat = templated(TEMPLATE.replace("{{ bos_token }}", ""), specials=("<s>", "</s>"), bos="<s>")
    with pytest.warns(DsasWarning, match="look as if"):
        rows = tokenize(chat, ["[USER] hello\n", "plain"])
    assert [row.count(chat.bos_token_id) for row in rows] == [0, 1]


def test_a_text_that_begins_with_the_bos_gets_no_second_one_even_without_a_template(chat: Any) -> None:
    chat.chat_template = None
    with pytest.warns(DsasWarning, match="look as if"):
        (first,) = tokenize(chat, ["<s>hello"])
    (plain,) = tokenize(chat, ["hello"])
    assert first == plain


@pytest.mark.parametrize("template", [TEMPLATE, None])
@pytest.mark.parametrize("ahead", [" ", "\n\n"])
def test_spaces_before_a_rendered_text_do_not_hide_it_and_where_its_tokens_stand_is_still_told(
    chat: Any, template: str | None, ahead: str
) -> None:
    chat.chat_template = template
    with pytest.warns(DsasWarning, match="look as if"):
        bare, found = encode(chat, ["<s>[USER] ab", f"{ahead}<s>[USER] ab"], offsets=True)
    assert found.ids == bare.ids
    assert found.offsets == [(a + len(ahead), b + len(ahead)) for a, b in bare.offsets or []]


def test_ordinary_texts_are_read_as_before_and_without_a_warning(chat: Any) -> None:
    texts = ["hello", "a [USER] inside", "user: hi", "a <s>"]
    assert tokenize(chat, texts) == chat(texts)["input_ids"]
    assert (
        tokenize(chat, ["<s>[USER] hello"], special_tokens=False)
        == chat(["<s>[USER] hello"], add_special_tokens=False)["input_ids"]
    )


def test_where_tokens_stand_is_told_for_rendered_texts_too(chat: Any) -> None:
    with pytest.warns(DsasWarning, match="look as if"):
        (found,) = encode(chat, ["<s>[USER] ab"], offsets=True)
    assert found.offsets is not None
    assert found.offsets[0] == (0, 3)
    assert len(found.offsets) == len(found.ids)
