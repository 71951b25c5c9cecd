"""Examples: texts, conversations and prompts with completions, read from files and data sets for the commands."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from dsas.errors import OptionError, TextsError
from dsas.files.data_sets import PREFIX, read_rows
from dsas.files.json_values import Json
from dsas.files.text_files import DEFAULT_FIELD, field_of, read_records
from dsas.model.chat import AS_IT_IS, PARTS, Chat
from dsas.model.conversation import USER, Content, Conversation, Half, Message, content_of, kind_of

_KEYS = ("messages", "chosen", "rejected", "completion")


def read_examples(path: str | Path, field: str, *, chat: Chat = AS_IT_IS, half: Half | None = None) -> list[Content]:
    """Return the examples of a file, or of a data set that is named hub:OWNER/NAME:SPLIT:COLUMN.

    A row is a text, or has the named field, or is what `dsas.fit` takes: "messages", "prompt" with "completion", or
    "chosen" with "rejected", where `half` says which of the two is meant. chat: options that conversations get.
    Raises TextsError with file and line.
    """
    records = _records(path)
    found = [content_of(_example(value, field, place), place, half) for place, value in records]
    for (place, _), one in zip(records, found, strict=True):
        if kind_of(one) != kind_of(found[0]):
            raise TextsError(f"{place} is a {kind_of(one)}: expected a {kind_of(found[0])}, as {records[0][0]} is")
    return [one.under(chat) if isinstance(one, Conversation) else one for one in found]


def chosen_of(path: Path, field: str) -> list[Content] | None:
    """Return the chosen halves of a file of pairs, or None when it holds something else."""
    first = _records(path)[0][1]
    paired = isinstance(first, dict) and first.get(field) is None and first.get("chosen") is not None
    return read_examples(path, field, half="chosen") if paired else None


def kinds_of_examples(given: Iterable[str], field: str, chat: Chat) -> dict[str, list[Content]]:
    """Return the examples of files by kind, which is the name before "=", or that of the file."""
    found: dict[str, list[Content]] = {}
    for text in given:
        kind, named, file = text.partition("=")
        if not named or Path(text).is_file():
            kind, file = (text if text.startswith(PREFIX) else Path(text).stem), text
        found.setdefault(kind, []).extend(read_examples(file, field, chat=chat))
    return found


def asked_of(text: str | None, file: Path | None, field: str, *, chat: Chat, as_chat: bool) -> list[Content]:
    """Return the given text, or the examples of the file; as_chat: make each text the user's turn of a conversation.

    Raises OptionError unless exactly one of the two is given.
    """
    if (text is None) == (file is None):
        raise OptionError("give either one prompt or --file with prompts")
    found: list[Content] = [text] if text is not None else read_examples(file or "", field, chat=chat)
    if not as_chat:
        return found
    return [Conversation((Message(USER, one),), chat) if isinstance(one, str) else one for one in found]


def chat_of(system: str | None, template_args: str, parts: Sequence[str] = PARTS) -> Chat:
    """Return the options of the chat template. Raises OptionError for arguments that are no JSON object."""
    try:
        arguments = json.loads(template_args)
    except ValueError as error:
        raise OptionError(f"--template-args is not JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise OptionError(f'expected --template-args as a JSON object, {{"name": value}}, got {template_args!r}')
    return Chat(system, arguments, tuple(parts))


def _records(path: str | Path) -> list[tuple[str, Json]]:
    return read_rows(str(path)) if str(path).startswith(PREFIX) else read_records(path)


def _example(value: Json, field: str, place: str) -> Json:
    """Return what a row holds as an example."""
    row = value if isinstance(value, dict) and field == DEFAULT_FIELD and value.get(field) is None else {}
    if any(row.get(key) is not None for key in _KEYS):
        return value
    found = field_of(value, field, place)
    if not isinstance(found, str | list | dict):
        raise TextsError(f"{place}: expected a text or a conversation, got {type(found).__name__}")
    return found
