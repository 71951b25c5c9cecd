import numpy as np
import pytest

from dsas.errors import OptionError
from dsas.evaluation.picture_change import picture_change


def pair() -> tuple[np.ndarray, np.ndarray]:
    """Return two pictures of 2 x 2 pixels, of which the second is changed in one pixel, by 30, 0 and 60."""
    before = np.full((2, 2, 2, 3), 100, np.uint8)
    after = before.copy()
    after[1, 0, 0] = (130, 100, 40)
    return before, after


def test_it_is_the_mean_absolute_difference_of_each_picture_and_bytes_do_not_wrap_around():
    before, after = pair()
    found = picture_change(before, after)
    assert found.everywhere.tolist() == [0, 30 / 4]
    assert picture_change(after, before).everywhere.tolist() == [0, 30 / 4]


def test_floats_of_0_to_1_are_measured_on_the_same_scale_as_bytes():
    before, after = (each / 255 for each in pair())
    np.testing.assert_allclose(picture_change(before, after).everywhere, [0, 7.5], atol=1e-12)


def test_inside_and_outside_are_means_weighted_by_the_share_of_each_pixel():
    before, after = pair()
    region = np.zeros((2, 2, 2))
    region[:, 0, 0], region[:, 1, 1] = 0.5, 1.0
    found = picture_change(before, after, region=region)
    np.testing.assert_allclose(found.inside, [0, 0.5 * 30 / 1.5])
    np.testing.assert_allclose(found.outside, [0, 0.5 * 30 / 2.5])
    share = region.mean((1, 2))
    np.testing.assert_allclose(share * found.inside + (1 - share) * found.outside, found.everywhere)


def test_a_region_that_is_empty_or_everything_leaves_one_side_unknown():
    before, after = pair()
    region = np.stack([np.zeros((2, 2), bool), np.ones((2, 2), bool)])
    found = picture_change(before, after, region=region)
    assert np.isnan(found.inside).tolist() == [True, False]
    assert np.isnan(found.outside).tolist() == [False, True]
    whole = picture_change(before, after)
    assert whole.inside.tolist() == whole.everywhere.tolist()


def test_pictures_that_are_no_pairs_are_refused():
    before, after = pair()
    with pytest.raises(OptionError, match=r"pairs of pictures, got uint8 of \(2, 2, 2, 3\) and uint8 of \(1, "):
        picture_change(before, after[:1])
    with pytest.raises(OptionError, match=r"uint8 of .* and float64"):
        picture_change(before, after / 255)
    with pytest.raises(OptionError, match="pairs of pictures"):
        picture_change(before[:0], after[:0])


@pytest.mark.parametrize("region", [np.ones((2, 2, 3)), np.full((2, 2, 2), 1.1), np.full((2, 2, 2), np.nan)])
def test_a_region_of_another_size_or_outside_0_to_1_is_refused(region):
    with pytest.raises(OptionError, match=r"a region of shape \(2, 2, 2\) with values in \[0, 1\]"):
        picture_change(*pair(), region=region)
