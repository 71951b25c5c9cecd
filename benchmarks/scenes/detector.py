"""Read a picture back: the scene of the world that is nearest to it, found by trying all of them.

    distance(x, scene) = || x - draw(scene) ||^2      over every background, and on it nothing, or one thing (shape,
                                                      colour, size, centre) left, centre or right, or one left and
                                                      one right

A thing of mask m and colour c on ground b changes the distance by |c - b|^2 sum(m^2) - 2 (c - b) . sum(m (x - b)), and
things do not overlap, so one product of all masks with all pictures searches every scene. The ground is taken at its
mean colour; which of its variants is nearest is found afterwards. A thing that has lost more than half of its contrast
is not there: without it the scene is nearer.

Measured on 1,800 drawn pictures (half with two things, a third with held-out pairs), share with every word right:

| drawn | noise of sd 20 | sd 40 | blur of sd 1 pixel | blur 1, noise 20 | blur 1.5, noise 20 |
|---|---|---|---|---|---|
| 1.000 | 1.000 | 1.000 | .988 | .964 | .799 |

What is lost to blur is the shape of small things (.82 at blur 1.5); number, position and background stay at 1.000.

Limitations: a picture of things that the world does not have gets the nearest scene and a large distance.
"""

import itertools
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from dsas.errors import ActivationError, OptionError, closest
from scenes.rendering import CENTRES, HEIGHTS, RGB, TEXTURES, Layout, draw, ground, mask
from scenes.world import ANY, BACKGROUNDS, COLOURS, POSITIONS, SHAPES, SIZES, Scene, Thing

_CHUNK = 64

Pictures = UInt8[np.ndarray, "image height width 3"] | Float[np.ndarray, "image height width 3"]


class Reading(NamedTuple):
    """The nearest scene (settled, its things from left to right), its layout, and how far it is.

    distance: root of the mean squared difference to the drawn scene, on the scale of 0 to 255.
    """

    scene: Scene
    layout: Layout
    distance: float


class Agreement(NamedTuple):
    """Which words of a caption a picture keeps; about things only if it has as many as were asked for."""

    number: bool
    shape: bool
    colour: bool
    size: bool
    position: bool
    background: bool


class _Bank(NamedTuple):
    """Every mask a layout allows, flat, with its words and centre, and its sums."""

    words: tuple[tuple[str, str, str, tuple[int, int]], ...]
    masks: Float[np.ndarray, "mask pixel"]
    area: Float[np.ndarray, " mask"]
    energy: Float[np.ndarray, " mask"]


def read(images: Pictures) -> list[Reading]:
    """Return the nearest scene of each picture: uint8, or floats of 0 to 1 as a pipeline returns them."""
    pictures = _as_floats(images)
    starts = range(0, len(pictures), _CHUNK)
    return [reading for start in starts for reading in _read(pictures[start : start + _CHUNK])]


def concept_present(images: Pictures, concept: str) -> Bool[np.ndarray, " image"]:
    """Return whether each picture shows a concept: words that are true of one thing, or one background.

    concept: such as "star", "red", "large red star", "left" or "sea". Raises OptionError for another word.
    """
    return np.array([shows(reading.scene, concept) for reading in read(images)], bool)


def shows(scene: Scene, concept: str) -> bool:
    """Return whether a scene has a thing of which all words of `concept` are true, or has it as background."""
    known = (*SHAPES, *COLOURS, *SIZES, *POSITIONS)
    words = concept.split()
    if concept in BACKGROUNDS:
        return scene.background == concept
    for word in words or [concept]:
        if word not in known:
            raise OptionError(f"no concept {word!r}; closest: {closest(word, (*known, *BACKGROUNDS))}")
    return any(set(words) <= set(thing) for thing in scene.things)


def agreement(found: Scene, asked: Scene) -> Agreement:
    """Return which words of `asked` hold in `found`; a word left out always does.

    Things are compared left to right where positions are told, otherwise in the order in which more words agree.
    """
    number = len(found.things) == len(asked.things)
    told = all(thing.position != ANY for thing in asked.things)
    wanted = sorted(asked.things, key=lambda thing: POSITIONS.index(thing.position)) if told else asked.things
    orders = [wanted] if told else list(itertools.permutations(wanted))
    kept = [
        [
            all(one[word] in (other[word], ANY) for one, other in zip(order, found.things, strict=True))
            for word in range(4)
        ]
        for order in orders
        if number
    ]
    shape, colour, size, position = max(kept, key=sum, default=[False] * 4)
    return Agreement(number, shape, colour, size, position, asked.background in (found.background, ANY))


def _read(pictures: Float[np.ndarray, "image height width 3"]) -> list[Reading]:
    bank, colours = _bank(), np.asarray([RGB[name] for name in COLOURS], np.float32)
    flat = pictures.reshape(len(pictures), -1, 3)
    held = np.einsum("kp,npc->nkc", bank.masks, flat, optimize=True)
    sides = [np.array([words[2] == place for words in bank.words]) for place in POSITIONS]
    found: list[list[tuple[float, Scene, tuple]]] = [[] for _ in pictures]
    for background in BACKGROUNDS:
        base = _mean_ground(background)
        contrast = colours - base
        inside = (held - bank.area[:, None] * base) @ contrast.T
        gain = 2 * inside - bank.energy[:, None] * np.square(contrast).sum(1)
        empty = np.square(flat - base).sum((1, 2))
        for image, gains in enumerate(gain):
            best = [_best(gains, side, bank) for side in sides]
            for chosen in ((), best[:1], best[1:2], best[2:], best[::2]):
                distance = float(empty[image]) - sum(one[0] for one in chosen)
                scene = Scene(background, tuple(one[1] for one in chosen))
                found[image].append((distance, scene, tuple(one[2] for one in chosen)))
    nearest = [min(choices, key=lambda choice: choice[0]) for choices in found]
    return [_drawn(picture, scene, centres) for picture, (_, scene, centres) in zip(pictures, nearest, strict=True)]


def _best(
    gains: Float[np.ndarray, "mask colour"], side: Bool[np.ndarray, " mask"], bank: _Bank
) -> tuple[float, Thing, tuple[int, int]]:
    """Return the thing of one position that brings the scene nearest, with what it gains and its centre."""
    which = np.flatnonzero(side)
    index, colour = divmod(int(gains[which].argmax()), len(COLOURS))
    shape, size, position, centre = bank.words[which[index]]
    return float(gains[which[index], colour]), Thing(shape, COLOURS[colour], size, position), centre


def _drawn(picture: Float[np.ndarray, "height width 3"], scene: Scene, centres: tuple) -> Reading:
    """Return the reading with the variant of the background that is nearest."""
    options = [Layout(centres, texture) for texture in range(TEXTURES)]
    errors = [np.square(picture - draw(scene, layout)).mean() for layout in options]
    nearest = int(np.argmin(errors))
    return Reading(scene, options[nearest], float(np.sqrt(errors[nearest])))


@cache
def _bank() -> _Bank:
    words = tuple(
        (shape, size, position, (x, y))
        for position in POSITIONS
        for shape, size, x, y in itertools.product(SHAPES, SIZES, CENTRES[position], HEIGHTS)
    )
    masks = np.stack([mask(shape, size, centre).ravel() for shape, size, _, centre in words])
    return _Bank(words, masks, masks.sum(1), np.square(masks).sum(1))


@cache
def _mean_ground(background: str) -> Float[np.ndarray, " 3"]:
    return np.mean([ground(background, texture).mean((0, 1)) for texture in range(TEXTURES)], 0)


def _as_floats(images: Pictures) -> Float[np.ndarray, "image height width 3"]:
    if images.shape[1:] != ground(BACKGROUNDS[0], 0).shape:
        raise ActivationError(f"expected pictures of shape (image, 32, 32, 3), got {images.shape}")
    return images.astype(np.float32) * (1.0 if images.dtype == np.uint8 else 255.0)
