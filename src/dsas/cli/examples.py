"""Examples: texts, conversations and prompts with completions, read from files and data sets for the commands."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dsas.errors import OptionError, TextsError
from dsas.files.data_sets import PREFIX, each_row
from dsas.files.json_values import Json
from dsas.files.text_files import DEFAULT_FIELD, each_record, field_of
from dsas.model.chat import AS_IT_IS, PARTS, Chat
from dsas.model.conversation import USER, Content, Conversation, Half, Message, content_of, kind_of

_KEYS = ("messages", "chosen", "rejected", "completion")


def read_examples(path: str | Path, field: str, *, chat: Chat = AS_IT_IS, half: Half | None = None) -> list[Content]:
    """Return the examples of a file, or of a data set that is named hub:OWNER/NAME:SPLIT:COLUMN.

    A row is a text, or has the named field, or is what `dsas.fit` takes: "messages", "prompt" with "completion", or
    "chosen" with "rejected", where `half` says which of the two is meant. chat: options that conversations get.
    Raises TextsError with file and line.
    """
    found = ExampleFile(path, field, half)
    return [one.under(chat) if isinstance(one, Conversation) else one for one in found]


class ExampleFile:
    """The examples of a file or data set, as `read_examples` returns them, read anew whenever they are gone through.

    One line is held at a time. Raises TextsError with file and line, on the way.
    """

    def __init__(self, path: str | Path, field: str, half: Half | None = None) -> None:
        self._path, self._field = path, field
        self._half: Half | None = half

    def __iter__(self) -> Iterator[Content]:
        first: tuple[str, str] | None = None
        for place, value in _records(self._path):
            one = content_of(_example(value, self._field, place), place, self._half)
            kind, at = first = first or (kind_of(one), place)
            if kind_of(one) != kind:
                raise TextsError(f"{place} is a {kind_of(one)}: expected a {kind}, as {at} is")
            yield one

    def checked(self) -> "ExampleFile":
        """Return itself after it was read once to its end."""
        for _ in self:
            pass
        return self


def chosen_of(path: Path, field: str) -> ExampleFile | None:
    """Return the chosen halves of a file of pairs, or None when it holds something else."""
    _, first = next(_records(path), ("", None))
    paired = isinstance(first, dict) and first.get(field) is None and first.get("chosen") is not None
    return ExampleFile(path, field, half="chosen").checked() if paired else None


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


def _records(path: str | Path) -> Iterator[tuple[str, Json]]:
    return each_row(str(path)) if str(path).startswith(PREFIX) else each_record(path)


def _example(value: Json, field: str, place: str) -> Json:
    """Return what a row holds as an example."""
    row = value if isinstance(value, dict) and field == DEFAULT_FIELD and value.get(field) is None else {}
    if any(row.get(key) is not None for key in _KEYS):
        return value
    found = field_of(value, field, place)
    if not isinstance(found, str | list | dict):
        raise TextsError(f"{place}: expected a text or a conversation, got {type(found).__name__}")
    return found
