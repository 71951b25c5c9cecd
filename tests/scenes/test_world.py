import itertools

import numpy as np
import pytest
from scenes import (
    ANY,
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    caption,
    every_scene,
    omit,
    parse,
    sample,
    settle,
    trained_pairs,
)

from dsas.errors import OptionError, TextsError

TWO = Scene("sand", (Thing("star", "red", "small", "left"), Thing("circle", "blue", "large", "right")))


def test_a_caption_tells_every_word_of_a_scene():
    assert caption(TWO) == "a small red star on the left and a large blue circle on the right, on sand"


def test_words_that_are_any_are_not_told():
    assert caption(Scene(ANY, (Thing("ring", "white"),))) == "a white ring"


@pytest.mark.parametrize("things", [1, 2])
def test_a_caption_is_read_back_as_the_scene_it_tells(things):
    generator = np.random.default_rng(0)
    for scene in sample(200, things=things, seed=0):
        short = omit(scene, generator)
        assert parse(caption(scene)) == scene
        assert parse(caption(short)) == short


@pytest.mark.parametrize(
    "text", ["", "a red dog", "a red star, on the moon", "a red star and a red star and a red star"]
)
def test_a_text_that_is_no_caption_is_refused(text):
    with pytest.raises(TextsError, match="a small red star"):
        parse(text)


def test_an_unknown_word_is_answered_with_the_closest():
    with pytest.raises(OptionError, match="'circle'"):
        caption(Scene("sea", (Thing("circl", "red"),)))
    with pytest.raises(OptionError, match="'night'"):
        caption(Scene("nigth", (Thing("circle", "red"),)))


@pytest.mark.parametrize("places", [("left", "left"), ("centre", "right"), ("centre", ANY)])
def test_two_things_cannot_stand_where_they_would_overlap(places):
    with pytest.raises(OptionError, match="one left and one right"):
        caption(Scene("sea", tuple(Thing("star", "red", "small", place) for place in places)))


def test_settling_fills_in_what_is_any_and_keeps_the_rest():
    generator = np.random.default_rng(0)
    for first, second in itertools.product(("left", "right", ANY), repeat=2):
        if first == second != ANY:
            continue
        asked = Scene(ANY, (Thing("star", "red", "small", first), Thing("ring", "blue", ANY, second)))
        settled = settle(asked, generator)
        assert {thing.position for thing in settled.things} == {"left", "right"}
        assert settled.background in BACKGROUNDS
        assert settled.things[0].size == "small"
        assert settled.things[1].size in SIZES
        for one, two in zip(asked.things, settled.things, strict=True):
            assert one.position in (two.position, ANY)


def test_held_out_pairs_hold_every_shape_and_colour_once_and_are_never_sampled():
    assert sorted(shape for shape, _ in HELD_OUT) == sorted(SHAPES)
    assert sorted(colour for _, colour in HELD_OUT) == sorted(COLOURS)
    assert len(trained_pairs()) == 30
    pairs = {thing[:2] for scene in sample(2000, things=2, seed=0) for thing in scene.things}
    assert pairs == set(trained_pairs())
    pairs = {thing[:2] for scene in sample(300, things=2, seed=0, held_out=True) for thing in scene.things}
    assert pairs == set(HELD_OUT)


def test_the_same_seed_gives_the_same_scenes_and_another_seed_others():
    assert sample(50, things=2, seed=3) == sample(50, things=2, seed=3)
    assert sample(50, things=2, seed=3) != sample(50, things=2, seed=4)
    with pytest.raises(OptionError, match="1 or 2"):
        sample(1, things=3, seed=0)


def test_every_scene_is_yielded_once():
    for things, count in ((1, 864), (2, 20_736)):
        scenes = list(every_scene(things=things))
        assert len(scenes) == len(set(scenes)) == count
