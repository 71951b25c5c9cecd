"""Examples of the command line: files of texts, conversations, completions and pairs, and errors by line."""

import json
from pathlib import Path
from typing import Any

import pytest

from dsas.cli.examples import asked_of, chat_of, chosen_of, kinds_of_examples, read_examples
from dsas.errors import OptionError, TextsError
from dsas.model.chat import AS_IT_IS, Chat
from dsas.model.conversation import Completion, Content, Conversation

TALK = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So it is."}]


def read(tmp_path: Path, *rows: Any, name: str = "a.jsonl", field: str = "text", **options: Any) -> list[Content]:
    (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    return read_examples(tmp_path / name, field, **options)


def test_a_line_is_a_text_a_conversation_a_completion_or_a_pair(tmp_path: Path) -> None:
    pair = {"prompt": "It is", "chosen": " so.", "rejected": " not."}
    called = [TALK[0], {"role": "assistant", "tool_calls": [{"type": "function"}]}, {"role": "tool", "content": ""}]
    assert read(tmp_path, [*called, *TALK]) == [Conversation.of([*called, *TALK])]
    assert read(tmp_path, "one", {"text": "two", "messages": TALK}) == ["one", "two"]
    assert read(tmp_path, {"messages": TALK}, TALK) == [Conversation.of(TALK)] * 2
    assert read(tmp_path, {"prompt": "It is", "completion": " so."}) == [Completion("It is", " so.")]
    assert read(tmp_path, pair, half="rejected") == [Completion("It is", " not.")]
    assert list(chosen_of(tmp_path / "a.jsonl", "text") or ()) == [Completion("It is", " so.")]
    assert read(tmp_path, {"talk": TALK}, field="talk") == [Conversation.of(TALK)]
    assert chosen_of(tmp_path / "a.jsonl", "talk") is None


def test_columns_that_are_empty_in_a_row_are_as_if_they_were_not_there(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("text", "prompt", "completion", "chosen", "rejected"))
    assert read(tmp_path, {**nothing, "messages": TALK}) == [Conversation.of(TALK)]
    assert read(tmp_path, {**nothing, "chosen": TALK, "rejected": [TALK[0]]}, half="chosen") == [Conversation.of(TALK)]
    assert list(chosen_of(tmp_path / "a.jsonl", "text") or ()) == [Conversation.of(TALK)]
    with pytest.raises(TextsError, match=r"a\.jsonl:1: expected a text or a conversation, got NoneType"):
        read(tmp_path, nothing)


def test_tables_have_prompts_with_completions_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,completion\nIt is, so.\n")
    assert read_examples(tmp_path / "a.csv", "text") == [Completion("It is", " so.")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["one", {"messages": []}], r"a\.jsonl:2: expected messages, a list that is not empty"),
        ([{"messages": [{"role": "user"}]}], r"a\.jsonl:1, message 0: expected a content"),
        ([{"words": "x"}], r"a\.jsonl:1: no field 'text'; closest: 'words'"),
        (["one", 3], r"a\.jsonl:2: expected a text or a conversation, got int"),
        ([{"messages": TALK}, "two"], r"a\.jsonl:2 is a text: expected a conversation, as .*a\.jsonl:1 is"),
        ([{"prompt": "It is", "completion": " "}], r"the answer of .*a\.jsonl:1 must be a text that is not empty"),
        ([{"prompt": None, "completion": "so"}], r"a\.jsonl:1: expected 'messages', 'prompt' with 'completion'"),
        ([{"chosen": "a", "rejected": "b"}], r"a\.jsonl:1 has a chosen and a rejected half"),
    ],
)
def test_a_line_that_is_no_example_is_named(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(TextsError, match=message):
        read(tmp_path, *rows)


def test_options_of_the_template_go_with_every_conversation(tmp_path: Path) -> None:
    chat = chat_of("Be brief.", '{"enable_thinking": false}', ["text"])
    assert chat == Chat("Be brief.", {"enable_thinking": False}, ("text",))
    read(tmp_path, {"messages": TALK}, name="talk.jsonl")
    assert kinds_of_examples([str(tmp_path / "talk.jsonl")], "text", chat) == {"talk": [Conversation.of(TALK, chat)]}
    assert asked_of("Why?", None, "text", chat=chat, as_chat=True) == [Conversation.of(TALK[:1], chat)]
    assert asked_of("Why?", None, "text", chat=chat, as_chat=False) == ["Why?"]


@pytest.mark.parametrize(
    ("given", "message"), [("{", "--template-args is not JSON"), ("[1]", "as a JSON object, .*got '\\[1\\]'")]
)
def test_arguments_of_the_template_that_are_no_object_are_refused(given: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        chat_of(None, given)


def test_one_text_or_one_file_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="either one prompt or --file"):
        asked_of(None, None, "text", chat=AS_IT_IS, as_chat=False)


def test_a_data_set_is_read_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    (tmp_path / "set").mkdir()
    read(tmp_path, {"messages": TALK}, name="set/train.jsonl")
    assert read_examples(f"hub:{tmp_path / 'set'}:train:messages", "text") == [Conversation.of(TALK)]
