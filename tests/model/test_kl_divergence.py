import math

import pytest
import torch

from dsas.model.kl_divergence import kl_divergence


def test_it_is_that_of_the_definition_and_one_row_per_token() -> None:
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.25, 0.75], [0.9, 0.1]])
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    torch.testing.assert_close(kl_divergence(p.log(), q.log()), torch.tensor([expected, 0.0]))


def test_tokens_of_probability_0_add_nothing_whether_masked_before_or_in_both() -> None:
    before, after = torch.tensor([0.0, 1.0, -math.inf]), torch.tensor([1.0, 0.0, -math.inf])
    assert kl_divergence(before, after).item() == pytest.approx(kl_divergence(before[:2], after[:2]).item())
    freed = torch.tensor([1.0, 0.0, -3.0])
    p, q = before[:2].softmax(-1), freed.softmax(-1)[:2]
    assert kl_divergence(before, freed).item() == pytest.approx((p * (p / q).log()).sum().item())


def test_a_token_that_only_the_second_forbids_makes_it_infinite_unless_float32_holds_no_such_probability() -> None:
    assert kl_divergence(torch.tensor([0.0, 0.0]), torch.tensor([0.0, -math.inf])).item() == math.inf
    assert kl_divergence(torch.tensor([0.0, -200.0]), torch.tensor([0.0, -math.inf])).item() == 0.0


def test_gradients_through_masked_tokens_are_numbers() -> None:
    before = torch.tensor([0.0, 1.0, -math.inf])
    after = torch.tensor([1.0, 0.0, -math.inf], requires_grad=True)
    kl_divergence(before, after).backward()
    assert after.grad is not None
    expected = after.detach().softmax(-1) - before.softmax(-1)
    torch.testing.assert_close(after.grad, expected)


def test_half_precision_is_computed_in_float32() -> None:
    logits = torch.randn(2, 50).bfloat16()
    assert kl_divergence(logits, logits + 1).dtype == torch.float32
