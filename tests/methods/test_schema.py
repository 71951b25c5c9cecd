"""Stored arguments have the types that the constructors declare."""

from typing import Any, NamedTuple

import pytest
import torch

import dsas
from dsas.errors import ArtifactError
from dsas.methods.schema import check_arguments, check_fields, width_of


class Fields(NamedTuple):
    name: str
    share: float
    counts: dict[str, int]
    curve: tuple[tuple[float | None, ...], ...]
    more: Any


RIGHT: dict[str, Any] = {"name": "x", "share": 1, "counts": {"a": 2}, "curve": [[0.5, None]], "more": [{}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": True}, "it.share: expected float, got True"),
        ({"share": 10**30}, "it.share: expected float, got 1000"),
        ({"share": float("nan")}, "it.share: expected float, got nan"),
        ({"counts": {"a": 2.5}}, "it.counts: expected dict"),
        ({"counts": {"a": 10**30}}, "it.counts: expected dict"),
        ({"curve": [["x"]]}, "it.curve: expected tuple"),
        ({"name": None}, "it.name: expected str, got None"),
        ({"other": 1}, "it lacks or misnames a field: 'other'"),
    ],
)
def test_a_field_of_another_type_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    check_fields(Fields, RIGHT, "it")
    with pytest.raises(ArtifactError, match=message):
        check_fields(Fields, RIGHT | change, "it")


def test_tensors_are_float32_of_the_shape_that_the_constructor_says_and_of_one_width() -> None:
    sizes: dict[str, int] = {}
    check_arguments(dsas.Addition, {"vector": torch.ones(4)}, sizes)
    check_arguments(dsas.Logistic, {"theta": torch.ones(4), "bias": torch.tensor(0.0)}, sizes)
    for theta, bias, message in (
        (torch.ones(5), torch.tensor(0.0), r"theta: expected shape dim=4, got \(5,\)"),
        (torch.ones(4), torch.ones(1), r"bias: expected shape scalar, got \(1,\)"),
        (torch.ones(4).half(), torch.tensor(0.0), "theta: expected a float32 tensor .* got torch.float16"),
        (0.5, torch.tensor(0.0), "theta: expected a float32 tensor .* got 0.5"),
    ):
        with pytest.raises(ArtifactError, match=message):
            check_arguments(dsas.Logistic, {"theta": theta, "bias": bias}, sizes)


def test_the_width_of_a_rule_is_that_of_the_first_vector_in_it() -> None:
    product = dsas.Product([dsas.Schedule(), dsas.Logistic(torch.ones(7), torch.tensor(0.0))])
    assert width_of(dsas.Custom(lambda t: t), product) == 7
    assert width_of(dsas.Custom(lambda t: t), dsas.Constant()) is None
