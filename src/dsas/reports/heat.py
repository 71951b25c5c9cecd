"""Heat: the tokens of a text, each on a background as opaque as its value is large.

    opacity = value / peak        in [0, 1]

The value is the token's `title`, and a token can have the keyboard's focus. The page sets the colour itself.

Limitations: no negative values, no colour scales with a middle.
"""

import math
from html import escape
from typing import NamedTuple

from dsas.errors import OptionError

_SHOWN = {"\n": "¶\n", "\r": "␍", "\t": "⇥\t"}
_SPACE, _EMPTY = "␣", "∅"


class TokenHeat(NamedTuple):
    """One line of decoded tokens, which together are the text, and a value >= 0 for each."""

    label: str
    tokens: list[str]
    values: list[float]


def render_heat(heat: TokenHeat, *, peak: float) -> str:
    """Return the HTML of a line; a value of `peak` or more is fully coloured, and with a peak of 0 nothing is.

    Raises OptionError when tokens and values differ in number, or a value or `peak` is negative or not finite.
    """
    if len(heat.tokens) != len(heat.values):
        raise OptionError(
            f"{heat.label!r}: expected one value per token, got {len(heat.values)} for {len(heat.tokens)}"
        )
    bad = [value for value in (*heat.values, peak) if not (math.isfinite(value) and value >= 0)]
    if bad:
        raise OptionError(f"{heat.label!r}: expected finite values >= 0, got {bad[0]}")
    tokens = "".join(_token(token, value, peak) for token, value in zip(heat.tokens, heat.values, strict=True))
    return f'<div class="heat"><p class="label">{escape(heat.label)}</p><p class="tokens" dir="auto">{tokens}</p></div>'


def _token(token: str, value: float, peak: float) -> str:
    opacity = min(value / peak, 1.0) if peak else 0.0
    text = escape(visible(token))
    return f'<span class="token" tabindex="0" title="{value:.3g}" style="--heat:{opacity:.3f}">{text}</span>'


def visible(token: str) -> str:
    """Return the token with line breaks and tabs marked, and with spaces marked when it has only spaces."""
    if not token:
        return _EMPTY
    blank = token.isspace()
    return "".join(_SHOWN.get(char) or (_SPACE if blank else char) for char in token)
