"""The fused path against the plain one, for every transform; and the algebra of additions."""

from pathlib import Path

import pytest
import torch

import dsas
from dsas.errors import OptionError
from dsas.transforms.affine import AffineTransform, steer

DIM = 16


def fitted(name: str) -> dsas.Transform:
    return dsas.TRANSFORMS[name].fit(torch.randn(12, DIM) + 0.5, torch.randn(9, DIM) - 0.5)


@pytest.mark.parametrize("gain_dim", [1, DIM])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", [*dsas.TRANSFORMS, "custom"])
def test_what_runs_at_a_site_is_t_plus_gain_times_edit(name: str, dtype: torch.dtype, gain_dim: int) -> None:
    transform = dsas.Custom(torch.tanh) if name == "custom" else fitted(name)
    t, gain = torch.randn(3, 5, DIM).to(dtype), 2 * torch.rand(3, 5, gain_dim)
    given = t.clone()
    got = steer(t, gain, transform)
    wide = torch.promote_types(dtype, torch.float32)
    plain = t.to(wide) + gain.to(wide) * transform.edit(t.to(wide)).to(wide)
    assert got.dtype == dtype
    if dtype == torch.bfloat16:  # rounded once, at the end
        torch.testing.assert_close(got.float(), plain, rtol=2**-8, atol=1e-6)
    else:
        torch.testing.assert_close(got, plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(t, given)


@pytest.mark.parametrize("name", dsas.TRANSFORMS)
def test_a_gain_of_zero_gives_every_bit_back_and_a_gain_of_one_the_transform(name: str) -> None:
    transform, t = fitted(name), torch.randn(3, 5, DIM)
    assert torch.equal(steer(t, torch.zeros(3, 5, 1), transform), t)
    torch.testing.assert_close(steer(t, torch.ones(3, 5, 1), transform), transform(t))


def test_a_gain_for_each_neuron_moves_those_neurons_alone() -> None:
    gain = torch.zeros(1, 5, DIM)
    gain[..., 3] = 1.0
    for name in dsas.TRANSFORMS:
        transform, t = fitted(name), torch.randn(1, 5, DIM)
        moved = steer(t, gain, transform) != t
        assert not moved[..., [j for j in range(DIM) if j != 3]].any()


def test_a_value_outside_a_support_is_given_back_to_the_bit() -> None:
    transform = dsas.LinearTransport.fit(torch.rand(12, DIM), torch.rand(12, DIM))
    assert isinstance(transform, AffineTransform)
    t = torch.randn(3, 5, DIM) + 9
    assert torch.equal(steer(t, torch.rand(3, 5, 1), transform), t)


def test_additions_add_scale_and_turn_round_exactly_and_stay_what_they_are() -> None:
    one, other = dsas.Addition(torch.tensor([1.0, 2.0])), dsas.ClassifierAddition(torch.tensor([0.5, -4.0]))
    for made, expected in (
        (one + other, [1.5, -2.0]), (2.0 * one, [2.0, 4.0]), (one * 0.5, [0.5, 1.0]), (-one, [-1.0, -2.0]),
    ):  # fmt: skip
        assert isinstance(made, dsas.Addition)
        assert made.vector.tolist() == expected
    assert isinstance(other + one, dsas.ClassifierAddition)
    with pytest.raises(OptionError, match=r"exact sum, got Addition \+ Ablation; .* with a \| b"):
        one + fitted("ablation")


def test_the_largest_number_is_no_end_of_a_support_after_storage_too(tmp_path: Path) -> None:
    from makers import random_steering

    from dsas.testing import tiny_model
    from dsas.testing.models import WIDTH

    model, t = tiny_model(), 1e20 * torch.ones(1, 1, WIDTH)
    transform = dsas.MeanTransport.fit(torch.zeros(4, WIDTH), torch.full((4, WIDTH), 1e20))
    random_steering(model, transform=transform).save_pretrained(tmp_path)
    again = dsas.Steering.from_pretrained(tmp_path).rules[0].transform
    assert torch.equal(again(t), 2 * t)
