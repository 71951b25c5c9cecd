"""Several Steerings that add at one site: as one after another, at the cost of two products, however many there are."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from makers import hooks_on, logits_of, random_steering
from test_edit import Watch
from torch import Tensor, nn

import dsas
from dsas.runtime.adding import FEW, Part, added_up
from dsas.runtime.edit import Fused, edit_with, shortened, way_of
from dsas.testing import tiny_model
from dsas.testing.models import WIDTH

IDS = torch.arange(24).view(2, 12) + 60
STRENGTHS = (0.5, -0.3, 0.8, 0.2)
Hook = Callable[[nn.Module, Any, Any], Any]


def logistic(seed: int) -> dsas.Regulator:
    generator = torch.Generator().manual_seed(seed)
    return dsas.Logistic(torch.randn(WIDTH, generator=generator) / 4, torch.randn((), generator=generator))


KINDS: dict[str, list[dsas.Regulator]] = {
    "logistic": [logistic(number) for number in range(4)],
    "constant": [dsas.Constant(0.3 * number) for number in range(1, 5)],
    "mixed": [logistic(0), dsas.Constant(0.7), logistic(1), dsas.Constant()],
    "saturated": [dsas.Logistic(torch.zeros(WIDTH), torch.tensor(bias)) for bias in (-9e9, 9e9, -800.0, 0.0)],
}


def ways_of(regulators: list[dsas.Regulator]) -> list[Any]:
    torch.manual_seed(0)
    return [
        way_of(dsas.Addition(torch.randn(WIDTH)), regulator, torch.tensor(strength), skip_sinks=False, detail=False)
        for regulator, strength in zip(regulators, STRENGTHS, strict=True)
    ]


def hook_of(
    ways: list[Any],
    gains: dict[int, tuple[float, Tensor | None]],
    always: list[bool],
    acts: list[bool] | None = None,
) -> Hook:
    """Return the joint hook of these ways, which writes down what each records; acts: of those that do not always."""
    acting = acts or always
    hooks, parts = [], []
    for number in range(len(ways)):

        def change(t: Any, number: int = number) -> Any:
            gains.pop(number, None)
            return edit_with(ways[number], t, None).t if acting[number] else None

        def record(factor: float, gain: Tensor | None, number: int = number) -> None:
            gains[number] = factor, gain

        part = Part(ways, number, record, () if always[number] else (1,), lambda number=number: acting[number])
        parts.append(part)
        hooks.append(shortened(*part, change, lambda: None))
    return added_up(hooks, parts)


def one_after_another(ways: list[Any], t: Tensor) -> tuple[Tensor, list[Tensor]]:
    applied = []
    for way in ways:
        edited = edit_with(way, t, None)
        applied.append(way.applied(t, edited))
        t = edited.t
    return t, applied


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (FEW, 1), (2, FEW), (1, 3 * FEW)], ids=str)
def test_together_they_do_and_record_what_they_do_one_after_another(shape: Any, dtype: Any, kind: str) -> None:
    ways, gains = ways_of(KINDS[kind]), dict[int, Any]()
    t = torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    before = t.clone()
    hook = hook_of(ways, gains, [True] * 4)
    hook(nn.Identity(), (), t)
    with Watch() as watch:
        steered = hook(nn.Identity(), (), t)
    assert len(watch.seen) <= 2 * len(ways) + 4  # products, and a recursion where there are many tokens
    exact = [way.addition.to(t.device, torch.promote_types(dtype, torch.float32)) for way in ways]
    expected, applied = one_after_another(ways, t.to(exact[0].offset.dtype))
    rounding = 2**-8 if dtype == torch.bfloat16 else 1e-5  # rounded once
    torch.testing.assert_close(steered, expected.to(dtype), rtol=rounding, atol=1e-5)
    assert torch.equal(t, before)
    for number, one in enumerate(applied):
        factor, gain = gains[number]
        found = factor * torch.ones_like(one) if gain is None else factor * gain
        torch.testing.assert_close(found, one, check_dtype=False, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "tokens", "dtype", "expected"),
    [
        ("logistic", 1, torch.float32, ["baddbmm", "baddbmm"]),
        ("logistic", 1, torch.bfloat16, ["_to_copy", "baddbmm", "baddbmm", "_to_copy"]),
        ("constant", 1, torch.float32, ["add"]),
        ("constant", 99, torch.float32, ["add"]),
        ("logistic", 99, torch.float32, ["addmm", *["sigmoid_", "addmv_"] * 3, "sigmoid_", "baddbmm"]),
    ],
)
def test_the_activation_is_read_and_written_once_however_many_add(
    kind: str, tokens: int, dtype: Any, expected: list[str]
) -> None:
    hook, t = hook_of(ways_of(KINDS[kind]), {}, [True] * 4), torch.randn(1, tokens, WIDTH, dtype=dtype)
    hook(nn.Identity(), (), t)
    with Watch() as watch:
        hook(nn.Identity(), (), t)
    assert [name for name in watch.seen if name not in ("detach", "lift_fresh")] == expected


def test_what_they_do_not_add_up_goes_through_each_and_so_does_a_pass_that_one_does_not_steer() -> None:
    ways, acts, t = ways_of(KINDS["logistic"]), [True, True, True, True], torch.randn(1, 1, WIDTH)
    hook, module = hook_of(ways, {}, [True, False, True, True], acts), nn.Identity()
    hook(module, (), t)
    acts[1] = False
    without = [way for number, way in enumerate(ways) if number != 1]
    torch.testing.assert_close(hook(module, (), t), one_after_another(without, t)[0])
    acts[1] = True
    every = one_after_another(ways, t)[0]
    torch.testing.assert_close(hook(module, (), t), every)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(hook(module, (), t), every)
    given = t.clone().requires_grad_()
    hook(module, (), given).sum().backward()
    assert given.grad is not None
    (expected,) = torch.autograd.grad(one_after_another(ways, given)[0].sum(), given)
    torch.testing.assert_close(given.grad, expected)
    ways[2] = way_of(
        dsas.Lineas(torch.full((WIDTH,), 1.5), torch.ones(WIDTH)),
        logistic(3),
        torch.tensor(0.5),
        skip_sinks=False,
        detail=False,
    )
    for _ in range(2):
        torch.testing.assert_close(hook(module, (), t), one_after_another(ways, t)[0])


def steered(model: Any, *pairs: tuple[dsas.Steering, Any], one_by_one: bool = False) -> Tensor:
    """Return the logits under some Steerings, each kept from joining the one before where asked."""
    applied = [steering.apply(model, strength, record=False) for steering, strength in pairs]
    for one in applied:
        one.install()
        if one_by_one:
            for rule in one.rules:
                one._hooks.on_output(model.get_submodule(rule.site.path), lambda *_: None)
    try:
        return [logits_of(model, IDS) for _ in range(2)][-1]
    finally:
        for one in reversed(applied):
            one.remove()


def test_they_come_and_go_in_any_order_and_at_other_strengths_and_the_rest_goes_on() -> None:
    model = tiny_model("llama", layers=2)
    plain = logits_of(model, IDS)
    first, second, third, rotation = (random_steering(model, seed=seed) for seed in range(4))
    rotation = dsas.Steering(
        [rule._replace(regulator=dsas.Evidence(torch.ones(WIDTH), torch.tensor(0.1), torch.tensor(0.2)))
         for rule in rotation.rules],
        rotation.model,
    )  # fmt: skip

    def same(*pairs: tuple[dsas.Steering, Any]) -> None:
        expected = steered(tiny_model("llama", layers=2), *pairs, one_by_one=True)
        torch.testing.assert_close([logits_of(model, IDS) for _ in range(2)][-1], expected, rtol=1e-4, atol=1e-5)

    one, two = first.apply(model, 0.1).install(), second.apply(model, 0.2).install()
    with rotation.apply(model, 0.3), third.apply(model, 0.2):
        same((first, 0.1), (second, 0.2), (rotation, 0.3), (third, 0.2))
        assert len(dsas.installed(model)) == 4
        one.strength = [0.3, 0.1]
        same((first, [0.3, 0.1]), (second, 0.2), (rotation, 0.3), (third, 0.2))
        one.strength = 0.0
        same((second, 0.2), (rotation, 0.3), (third, 0.2))
        one.strength = 0.1
    same((first, 0.1), (second, 0.2))
    one.remove()
    assert dsas.installed(model) == [two]
    same((second, 0.2))
    two.remove()
    assert torch.equal(logits_of(model, IDS), plain)
    assert hooks_on(model) == 0


def test_each_has_its_own_trace_and_a_copy_of_the_model_is_plain() -> None:
    model = tiny_model("llama", layers=2)
    plain = logits_of(model, IDS)
    pairs = [(random_steering(model, seed=seed), 0.2 + 0.1 * seed) for seed in range(3)]
    with pairs[0][0].apply(model, 0.2) as one, pairs[1][0].apply(model, 0.3) as two:
        logits_of(model, IDS)
        expected = [applied.trace().strengths for applied in (one, two)]
        logits_of(model, IDS)  # added up
        for applied, before in zip((one, two), expected, strict=True):
            torch.testing.assert_close(applied.trace().strengths, before, rtol=1e-4, atol=1e-6)
            assert {site.status for site in applied.report()} == {"steered"}
        assert torch.equal(logits_of(copy.deepcopy(model), IDS), plain)


@pytest.mark.compile
def test_compiled_code_of_two_is_steered_by_both_and_then_by_the_one_that_is_left() -> None:
    torch.compiler.reset()
    model = tiny_model("llama", layers=2)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    first, second = random_steering(model, seed=0), random_steering(model, seed=1)
    for _ in range(2):
        with first.apply(model, 0.2, record=False):
            alone = logits_of(model, IDS)
            torch.testing.assert_close(logits_of(compiled, IDS), alone)
            with second.apply(model, 0.3, record=False) as applied:
                torch.testing.assert_close(logits_of(compiled, IDS), logits_of(model, IDS))
                applied.strength = 0.1
                torch.testing.assert_close(logits_of(compiled, IDS), logits_of(model, IDS))
            torch.testing.assert_close(logits_of(compiled, IDS), alone)


def test_a_way_that_adds_says_so() -> None:
    (way, *_), rows = ways_of(KINDS["logistic"]), torch.tensor([0.1, 0.2])
    by_row = way_of(dsas.Addition(torch.ones(WIDTH)), logistic(0), rows, skip_sinks=False, detail=False)
    assert isinstance(by_row, Fused)
    assert way.addition is not None
    assert by_row.addition is None
