"""Conversations: every form in which people hold them becomes the same thing, or an error that names its place."""

from typing import Any

import pytest

import dsas
from dsas.errors import DsasWarning, TextsError
from dsas.model.conversation import Completion, Conversation, answer_text, as_text, content_of, instruction_text
from dsas.model.examples import check_sets, check_texts

USER, SAID = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So it is."}
TALK = Conversation.of([USER, SAID])


@pytest.mark.parametrize(
    "given",
    [
        [USER, SAID],
        (USER, SAID),
        {"messages": [USER, SAID], "source": "somewhere"},
        {"messages": [USER, SAID], "prompt": None, "chosen": None},
        {"messages": None, "prompt": [USER], "completion": [SAID], "rejected": None},
        {"prompt": [USER], "completion": [SAID]},
        {"prompt": [USER], "chosen": [SAID], "rejected": [USER]},
        {"chosen": [USER, SAID], "rejected": [USER]},
        [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}, SAID],
        [USER, {**SAID, "tool_calls": None}],
        TALK,
    ],
)
def test_a_conversation_is_the_same_in_every_form_that_people_hold_it_in(given: Any) -> None:
    assert content_of(given, "it", "chosen") == TALK
    assert hash(content_of(given, "it", "chosen")) == hash(TALK)


def test_prompt_and_completion_that_are_texts_are_raw_text_and_never_a_conversation() -> None:
    assert content_of({"prompt": "It is", "completion": " so."}, "it") == Completion("It is", " so.")
    pair = {"prompt": "It is", "chosen": " so.", "rejected": " not."}
    assert [content_of(pair, "it", half).completion for half in ("chosen", "rejected")] == [" so.", " not."]
    assert content_of({"chosen": "so", "rejected": "not"}, "it", "rejected") == "not"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "it: expected messages, a list that is not empty"),
        ({"messages": "Why?"}, "it: expected messages, a list that is not empty, got 'Why\\?'"),
        ({"text": "x"}, "it: expected 'messages', .*got the keys 'text'"),
        ({"prompt": "x", "completion": [SAID]}, "prompt and answer must both be texts or both be messages"),
        ({"prompt": "x", "completion": " "}, "must be a text that is not empty, got ' '"),
        ({"chosen": "x"}, "it: expected both 'chosen' and 'rejected', got no 'rejected'"),
        ([USER, {"content": "x"}], r'it, message 1: expected \{"role": \.\.\., "content"'),
        ([USER, {"role": "assistant"}], "it, message 1: expected a content that is a text and not empty, got None"),
        (
            [{"role": "user", "content": [{"type": "image"}]}],
            "message 0: expected the image itself, .*got the keys .type",
        ),
        ([{**USER, "when": {1}}], "it, message 0: expected JSON-ready values"),
    ],
)
def test_what_is_no_example_is_refused_by_its_place(given: Any, message: str) -> None:
    with pytest.raises(TextsError, match=message):
        content_of(given, "it", "rejected")


def test_a_tool_call_needs_no_text() -> None:
    talk = content_of([USER, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}], "it")
    assert isinstance(talk, Conversation)
    assert talk.messages[1].as_dict()["tool_calls"] == [{"function": {"name": "f"}}]


def test_what_people_read_of_an_example() -> None:
    assert as_text(TALK) == "user: Why?\nassistant: So it is."
    assert (answer_text(TALK), instruction_text(TALK)) == ("So it is.", "Why?")
    assert (as_text("x"), answer_text("x"), instruction_text("x")) == ("x", "x", "x")
    pair = Completion("It is", " so.")
    assert (as_text(pair), answer_text(pair), instruction_text(pair)) == ("It is so.", " so.", "It is")


def talks(word: str, count: int = 4) -> list[Any]:
    return [[USER, {"role": "assistant", "content": f"{word} {number}"}] for number in range(count)]


def test_sets_of_conversations_are_checked_as_sets_of_texts_are() -> None:
    sets = check_sets(talks("no"), talks("fine"), talks("yes"))
    assert sets.kind == "conversation"
    assert sets.source[1] == content_of(talks("no")[1], "it")
    with pytest.raises(TextsError, match="source and target hold the same texts"):
        check_sets(talks("no"), talks("fine"), talks("no"))
    with pytest.raises(TextsError, match="source must hold at least 4 texts, got 3"):
        check_sets(talks("no", 3), talks("fine"), talks("yes"))
    with pytest.warns(DsasWarning, match=r"1 texts are both in source and in control, for example 'user: Why"):
        check_sets(talks("no"), [talks("no")[0], *talks("fine")], talks("yes"))
    with pytest.raises(TextsError, match=r"source\[2\] and target\[2\] are the same text"):
        check_sets(talks("no"), talks("fine"), [*talks("yes", 2), talks("no")[2], talks("yes")[3]], paired=True)


def test_the_first_example_of_another_kind_is_named() -> None:
    with pytest.raises(TextsError, match=r"source\[4\] is a text: expected a conversation, as source\[0\] is"):
        check_texts("source", [*talks("no"), "text"])
    with pytest.raises(TextsError, match=r"control\[0\] is a text: expected a conversation, as source\[0\] is"):
        check_sets(talks("no"), list("abcd"), talks("yes"))
    with pytest.raises(TextsError, match="source must be a list of conversations, got one conversation; put it into"):
        check_texts("source", [USER, SAID])


def test_chosen_halves_are_the_target_and_rejected_ones_the_source() -> None:
    pairs = [{"prompt": "It is", "chosen": f" so {n}.", "rejected": f" not {n}."} for n in range(4)]
    controls = [{"prompt": "It is", "completion": f" here {n}."} for n in range(4)]
    sets = check_sets(pairs, controls, None)
    assert sets.source[2] == Completion("It is", " not 2.")
    assert sets.target[2] == Completion("It is", " so 2.")
    with pytest.raises(TextsError, match=r"control\[0\] has a chosen and a rejected half"):
        check_sets(pairs, pairs, None)


@pytest.mark.parametrize("span", [(0, 1), (2, 0, 1), (1, 0, 99), (1, 2, 2)])
def test_a_span_outside_of_its_message_is_refused(span: Any) -> None:
    marked = [dsas.Example(talk, [span]) for talk in talks("no")]
    with pytest.raises(TextsError, match=r"source\[0\]: expected spans \(message, start, stop\) with message from 0"):
        check_sets(marked, talks("fine"), talks("yes"))


@pytest.mark.parametrize("tools", [[{"name": "clock"}], '[{"name": "clock"}]'])
def test_what_a_row_says_to_its_template_is_kept_beside_the_options_of_the_reading(tools: Any) -> None:
    row = {"messages": talks("x", 1)[0], "tools": tools, "chat_template_kwargs": {"thinking": False}}
    reading = dsas.Chat(system="Be brief.", arguments={"thinking": True, "date": "today"}, parts=("text",))
    found = content_of(row, "source").under(reading).chat
    assert found.arguments == {"tools": [{"name": "clock"}], "thinking": False, "date": "today"}
    assert (found.system, found.parts) == ("Be brief.", ("text",))
    assert content_of({**row, "tools": None, "chat_template_kwargs": None}, "source").chat == dsas.Chat()
    paired = {"prompt": row["messages"][:1], "completion": row["messages"][1:], "tools": tools}
    assert content_of(paired, "source").chat.arguments == {"tools": [{"name": "clock"}]}


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"tools": "clock"}, "source 3: its arguments of the chat template cannot be read"),
        ({"tools": {"name": "clock"}}, "source 3: expected 'tools' as a list of JSON schemas"),
        ({"chat_template_kwargs": [1]}, "source 3: expected 'tools' as a list of JSON schemas"),
        ({"chat_template_kwargs": {"tokenize": True}}, "'tokenize' cannot be a template argument"),
    ],
)
def test_arguments_of_a_row_that_no_template_takes_are_refused_by_its_place(own: Any, message: str) -> None:
    with pytest.raises(TextsError, match=message):
        content_of({"messages": talks("x", 1)[0], **own}, "source 3")
