"""Turn marks: the tokens with which a chat template begins messages of each role, and brackets thinking and tool calls.

A running model sees tokens and no messages. So the template renders short conversations in which every role speaks
after every other. The tokens between the end of one content and the beginning of the next begin a message of that role.
What they have in common wherever a role speaks is its mark; if they have nothing in common, the role has several marks.

Limitations: templates that begin two roles with the same tokens are refused, and so are tokenizers that are not fast. A
system message inside the user's first message (Llama 2) counts as the user's. A text that contains a mark counts as a
message, as it does for the model.
"""

from collections.abc import Sequence
from itertools import dropwhile, takewhile
from typing import NamedTuple

from dsas.errors import OptionError, TextsError
from dsas.model.chat import AS_IT_IS, Chat
from dsas.model.chat_template import BRACKETS, ChatTemplate
from dsas.model.conversation import ASSISTANT, SYSTEM, TOOL, USER, Message
from dsas.model.foreign import Tokenizer
from dsas.model.tokenizing import encode, text_tokenizer

ROLES = (SYSTEM, USER, ASSISTANT, TOOL)
_SAID = {SYSTEM: "Gamma", USER: "Alpha", ASSISTANT: "Beta", TOOL: "Delta"}
_BEFORE: dict[str, Sequence[Sequence[str]]] = {
    SYSTEM: ([],),
    USER: ([], [SYSTEM], [USER, ASSISTANT], [SYSTEM, USER, ASSISTANT]),
    ASSISTANT: ([USER], [SYSTEM, USER], [USER, ASSISTANT, USER]),
    TOOL: ([USER, ASSISTANT],),
}


class Mark(NamedTuple):
    """Tokens with which something begins or ends.

    name: a role, or "thinking" or "tool-calls". ids: the tokens, at least one. ends: whether they end it; a message is
    ended by the next one.
    """

    name: str
    ids: tuple[int, ...]
    ends: bool = False


def turn_marks(tokenizer: Tokenizer, chat: Chat = AS_IT_IS) -> list[Mark]:
    """Return the marks of the roles in a tokenizer's template, and of its thinking and tool calls.

    Raises OptionError without a chat template, for a tokenizer that is not fast, and for a template whose tokens do
    not distinguish roles.
    """
    own = text_tokenizer(tokenizer)
    template = ChatTemplate(tokenizer, chat)
    if not getattr(own, "is_fast", False):
        raise OptionError("turns need a fast tokenizer, which says where in the text each token is")
    found: list[Mark] = []
    closers = [run for role in ROLES for before in _BEFORE[role] if (run := _after(own, template, [*before, role]))]
    for role in ROLES:
        begins = [run for before in _BEFORE[role] if (run := _between(own, template, [*before, role]))]
        if role == ASSISTANT:
            begins += [run for before in _BEFORE[role] if (run := _ready(own, template, before))]
        opened = [_opened(own, run, closers) for run in begins]
        begins = [rest or run for run, rest in zip(begins, opened, strict=True) if rest or role == ASSISTANT]
        shared, taken = _shared(begins), {mark.ids for mark in found}
        tells = 2 * len(shared) >= len(min(begins, key=len, default=())) and not _is_within(shared, taken)
        runs = [shared] if tells and shared else sorted(set(begins))
        if any(run in taken for run in runs):
            raise OptionError(
                f"this chat template begins messages of {role} with the tokens of another role, "
                f"{own.decode(list(runs[0]))!r}: it is unknown where turns begin"
            )
        found += [Mark(role, run) for run in runs]
    if not {USER, ASSISTANT} <= {mark.name for mark in found}:
        raise OptionError("this chat template writes nothing before messages, so it is unknown where turns begin")
    for name, brackets in BRACKETS.items():
        for pair in brackets:
            ids = [tuple(encode(own, [text], special_tokens=False)[0].ids) for text in pair]
            if all(len(one) == 1 for one in ids) or pair[0] in template.source():
                found += [Mark(name, ids[0]), Mark(name, ids[1], ends=True)]
    return found


def _between(tokenizer: Tokenizer, template: ChatTemplate, roles: Sequence[str]) -> tuple[int, ...]:
    """Return the tokens between the last two contents; none where the template refuses or hides them."""
    messages = [Message(role, _SAID[role]) for role in roles]
    try:
        text = template.text(messages)
        own = template.content(messages, len(messages) - 1)
        before = template.content(messages, len(messages) - 2) if len(messages) > 1 else (-1, 0)
    except TextsError:
        return ()
    hidden = own[0] == own[1] or before[0] == before[1]
    return () if hidden else _trimmed(tokenizer, text, before[1], own[0])


def _ready(tokenizer: Tokenizer, template: ChatTemplate, roles: Sequence[str]) -> tuple[int, ...]:
    """Return the tokens after the last message of a rendering that is ready for an answer."""
    messages = [Message(role, _SAID[role]) for role in roles]
    try:
        text = template.text(messages, generate=True)
        end = template.content(messages, len(messages) - 1)[1]
    except TextsError:
        return ()
    return _trimmed(tokenizer, text, end, len(text)) if text != template.text(messages) else ()


def _after(tokenizer: Tokenizer, template: ChatTemplate, roles: Sequence[str]) -> tuple[int, ...]:
    """Return the tokens after the last message of a rendering that is not ready for an answer: what ends a message."""
    messages = [Message(role, _SAID[role]) for role in roles]
    try:
        text = template.text(messages)
        end = template.content(messages, len(messages) - 1)[1]
    except TextsError:
        return ()
    return _trimmed(tokenizer, text, end, len(text))


def _trimmed(tokenizer: Tokenizer, text: str, end: int, start: int) -> tuple[int, ...]:
    """Return the tokens between two characters of a text, without blank ones at either end."""
    (row,) = encode(tokenizer, [text], special_tokens=False, offsets=True)
    assert row.offsets is not None
    inside = [(token, text[a:b]) for token, (a, b) in zip(row.ids, row.offsets, strict=True) if end <= a < b <= start]
    while inside and not inside[-1][1].strip():
        inside.pop()
    while inside and not inside[0][1].strip():
        inside.pop(0)
    return tuple(token for token, _ in inside)


def _opened(tokenizer: Tokenizer, run: tuple[int, ...], closers: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return what begins a message, without the end of the message before it and without blank tokens."""
    alike = [list(takewhile(lambda pair: pair[0] == pair[1], zip(run, one, strict=False))) for one in closers]
    ended = max(map(len, alike), default=0)
    return tuple(dropwhile(lambda token: not tokenizer.decode([token]).strip(), run[ended:]))


def _shared(runs: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the longest run of tokens that all have in common; the last one if there are several."""
    if not runs:
        return ()
    least = min(runs, key=len)
    for size in range(len(least), 0, -1):
        for start in range(len(least) - size, -1, -1):
            part = least[start : start + size]
            if all(_holds(run, part) for run in runs):
                return part
    return ()


def _holds(run: tuple[int, ...], part: tuple[int, ...]) -> bool:
    return any(run[start : start + len(part)] == part for start in range(len(run) - len(part) + 1))


def _is_within(run: tuple[int, ...], others: set[tuple[int, ...]]) -> bool:
    """Whether a mark is contained in another one."""
    return any(_holds(other, run) for other in others)
