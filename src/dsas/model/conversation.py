"""Conversation: messages with roles, as in transformers, TRL and the OpenAI format, and the other kinds of example.

| given as | becomes | its answer |
|---|---|---|
| a text | the text itself | - |
| {"prompt": text, "completion": text} | `Completion`: raw text without a template, as in TRL | the completion |
| [{"role": ..., "content": ...}, ...] | `Conversation` | the last message of the assistant |
| {"messages": [...]} | `Conversation` | the same |
| {"prompt": messages, "completion": messages} | `Conversation` | the same |
| {"chosen": ..., "rejected": ...}, with or without a "prompt" | target and source, each as above | the same |

Beside messages, "tools" and "chat_template_kwargs" are the template's arguments for them, as in TRL.

All are frozen and hashable, so that each is read once however many sets it is in. The content of a message may be a
list of parts, texts and `dsas.model.media`, which a multimodal model reads with its processor.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

from dsas.errors import OptionError, TextsError
from dsas.files.json_values import Json, JsonObject
from dsas.model.chat import AS_IT_IS, Chat
from dsas.model.media import Medium, medium_of

Half = Literal["chosen", "rejected"]
_SAID_OTHERWISE = (
    "tool_calls",
    "reasoning_content",
    "thinking",
)  # with these keys, content may be missing
ASSISTANT, SYSTEM, TOOL, USER = "assistant", "system", "tool", "user"


@final
@dataclass(frozen=True)
class Message:
    """One message.

    content: its text, or the texts of all its parts, one after another. more: its other keys, such as tool_calls or
    reasoning_content, as a JSON object. parts: texts and media in their order; empty if there is only text.
    """

    role: str
    content: str
    more: str = "{}"
    parts: tuple[str | Medium, ...] = ()

    @property
    def media(self) -> list[Medium]:
        """The pictures, videos and sounds, in their order."""
        return [one for one in self.parts if isinstance(one, Medium)]

    def as_dict(self) -> JsonObject:
        """Return the message as templates take it, JSON-ready."""
        content: Json = self.content
        if self.parts:
            content = [{"type": "text", "text": one} if isinstance(one, str) else one.as_dict() for one in self.parts]
        return {"role": self.role, "content": content, **json.loads(self.more)}

    def __str__(self) -> str:
        return f"{self.role}: {''.join(map(str, self.parts)) or self.content}"


@final
@dataclass(frozen=True)
class Conversation:
    """Messages in their order, at least one, and the options for their template.

    `Conversation.of` makes one from dictionaries. Options of `Reading(chat=...)` apply to those without options.
    """

    messages: tuple[Message, ...]
    chat: Chat = AS_IT_IS

    @classmethod
    def of(cls, messages: Sequence[Mapping[str, Any]], chat: Chat = AS_IT_IS) -> "Conversation":
        """Return the conversation of messages like {"role": "user", "content": "Hello"}. Raises TextsError."""
        return cls(_messages(messages, "the conversation"), chat)

    def under(self, chat: Chat) -> "Conversation":
        """Return this conversation with these options where it has none of its own."""
        return replace(self, chat=self.chat.over(chat))

    def answered(self, answer: str) -> "Conversation":
        """Return this conversation followed by an answer of the assistant."""
        return replace(self, messages=(*self.messages, Message(ASSISTANT, answer)))

    @property
    def asked(self) -> tuple[Message, ...]:
        """The messages, beginning with the system message of the options if they have none."""
        if self.chat.system is None or self.messages[0].role == SYSTEM:
            return self.messages
        return (Message(SYSTEM, self.chat.system), *self.messages)

    def as_dict(self) -> JsonObject:
        """Return messages and options, JSON-ready."""
        return {"messages": [one.as_dict() for one in self.messages], "chat": self.chat.as_dict()}


@final
@dataclass(frozen=True)
class Completion:
    """A prompt and what follows it, both raw text that no template renders; the completion is the answer."""

    prompt: str
    completion: str

    def as_dict(self) -> JsonObject:
        """Return role and content, JSON-ready."""
        return {"prompt": self.prompt, "completion": self.completion}


Content = str | Completion | Conversation  # the content of an example


def kind_of(content: Content) -> str:
    """Return the name of a content's kind."""
    if isinstance(content, str):
        return "text"
    return "prompt with completion" if isinstance(content, Completion) else "conversation"


def has_answer(content: Content) -> bool:
    """Return whether a content ends with an answer, not counting results of tools after it."""
    if not isinstance(content, Conversation):
        return isinstance(content, Completion)
    roles = [one.role for one in content.messages if one.role != TOOL]
    return bool(roles) and roles[-1] == ASSISTANT


def up_to_answer(content: Conversation, *, instruction: bool) -> tuple[Message, ...]:
    """Return the messages up to the answer, which is the last; instruction: those before it. Raises TextsError."""
    messages = content.asked
    if instruction and not has_answer(content):
        return messages
    if not has_answer(content):
        raise TextsError(
            f"the conversation {as_text(content)!r:.80} ends with a message of {messages[-1].role}, so it has no "
            "answer: add the assistant's, or read dsas.Reading(tokens='last-instruction')"
        )
    last = max(number for number, one in enumerate(messages) if one.role != TOOL)
    return messages[:last] if instruction else messages[: last + 1]


def media_of(content: Content) -> list[Medium]:
    """Return the pictures, videos and sounds of a content, in their order."""
    return [one for own in content.messages for one in own.media] if isinstance(content, Conversation) else []


def before_answer(content: Content) -> Content:
    """Return what comes before an answer; everything where there is none."""
    if isinstance(content, Completion):
        return content.prompt
    if isinstance(content, str) or not has_answer(content):
        return content
    last = max(number for number, one in enumerate(content.messages) if one.role == ASSISTANT)
    return replace(content, messages=content.messages[:last])


def as_json(content: Content | Json) -> Json:
    """Return a content as JSON-ready values; values that are JSON-ready are returned unchanged."""
    return content.as_dict() if isinstance(content, Completion | Conversation) else content


def as_text(content: Content) -> str:
    """Return a whole content as one text, with roles, to show or to compare."""
    if isinstance(content, str):
        return content
    if isinstance(content, Completion):
        return content.prompt + content.completion
    return "\n".join(map(str, content.asked))


def answer_text(content: Content) -> str:
    """Return the part of a content that counts by default: the answer, or all of a text."""
    if isinstance(content, str):
        return content
    if isinstance(content, Completion):
        return content.completion
    said = [one for one in content.messages if one.role == ASSISTANT]
    return said[-1].content or said[-1].more if said else as_text(content)


def instruction_text(content: Content) -> str:
    """Return what asks for the answer: the prompt, or the last message that is not an answer; all of a text."""
    if isinstance(content, str):
        return content
    if isinstance(content, Completion):
        return content.prompt
    said = [one for one in content.messages if one.role == USER]
    return said[-1].content if said else as_text(content)


def content_of(given: Any, where: str, half: Half | None = None) -> Content:
    """Return what the user gave as a text, a prompt with its completion, or a conversation.

    where: its name in error messages. half: which half of {"chosen": ..., "rejected": ...} to take. Raises TextsError.
    """
    if isinstance(given, Conversation | Completion):
        return given
    if isinstance(given, Mapping):
        found = _of_mapping(given, where, half)
        if isinstance(found, Conversation):
            found = found.under(_template_options(given, where))
    elif isinstance(given, Sequence) and not isinstance(given, str):
        found = Conversation(_messages(given, where))
    else:
        found = given
    said, place = (found.completion, f"the answer of {where}") if isinstance(found, Completion) else (found, where)
    if not isinstance(said, Conversation) and (not isinstance(said, str) or not said.strip()):
        raise TextsError(f"{place} must be a text that is not empty, got {said!r:.60}")
    return found


def _of_mapping(given: Mapping[str, Any], where: str, half: Half | None) -> Content:
    given = {key: value for key, value in given.items() if value is not None}  # columns that other rows have
    if "messages" in given:
        return Conversation(_messages(given["messages"], where))
    if "chosen" in given or "rejected" in given:
        if half is None:
            raise TextsError(f"{where} has a chosen and a rejected half, which only source and target may have")
        if half not in given:
            raise TextsError(f"{where}: expected both 'chosen' and 'rejected', got no {half!r}")
        return _joined(given.get("prompt"), given[half], where)
    if "completion" in given and "prompt" in given:
        return _joined(given["prompt"], given["completion"], where)
    raise TextsError(
        f"{where}: expected 'messages', 'prompt' with 'completion', or 'chosen' with 'rejected', got the keys "
        f"{', '.join(map(repr, given)) or '(none)'}"
    )


def _template_options(given: Mapping[str, Any], where: str) -> Chat:
    """Return the template's arguments that a row has of its own. Raises TextsError for what is no argument."""
    more, tools = ({} if given.get(key) is None else given[key] for key in ("chat_template_kwargs", "tools"))
    try:
        more, tools = (json.loads(one) if isinstance(one, str) else one for one in (more, tools))
        if isinstance(more, Mapping) and not (tools and isinstance(tools, Mapping)):
            return Chat(arguments={**more, **({"tools": tools} if tools else {})})
    except (ValueError, OptionError) as error:
        raise TextsError(f"{where}: its arguments of the chat template cannot be read: {error}") from error
    raise TextsError(
        f"{where}: expected 'tools' as a list of JSON schemas and 'chat_template_kwargs' as an object, got "
        f"{tools!r:.60} and {more!r:.60}"
    )


def _joined(prompt: Any, answer: Any, where: str) -> Any:
    if prompt is None:
        return answer if isinstance(answer, str) else Conversation(_messages(answer, where))
    if isinstance(prompt, str) != isinstance(answer, str):
        raise TextsError(f"{where}: prompt and answer must both be texts or both be messages")
    if isinstance(prompt, str):
        return Completion(prompt, answer)
    return Conversation((*_messages(prompt, where), *_messages(answer, where)))


def _messages(given: Any, where: str) -> tuple[Message, ...]:
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence) or not given:
        raise TextsError(f"{where}: expected messages, a list that is not empty, got {given!r:.60}")
    return tuple(_message(one, f"{where}, message {number}") for number, one in enumerate(given))


def _message(given: Any, where: str) -> Message:
    if isinstance(given, Message):
        return given
    if not isinstance(given, Mapping) or not isinstance(given.get("role"), str):
        raise TextsError(f'{where}: expected {{"role": ..., "content": ...}}, got {given!r:.60}')
    more = {key: value for key, value in given.items() if key not in ("role", "content") and value is not None}
    content, parts = given.get("content"), tuple[str | Medium, ...]()
    if isinstance(content, Sequence) and not isinstance(content, str):
        read = tuple(_part(one, where) for one in content)
        content = "".join(one for one in read if isinstance(one, str))
        parts = read if any(isinstance(one, Medium) for one in read) else ()
    empty = given["role"] == TOOL or any(more.get(key) for key in _SAID_OTHERWISE)
    if content is None and empty:
        content = ""
    if not isinstance(content, str) or not (content.strip() or parts or empty):
        raise TextsError(f"{where}: expected a content that is a text and not empty, got {content!r:.60}")
    try:
        return Message(given["role"], content, json.dumps(more), parts)
    except TypeError as error:
        raise TextsError(f"{where}: expected JSON-ready values: {error}") from error


def _part(part: Any, where: str) -> str | Medium:
    if isinstance(part, Mapping):
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            return part["text"]
        medium = medium_of(part, where)
        if medium is not None:
            return medium
    raise TextsError(f"{where}: only parts of type 'text', 'image', 'video' and 'audio' are read, got {part!r:.60}")
