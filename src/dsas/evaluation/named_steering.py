"""Named Steerings: how the command line of another harness names them, as text, numbers or lists of these.

    steering=detox  strength=0.2            one, by its folder or hub id
    steering=[detox, calm]  strength=0.2    several, the left one first, all at one strength
    steering=[detox, calm]  strength=[0.2, 0.5]

Without a strength each acts at its own default. In lm-eval a list is written as JSON, in Inspect with commas.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsas.errors import OptionError, closest
from dsas.model.strength import read_strength
from dsas.steering.composition import Composition
from dsas.steering.steering import Steering

Strengths = float | list[float] | None


def named_steering(steering: object, strength: object, asked: str) -> tuple[Steering | Composition, Strengths]:
    """Return what `steering` names, read from its folders, and the strength or strengths.

    steering: a folder or hub id, a Steering or a Composition, or a list of folders and Steerings. strength: a number,
    also as text, or one for each of several, or None. asked: how the harness names a Steering, for errors.
    Raises OptionError for a steering or a strength that is none, ArtifactError, StrengthError.
    """
    several = _listed(steering)
    if not several or not all(isinstance(one, str | Path | Steering | Composition) for one in several):
        raise OptionError(f"expected {asked}, a folder or hub id, got {steering!r:.60}")
    numbers = [_number(one) for one in _listed(strength)]
    if len(numbers) not in (0, 1, len(several)):
        raise OptionError(f"expected one strength, or one for each of {len(several)} Steerings, got {len(numbers)}")
    read: list[Any] = [Steering.from_pretrained(one) if isinstance(one, str | Path) else one for one in several]
    chosen = read[0] if len(read) == 1 else Composition(read)
    return chosen, None if not numbers else numbers[0] if len(numbers) == 1 else numbers


@contextmanager
def named_options(options: Iterable[str], known: Iterable[str]) -> Iterator[None]:
    """Turn the TypeError for an option that nobody takes into OptionError, with the closest ones that are known.

    A harness passes the options that it does not know on to transformers, which refuses them while it makes the model.
    """
    try:
        yield
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None or unknown[1] not in options:
            raise
        near = closest(unknown[1], ["steering", "strength", *known])
        raise OptionError(f"no argument {unknown[1]!r}; closest: {near}") from error


def _listed(given: object) -> list[object]:
    if given is None:
        return []
    return list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]


def _number(given: object) -> float:
    try:
        if isinstance(given, bool) or not isinstance(given, str | int | float):
            raise ValueError
        number = float(given)
    except ValueError as error:
        raise OptionError(f"strength: expected a number, got {given!r:.60}") from error
    read_strength(number)
    return number
