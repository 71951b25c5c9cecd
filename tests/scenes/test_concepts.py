import numpy as np
import pytest
from scenes import (
    ANY,
    Layout,
    Reading,
    Scene,
    Thing,
    aspect_of,
    caption,
    masks,
    parse,
    regions,
    replaced,
    scenes_with,
    shows,
    without,
)

from dsas.errors import OptionError

TWO = Scene("sand", (Thing("star", "red", "small", "left"), Thing("circle", "blue", "large", "right")))
LAYOUT = Layout(((8, 16), (24, 15)), 0)


@pytest.mark.parametrize(("concept", "count"), [("red", 360), ("square", 360), ("night", 432)])
def test_scenes_of_one_thing_are_all_there_are_each_once_and_show_the_concept(concept, count):
    # Colour or shape: 6 of the other x 3 sizes x 4 positions x 5 backgrounds; night: 36 kinds x 3 x 4. ANY counts.
    scenes = scenes_with(concept, things=1)
    assert len(scenes) == len({caption(one) for one in scenes}) == count
    assert all(shows(scene, concept) for scene in scenes)
    assert any(scene.things[0].size == ANY for scene in scenes)


def test_scenes_of_two_things_have_the_concept_in_one_of_them_named_first_or_last_left_or_right():
    scenes = scenes_with("red", things=2, avoid="blue")
    # 12 red kinds, 4 other colours x 12, 4 backgrounds, 2 sides, 2 orders
    assert len(set(scenes)) == len(scenes) == 12 * 48 * 4 * 2 * 2
    assert {sum(thing.colour == "red" for thing in scene.things) for scene in scenes} == {1}
    assert not any(shows(scene, "blue") for scene in scenes)
    red = {(scene.things[0].colour == "red", scene.things[0].position) for scene in scenes}
    assert len(red) == 4
    assert all(parse(caption(scene)) == scene for scene in scenes[:50])


def test_scenes_of_two_things_on_a_background_have_it_each():
    scenes = scenes_with("night", things=2)
    assert len(set(scenes)) == len(scenes) == 72 * 72 * 2
    assert {scene.background for scene in scenes} == {"night"}


def test_the_order_is_that_of_the_seed():
    assert scenes_with("ring", things=1, seed=3) == scenes_with("ring", things=1, seed=3)
    assert scenes_with("ring", things=1, seed=3) != scenes_with("ring", things=1, seed=4)


def test_only_the_concept_is_replaced():
    assert caption(replaced(TWO, "red", "green")) == caption(TWO).replace("red", "green")
    assert caption(replaced(TWO, "circle", "ring")) == caption(TWO).replace("circle", "ring")
    assert caption(replaced(TWO, "sand", "sea")) == caption(TWO).replace("on sand", "on the sea")
    assert replaced(TWO, "ring", "star") == replaced(TWO, "night", "sea") == TWO


def test_without_the_concept_all_else_stays_and_no_word_is_the_avoided_one():
    scenes = scenes_with("red", things=1)
    others = without(scenes, "red", avoid="blue", seed=1)
    assert {one.things[0].colour for one in others} == {"yellow", "green", "purple", "white"}
    assert [replaced(other, other.things[0].colour, "red") for other in others] == scenes
    assert others == without(scenes, "red", avoid="blue", seed=1) != without(scenes, "red", avoid="blue", seed=2)


def test_a_region_is_the_mask_of_the_concept_and_of_a_background_what_things_leave():
    reading = Reading(TWO, LAYOUT, 0.0)
    star, circle = masks(TWO, LAYOUT)
    for concept, expected in (("red", star), ("circle", circle), ("sand", 1 - star - circle), ("ring", 0 * star)):
        found = regions([reading, reading], concept)
        assert found.shape == (2, 32, 32)
        np.testing.assert_allclose(found[1], expected, atol=1e-6)


def test_words_that_are_no_concepts_or_of_another_kind_are_refused():
    assert (aspect_of("star"), aspect_of("red"), aspect_of("sea")) == ("shape", "colour", "background")
    with pytest.raises(OptionError, match="no concept 'small'; closest"):
        aspect_of("small")
    with pytest.raises(OptionError, match="'red' is a colour, 'ring' is not; closest"):
        replaced(TWO, "red", "ring")
    with pytest.raises(OptionError, match="1 or 2 things in a scene, got 3"):
        scenes_with("red", things=3)
