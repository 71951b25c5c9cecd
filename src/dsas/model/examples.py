"""Examples: what a set is made of, and the one check of source, control and target.

An example is a text, or a text with the spans in which it shows the behaviour. Limitations: conversations are rendered
by the caller.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

from dsas.errors import DsasWarning, TextsError

MINIMUM_TEXTS = 4
Spans = Sequence[tuple[int, int]]


class Example(NamedTuple):
    """A text, and where it shows the behaviour: spans (start, stop) in characters, or none when all of it does.

    With spans in some source examples a regulator learns from single tokens, those in spans against all others.
    """

    text: str
    spans: Spans = ()


class ExampleSets(NamedTuple):
    """The three sets, checked; control may be empty where nothing reads it. spans: one entry per source text.

    spans is None when no source example has any.
    """

    source: list[str]
    control: list[str]
    target: list[str]
    spans: list[Spans] | None = None

    def as_dict(self) -> dict[str, list[str]]:
        """Return the texts of each set by name."""
        return {"source": self.source, "control": self.control, "target": self.target}


def check_sets(
    source: Sequence[str | Example],
    control: Sequence[str | Example],
    target: Sequence[str | Example] | None,
    *,
    control_needed: bool = True,
    paired: bool = False,
) -> ExampleSets:
    """Return the three sets, at least 4 examples in each; the target is the control set, with a warning, when None.

    control_needed: whether an empty control set is an error. paired: whether source[i] goes with target[i].
    Raises TextsError for too few or empty texts, sets that hold the same texts, spans outside their text or in another
    set than the source, and pairs that do not match. Warns of texts that are in source and in another set.
    """
    if target is None:
        warnings.warn("no target texts were given: the control texts are the target", DsasWarning, stacklevel=3)
        target = control
    if control_needed and len(control) == 0:
        raise TextsError("control texts are needed to learn a regulator: pass control=")
    given = {"source": source, "control": control, "target": target}
    texts = {
        name: check_texts(name, members) if len(members) or name != "control" else [] for name, members in given.items()
    }
    if paired:
        _check_pairs(texts["source"], texts["target"])
    for name in ("control", "target"):
        shared = set(texts["source"]) & set(texts[name])
        if shared and shared == set(texts["source"]) | set(texts[name]):
            raise TextsError(f"source and {name} hold the same texts: there is nothing to tell apart")
        if shared:
            warnings.warn(
                f"{len(shared)} texts are both in source and in {name}, for example {min(shared)!r:.60}",
                DsasWarning,
                stacklevel=3,
            )
    return ExampleSets(**texts, spans=_spans(given))


def check_texts(name: str, examples: Sequence[str | Example], *, minimum: int = MINIMUM_TEXTS) -> list[str]:
    """Return the texts of a set. Raises TextsError, naming the set, for too few, an empty one, or no text at all."""
    if isinstance(examples, str | Example):
        raise TextsError(f"{name} must be a list of texts, got one text; put it into a list")
    texts = [example.text if isinstance(example, Example) else example for example in examples]
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise TextsError(f"{name}[{number}] must be a text that is not empty, got {text!r:.60}")
    if len(texts) < minimum:
        raise TextsError(f"{name} must hold at least {minimum} texts, got {len(texts)}")
    return texts


def _check_pairs(source: list[str], target: list[str]) -> None:
    if len(source) != len(target):
        raise TextsError(
            "preference takes pairs, source[i] with target[i]: expected as many of both, got "
            f"{len(source)} and {len(target)}"
        )
    same = [number for number, (one, other) in enumerate(zip(source, target, strict=True)) if one == other]
    if same:
        raise TextsError(f"source[{same[0]}] and target[{same[0]}] are the same text: nothing is to be preferred")


def _spans(given: dict[str, Sequence[str | Example]]) -> list[Spans] | None:
    found: dict[str, list[Spans]] = {}
    for name, members in given.items():
        found[name] = [one.spans if isinstance(one, Example) else () for one in members]
        for number, (one, spans) in enumerate(zip(members, found[name], strict=True)):
            for start, stop in spans:
                if not 0 <= start < stop <= len(one.text if isinstance(one, Example) else one):
                    raise TextsError(
                        f"{name}[{number}]: expected spans with 0 <= start < stop <= the length of the text "
                        f"(characters), got ({start}, {stop})"
                    )
        if name != "source" and any(found[name]):
            raise TextsError(
                f"spans mark where a source text shows the behaviour; {name} has some, too: leave them out"
            )
    return found["source"] if any(found["source"]) else None
