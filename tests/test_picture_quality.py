import numpy as np
import pytest
from picture_quality import RandomFeatures, frechet_distance, gaussian_distance

from dsas.errors import ActivationError, OptionError


def exact(mean: np.ndarray, covariance: np.ndarray, *, n: int = 50, seed: int = 0) -> np.ndarray:
    """Return a sample that has exactly this mean and unbiased covariance."""
    x = np.random.default_rng(seed).standard_normal((n, len(mean)))
    x -= x.mean(0)
    whitened = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return mean + whitened @ np.linalg.cholesky(covariance).T


def noise(n: int = 60, *, seed: int = 0, side: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def test_of_covariances_that_commute_it_is_the_sum_over_axes_of_differences_of_means_and_deviations():
    first = exact(np.array([1.0, 2.0, 3.0]), np.diag([4.0, 9.0, 1.0]))
    second = exact(np.array([1.0, 0.0, 3.5]), np.diag([1.0, 16.0, 1.0]), n=80, seed=1)
    expected = (0 + 4 + 0.25) + (1 + 1 + 0)
    assert gaussian_distance(first, second) == pytest.approx(expected, rel=1e-10)
    assert gaussian_distance(second, first) == pytest.approx(expected, rel=1e-10)


def test_of_other_covariances_it_is_the_root_of_their_product_in_closed_form():
    one, other = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.3], [-0.3, 3.0]])
    product = one @ other  # 2 x 2: trace of the root is sqrt(trace + 2 sqrt(determinant))
    cross = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = np.trace(one) + np.trace(other) - 2 * cross
    found = gaussian_distance(exact(np.zeros(2), one), exact(np.zeros(2), other, seed=1))
    assert found == pytest.approx(expected, rel=1e-10)


def test_equal_sets_are_at_no_distance_even_where_features_depend_on_one_another():
    x = np.random.default_rng(0).standard_normal((20, 2))
    doubled = np.concatenate([x, x], axis=1)
    assert gaussian_distance(doubled, doubled[::-1]) == pytest.approx(0, abs=1e-6)
    assert gaussian_distance(doubled, doubled) >= 0


def test_the_result_says_what_it_rests_on():
    def brightness(pictures):
        return pictures.mean((1, 2, 3))[:, None]

    first, second = noise(10), noise(12, seed=1)
    found = frechet_distance(first, second, features=brightness)
    assert found[1:] == ("brightness", 1, (10, 12))
    means = [first.mean((1, 2, 3)), second.mean((1, 2, 3))]
    expected = (means[0].mean() - means[1].mean()) ** 2 + (means[0].std(ddof=1) - means[1].std(ddof=1)) ** 2
    assert found.distance == pytest.approx(expected)


def test_random_features_are_named_and_the_same_for_the_same_seed_and_for_floats():
    features = RandomFeatures(channels=4, seed=3)
    assert features.name == "random convolutions, 8, seed 3"
    found = features(noise(70))
    assert found.shape == (70, 8)
    np.testing.assert_allclose(RandomFeatures(channels=4, seed=3)(noise(70) / 255), found, atol=1e-5)
    assert np.abs(RandomFeatures(channels=4, seed=4)(noise(70)) - found).max() > 0.01
    np.testing.assert_allclose(features(noise(70)[66:]), found[66:], atol=1e-6)  # whatever stands in the same batch


def test_the_distance_grows_with_what_is_lost_of_colour_and_of_detail():
    pictures, features = noise(100) / 255, RandomFeatures(channels=8)
    grey, smooth = (np.broadcast_to(pictures.mean(axes, keepdims=True), pictures.shape) for axes in ((3,), (1, 2)))
    for lost in (grey, smooth):
        mixtures = [(1 - share) * pictures + share * lost for share in (0.0, 0.3, 1.0)]
        found = [frechet_distance(mixture, pictures, features=features).distance for mixture in mixtures]
        assert found[0] < 1e-6 < 100 * found[0] + 1e-4 < found[1] < found[2]


def test_too_few_pictures_and_features_that_are_no_vectors_are_refused():
    features = RandomFeatures(channels=4)
    with pytest.raises(OptionError, match="over 8 features needs at least 9 pictures each, got 8"):
        frechet_distance(noise(9), noise(8), features=features)
    with pytest.raises(ActivationError, match=r"expected finite features \(9, dim\) of .*, got shape \(9,\)"):
        frechet_distance(noise(9), noise(9), features=lambda pictures: pictures.mean((1, 2, 3)))
    with pytest.raises(ActivationError, match="expected finite features"):
        frechet_distance(noise(9), noise(9), features=lambda pictures: np.full((len(pictures), 2), np.nan))
    with pytest.raises(OptionError, match="expected channels >= 1, got 0"):
        RandomFeatures(channels=0)
