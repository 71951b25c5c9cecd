"""Pieces: the text of each token, such that all pieces of a row together are its text.

A tokenizer decodes a token differently alone and in company: it may drop a space at the beginning, and a letter outside
ASCII may take several tokens. So a token's piece is what it adds to the text of the few tokens before it. If several
tokens share a letter, the last one gets it and the others get nothing.

Source: the incremental decoding of text-generation servers (a window that slides to the last whole letter).
"""

from collections.abc import Sequence

from dsas.model.foreign import Foreign, Tokenizer
from dsas.model.tokenizing import text_tokenizer

_BROKEN = "\ufffd"
_MEDIA = ("image", "video", "audio")


class Pieces:
    """Turns tokens into pieces, one after another."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = text_tokenizer(tokenizer)
        self._ids: list[int] = []
        self._start = self._whole = 0

    def push(self, token: int, *, last: bool = False) -> str:
        """Return what this token adds to the text; half a letter is held back until it is whole, or until `last`."""
        self._ids.append(token)
        before, after = self._decode(self._start, self._whole), self._decode(self._start, len(self._ids))
        if after.endswith(_BROKEN) and not last:
            return ""
        self._start, self._whole = self._whole, len(self._ids)
        return after[len(before) :]

    def _decode(self, start: int, end: int) -> str:
        return self._tokenizer.decode(self._ids[start:end], clean_up_tokenization_spaces=False)


def placeholders(config: Foreign) -> dict[int, str]:
    """Return the placeholder tokens of pictures, videos and sound in a model's input, and how they are shown."""
    found: dict[int, str] = {}
    for kind in _MEDIA:
        for name in (f"{kind}_token_id", f"{kind}_token_index"):
            token = getattr(config, name, None)
            if isinstance(token, int):
                found[token] = f"[{kind}]"
    return found


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Return the piece of every token of a row."""
    row = Pieces(tokenizer)
    return [row.push(token, last=place == len(ids) - 1) for place, token in enumerate(ids)]
