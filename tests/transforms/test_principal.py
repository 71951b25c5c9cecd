"""Principal addition against the golden numbers and the brute force over all pairs of samples."""

import numpy as np
import torch
from makers import check_golden_transform

import dsas


def test_the_addition_is_that_of_the_reference() -> None:
    check_golden_transform(dsas.PrincipalAddition, "caa-pca")


def test_the_few_rows_have_the_second_moment_of_all_pairwise_differences_of_sets_of_any_size() -> None:
    source, target = torch.randn(7, 5) * torch.arange(1.0, 6.0) + 2, torch.randn(11, 5) - 1
    s, t = source.double().numpy(), target.double().numpy()
    differences = (t[:, None] - s[None]).reshape(-1, 5)
    u = np.linalg.svd(differences, full_matrices=False)[2][0]
    expected = u * (u @ (t.mean(0) - s.mean(0)))
    np.testing.assert_allclose(dsas.PrincipalAddition.fit(source, target).vector.numpy(), expected, atol=1e-5)


def test_where_the_sets_differ_by_one_vector_alone_that_vector_is_added() -> None:
    """Without spread the differences are all the same; were they centred, nothing would be left of them."""
    vector = torch.tensor([3.0, 0.0, -4.0])
    fitted = dsas.PrincipalAddition.fit(torch.ones(6, 3), torch.ones(4, 3) + vector)
    torch.testing.assert_close(fitted.vector, vector)


def test_a_difference_across_the_widest_spread_is_not_added() -> None:
    spread = torch.tensor([[10.0, 0.0], [-10.0, 0.0]])
    fitted = dsas.PrincipalAddition.fit(spread, spread + torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(fitted.vector, torch.zeros(2))


def test_the_same_set_twice_adds_nothing() -> None:
    source = torch.randn(8, 4)
    torch.testing.assert_close(dsas.PrincipalAddition.fit(source, source).vector, torch.zeros(4))
