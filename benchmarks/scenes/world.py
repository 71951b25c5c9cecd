"""A small world of scenes: one or two things on a background, and the caption that says so.

    "a small red star on the left and a large blue circle on the right, on sand"

A `Scene` is what a caption can tell: background, and for each thing its shape, colour, size and position. Any word but
the shape and the colour may be left out; the scene then holds `ANY` there, and `settle` fills it in. `caption` and
`parse` are each other's inverse. Two things stand left and right, so they never overlap; one stands anywhere.

Six pairs of a shape and a colour (`HELD_OUT`) are never drawn for training: what a model makes of "a red cross" it has
put together from crosses and from red things. Every shape and every colour is in one such pair.

Limitations: at most two things, none of which overlap; no counting, and no relation but left and right.
"""

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dsas.errors import OptionError, TextsError, closest

ANY = "any"
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "yellow", "green", "blue", "purple", "white")
SIZES = ("small", "large")
POSITIONS = ("left", "centre", "right")
BACKGROUNDS = ("grass", "sea", "night", "sand")
HELD_OUT = tuple((shape, COLOURS[(index + 2) % len(COLOURS)]) for index, shape in enumerate(SHAPES))

_WHERE = {"left": "on the left", "centre": "in the centre", "right": "on the right"}
_ON = {"grass": "on grass", "sea": "on the sea", "night": "at night", "sand": "on sand"}
_THING = re.compile(
    rf"a (?:(?P<size>{'|'.join(SIZES)}) )?(?P<colour>{'|'.join(COLOURS)}) (?P<shape>{'|'.join(SHAPES)})"
    rf"(?: (?P<where>{'|'.join(_WHERE.values())}))?"
)


class Thing(NamedTuple):
    """One thing of a scene, by four words; size and position may be `ANY`."""

    shape: str
    colour: str
    size: str = ANY
    position: str = ANY


class Scene(NamedTuple):
    """A background (a word, or `ANY`) and the one or two things on it, in the order in which they are named."""

    background: str
    things: tuple[Thing, ...]


def caption(scene: Scene) -> str:
    """Return the sentence that tells `scene`; what is `ANY` is not told."""
    things = " and ".join(_phrase(thing) for thing in _checked(scene).things)
    return things if scene.background == ANY else f"{things}, {_ON[scene.background]}"


def parse(text: str) -> Scene:
    """Return the scene that a caption tells, the inverse of `caption`. Raises TextsError for any other text."""
    body, _, place = text.partition(", ")
    backgrounds = {phrase: name for name, phrase in _ON.items()} | {"": ANY}
    found = [_THING.fullmatch(phrase) for phrase in body.split(" and ")]
    if place not in backgrounds or not all(found) or len(found) > 2:
        example = "a small red star on the left and a blue circle on the right, on sand"
        raise TextsError(f"expected a caption such as {example!r}, got {text!r}")
    where = {phrase: name for name, phrase in _WHERE.items()} | {None: ANY}
    things = tuple(
        Thing(match["shape"], match["colour"], match["size"] or ANY, where[match["where"]]) for match in found if match
    )
    return _checked(Scene(backgrounds[place], things))


def settle(scene: Scene, generator: np.random.Generator) -> Scene:
    """Return `scene` with a random value for everything that is `ANY`; of two things one is left, the other right."""
    pick = generator.choice
    places = (
        [str(pick(POSITIONS))]
        if len(scene.things) == 1
        else [str(place) for place in pick(POSITIONS[::2], 2, replace=False)]
    )
    given = [thing.position for thing in _checked(scene).things]
    if len(given) == 2 and given != [ANY, ANY]:
        places = ["left", "right"] if given[0] == "left" or given[1] == "right" else ["right", "left"]
    things = tuple(
        thing._replace(
            size=str(pick(SIZES)) if thing.size == ANY else thing.size,
            position=place if thing.position == ANY else thing.position,
        )
        for thing, place in zip(scene.things, places, strict=True)
    )
    background = str(pick(BACKGROUNDS)) if scene.background == ANY else scene.background
    return Scene(background, things)


def omit(scene: Scene, generator: np.random.Generator, *, share: float = 0.3) -> Scene:
    """Return `scene` with sizes, positions (each with probability `share`) and the background (half that) as `ANY`."""
    no_size, no_place = generator.random(2) < share
    things = tuple(
        thing._replace(size=ANY if no_size else thing.size, position=ANY if no_place else thing.position)
        for thing in scene.things
    )
    return Scene(ANY if generator.random() < share / 2 else scene.background, things)


def sample(n: int, *, things: int, seed: int, held_out: bool = False) -> list[Scene]:
    """Return `n` random settled scenes of one or two things, the same for the same seed.

    held_out: every thing is one of the pairs kept from training; otherwise none is.
    """
    if things not in (1, 2):
        raise OptionError(f"expected 1 or 2 things in a scene, got {things}")
    generator = np.random.default_rng(seed)
    pairs = HELD_OUT if held_out else trained_pairs()
    scenes = (
        Scene(ANY, tuple(Thing(*pairs[index]) for index in generator.integers(len(pairs), size=things)))
        for _ in range(n)
    )
    return [settle(scene, generator) for scene in scenes]


def trained_pairs() -> tuple[tuple[str, str], ...]:
    """Return the pairs of a shape and a colour that training may show: all but `HELD_OUT`."""
    return tuple(pair for pair in itertools.product(SHAPES, COLOURS) if pair not in HELD_OUT)


def every_scene(*, things: int) -> Iterator[Scene]:
    """Yield every settled scene of one thing (864) or of two, left named first (20,736)."""
    kinds = list(itertools.product(SHAPES, COLOURS, SIZES))
    for background in BACKGROUNDS:
        if things == 1:
            for kind, place in itertools.product(kinds, POSITIONS):
                yield Scene(background, (Thing(*kind, place),))
        else:
            for left, right in itertools.product(kinds, repeat=2):
                yield Scene(background, (Thing(*left, "left"), Thing(*right, "right")))


def _phrase(thing: Thing) -> str:
    size = "" if thing.size == ANY else f"{thing.size} "
    where = "" if thing.position == ANY else f" {_WHERE[thing.position]}"
    return f"a {size}{thing.colour} {thing.shape}{where}"


def _checked(scene: Scene) -> Scene:
    """Return `scene`. Raises OptionError for a word the world does not have, or two things in one place."""
    for thing in scene.things:
        for word, words in zip(thing, (SHAPES, COLOURS, (*SIZES, ANY), (*POSITIONS, ANY)), strict=True):
            if word not in words:
                raise OptionError(f"no {word!r} in this world; closest: {closest(word, words)}")
    if scene.background not in (*BACKGROUNDS, ANY):
        raise OptionError(f"no background {scene.background!r}; closest: {closest(scene.background, BACKGROUNDS)}")
    places = [thing.position for thing in scene.things if thing.position != ANY]
    if len(scene.things) not in (1, 2) or (
        len(scene.things) == 2 and ("centre" in places or len(set(places)) < len(places))
    ):
        raise OptionError(f"expected one thing, or one left and one right, got {scene.things}")
    return scene
