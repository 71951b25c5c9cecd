"""Chat: how conversations are rendered by a chat template, and which parts of an answer count.

A vector that was fitted on answers with thinking may do nothing on answers without, and a system prompt changes the
activation of every token. So these options are the same for all conversations of a fit and are stored with the
Steering.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from dsas.errors import OptionError, closest
from dsas.files.json_values import Json, JsonObject

PARTS = ("text", "thinking", "tool-calls")

# Arguments of `apply_chat_template` that are not the template's.
_OURS = (
    "conversation", "messages", "add_generation_prompt", "continue_final_message", "tokenize", "padding", "truncation",
    "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
    "sanitize_control_tokens",
)  # fmt: skip


@final
@dataclass(frozen=True)
class Chat:
    """Options of the chat template, the same for all conversations.

    system: a system message for conversations that have none. arguments: arguments of the template, by name and
    JSON-ready: enable_thinking, tools (as JSON schemas), documents, chat_template. parts: which parts of an answer
    count, of "text", "thinking" and "tool-calls"; thinking is the text between the markers of reasoning models, such as
    <think> and </think>.
    """

    system: str | None = None
    arguments: Mapping[str, Json] = field(default_factory=dict)
    parts: tuple[str, ...] = PARTS

    def __post_init__(self) -> None:
        """Raise OptionError for arguments that are not the template's or not JSON-ready, and for unknown parts."""
        for name in self.arguments:
            if name in _OURS:
                raise OptionError(f"{name!r} cannot be a template argument: dsas sets it itself")
        try:
            json.dumps(dict(self.arguments))
        except (TypeError, ValueError) as error:
            raise OptionError(
                f"template arguments must be JSON-ready, such as tools as JSON schemas: {error}"
            ) from error
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise OptionError(
                f"parts must be one or several of {PARTS}, got {self.parts!r}; "
                f"closest: {closest(unknown[0] if unknown else '', PARTS)}"
            )

    def __hash__(self) -> int:
        return hash(json.dumps(self.as_dict(), sort_keys=True))

    def over(self, other: "Chat") -> "Chat":
        """Return these options, with those of another where there are none here."""
        if AS_IT_IS in (self, other):
            return other if self == AS_IT_IS else self
        system = other.system if self.system is None else self.system
        parts = other.parts if self.parts == PARTS else self.parts
        return Chat(system, {**other.arguments, **self.arguments}, parts)

    def as_dict(self) -> JsonObject:
        """Return the options, JSON-ready."""
        return {"system": self.system, "arguments": dict(self.arguments), "parts": list(self.parts)}


AS_IT_IS = Chat()  # the template without options
