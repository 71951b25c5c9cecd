"""Mean transport against the golden numbers, and against CAA, which it equals."""

import pytest
import torch
from makers import check_golden_transform

import dsas
from dsas.errors import OptionError


@pytest.mark.parametrize("support", ["everywhere", "0-100", "20-80"])
def test_the_map_is_that_of_the_reference(support: str) -> None:
    check_golden_transform(dsas.MeanTransport, f"mean-act {support}")


def test_with_the_default_support_it_is_the_addition_of_the_difference_of_means() -> None:
    source, target, t = torch.randn(7, 5), torch.randn(11, 5) + 2, 9 * torch.randn(2, 3, 5)
    assert torch.equal(dsas.MeanTransport.fit(source, target).edit(t), dsas.Addition.fit(source, target).edit(t))


@pytest.mark.parametrize("method", [dsas.MeanTransport, dsas.GaussianTransport, dsas.LinearTransport])
@pytest.mark.parametrize("support", [(50.0, 50.0), (60.0, 40.0), (-1.0, 100.0), (0.0, 101.0), (float("nan"), 100.0)])
def test_a_support_that_is_no_range_of_percentiles_is_refused(method: type, support: tuple[float, float]) -> None:
    with pytest.raises(OptionError, match="'everywhere' or two percentiles 0 <= low < high <= 100, got"):
        method.fit(torch.randn(4, 2), torch.randn(4, 2), support=support)
