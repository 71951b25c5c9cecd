"""Scenes as pictures of 32x32 pixels, drawn by numpy, with the exact mask of everything in them.

    picture = (1 - sum of masks) * background + sum over things of mask * colour

A mask is the share of each pixel that a shape covers, counted on 8 x 8 points. What a caption does not tell, the
`Layout` does: the centre of each thing in pixels, and which of eight variants of the background's pattern
(of grass and sand, four differ).

Limitations: no shading, outlines or rotation, and one RGB triple per colour, so that it can be read back.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from scenes.world import Scene

SIDE = 32
RADIUS = {"small": 5.0, "large": 7.0}
CENTRES = {"left": (7, 8, 9), "centre": (15, 16, 17), "right": (23, 24, 25)}
HEIGHTS = tuple(range(11, 22))
TEXTURES = 8
RGB = {
    "red": (220, 30, 35),
    "yellow": (250, 215, 0),
    "green": (0, 105, 40),
    "blue": (25, 45, 225),
    "purple": (165, 40, 190),
    "white": (252, 252, 252),
}
GROUND = {"grass": (130, 185, 95), "sea": (80, 160, 190), "night": (18, 18, 48), "sand": (226, 200, 150)}
_POINTS = 8


class Layout(NamedTuple):
    """What no caption tells: the centre (x, y) of each thing in pixels, and the variant of the background."""

    centres: tuple[tuple[int, int], ...]
    texture: int


def arrange(scene: Scene, generator: np.random.Generator) -> Layout:
    """Return a random layout for a settled scene: centres that its positions allow, any variant of the background."""
    centres = tuple(
        (int(generator.choice(CENTRES[thing.position])), int(generator.choice(HEIGHTS))) for thing in scene.things
    )
    return Layout(centres, int(generator.integers(TEXTURES)))


def draw(scene: Scene, layout: Layout) -> UInt8[np.ndarray, "height width 3"]:
    """Return the picture of a settled scene."""
    picture = ground(scene.background, layout.texture)
    for thing, mask in zip(scene.things, masks(scene, layout), strict=True):
        picture = picture + mask[:, :, None] * (np.asarray(RGB[thing.colour], np.float32) - picture)
    return np.rint(picture).astype(np.uint8)


def masks(scene: Scene, layout: Layout) -> Float[np.ndarray, "thing height width"]:
    """Return the share of each pixel that each thing covers, 0 to 1; the background covers 1 minus their sum."""
    each = (mask(thing.shape, thing.size, centre) for thing, centre in zip(scene.things, layout.centres, strict=True))
    return np.array(list(each), np.float32).reshape(-1, SIDE, SIDE)


@cache
def mask(shape: str, size: str, centre: tuple[int, int]) -> Float[np.ndarray, "height width"]:
    """Return the share of each pixel that a shape of a size at `centre` (x, y) covers."""
    ticks = (np.arange(SIDE * _POINTS) + 0.5) / _POINTS
    x, y = np.meshgrid(*((ticks - middle) / RADIUS[size] for middle in centre))
    cells = _inside(shape, x, y).reshape(SIDE, _POINTS, SIDE, _POINTS)
    return cells.mean((1, 3), dtype=np.float32)


@cache
def ground(background: str, texture: int) -> Float[np.ndarray, "height width 3"]:
    """Return the background alone: its colour, darker and lighter in a pattern of its own that has mean 0."""
    generator = np.random.default_rng(texture)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    turn = 2 * np.pi * texture / TEXTURES
    if background == "sea":
        pattern = 20 * np.sin(2 * np.pi * y / 8 + 1.2 * np.sin(2 * np.pi * x / 16 + turn))
    elif background == "grass":
        pattern = 16 * np.sin(2 * np.pi * (x + 0.35 * y) / 5.4 + turn) * np.sin(2 * np.pi * y / 16 + turn)
    elif background == "sand":
        pattern = 12 * np.sin(2 * np.pi * x / 8 + turn) * np.sin(2 * np.pi * y / 8 + turn)
    else:
        spots = generator.integers(1, SIDE // 4, (6, 2)) * 4 + generator.integers(-1, 2, (6, 2))
        near = ((x[..., None] - spots[:, 0]) ** 2 + (y[..., None] - spots[:, 1]) ** 2).min(-1)
        pattern = 190 * np.exp(-near / 0.9)
    pattern = pattern - pattern.mean()
    return np.clip(np.asarray(GROUND[background], np.float32) + pattern[:, :, None], 0, 255)


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return where the points (x, y) lie in the shape of radius 1 around 0; y points down."""
    across, down = np.abs(x), np.abs(y)
    if shape == "circle":
        return x**2 + y**2 <= 1
    if shape == "ring":
        return (x**2 + y**2 <= 1) & (x**2 + y**2 >= 0.3)
    if shape == "square":
        return np.maximum(across, down) <= 0.9
    if shape == "cross":
        return (np.maximum(across, down) <= 1) & (np.minimum(across, down) <= 0.3)
    if shape == "triangle":
        return (down <= 0.95) & (across <= (y + 0.95) / 1.9)
    return _in_star(x, y)


def _in_star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return where the points lie in a star of five points, one of them up."""
    step = np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + step) % (2 * step) - step)
    radius, inner = np.hypot(x, y) / 1.08, 0.42
    # In each sector the edge runs straight from (1, 0) to the inner corner: beyond it lies outside.
    corner_x, corner_y = inner * np.cos(step), inner * np.sin(step)
    point_x, point_y = radius * np.cos(angle), radius * np.sin(angle)
    return point_x * corner_y + point_y * (1 - corner_x) <= corner_y
