"""Chat template: messages rendered by a tokenizer's template, and where the answer and its parts are in the result.

The answer is the part of the assistant's last message that the model itself would generate. It is found as follows:

1. Where the template marks what is generated ({% generation %}), by the marks of the last such message. 2. Else as the
   difference of two renderings: the messages before the answer with the generation prompt, and all messages. What the
   generation prompt already holds, such as <think>, is not part of the answer. 3. Where the full rendering does not
   begin with the first one (templates that drop thinking from answers but open it in the prompt) but does begin with
   that without generation prompt: from where the template puts the message's content.

A template for which none of these works renders earlier messages differently once an answer follows, so that no token
is an answer to that prompt: it is refused, with the reason.
"""

import re
import warnings
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import final

from dsas.errors import DsasWarning, OptionError, TextsError
from dsas.files.json_values import Json, JsonObject
from dsas.model.chat import AS_IT_IS, Chat
from dsas.model.conversation import ASSISTANT, USER, Conversation, Message
from dsas.model.foreign import Tokenizer
from dsas.model.tokenizing import PLACEHOLDER, processor_of, template_of, text_tokenizer

Range = tuple[int, int]  # characters, [start, stop)

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
BRACKETS = {
    "thinking": [
        ("<think>", "</think>"),
        ("<thinking>", "</thinking>"),
        ("[THINK]", "[/THINK]"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|channel|>analysis<|message|>", "<|end|>"),
    ],
    "tool-calls": [
        ("<tool_call>", "</tool_call>"),
        ("<tool_calls>", "</tool_calls>"),
        ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        ("<|START_ACTION|>", "<|END_ACTION|>"),
    ],
}
_KEYS = {"tool_calls": "tool-calls", "reasoning_content": "thinking", "thinking": "thinking"}  # part of each key


@final
class ChatTemplate:
    """The template of one tokenizer, or of a processor of texts and pictures, with the options of a conversation."""

    def __init__(self, tokenizer: Tokenizer, chat: Chat) -> None:
        """Raise OptionError for a tokenizer without a chat template."""
        own = template_of(tokenizer)
        if not (own or "chat_template" in chat.arguments):
            raise OptionError(
                "this model's tokenizer has no chat template, so it reads no conversations: give texts, prompts with "
                "their completions, the model's processor where that has a template, or a template by "
                "dsas.Chat(arguments={'chat_template': ...})"
            )
        self._tokenizer, self._arguments = text_tokenizer(tokenizer), dict(chat.arguments)
        self._system = chat.system
        self._lists = False  # whether contents are lists of parts, as some templates of multimodal models need
        if processor_of(tokenizer) is not None:
            self._arguments = {"chat_template": own, **self._arguments}
            turn: list[JsonObject] = [{"role": USER, "content": PLACEHOLDER}]
            try:
                self._lists = PLACEHOLDER not in self._apply(turn)
            except TextsError:
                self._lists = True

    def text(self, messages: Sequence[Message], *, generate: bool = False) -> str:
        """Return the messages as the template renders them. generate: whether to add the generation prompt.

        Raises TextsError with the template's own reason when it refuses them, and for no messages.
        """
        if not messages:
            raise TextsError("there is no message before the answer: add the user's, or read tokens='answer'")
        return self._apply([one.as_dict() for one in messages], generate=generate)

    def whole(self, messages: Sequence[Message], *, generate: bool = False) -> str:
        """Return the rendering of a whole conversation.

        Raises TextsError when the template silently drops the system message of the options.
        """
        found = self.text(messages, generate=generate)
        if any(one.content == self._system and one.content.strip() not in found for one in messages[:1]):
            raise TextsError(
                f"the chat template drops the system message {self._system!r:.60}: leave it out, or say it in the "
                "user's first message"
            )
        return found

    def answer(self, messages: Sequence[Message]) -> list[Range]:
        """Return where the last message, which is the assistant's, is in the full rendering.

        One range, or several where the template marks several. What closes it, such as an end-of-turn token, is in the
        last. Raises TextsError where the template does not allow it.
        """
        whole, before = self.text(messages), messages[:-1]
        if _GENERATION.search(self.source()):
            found = self._generated(messages)
            earlier = len(self._generated(before)) if any(one.role == ASSISTANT for one in before) else 0
            if len(found) > earlier:
                return found[earlier:]
        plain = self.text(before) if before else ""
        ready = self.text(before, generate=True) if before else ""
        if before and ready != plain and whole.startswith(ready):
            return [(len(ready), len(whole))]
        marked = self._apply([*(one.as_dict() for one in before), {"role": ASSISTANT, "content": PLACEHOLDER}])
        start = marked.find(PLACEHOLDER)
        if len(plain) <= start and whole.startswith(plain) and whole.startswith(marked[:start]):
            return [(len(plain) if not whole[len(plain) : start].strip() else start, len(whole))]
        differs = len(_alike(ready or plain, whole))
        raise TextsError(
            "this chat template renders the messages before an answer differently once the answer follows (at "
            f"{(ready or plain)[differs : differs + 30]!r}, where the whole conversation has "
            f"{whole[differs : differs + 30]!r}), so it is unknown which tokens are the answer: mark the answer "
            "in the template with {% generation %}, read tokens='all', or remove what it moves, such as the system "
            "message"
        )

    def content(self, messages: Sequence[Message], number: int) -> Range:
        """Return where the content of a message is in the full rendering; (start, start) where it is missing.

        Spaces that the template strips at its ends are not in the range.
        """
        whole, said = self.text(messages), messages[number].content
        shown = [one.as_dict() for one in messages]
        shown[number]["content"] = _hidden(shown[number]["content"])
        marked = self._apply(shown)
        start = marked.find(PLACEHOLDER)
        if start < 0 or not whole.startswith(marked[:start]):
            return 0, 0
        start += len(whole[start:]) - len(whole[start:].lstrip())
        return (start, start + len(said.strip())) if whole.startswith(said.strip(), start) else (start, start)

    def starts(self, messages: Sequence[Message]) -> list[int]:
        """Return where each message begins in the full rendering, including what the template puts before it."""
        whole, found = self.text(messages), [0]
        for number in range(1, len(messages)):
            try:
                before = self.text(messages[:number])
            except TextsError:  # a template may require a user's message after a system message
                before = None
            there = before is not None and whole.startswith(before)
            found.append(max(found[-1], len(before or "") if there else self.content(messages, number)[0]))
        return found

    def parts(self, messages: Sequence[Message], answer: Sequence[Range]) -> dict[str, list[Range]]:
        """Return where thinking and tool calls are in the full rendering; the last message is the answer.

        An empty pair of thinking markers that the template wrote is under "empty".
        """
        whole, before = self.text(messages), self.text(messages[:-1]) if messages[1:] else ""
        begins = len(before) if whole.startswith(before) else answer[0][0]  # markers may come before the answer
        found = {name: list(_within(whole, begins, brackets)) for name, brackets in BRACKETS.items()}
        last = messages[-1].as_dict()
        if last.get("tool_calls") and not found["tool-calls"]:
            without = {key: value for key, value in last.items() if key != "tool_calls"}
            other = self._apply([*(one.as_dict() for one in messages[:-1]), without])
            start = len(_alike(whole, other))
            end = len(_alike(whole[start:][::-1], other[start:][::-1]))
            found["tool-calls"] = [(start, len(whole) - end)]
        blank = [one for one in found["thinking"] if not _inside(whole[slice(*one)])]
        return {**found, "empty": blank}

    def tell_dropped(self, messages: Sequence[Message], parts: Sequence[str]) -> None:
        """Warn where these parts of the last message, which is the assistant's, are not in the full rendering."""
        last, before = messages[-1].as_dict(), [one.as_dict() for one in messages[:-1]]
        for key in [key for key, part in _KEYS.items() if part in parts and last.get(key)]:
            without = {name: value for name, value in last.items() if name != key}
            if last["content"] and self._apply([*before, without]) == self.text(messages):
                warnings.warn(
                    f"the chat template drops the {key} of answers, so the rest is read alone: leave it out, or say it "
                    "in the content as the model writes it",
                    DsasWarning,
                    stacklevel=5,
                )

    def _generated(self, messages: Sequence[Message]) -> list[Range]:
        """Return the ranges that the template marks as generated."""
        found = self._tokenizer.apply_chat_template(
            [one.as_dict() for one in messages], tokenize=True, return_dict=True, return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True}, **self._arguments,
        )  # fmt: skip
        marked = zip(found["assistant_masks"], found["offset_mapping"], strict=True)
        runs = [list(run) for said, run in groupby(marked, key=lambda one: one[0]) if said]
        return [(run[0][1][0], run[-1][1][1]) for run in runs]

    def source(self) -> str:
        """Return the template itself, as the tokenizer chooses it for these options."""
        get = self._tokenizer.get_chat_template
        return str(get(self._arguments.get("chat_template"), self._arguments.get("tools")))

    def _apply(self, messages: list[JsonObject], *, generate: bool = False) -> str:
        if self._lists:
            messages = [{**one, "content": _listed(one["content"])} for one in messages]
        try:
            return self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generate, **self._arguments
            )
        except Exception as error:  # a template may raise anything
            roles = ", ".join(one["role"] for one in messages)
            raise TextsError(f"the chat template refuses messages of {roles}: {error}") from error


def chat_prompts(tokenizer: Tokenizer, prompts: Sequence[str | Conversation], chat: Chat = AS_IT_IS) -> list[str]:
    """Return each prompt as the user's turn of the chat template, ready for the answer, with its special tokens.

    prompts: texts, or conversations that do not end with an answer. chat: options for the texts.
    Raises OptionError when the tokenizer has no chat template, TextsError for a conversation that ends with an answer.
    """
    turns = [Conversation((Message(USER, one),), chat) if isinstance(one, str) else one for one in prompts]
    ended = [one for one in turns if one.messages[-1].role == ASSISTANT]
    if ended:
        raise TextsError(
            f"expected conversations that wait for an answer, got one that ends with the assistant: "
            f"{ended[0].messages[-1].content!r:.60}"
        )
    return [ChatTemplate(tokenizer, one.chat).whole(one.asked, generate=True) for one in turns]


def _listed(content: Json) -> Json:
    """Return a content as a list of parts."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _hidden(content: Json) -> Json:
    """Return a content with a placeholder in place of its text, at the place of its first text."""
    if not isinstance(content, list):
        return PLACEHOLDER
    texts = [place for place, part in enumerate(content) if part["type"] == "text"]
    kept = [part for place, part in enumerate(content) if place not in texts[1:]]
    return [{"type": "text", "text": PLACEHOLDER} if part["type"] == "text" else part for part in kept]


def _alike(one: str, other: str) -> str:
    """Return the common beginning of two texts."""
    differ = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return one[: next(differ, min(len(one), len(other)))]


def _within(text: str, begins: int, brackets: Iterable[tuple[str, str]]) -> Iterable[Range]:
    """Yield the ranges in brackets, with the brackets and the spaces after them; an open one runs to the end.

    begins: the first character to look at.
    """
    for opened, closed in brackets:
        pattern = rf"{re.escape(opened)}(?s:.*?)(?:{re.escape(closed)}\s*|\Z)"
        yield from (one.span() for one in re.compile(pattern).finditer(text, begins))


def _inside(text: str) -> str:
    """Return the text inside brackets, without spaces."""
    for opened, closed in BRACKETS["thinking"]:
        text = text.strip().removeprefix(opened).removesuffix(closed)
    return text.strip()
