"""The verdict on pictures that were made so that every number is known."""

import numpy as np
import pytest

from dsas.errors import OptionError
from dsas.evaluation.picture_verdict import CONTRAST, picture_verdict


def flat(*levels: float) -> np.ndarray:
    """Return a grey picture of 2x2 pixels for each level of 0 to 255."""
    return np.stack([np.full((2, 2, 3), level / 255) for level in levels])


def with_corner(level: float) -> np.ndarray:
    """Return a black picture whose upper left pixel has a level."""
    picture = flat(0)
    picture[0, 0, 0] = level / 255
    return picture


def test_gone_is_nearer_to_the_target_than_to_the_unsteered_picture() -> None:
    before, other = flat(0, 0, 0), flat(40, 40, 40)
    found = picture_verdict(before, flat(51, 49, 10), other, prompts=2, target=flat(100, 100))
    assert found.gone is not None
    assert found.control is not None
    assert (found.gone.mean, found.gone.n) == (0.5, 2)
    assert found.change.mean == pytest.approx(50)
    assert found.control.mean == pytest.approx(10)
    assert found.noise.mean == pytest.approx(40)
    assert found.lines()[0].startswith("Concept: gone in some: 1 of 2 pictures")
    assert found.lines()[1].startswith(
        "Control: partly kept: pictures of control prompts change by 10 of 255, and by 40"
    )


def test_inside_is_where_the_target_differs_and_outside_everything_else() -> None:
    target = with_corner(CONTRAST + 1)
    found = picture_verdict(flat(0), with_corner(60), flat(9), prompts=1, target=target)
    assert found.inside is not None
    assert found.outside is not None
    assert (found.inside.mean, found.outside.mean) == (pytest.approx(60), pytest.approx(0))
    assert found.lines()[2].startswith("Where: only the concept's region changes: by 60 of 255 inside")
    none = picture_verdict(flat(0), with_corner(60), flat(9), prompts=1, target=with_corner(CONTRAST - 1))
    assert (none.inside, none.outside) == (None, None)
    everywhere = picture_verdict(flat(0), flat(60), flat(9), prompts=1, target=target)
    assert everywhere.lines()[2].startswith("Where: the rest of the picture changes, too")


def test_without_targets_the_region_is_where_it_was_steered_and_the_concept_is_not_judged() -> None:
    acted = np.array([[[True, False], [False, False]]])
    found = picture_verdict(flat(0), with_corner(30), flat(9), prompts=1, acted=acted)
    assert found.inside is not None
    assert found.inside.mean == pytest.approx(30)
    assert found.gone is None
    assert [line.split(":")[1].strip()[:12] for line in found.lines()[:2]] == ["not measured", "not measured"]


@pytest.mark.parametrize(("change", "word"), [(3, "kept"), (15, "partly kept"), (16, "not kept"), (40, "not kept")])
def test_a_control_is_kept_when_it_changes_by_a_tenth_of_what_another_seed_changes(change: float, word: str) -> None:
    found = picture_verdict(flat(0, 0), flat(50, change), flat(30, 30), prompts=1)
    assert found.lines()[1].startswith(f"Control: {word}: ")


def test_an_interval_is_told_from_ten_pictures_on() -> None:
    few, many = (
        picture_verdict(flat(*[0] * n), flat(*range(1, n + 1)), flat(*[9] * n), prompts=1).lines()[1] for n in (10, 11)
    )
    assert "n = 9, too few for an interval" in few
    assert "6.5 [" in many
    assert "n = 10)" in many


def test_pictures_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(OptionError, match="expected pictures of 2 prompts and as many targets, got 1"):
        picture_verdict(flat(0), flat(1), flat(2), prompts=2)
    with pytest.raises(OptionError, match="as many targets"):
        picture_verdict(flat(0, 0), flat(1, 1), flat(2, 2), prompts=2, target=flat(1))
