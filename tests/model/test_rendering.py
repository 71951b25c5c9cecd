"""Rendering: which tokens of texts, completions and conversations count, are judged, and are covered by spans."""

from types import SimpleNamespace
from typing import Any

import pytest
from makers import templated, unchecked
from tokenizers.processors import TemplateProcessing

from dsas.errors import OptionError, TextsError
from dsas.model.chat import Chat
from dsas.model.conversation import Completion, Content, Conversation, content_of
from dsas.model.rendering import Rendered, covered, read_through, rendered, turns
from dsas.testing import tiny_tokenizer
from dsas.views.explained import Turn

CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TALK = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": " So it is. "}]


@pytest.fixture
def tokenizer() -> Any:
    return templated(CHAT, specials=("<s>", "</s>"), bos="<s>")


def marked(tokenizer: Any, row: Rendered, flags: list[bool]) -> str:
    return tokenizer.decode([token for token, flag in zip(row.ids, flags, strict=True) if flag])


def one(tokenizer: Any, given: Any, tokens: Any = "auto") -> Rendered:
    (row,) = rendered(tokenizer, [content_of(given, "it")], tokens)
    return row


@pytest.mark.parametrize(("tokens", "counted"), [("auto", [1, 1, 1]), ("all", [1, 1, 1]), ("last", [0, 0, 1])])
def test_of_a_text_all_tokens_count_or_the_last(tokenizer: Any, tokens: Any, counted: list[int]) -> None:
    row = one(tokenizer, "ab", tokens)
    assert row.ids == tokenizer("ab")["input_ids"]
    assert row.counted == [bool(flag) for flag in counted]
    assert row.asked == row.counted


def test_of_a_text_all_tokens_but_the_first_are_judged(tokenizer: Any) -> None:
    assert one(tokenizer, "ab").judged == [False, True, True]


@pytest.mark.parametrize("tokens", ["answer", "last-instruction"])
def test_a_text_has_no_answer_and_no_instruction(tokenizer: Any, tokens: Any) -> None:
    with pytest.raises(OptionError, match=f"tokens='{tokens}' reads conversations"):
        one(tokenizer, "ab", tokens)


def test_of_a_completion_what_follows_the_prompt_counts_and_no_template_is_applied(tokenizer: Any) -> None:
    row = one(tokenizer, {"prompt": "It is", "completion": " so."})
    assert tokenizer.decode(row.ids) == "<s>It is so."
    assert marked(tokenizer, row, row.counted) == marked(tokenizer, row, row.judged) == " so."
    assert marked(tokenizer, row, row.asked) == "s so"
    assert (
        one(tokenizer, {"prompt": "It is", "completion": " so."}, "last-instruction").ids
        == tokenizer("It is")["input_ids"]
    )


def test_probabilities_are_asked_for_after_the_tokens_before_judged_ones(tokenizer: Any) -> None:
    row = one(tokenizer, TALK)
    assert tokenizer.decode(row.ids) == "<s><user>Why?</s>\n<assistant>So it is.</s>\n"
    assert marked(tokenizer, row, row.judged) == "So it is.</s>"
    assert marked(tokenizer, row, row.asked) == ">So it is."


def test_everything_counts_where_everything_is_asked_for(tokenizer: Any) -> None:
    assert all(one(tokenizer, TALK, "all").counted)
    assert one(tokenizer, TALK, "all").ids == tokenizer.apply_chat_template(TALK, return_dict=False)


def test_likelihoods_read_as_many_tokens_of_an_answer_as_of_a_text_and_the_whole_prompt(tokenizer: Any) -> None:
    text, answer = (read_through(tokenizer, [given], 3)[0] for given in ("abcdef", TALK))
    assert tokenizer.decode(text.ids) == "<s>ab"
    assert tokenizer.decode(answer.ids) == "<s><user>Why?</s>\n<assistant>So "
    assert marked(tokenizer, answer, answer.judged) == "So "
    whole = read_through(tokenizer, [TALK], 99)[0]
    assert whole == one(tokenizer, TALK)


def test_likelihoods_of_nothing_and_of_one_text_that_is_no_list_are_refused(tokenizer: Any) -> None:
    with pytest.raises(TextsError, match="expected at least one text, got none"):
        read_through(tokenizer, [], 3)
    with pytest.raises(TextsError, match="expected a list of texts, got one text: 'ab'"):
        unchecked(read_through)(tokenizer, "ab", 3)


def test_another_choice_of_tokens_is_refused(tokenizer: Any) -> None:
    with pytest.raises(OptionError, match=r"tokens must be one of \('auto', 'all', .*got 'mean'"):
        unchecked(rendered)(tokenizer, ["ab"], "mean")


def test_conversations_need_a_tokenizer_that_tells_where_its_tokens_are(tokenizer: Any) -> None:
    class Slow:
        chat_template = CHAT

        def __call__(self, *arguments: Any) -> None: ...

        def apply_chat_template(self, *arguments: Any, **options: Any) -> str:
            return ""

    with pytest.raises(OptionError, match="need a fast tokenizer"):
        one(Slow(), TALK)


def shown(tokenizer: Any, content: Content, spans: Any) -> str:
    (flags,) = covered(tokenizer, [content], [spans])
    return marked(tokenizer, rendered(tokenizer, [content])[0], [bool(flag) for flag in flags])


def test_spans_in_messages_are_found_in_the_rendering_although_it_strips_spaces(tokenizer: Any) -> None:
    talk = content_of(TALK, "it")
    assert shown(tokenizer, talk, [(1, 1, 3), (0, 1, 3)]) == "hySo"
    assert shown(tokenizer, talk, [(1, 0, 11)]) == "So it is."
    system = Conversation.of(TALK, Chat(system="So"))  # message numbers stay those of the conversation
    assert shown(tokenizer, system, [(1, 1, 3)]) == "So"
    assert shown(tokenizer, Completion("It is", " so."), [(0, 0, 2), (1, 1, 3)]) == "Itso"


def test_tokens_of_the_template_that_are_special_are_neither_covered_nor_uncovered(tokenizer: Any) -> None:
    (flags,) = covered(tokenizer, [content_of(TALK, "it")], [[(1, 1, 3)]])
    row = one(tokenizer, TALK)
    assert marked(tokenizer, row, [flag is None for flag in flags]) == "<s></s></s>"


def test_a_span_of_a_message_that_the_template_changes_is_refused(tokenizer: Any) -> None:
    upper = templated(CHAT.replace("trim", "trim | upper"), specials=("<s>", "</s>"), bos="<s>")
    with pytest.raises(TextsError, match="does not show message 1 as it is, so no span of it can be found"):
        covered(upper, [content_of(TALK, "it")], [[(1, 1, 3)]])


def test_every_token_is_in_the_turn_of_a_message_with_what_the_template_puts_before_it(tokenizer: Any) -> None:
    talk = [{"role": "system", "content": "Be brief."}, *TALK, {"role": "user", "content": "Oh."}]
    row, content = one(tokenizer, talk, "all"), content_of(talk, "it")
    found = [(turn.role, tokenizer.decode(row.ids[turn.start : turn.stop])) for turn in turns(tokenizer, content)]
    assert found == [
        ("system", "<s><system>Be brief.</s>\n"),
        ("user", "<user>Why?</s>\n"),
        ("assistant", "<assistant>So it is.</s>\n"),
        ("user", "<user>Oh.</s>\n"),
    ]
    ready = turns(tokenizer, content, generate=True)
    assert ready[-1] == Turn("assistant", len(row.ids), len(row.ids) + len("<assistant>"))
    assert turns(tokenizer, "ab") == []
    assert turns(tokenizer, Completion("ab", "c")) == [Turn("prompt", 0, 3), Turn("completion", 3, 4)]


def test_a_token_is_covered_when_it_shares_a_character_with_a_span() -> None:
    found = covered(tiny_tokenizer(), ["abcde", "xy"], [[(1, 3), (4, 5)], []])
    assert found == [[False, True, True, False, True], [False, False]]


def test_special_tokens_are_neither_covered_nor_uncovered() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", tokenizer.eos_token_id)]
    )
    assert covered(tokenizer, ["ab"], [[(0, 1)]]) == [[None, True, False]]


def test_spans_need_a_tokenizer_that_tells_where_its_tokens_are() -> None:
    with pytest.raises(OptionError, match="spans need a fast tokenizer"):
        covered(SimpleNamespace(decode=None), ["a"], [[(0, 1)]])
