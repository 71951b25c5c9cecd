"""Processing: a rendered conversation with pictures or sounds as a row of tokens, by the model's processor.

A template writes one placeholder per medium. The processor replaces it by as many tokens as the medium takes, tokenises
everything, and returns the values of the media. To know which characters of the rendering a token belongs to, marks are
put around the placeholders; the processor keeps them, and they are removed before its tokenizer reads the text. Tokens
of a medium belong to its placeholder.

Limitations: videos, whose frames and times each processor chooses in its own way; processors that write anything but
the media's tokens between the first and the last character of a rendering; models that take one mask per token and
picture (Mllama).
"""

import re
from collections.abc import Sequence
from copy import copy
from typing import Any, NamedTuple

from torch import Tensor

from dsas.errors import OptionError, TextsError
from dsas.model.foreign import Foreign, Tokenizer
from dsas.model.media import KINDS, Kind, Medium, sound_of
from dsas.model.token_batches import TokenRow
from dsas.model.tokenizing import Encoded, Offsets, adds_special_tokens, as_it_was, processor_of, text_tokenizer

_MARK = "\u2985"  # around each placeholder, on both sides
_ARGUMENTS: dict[Kind, str] = {"image": "images", "audio": "audio"}
_PLACEHOLDERS: dict[Kind, Sequence[str]] = {
    "image": ("boi_token", "image_token", "start_image_token", "fake_image_token"),
    "video": ("video_token",),
    "audio": ("audio_token", "boa_token"),
}
_AROUND = [
    f"{kind}_{end}_token" for kind in ("vision", "image", "audio", "video") for end in ("start", "end", "bos", "eos")
]
_NOT_READ = ("input_ids", "attention_mask", "labels")


def processed(tokenizer: Tokenizer, text: str, media: Sequence[Medium]) -> Encoded:
    """Return a rendered conversation as a `TokenRow`, and where its tokens are in `text`.

    Raises OptionError without a processor, or for one that cannot be followed; TextsError where the placeholders of the
    rendering do not match the media of the conversation, and with the processor's own reason when it refuses them.
    """
    processor = processor_of(tokenizer)
    if processor is None:
        raise OptionError(
            f"a conversation has {media[0].kind}s, which a tokenizer does not read: pass the model's processor, "
            "transformers.AutoProcessor.from_pretrained(name of the model), as tokenizer"
        )
    if any(one.kind == "video" for one in media):
        raise OptionError(
            "conversations with videos are not read: give some of the frames as pictures, one part "
            '{"type": "image", "image": ...} for each'
        )
    marked, follower, twin = _marked(processor, text, media), _follower(text_tokenizer(tokenizer)), copy(processor)
    twin.tokenizer = follower
    given: dict[Kind, list[Foreign]] = {
        kind: [_value(processor, one) for one in media if one.kind == kind] for kind in _ARGUMENTS
    }
    named = {_ARGUMENTS[kind]: own if kind == "audio" else [own] for kind, own in given.items() if own}
    special, called = adds_special_tokens(tokenizer, text), type(processor).__name__
    try:
        with as_it_was(text_tokenizer(tokenizer)):  # the copied processor's tokenizer shares its core
            found = twin(text=[marked], return_tensors="pt", add_special_tokens=special, **named)
    except Exception as error:  # a processor may raise anything
        said = ", ".join(f"{len(own)} {kind}s" for kind, own in given.items() if own)
        raise TextsError(f"{called} refuses a conversation with {said}: {error}") from error
    ids = found["input_ids"][0].tolist()
    read = next((one for one in follower.read if one.ids == ids), None)
    if read is None:
        raise OptionError(f"the output of {called} cannot be matched with its conversation; give texts alone")
    if "cross_attention_mask" in found:
        raise OptionError(f"{called} masks pictures by token, which is not read here; give texts alone")
    offsets, end = _offsets(marked.split(_MARK), read)
    held = {name: value for name, value in found.items() if name not in _NOT_READ and isinstance(value, Tensor)}
    return Encoded(TokenRow(ids, held, end), offsets)


class _Read(NamedTuple):
    """A text that the tokenizer was given: its pieces between media, its tokens, and their places."""

    pieces: list[str]
    ids: list[int]
    offsets: Offsets


def _follower(tokenizer: Tokenizer) -> Any:
    """Return a copy of a tokenizer that removes the marks from its input, and records its results."""
    kind: Any = type(tokenizer)

    class Follower(kind):
        def __call__(self, text: Foreign = None, *args: Foreign, **options: Foreign) -> Foreign:
            texts = [text] if isinstance(text, str) else list(text)
            plain = [one.replace(_MARK, "") for one in texts]
            if not getattr(self, "is_fast", False):
                raise OptionError("conversations with pictures need a fast tokenizer, which says where tokens are")
            found = super().__call__(plain, *args, **{**options, "return_offsets_mapping": True})
            places = found.pop("offset_mapping")
            for one, ids, own in zip(texts, found["input_ids"], places, strict=True):
                self.read.append(_Read(one.split(_MARK), [int(n) for n in ids], [(int(a), int(b)) for a, b in own]))
            return found

    Follower.__name__ = kind.__name__
    made = copy(tokenizer)
    made.__class__ = Follower
    made.read = []
    return made


def _marked(processor: Foreign, text: str, media: Sequence[Medium]) -> str:
    """Return a rendering with marks around the placeholders. Raises TextsError where there are too many or too few."""
    if _MARK in text:
        raise TextsError(f"a conversation with media may not hold the character {_MARK!r}")
    around = "|".join(re.escape(one) for name in _AROUND if (one := _token(processor, name)))
    for kind in KINDS:
        wanted = sum(one.kind == kind for one in media)
        names = [one for name in _PLACEHOLDERS[kind] if (one := _token(processor, name))]
        counts = {one: text.count(one) for one in names}
        if not wanted and not any(counts.values()):
            continue
        found = next((one for one, count in counts.items() if count == wanted), None) if wanted else None
        if found is None:
            shown = ", ".join(f"{count} x {one}" for one, count in counts.items()) or "no placeholder that is known"
            raise TextsError(
                f"a conversation with {wanted} {kind}s is rendered with {shown}: the chat template of the processor "
                f"must write one placeholder per {kind}, and texts none"
            )
        pattern = rf"(?:{around})*{re.escape(found)}(?:{around})*" if around else re.escape(found)
        text = re.sub(pattern, lambda one: f"{_MARK}{one[0]}{_MARK}", text)
    return text


def _value(processor: Foreign, medium: Medium) -> Foreign:
    """Return a medium as the processor takes it."""
    rate = getattr(getattr(processor, "feature_extractor", None), "sampling_rate", None)
    return sound_of(medium, rate) if medium.kind == "audio" and isinstance(rate, int) else medium.value


def _token(processor: Foreign, name: str) -> str:
    for one in (processor, text_tokenizer(processor)):
        found = getattr(one, name, None)
        if found:
            return str(found)
    return ""


def _offsets(pieces: Sequence[str], read: _Read) -> tuple[Offsets, int]:
    """Return where tokens are in the rendering, and the number of tokens up to the last of a medium.

    pieces: the pieces of the rendering, every second of which is a placeholder. Raises OptionError where the processor
    changed the text.
    """
    *before, last = zip(pieces, read.pieces, strict=False)
    changed = any(one != own for one, own in before[::2]) or not last[1].startswith(last[0])
    if changed or len(pieces) != len(read.pieces):
        raise OptionError("the processor changes the text of a conversation beside its media; give texts alone")
    here, stops, medium = list[int](), list[int](), list[bool]()  # for every character that was read
    start = 0
    for number, (one, own) in enumerate([*before, last]):
        stop = start + len(one)
        if number % 2:
            here, stops = here + [start] * len(own), stops + [stop] * len(own)
        else:
            here += [min(start + place, stop) for place in range(len(own))]
            stops += [min(start + place + 1, stop) for place in range(len(own))]
        medium += [bool(number % 2)] * len(own)
        start = stop
    found = [(here[start], stops[stop - 1]) if stop > start else (0, 0) for start, stop in read.offsets]
    ends = [place + 1 for place, (start, stop) in enumerate(read.offsets) if any(medium[start:stop])]
    return found, max(ends, default=0)
