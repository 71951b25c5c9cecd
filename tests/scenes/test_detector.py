import numpy as np
import pytest
from scenes import (
    ANY,
    Agreement,
    Layout,
    Scene,
    Thing,
    agreement,
    arrange,
    concept_present,
    draw,
    masks,
    read,
    sample,
    shows,
)

from dsas.errors import ActivationError, OptionError

RED_STAR, BLUE_RING = Thing("star", "red", "small", "left"), Thing("ring", "blue", "large", "right")
TWO = Scene("sand", (RED_STAR, BLUE_RING))


@pytest.fixture(scope="module")
def drawn():
    generator = np.random.default_rng(0)
    scenes = [scene for things in (1, 2) for scene in sample(60, things=things, seed=things)]
    layouts = [arrange(scene, generator) for scene in scenes]
    pictures = np.stack([draw(scene, layout) for scene, layout in zip(scenes, layouts, strict=True)])
    return scenes, layouts, pictures


def _left_to_right(scene, layout):
    pairs = sorted(zip(layout.centres, scene.things, strict=True))
    return Scene(scene.background, tuple(thing for _, thing in pairs)), tuple(centre for centre, _ in pairs)


def test_a_drawn_picture_is_read_back_exactly(drawn):
    for scene, layout, picture, found in zip(*drawn, read(drawn[2]), strict=True):
        assert (found.scene, found.layout.centres) == _left_to_right(scene, layout)
        assert found.distance == 0
        np.testing.assert_array_equal(draw(found.scene, found.layout), picture)


def test_a_noisy_picture_is_read_back_and_the_distance_is_the_noise(drawn):
    noise = 20 * np.random.default_rng(0).standard_normal(drawn[2].shape)
    noisy = ((drawn[2] + noise) / 255).astype(np.float32)
    for scene, layout, found in zip(*drawn[:2], read(noisy), strict=True):
        assert found.scene == _left_to_right(scene, layout)[0]
        assert found.distance == pytest.approx(20, rel=0.1)


def test_a_background_alone_has_no_thing():
    pictures = np.stack([draw(Scene(ground, ()), Layout((), 5)) for ground in ("grass", "sea", "night", "sand")])
    assert [found.scene for found in read(pictures)] == [Scene(g, ()) for g in ("grass", "sea", "night", "sand")]


@pytest.mark.parametrize(("share", "there"), [(0.4, False), (0.6, True)])
def test_a_thing_counts_as_there_while_it_has_more_than_half_of_its_contrast(share, there):
    scene, layout = Scene("grass", (Thing("circle", "red", "large", "centre"),)), Layout(((16, 16),), 0)
    full, empty = (
        draw(one, one_layout).astype(float)
        for one, one_layout in ((scene, layout), (Scene("grass", ()), Layout((), 0)))
    )
    faded = (share * full + (1 - share) * empty).astype(np.uint8)[None]
    assert concept_present(faded, "circle").tolist() == [there]


def test_a_concept_is_words_of_one_thing_or_the_background():
    for concept in ("star", "red", "small red star", "ring", "sand", "left"):
        assert shows(TWO, concept)
    for concept in ("blue star", "circle", "sea", "large red", "centre"):
        assert not shows(TWO, concept)


def test_an_unknown_concept_is_answered_with_the_closest():
    for concept in ("stra", "red stra", ""):
        with pytest.raises(OptionError, match="closest"):
            shows(TWO, concept)


def test_agreement_names_the_words_that_were_kept():
    found = TWO._replace(things=(RED_STAR._replace(colour="blue"), BLUE_RING))
    assert agreement(TWO, TWO) == Agreement(*[True] * 6)
    assert agreement(found, TWO) == Agreement(True, True, False, True, True, True)
    assert agreement(TWO._replace(background="sea"), TWO) == Agreement(*[True] * 5, False)
    assert agreement(TWO._replace(things=(RED_STAR,)), TWO) == Agreement(*[False] * 5, True)


def test_agreement_leaves_the_order_open_where_positions_are_not_told():
    asked = Scene(ANY, (Thing("ring", "blue"), Thing("star", "red")))
    assert agreement(TWO, asked) == Agreement(*[True] * 6)
    told = Scene(ANY, (BLUE_RING._replace(position="left"), RED_STAR._replace(position="right")))
    assert not agreement(TWO, told).shape


def test_a_reading_gives_the_masks_of_what_was_found(drawn):
    scenes, layouts, pictures = drawn
    found = read(pictures[-1:])[0]
    np.testing.assert_array_equal(masks(found.scene, found.layout).sum(0), masks(scenes[-1], layouts[-1]).sum(0))


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ActivationError, match=r"\(image, 32, 32, 3\)"):
        read(np.zeros((1, 16, 16, 3), np.uint8))
