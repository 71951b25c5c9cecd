"""Concepts: scenes that show one word of the world, the same with another word in its place, and where it stands.

A concept is a shape, a colour or a background. `scenes_with` lists, in an order drawn by `seed`, every scene of one
thing with the concept (sizes, positions and, unless it is the concept, the background may be left out), or every fully
told scene of two things of which one has it. Slices of that list are captions without overlap, to fit on, to choose on
and to report on. Source, control and target made from one scene differ in one word and in nothing else.

Limitations: sizes and positions are not concepts; no scenes of two things that both have it.
"""

import itertools
from typing import Literal

import numpy as np
from jaxtyping import Float

from dsas.errors import OptionError, closest
from scenes.detector import Reading
from scenes.rendering import SIDE, masks
from scenes.world import ANY, BACKGROUNDS, COLOURS, POSITIONS, SHAPES, SIZES, Scene, Thing

Aspect = Literal["shape", "colour", "background"]
WORDS: dict[Aspect, tuple[str, ...]] = {"shape": SHAPES, "colour": COLOURS, "background": BACKGROUNDS}


def aspect_of(concept: str) -> Aspect:
    """Return what a concept is a value of. Raises OptionError for a word that is not a shape, colour or background."""
    for aspect, words in WORDS.items():
        if concept in words:
            return aspect
    every = [word for words in WORDS.values() for word in words]
    raise OptionError(f"no concept {concept!r}; closest: {closest(concept, every)}")


def scenes_with(concept: str, *, things: int, avoid: str = "", seed: int = 0) -> list[Scene]:
    """Return every scene of one thing, or of two, that shows the concept, in random order; the same for the same seed.

    avoid: a word of the same aspect that no second thing has either, such as the one that is to replace the concept.
    Raises OptionError for an unknown concept, and for other than 1 or 2 things.
    """
    aspect = aspect_of(concept)
    if things not in (1, 2):
        raise OptionError(f"expected 1 or 2 things in a scene, got {things}")
    found = _alone(concept, aspect) if things == 1 else _mixed(concept, aspect, avoid)
    return [found[place] for place in np.random.default_rng(seed).permutation(len(found))]


def replaced(scene: Scene, concept: str, word: str) -> Scene:
    """Return the scene with `word` wherever the concept was. Raises OptionError for words of two aspects."""
    aspect = aspect_of(concept)
    if word not in WORDS[aspect]:
        raise OptionError(f"{concept!r} is a {aspect}, {word!r} is not; closest: {closest(word, WORDS[aspect])}")
    if aspect == "background":
        return scene._replace(background=word) if scene.background == concept else scene
    things = tuple(
        thing._replace(**{aspect: word}) if getattr(thing, aspect) == concept else thing for thing in scene.things
    )
    return scene._replace(things=things)


def without(scenes: list[Scene], concept: str, *, avoid: str = "", seed: int = 0) -> list[Scene]:
    """Return each scene with a random other word wherever the concept was, never `avoid`."""
    draw = np.random.default_rng(seed)
    words = [word for word in WORDS[aspect_of(concept)] if word not in (concept, avoid)]
    return [replaced(scene, concept, str(draw.choice(words))) for scene in scenes]


def regions(readings: list[Reading], concept: str) -> Float[np.ndarray, "picture height width"]:
    """Return the share of each pixel that the concept covers in each picture that was read; 0 where it is not there."""
    aspect = aspect_of(concept)
    found = np.zeros((len(readings), SIDE, SIDE))
    for region, reading in zip(found, readings, strict=True):
        each = masks(reading.scene, reading.layout)
        if aspect != "background":
            has = [getattr(thing, aspect) == concept for thing in reading.scene.things]
            region += each[has].sum(0)
        elif reading.scene.background == concept:
            region += 1 - each.sum(0)
    return found.clip(0, 1)


def _alone(concept: str, aspect: Aspect) -> list[Scene]:
    grounds = (concept,) if aspect == "background" else (*BACKGROUNDS, ANY)
    things = itertools.product(*_kinds(concept, aspect), (*SIZES, ANY), (*POSITIONS, ANY))
    return [Scene(ground, (Thing(*thing),)) for thing, ground in itertools.product(things, grounds)]


def _mixed(concept: str, aspect: Aspect, avoid: str) -> list[Scene]:
    grounds = (concept,) if aspect == "background" else BACKGROUNDS
    own = list(itertools.product(*_kinds(concept, aspect), SIZES))
    every = list(itertools.product(SHAPES, COLOURS, SIZES))
    other = [kind for kind in every if not {concept, avoid} & set(kind)]
    scenes = [
        Scene(ground, (Thing(*first, here), Thing(*second, there)))
        for ground, first, second in itertools.product(grounds, own, other)
        for here, there in (("left", "right"), ("right", "left"))
    ]
    return scenes if aspect == "background" else scenes + [Scene(one.background, one.things[::-1]) for one in scenes]


def _kinds(concept: str, aspect: Aspect) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the shapes and the colours that a thing of the concept may have."""
    return (concept,) if aspect == "shape" else SHAPES, (concept,) if aspect == "colour" else COLOURS
