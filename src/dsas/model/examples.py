"""Examples: what a set is made of, and the one check of source, control and target.

An example is a text, a prompt with its completion, or a conversation (`dsas.model.conversation`), with or without the
spans in which it shows the behaviour. All examples of all sets are of one kind.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dsas.errors import DsasWarning, TextsError
from dsas.model.conversation import Completion, Content, Conversation, Half, as_text, content_of, kind_of

MINIMUM_TEXTS = 4
Spans = Sequence[tuple[int, ...]]  # (start, stop) in a text; (message, start, stop) in a conversation
HALVES: dict[str, Half] = {"source": "rejected", "target": "chosen"}


class Example(NamedTuple):
    """A text or a conversation, and where it shows the behaviour: everywhere when there are no spans.

    spans: (start, stop) in characters of a text; (message, start, stop) in characters of a message's content, where
    message is its number from 0 (0 or 1 for a prompt with its completion). If some source examples have spans, a
    regulator learns from single tokens: those in spans against all others.
    """

    text: Any
    spans: Spans = ()


Given = str | Example | Conversation | Completion | Mapping[str, Any] | Sequence[Mapping[str, Any]]  # one example


class ExampleSets(NamedTuple):
    """The three checked sets; control may be empty if nothing reads it. spans: one entry per source example.

    spans is None when no source example has any. kind: what all examples are, "text" for instance.
    """

    source: list[Content]
    control: list[Content]
    target: list[Content]
    spans: list[Spans] | None = None
    kind: str = "text"

    def as_dict(self) -> dict[str, list[Content]]:
        """Return the examples of each set by name."""
        return {"source": self.source, "control": self.control, "target": self.target}


def check_sets(
    source: Sequence[Given],
    control: Sequence[Given],
    target: Sequence[Given] | None,
    *,
    control_needed: bool = True,
    paired: bool = False,
) -> ExampleSets:
    """Return the three sets, at least 4 examples in each; a target of None is the control set, with a warning.

    If the source has chosen and rejected halves and there is no target, the chosen halves are the target.
    control_needed: whether an empty control set is an error. paired: whether source[i] goes with target[i].
    Raises TextsError for too few or empty examples, examples of different kinds, sets that hold the same examples,
    spans outside their text or in another set than the source, and pairs that do not match. Warns of examples that are
    in source and in another set.
    """
    source, control = members_of("source", source), members_of("control", control)
    target = None if target is None else members_of("target", target)
    if target is None and any(isinstance(inner(one), Mapping) and "chosen" in inner(one) for one in source):
        target = [inner(one) for one in source]
    if target is None:
        warnings.warn("no target texts were given: the control texts are the target", DsasWarning, stacklevel=3)
        target = control
    if control_needed and len(control) == 0:
        raise TextsError("control texts are needed to learn a regulator: pass control=")
    given = {"source": source, "control": control, "target": target}
    texts = {
        name: check_texts(name, members) if len(members) or name != "control" else [] for name, members in given.items()
    }
    check_kinds(texts)
    if paired:
        _check_pairs(texts["source"], texts["target"])
    for name in ("control", "target"):
        shared = set(texts["source"]) & set(texts[name])
        if shared and shared == set(texts["source"]) | set(texts[name]):
            raise TextsError(f"source and {name} hold the same texts: nothing distinguishes them")
        if shared:
            warnings.warn(
                f"{len(shared)} texts are both in source and in {name}, for example {min(map(as_text, shared))!r:.60}",
                DsasWarning,
                stacklevel=3,
            )
    return ExampleSets(**texts, spans=_spans(given, texts), kind=kind_of(texts["source"][0]))


def check_texts(name: str, examples: Sequence[Given], *, minimum: int = MINIMUM_TEXTS) -> list[Content]:
    """Return the contents of a set's examples.

    Raises TextsError, naming the set, for too few examples, an empty or invalid one, and different kinds.
    """
    half = HALVES.get(name)
    members = enumerate(members_of(name, examples))
    found = [content_of(inner(one), f"{name}[{number}]", half) for number, one in members]
    if len(found) < minimum:
        raise TextsError(f"{name} must hold at least {minimum} texts, got {len(found)}")
    check_kinds({name: found})
    return found


def members_of(name: str, given: Any) -> list[Any]:
    """Return the members of a set, of any kind that can be gone through once. Raises TextsError for anything else."""
    if isinstance(given, str | bytes | Example | Conversation | Completion | Mapping):
        raise TextsError(f"{name} must be a list of texts, got one text; put it into a list")
    try:
        found = list(given)
    except TypeError as error:
        raise TextsError(f"{name} must be a list of texts or conversations, got {type(given).__name__}") from error
    if found and isinstance(found[0], Mapping) and "role" in found[0]:
        raise TextsError(f"{name} must be a list of conversations, got one conversation; put it into a list")
    return found


def check_more(given: Mapping[str, Sequence[Given]], start: int, first: ExampleSets) -> ExampleSets:
    """Return more examples of the sets that begin with `first`; start: the place of the first of them in its set.

    Raises TextsError, as `check_sets` does, for what is wrong with one of them, or for spans if `first` has none.
    """
    texts: dict[str, list[Content]] = {}
    for name, members in given.items():
        places = [f"{name}[{start + number}]" for number in range(len(members))]
        texts[name] = [content_of(inner(one), at, HALVES.get(name)) for one, at in zip(members, places, strict=True)]
        odd = [number for number, one in enumerate(texts[name]) if kind_of(one) != first.kind]
        if odd:
            raise TextsError(
                f"{places[odd[0]]} is a {kind_of(texts[name][odd[0]])}: expected a {first.kind}, as source[0] is; sets "
                "cannot be mixed"
            )
    spans = _spans(given, texts, start)
    if spans is not None and first.spans is None:
        raise TextsError(
            f"source examples after the first {start} have spans, and the first {start} have none: give some of those "
            "with spans first"
        )
    none: list[Spans] = [()] * len(texts["source"])
    return ExampleSets(**texts, spans=none if spans is None else spans, kind=first.kind)


def check_kinds(sets: Mapping[str, Sequence[Content]]) -> None:
    """Raise TextsError, naming the first odd one, unless all examples of all sets are of one kind."""
    first = ""
    for name, members in sets.items():
        for number, one in enumerate(members):
            first = first or f"{kind_of(one)}, as {name}[{number}] is"
            if not first.startswith(f"{kind_of(one)},"):
                raise TextsError(f"{name}[{number}] is a {kind_of(one)}: expected a {first}; sets cannot be mixed")


def inner(one: Any) -> Any:
    """Return what an example with spans holds; anything else as it is."""
    return one.text if isinstance(one, Example) else one


def _check_pairs(source: list[Content], target: list[Content]) -> None:
    if len(source) != len(target):
        raise TextsError(
            "preference takes pairs, source[i] with target[i]: expected as many source texts as target texts, got "
            f"{len(source)} and {len(target)}"
        )
    same = [number for number, (one, other) in enumerate(zip(source, target, strict=True)) if one == other]
    if same:
        raise TextsError(f"source[{same[0]}] and target[{same[0]}] are the same text: neither can be preferred")


def _spans(
    given: Mapping[str, Sequence[Given]], texts: Mapping[str, Sequence[Content]], start: int = 0
) -> list[Spans] | None:
    found: dict[str, list[Spans]] = {}
    for name, members in given.items():
        found[name] = [one.spans if isinstance(one, Example) else () for one in members]
        for number, (content, spans) in enumerate(zip(texts[name], found[name], strict=True)):
            for span in spans:
                _check_span(span, content, f"{name}[{start + number}]")
        if name != "source" and any(found[name]):
            raise TextsError(f"spans mark where a source text shows the behaviour; remove those of {name}")
    return found["source"] if any(found["source"]) else None


def _check_span(span: tuple[int, ...], content: Content, where: str) -> None:
    sizes = lengths(content)
    if isinstance(content, str):
        if len(span) != 2 or not 0 <= span[0] < span[1] <= sizes[0]:
            raise TextsError(
                f"{where}: expected spans with 0 <= start < stop <= the length of the text (characters), got {span}"
            )
    elif len(span) != 3 or not 0 <= span[0] < len(sizes) or not 0 <= span[1] < span[2] <= sizes[span[0]]:
        raise TextsError(
            f"{where}: expected spans (message, start, stop) with message from 0 to {len(sizes) - 1} and 0 <= start < "
            f"stop <= the length of its content (characters), got {span}"
        )


def lengths(content: Content) -> list[int]:
    """Return the length in characters of a text, or of each message."""
    if isinstance(content, str):
        return [len(content)]
    if isinstance(content, Completion):
        return [len(content.prompt), len(content.completion)]
    return [len(one.content) for one in content.messages]
