"""Rendering: an example as a row of tokens, and which of them count. A chat template is applied once, here.

| tokens | of a text | of a prompt with its completion | of a conversation |
|---|---|---|---|
| "all" | all | all | all of the rendering, including the template's tokens |
| "answer" | - | the completion | the assistant's last message |
| "last" | the last | the last of the completion | the last of the answer |
| "last-instruction" | - | the last of the prompt | the last before the answer, of the generation prompt |
| "auto" | all | the completion | the answer |

In an answer, the tokens count that the model reads while it writes the answer: neither the end-of-turn token, which
ends generation before it is read, nor the line break after it. For probabilities the end-of-turn token is judged as
well, as in TRL. An empty pair of thinking markers never counts; a token that only shares a character with it does.

What follows the answer, such as a tool's result, is not read with "auto", "answer" and "last". Pictures and sounds are
read by the model's processor (`dsas.model.processing`); tokens that stand for them are of their message. What an
encoder beside the decoder takes has no tokens here (`dsas.model.encoded_media`).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, get_args

from dsas.errors import OptionError, TextsError
from dsas.model.chat import PARTS
from dsas.model.chat_template import ChatTemplate, Range
from dsas.model.conversation import (
    ASSISTANT,
    Completion,
    Content,
    Conversation,
    as_text,
    content_of,
    kind_of,
    up_to_answer,
)  # fmt: skip
from dsas.model.encoded_media import encoded_apart, medium_and_text, reads_apart
from dsas.model.examples import Given, Spans, members_of
from dsas.model.foreign import Tokenizer
from dsas.model.processing import processed
from dsas.model.reading import Tokens
from dsas.model.token_batches import TokenRow
from dsas.model.tokenizing import Offsets, adds_special_tokens, encode, special_ids, text_tokenizer, tokenize
from dsas.views.explained import Turn


class Rendered(NamedTuple):
    """One example as tokens.

    counted: which tokens count. end: place of the end-of-turn token, or None. answers: whether an answer counts.
    """

    ids: list[int]
    counted: list[bool]
    end: int | None = None
    answers: bool = False

    @property
    def judged(self) -> list[bool]:
        """Which tokens' probabilities count: those of `counted` but the row's first, and the end-of-turn token."""
        return [place > 0 and (counts or place == self.end) for place, counts in enumerate(self.counted)]

    @property
    def asked(self) -> list[bool]:
        """The tokens after which the next token matters: all of a text, and in an answer those before a judged one."""
        return [*self.judged[1:], False] if self.answers else list(self.counted)

    @property
    def prompt(self) -> int | None:
        """Number of tokens before the answer; None where there is none."""
        return self.judged.index(True) if self.answers and any(self.judged) else None

    def cut(self, most: int) -> "Rendered":
        """Return the first `most` tokens. Raises TextsError where a picture, video or sound would be cut."""
        if most >= len(self.ids):
            return self
        end = self.end if self.end is not None and self.end < most else None
        ids = self.ids.first(most) if isinstance(self.ids, TokenRow) else self.ids[:most]
        return self._replace(ids=ids, counted=self.counted[:most], end=end)

    def cut_answer(self, most: int) -> "Rendered":
        """Return the row cut after `most` judged tokens of an answer, or after `most` tokens of a text."""
        if not self.answers:
            return self.cut(most)
        places = [place for place, judged in enumerate(self.judged) if judged]
        return self.cut(places[most - 1] + 1) if len(places) > most else self


def rendered(tokenizer: Tokenizer, contents: Sequence[Content], tokens: Tokens = "auto") -> list[Rendered]:
    """Return every example as tokens, with those that count.

    Raises OptionError for a value of `tokens` that texts do not have, TextsError for an example in which no token
    counts, or that the template refuses.
    """
    if tokens not in get_args(Tokens):
        raise OptionError(f"tokens must be one of {get_args(Tokens)}, got {tokens!r}")
    texts = [one for one in contents if isinstance(one, str)]
    if texts and tokens in ("answer", "last-instruction"):
        raise OptionError(
            f"tokens={tokens!r} reads conversations, or prompts with their completions; for texts use 'all' or 'last'"
        )
    rows = iter(tokenize(tokenizer, texts) if texts else [])
    return [
        _of_text(next(rows), tokens) if isinstance(one, str) else _Row(tokenizer, one, tokens).rendered()
        for one in contents
    ]


def read_through(tokenizer: Tokenizer, texts: Sequence[Given], max_tokens: int) -> list[Rendered]:
    """Return examples as likelihoods need them: texts, and answers after prompts, of at most `max_tokens` tokens.

    Raises TextsError for no examples, or one that cannot be read.
    """
    if isinstance(texts, str):
        raise TextsError(f"expected a list of texts, got one text: {texts[:40]!r}")
    members = members_of("texts", texts)
    if not members:
        raise TextsError("expected at least one text, got none")
    contents = [one if isinstance(one, str) else content_of(one, f"text {n}") for n, one in enumerate(members)]
    return [row.cut_answer(max_tokens) for row in rendered(tokenizer, contents)]


def covered(
    tokenizer: Tokenizer, contents: Sequence[Content], spans: Sequence[Spans], tokens: Tokens = "auto"
) -> list[list[bool | None]]:
    """Return for each token of each example whether a span covers a character of it.

    None for special tokens. Raises OptionError for a tokenizer that does not say where its tokens are in the text.
    """
    if not getattr(text_tokenizer(tokenizer), "is_fast", False):
        raise OptionError("spans need a fast tokenizer, which says where in the text each token is")
    found = []
    texts = iter(encode(tokenizer, [one for one in contents if isinstance(one, str)] or [""], offsets=True))
    for content, own in zip(contents, spans, strict=True):
        if isinstance(content, str):
            ranges, offsets, special = [(one[0], one[1]) for one in own], next(texts).offsets or [], set[int]()
        else:
            row = _Row(tokenizer, content, tokens)
            ids, offsets = row.encoded(row.whole)
            chosen = special_ids(row.tokenizer)
            ranges, special = row.spans(own), {place for place, token in enumerate(ids) if token in chosen}
        found.append(
            [
                None if place in special or stop <= start else _shares((start, stop), ranges)
                for place, (start, stop) in enumerate(offsets)
            ]
        )
    return found


def turns(tokenizer: Tokenizer, content: Content, *, generate: bool = False) -> list[Turn]:
    """Return whose turn each token belongs to, as "all" reads an example; none in a text.

    generate: read the example as "last-instruction" does; the last turn is then the beginning of the answer, which may
    be empty.
    """
    if isinstance(content, str):
        return []
    row = _Row(tokenizer, content, "last-instruction" if generate else "all")
    _, offsets = row.encoded(row.whole)
    named = row.starts()
    places = [next((n for n, one in enumerate(offsets) if one[0] >= start), len(offsets)) for _, start in named]
    return [
        Turn(role, place if number else 0, stop)
        for number, ((role, _), place, stop) in enumerate(zip(named, places, [*places[1:], len(offsets)], strict=True))
    ]


def _of_text(ids: list[int], tokens: Tokens) -> Rendered:
    last = len(ids) - 1
    return Rendered(ids, [place == last or tokens != "last" for place in range(len(ids))])


def _shares(one: Range, ranges: Iterable[Range]) -> bool:
    return any(one[0] < stop and one[1] > start for start, stop in ranges)


class _Row:
    """A conversation, or a prompt with its completion, that is turned into tokens."""

    def __init__(self, tokenizer: Tokenizer, content: Completion | Conversation, tokens: Tokens) -> None:
        self.tokenizer, self.content, self.tokens = text_tokenizer(tokenizer), content, tokens
        self._given, self._template, self._messages, self._encoded = tokenizer, None, (), None
        if isinstance(content, Conversation) and reads_apart(tokenizer):
            self._encoded, said = medium_and_text(content)
            self.content = Completion("", said)
            self.tokens = tokens if said or tokens == "last-instruction" else "all"
        elif isinstance(content, Conversation):
            self._template = ChatTemplate(tokenizer, content.chat)
            self._messages = (
                content.asked if tokens == "all" else up_to_answer(content, instruction=tokens == "last-instruction")
            )

    @property
    def whole(self) -> str:
        """The text that is read."""
        if isinstance(self.content, Completion):
            return self.content.prompt + ("" if self.tokens == "last-instruction" else self.content.completion)
        assert self._template is not None
        return self._template.whole(self._messages, generate=self.tokens == "last-instruction")

    def rendered(self) -> Rendered:
        """Return the tokens with those that count."""
        ids, offsets = self.encoded(self.whole)
        if self.tokens in ("all", "last-instruction"):
            last = len(ids) - 1
            return Rendered(ids, [self.tokens == "all" or place == last for place in range(len(ids))])
        answer, left_out, only = self._answer()
        inside = [stop > start and _shares((start, stop), answer) for start, stop in offsets]
        end = self._end(ids, offsets, inside)
        counted = [
            counts
            and (end is None or place < end)
            and not _shares(offsets[place], left_out)
            and (only is None or _shares(offsets[place], only))
            for place, counts in enumerate(inside)
        ]
        if not any(self.whole[slice(*offsets[place])].strip() for place, counts in enumerate(counted) if counts):
            raise TextsError(
                f"no token counts in the {kind_of(self.content)} {as_text(self.content)!r:.80}: its answer is empty, "
                "has none of the parts that are asked for, or is dropped by the chat template (many drop tool calls)"
            )
        last = max(place for place, counts in enumerate(counted) if counts)
        if self.tokens == "last":
            return Rendered(ids, [place == last for place in range(len(ids))], None, answers=True)
        return Rendered(ids, counted, end if end == last + 1 else None, answers=True)

    def encoded(self, text: str) -> tuple[list[int], Offsets]:
        """Return the tokens of the text and their places; a template's text gets no more special tokens."""
        if not getattr(self.tokenizer, "is_fast", False):
            raise OptionError(
                "conversations and prompts with completions need a fast tokenizer, which says where tokens are in it"
            )
        media = [one for message in self._messages for one in message.media]
        if self._encoded is not None:
            found = encoded_apart(self._given, self._encoded, text)
        elif media:
            found = processed(self._given, text, media)
        else:
            special = self._template is None or adds_special_tokens(self._given, text)
            (found,) = encode(self.tokenizer, [text], special_tokens=special, offsets=True)
        assert found.offsets is not None
        return found.ids, found.offsets

    def spans(self, given: Spans) -> list[Range]:
        """Return spans (message, start, stop) as characters of the rendering. Raises TextsError if one is missing."""
        if isinstance(self.content, Completion):
            ahead = len(self.content.prompt)
            return [(start + number * ahead, stop + number * ahead) for number, start, stop in given]
        assert self._template is not None
        more, found = len(self.content.asked) - len(self.content.messages), []
        for number, start, stop in given:
            message = self.content.messages[number]
            place = number + more
            first, last = self._template.content(self._messages, place) if place < len(self._messages) else (0, 0)
            if last <= first:
                raise TextsError(
                    f"the chat template does not show message {number} as it is, so no span of it can be found: "
                    f"{message.content!r:.60}"
                )
            ahead = first - (len(message.content) - len(message.content.lstrip()))
            found.append((max(first, start + ahead), min(last, stop + ahead)))
        return found

    def starts(self) -> list[tuple[str, int]]:
        """Return the role of each message and the character it begins at, and of the answer that is generated."""
        if self._encoded is not None:
            return [(ASSISTANT, 0)]
        if isinstance(self.content, Completion):
            return [("prompt", 0), ("completion", len(self.content.prompt))]
        assert self._template is not None
        found = [(one.role, at) for one, at in zip(self._messages, self._template.starts(self._messages), strict=True)]
        ready = [(ASSISTANT, len(self._template.text(self._messages)))] if self.tokens == "last-instruction" else []
        return [*found, *ready]

    def _answer(self) -> tuple[list[Range], list[Range], list[Range] | None]:
        """Return where the answer is, what in it does not count, and what alone counts (None if all does)."""
        if isinstance(self.content, Completion):
            return [(len(self.content.prompt), len(self.whole))], [], None
        assert self._template is not None
        answer, wanted = self._template.answer(self._messages), self.content.chat.parts
        self._template.tell_dropped(self._messages, wanted)
        parts = self._template.parts(self._messages, answer)
        unwanted = [one for part in PARTS if part != "text" and part not in wanted for one in parts[part]]
        only = [one for part in wanted if part != "text" for one in parts[part]]
        return answer, [*parts["empty"], *unwanted], None if "text" in wanted else only

    def _end(self, ids: Sequence[int], offsets: Offsets, inside: Sequence[bool]) -> int | None:
        """Return the place of the special token that ends the answer; only spaces and special ones follow it."""
        if self._encoded is not None:
            return len(ids) - 1 if ids[-1] == self.tokenizer.eos_token_id else None
        if self._template is None:
            return None
        special, whole, end = special_ids(self.tokenizer), self.whole, None
        for place in reversed([place for place, counts in enumerate(inside) if counts]):
            if ids[place] in special:
                end = place
            elif whole[slice(*offsets[place])].strip():
                break
        return end
