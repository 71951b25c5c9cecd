import numpy as np
import pytest
from scenes import BACKGROUNDS, SHAPES, Layout, Scene, Thing, arrange, draw, masks, sample
from scenes.rendering import RGB, SIDE, ground, mask

# Areas of the shapes of radius 1, in closed form: inside the unit square of half-width 1.
STAR = 10 * 0.5 * 1.08**2 * 0.42 * np.sin(np.pi / 5)
AREAS = {
    "circle": np.pi,
    "ring": np.pi * (1 - 0.3),
    "square": 1.8**2,
    "cross": 4 * 0.6 - 0.6**2,
    "triangle": 0.5 * 2 * 1.9,
    "star": STAR,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("size", "radius"), [("small", 5), ("large", 7)])
def test_a_mask_covers_the_area_of_its_shape(shape, size, radius):
    assert mask(shape, size, (16, 16)).sum() == pytest.approx(AREAS[shape] * radius**2, rel=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mask_moves_with_its_centre_and_is_a_mirror_of_itself(shape):
    here = mask(shape, "small", (16, 16))
    np.testing.assert_array_equal(np.roll(here, (3, -4), (0, 1)), mask(shape, "small", (12, 19)))
    np.testing.assert_array_equal(here, here[:, ::-1])


def test_triangle_and_star_point_up():
    for shape in ("triangle", "star"):
        rows = mask(shape, "large", (16, 16)).sum(1)
        top = np.flatnonzero(rows)[0]
        assert rows[top : top + 3].sum() < 6


def test_a_picture_is_colour_inside_the_mask_and_background_outside():
    scene, layout = Scene("sea", (Thing("square", "red", "large", "centre"),)), Layout(((16, 16),), 3)
    picture, (inside,) = draw(scene, layout), masks(scene, layout)
    assert picture.shape == (SIDE, SIDE, 3)
    np.testing.assert_array_equal(picture[inside == 1], np.broadcast_to(RGB["red"], ((inside == 1).sum(), 3)))
    np.testing.assert_array_equal(picture[inside == 0], np.rint(ground("sea", 3))[inside == 0])


def test_the_masks_of_two_things_never_overlap():
    generator = np.random.default_rng(0)
    for scene in sample(200, things=2, seed=0):
        assert masks(scene, arrange(scene, generator)).sum(0).max() <= 1


def test_a_background_alone_is_a_scene_without_things():
    for background in BACKGROUNDS:
        scene = Scene(background, ())
        assert masks(scene, Layout((), 0)).shape == (0, SIDE, SIDE)
        np.testing.assert_array_equal(draw(scene, Layout((), 0)), np.rint(ground(background, 0)))


def test_backgrounds_have_variants_and_arrange_uses_all():
    for background, count in zip(BACKGROUNDS, (4, 8, 8, 4), strict=True):
        assert len({ground(background, texture).round().tobytes() for texture in range(8)}) == count
    generator = np.random.default_rng(0)
    layouts = [arrange(scene, generator) for scene in sample(300, things=1, seed=0)]
    assert {layout.texture for layout in layouts} == set(range(8))
    assert len({layout.centres for layout in layouts}) > 60
