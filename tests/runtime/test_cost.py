"""What a site costs in a pass of one token, counted and not timed: launches, bytes made, and calls of dsas.

Counted is the difference that two more layers make, so what the model does and what a pass takes is not in it.
"""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from makers import random_steering
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

import dsas
from dsas.testing import tiny_model
from dsas.testing.models import WIDTH

ROWS, PROMPT = 3, 6
IDS = torch.randint(1, 250, (ROWS, PROMPT + 4), generator=torch.Generator().manual_seed(0))
FLOAT = 4
SOURCE = str(Path(dsas.__file__).parent)


class Cost(NamedTuple):
    """launches: operators other than views. bytes: of the tensors that they made. calls: of functions of dsas."""

    launches: int
    bytes: int
    calls: int


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.launches, self.bytes = 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.__name__.split(".")[0]
        if not (function.is_view or "view" in name or name in ("detach", "lift_fresh")):
            self.launches += 1
            self.bytes += result.nbytes if isinstance(result, Tensor) and not name.endswith("_") else 0
        return result


def cost_of_pass(layers: int, steerings: list[Any], strength: Any, dtype: torch.dtype, record: bool) -> Cost:
    """Return what one token costs under some Steerings, in a pass by which every hook is what it will be."""
    model = tiny_model("llama", layers=layers).to(dtype)
    ids, cache, calls = IDS[: len(strength) if isinstance(strength, list) else 1], DynamicCache(), [0]

    def step(*places: int) -> None:
        model(input_ids=ids[:, slice(*places)], past_key_values=cache)

    def count(frame: Any, event: str, _argument: Any) -> None:
        calls[0] += event == "call" and frame.f_code.co_filename.startswith(SOURCE)

    with torch.no_grad(), ExitStack() as stack:
        for regulator in steerings:
            stack.enter_context(random_steering(model, regulator=regulator).apply(model, strength, record=record))
        step(0, PROMPT)
        for place in range(2):
            step(PROMPT + place, PROMPT + place + 1)
        with Counting() as counting:
            step(PROMPT + 2, PROMPT + 3)
        before = sys.getprofile()
        sys.setprofile(count)
        step(PROMPT + 3, PROMPT + 4)
        sys.setprofile(before)
    return Cost(counting.launches, counting.bytes, calls[0])


def cost_of_site(
    steerings: list[Any], *, strength: Any = 0.5, dtype: torch.dtype = torch.float32, record: bool = False
) -> Cost:
    """Return what a site costs, in whole numbers."""
    found = [[cost_of_pass(layers, kinds, strength, dtype, record) for layers in (2, 4)] for kinds in (steerings, [])]
    (few, many), (few_alone, many_alone) = found
    return Cost(*[(b - a - (d - c)) // 2 for a, b, c, d in zip(few, many, few_alone, many_alone, strict=True)])


EVIDENCE = dsas.Evidence(0.1 * torch.ones(WIDTH), torch.tensor(0.2), torch.tensor(0.1))
ACTIVATION = WIDTH * FLOAT
SUMS = 5  # numbers that a pass works out for every site that adds evidence up


@pytest.mark.parametrize(
    ("steerings", "options", "expected"),
    [
        ([dsas.Constant()], {}, Cost(1, ACTIVATION, 2)),
        ([None], {}, Cost(3, FLOAT + ACTIVATION, 2)),
        ([EVIDENCE], {}, Cost(3, (1 + SUMS) * FLOAT + ACTIVATION, 6)),
        ([None], {"record": True}, Cost(3, FLOAT + ACTIVATION, 3)),
        ([None], {"dtype": torch.bfloat16}, Cost(5, FLOAT + ACTIVATION * 5 // 2, 3)),
        ([None], {"strength": [0.5, 0.2, 0.1]}, Cost(4, ROWS * (2 * FLOAT + ACTIVATION), 5)),
        ([None] * 8, {}, Cost(2, 8 * FLOAT + ACTIVATION, 8)),
        ([dsas.Constant()] * 8, {}, Cost(1, ACTIVATION, 4)),
    ],
    ids=["constant", "logistic", "evidence", "recorded", "bfloat16", "a strength per row", "8 logistic", "8 constant"],
)
def test_a_site_costs_so_much_for_one_token_and_no_more(
    steerings: list[Any], options: dict[str, Any], expected: Cost
) -> None:
    found = cost_of_site(steerings, **options)
    assert found[:2] == expected[:2]
    assert found.calls <= expected.calls
