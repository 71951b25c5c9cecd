"""LinEAS in closed form against a NumPy least-squares line through sorted samples."""

import numpy as np
import torch

import dsas


def test_the_closed_form_is_the_least_squares_line_through_sorted_samples_everywhere() -> None:
    source, target = torch.randn(9, 4), 3 * torch.randn(9, 4) + 1
    fitted = dsas.Lineas.fit(source, target)
    s, t = (np.sort(x.numpy().astype(np.float64), axis=0) for x in (source, target))
    lines = np.array([np.polyfit(s[:, j], t[:, j], 1) for j in range(4)])
    np.testing.assert_allclose(fitted.slope.numpy(), lines[:, 0], rtol=1e-5)
    np.testing.assert_allclose(fitted.offset.numpy(), lines[:, 1], rtol=1e-4, atol=1e-5)
    far = torch.full((1, 1, 4), 1e3)
    np.testing.assert_allclose(fitted(far).numpy()[0, 0], lines[:, 0] * 1e3 + lines[:, 1], rtol=1e-5)


def test_slope_one_and_offset_zero_change_no_bit() -> None:
    t = torch.randn(2, 3, 4).bfloat16()
    assert torch.equal(dsas.Lineas(torch.ones(4), torch.zeros(4))(t), t)
