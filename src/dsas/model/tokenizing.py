"""Tokenizing: texts as rows of token numbers, and never a second BOS.

Many tokenizers put their BOS before every text, and many chat templates put it before every conversation. A text that a
template has already rendered would then get two, which changes every activation after them. So a text that begins with
the BOS, or with the marker with which the tokenizer's template opens a message, gets only the tokens that the template
gives it, without leading spaces, and with a warning.

Limitations: templates that open a message with plain words ("User: ") are recognised by the BOS alone.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import isroutine
from typing import NamedTuple

from torch import nn

from dsas.errors import DsasWarning, OptionError, TextsError
from dsas.model.foreign import Foreign, Tokenizer

Offsets = list[tuple[int, int]]  # place of each token in its text, in characters; empty for tokens without one
PLACEHOLDER = "\u2983content\u2984"  # a content that no template writes itself
_MARKER = re.compile(r"\s*(<[^<>\s]{1,40}>|\[[A-Z_/]{1,40}\]|#+ \w+:)")


class Encoded(NamedTuple):
    """The tokens of one text and, if asked for, their places in it."""

    ids: list[int]
    offsets: Offsets | None

    def moved(self, ahead: int) -> "Encoded":
        """Return the same tokens with `ahead` more characters before the text."""
        if self.offsets is None or not ahead:
            return self
        return self._replace(offsets=[(a + ahead, b + ahead) if a < b else (a, b) for a, b in self.offsets])


def text_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer of texts: the argument itself, or the one inside a processor of texts and pictures.

    Raises OptionError for anything else.
    """
    own = getattr(tokenizer, "tokenizer", tokenizer)
    reads = getattr(own, "model_input_names", None)  # of images or sounds alone, or what tokenizers give
    known = not isinstance(reads, list) or "input_ids" in reads
    if type(own).__module__.partition(".")[0] == "tokenizers":
        raise OptionError(
            "expected a tokenizer of transformers, got a Tokenizer of tokenizers: wrap it, "
            "transformers.PreTrainedTokenizerFast(tokenizer_object=...)"
        )
    if known and not isroutine(own) and not isinstance(own, nn.Module) and (callable(own) or hasattr(own, "decode")):
        return own
    raise OptionError(
        f"expected a tokenizer, or a processor that has one, got {type(tokenizer).__name__}; load it with "
        "transformers.AutoTokenizer.from_pretrained(name of the model)"
    )


def processor_of(tokenizer: Tokenizer) -> Foreign:
    """Return a processor of texts and pictures given in place of a tokenizer, or None for a tokenizer."""
    return None if text_tokenizer(tokenizer) is tokenizer else tokenizer


def template_of(tokenizer: Tokenizer) -> str | None:
    """Return the chat template: that of a processor, or else of its tokenizer; None where there is none."""
    for one in (processor_of(tokenizer), text_tokenizer(tokenizer)):
        found = getattr(one, "chat_template", None)
        if found:
            return found.get("default") if isinstance(found, dict) else found
    return None


def adds_special_tokens(tokenizer: Tokenizer, text: str) -> bool:
    """Whether a rendered conversation gets more special tokens: with a processor, if it does not begin with the BOS.

    Source: `ProcessorMixin.apply_chat_template(tokenize=True)` of transformers; that of tokenizers adds none.
    """
    bos = getattr(text_tokenizer(tokenizer), "bos_token", None)
    of_processor = bool(getattr(processor_of(tokenizer), "chat_template", None))
    return of_processor and (bos is None or not text.startswith(bos))


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], *, special_tokens: bool = True) -> list[list[int]]:
    """Return the token numbers of each text, by default with the special tokens that the tokenizer adds.

    Raises TextsError when there is no text, when one text came instead of a list, or when a text has no tokens. Warns
    of texts that a template seems to have rendered.
    """
    if isinstance(texts, str):
        raise TextsError(f"expected a list of texts, got one text: {texts[:40]!r}")
    if not texts:
        raise TextsError("expected at least one text, got none")
    rows = [one.ids for one in encode(tokenizer, texts, special_tokens=special_tokens)]
    empty = [index for index, row in enumerate(rows) if not row]
    if empty:
        raise TextsError(f"expected texts with at least one token; these have none: {empty[:10]}")
    return rows


def _check_whole(texts: Sequence[str]) -> None:
    for number, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            said = "holds a lone surrogate, which is not a character, so no tokenizer reads it"
            raise TextsError(f"text {number} {said}: {text!r:.60}") from error


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], *, special_tokens: bool = True, offsets: bool = False
) -> list[Encoded]:
    """Return the tokens of each text. offsets: whether to return their places, too, which needs a fast tokenizer.

    special_tokens: those that the tokenizer adds, unless a text has them already. Warns of such texts.
    Raises TextsError for a text with half a character, as bytes that are no UTF-8 become on a command line.
    """
    own = text_tokenizer(tokenizer)
    _check_whole(texts)
    found = _encode(own, texts, special_tokens, offsets)
    bos, number_of_bos = getattr(own, "bos_token", None), getattr(own, "bos_token_id", None)
    opens, again = opening(own) if special_tokens else "", []
    marker = _MARKER.match(opens.removeprefix(bos or ""))
    marks = tuple(mark for mark in (bos, marker and marker[1]) if mark)
    for number, one in enumerate(found if special_tokens else []):
        text = texts[number].lstrip()
        ahead = len(texts[number]) - len(text)
        twice = number_of_bos is not None and one.ids[:1] == [number_of_bos] and number_of_bos in one.ids[1:]
        twice = twice and bool(bos) and text.startswith(bos)
        if twice or (opens and text.startswith(marks)):
            again.append(number)
            wanted = bool(bos) and opens.startswith(bos) and not text.startswith(bos)
            found[number] = _encode(own, [text], wanted, offsets)[0].moved(ahead)
    if again:
        warnings.warn(
            f"{len(again)} texts look as if a chat template had rendered them, for example {texts[again[0]]!r:.60}: "
            "they get no BOS beside the template's; pass conversations instead, "
            '[{"role": "user", "content": ...}, ...], and the template is applied here',
            DsasWarning,
            stacklevel=4,
        )
    return found


def _encode(tokenizer: Tokenizer, texts: Sequence[str], special_tokens: bool, offsets: bool) -> list[Encoded]:
    asked = {"return_offsets_mapping": True} if offsets else {}
    with as_it_was(tokenizer):
        found = tokenizer(list(texts), add_special_tokens=special_tokens, verbose=False, **asked)
    places: list[Foreign] = found["offset_mapping"] if offsets else [None] * len(texts)
    return [
        Encoded(list(ids), None if place is None else [(int(a), int(b)) for a, b in place])
        for ids, place in zip(found["input_ids"], places, strict=True)
    ]


@contextmanager
def as_it_was(tokenizer: Tokenizer) -> Iterator[None]:
    """Restore a fast tokenizer's truncation and padding, which a call without them resets."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    before = None if core is None else (core.truncation, core.padding)
    try:
        yield
    finally:
        for own, setting in zip(before or (), ("truncation", "padding"), strict=False):
            if own is not None and own != getattr(core, setting):
                getattr(core, f"enable_{setting}")(**own)


def opening(tokenizer: Tokenizer) -> str:
    """Return how the tokenizer's template opens a conversation, up to the user's first words; "" without a template."""
    if not getattr(tokenizer, "chat_template", None):
        return ""
    try:
        turn = [{"role": "user", "content": PLACEHOLDER}]
        return tokenizer.apply_chat_template(turn, tokenize=False).partition(PLACEHOLDER)[0]
    except Exception:  # a template may raise anything; one that does has no opening
        return ""


def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Return the numbers of the special tokens, including those of the chat template."""
    added: dict[int, Foreign] = getattr(tokenizer, "added_tokens_decoder", {})
    named = getattr(tokenizer, "all_special_ids", [])
    return frozenset([*named, *(number for number, token in added.items() if getattr(token, "special", False))])


def pad_token(tokenizer: Tokenizer) -> int:
    """Return a token number for padding; the mask hides it, so any will do if the tokenizer has none."""
    own = text_tokenizer(tokenizer)
    for token in (own.pad_token_id, own.eos_token_id):
        if isinstance(token, int):
            return token
    return 0
