"""Editing: the fused form is used where it is valid, gives what the general form gives, and keeps little memory."""

import gc
import threading
from types import ModuleType
from typing import Any

import pytest
import torch
from makers import random_steering
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import dsas
from dsas.model.forward_pass import ForwardPass
from dsas.runtime.edit import Fused, General, edit_with, shortened, way_of
from dsas.testing import tiny_model
from dsas.testing.models import WIDTH

HOW = {
    "addition": dsas.Addition(torch.randn(WIDTH)),
    "affine": dsas.Lineas(1 + torch.randn(WIDTH), torch.randn(WIDTH)),
}
WHEN = {
    "constant": dsas.Constant(0.3),
    "logistic": dsas.Logistic(torch.randn(WIDTH) / 4, torch.tensor(0.2)),
}
STRENGTHS = {
    "one number": torch.tensor(0.7),
    "one per row": torch.tensor([0.5, 0.0, 2.0]),
    "alike": torch.tensor([0.7, 0.7, 0.7]),
    "one for all rows": torch.tensor([0.7]),
}


def fused_way(how: Any, when: Any, strengths: Tensor, **asked: bool) -> Fused | General:
    return way_of(how, when, strengths, **{"skip_sinks": False, "detail": False, **asked})


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_fused_way_gives_and_records_what_the_general_way_does(
    dtype: Any, how: str, when: str, strength: str
) -> None:
    t = torch.randn(6, 5, WIDTH, dtype=dtype)
    fused = fused_way(HOW[how], WHEN[when], STRENGTHS[strength])
    assert isinstance(fused, Fused)
    general = General(HOW[how], WHEN[when], STRENGTHS[strength], False)
    for _ in range(2):
        one, other = fused(t, None), general(t, None)
        assert one.t.dtype == dtype
        rounding = 2**-7 if dtype == torch.bfloat16 else 1e-5  # one of bfloat16; a few of float32, in which methods are
        torch.testing.assert_close(one.t, other.t, rtol=rounding, atol=1e-6)
        applied = fused.applied(t, one), general.applied(t, other)
        torch.testing.assert_close(*applied, check_dtype=False, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strengths", ["one per row", "alike"])
def test_a_batch_that_strengths_do_not_fit_is_refused_whichever_batch_came_before(strengths: str) -> None:
    way = fused_way(HOW["addition"], WHEN["logistic"], STRENGTHS[strengths])
    way(torch.randn(3, 1, WIDTH), None)
    with pytest.raises(dsas.DsasError, match="3 strengths were given but the batch has 4 rows"):
        way(torch.randn(4, 1, WIDTH), None)


class Override(dsas.Addition):
    def edit(self, t: Tensor) -> Tensor:
        return t.float()


def test_what_the_fused_way_does_not_know_goes_the_general_way() -> None:
    how, when, one = HOW["addition"], WHEN["logistic"], torch.tensor(0.5)
    assert isinstance(fused_way(how, when, one), Fused)
    ends = -torch.ones(WIDTH), torch.ones(WIDTH)
    bounded = dsas.LinearTransport(torch.ones(WIDTH), torch.ones(WIDTH), *ends)
    learned = dsas.Addition(torch.randn(WIDTH).requires_grad_())
    learned_when = dsas.Logistic(torch.randn(WIDTH).requires_grad_(), torch.tensor(0.0))
    plane = torch.ones(WIDTH), torch.tensor(0.0)
    for transform in (bounded, learned, Override(torch.ones(WIDTH)), dsas.Custom(lambda t: t)):
        assert isinstance(fused_way(transform, when, one), General)
    for regulator in (learned_when, dsas.Rectified(*plane), dsas.HalfSpace(*plane), dsas.Schedule("all")):
        assert isinstance(fused_way(how, regulator, one), General)
    assert isinstance(fused_way(how, when, one.clone().requires_grad_()), General)
    assert isinstance(fused_way(how, when, one, skip_sinks=True), General)
    assert isinstance(fused_way(how, when, one, detail=True), General)


class Watch(TorchDispatchMode):
    """Counts operators other than views."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not function.is_view and "view" not in function.__name__:
            self.seen.append(function.__name__.split(".")[0])
        return result


@pytest.mark.parametrize(
    ("how", "when", "dtype", "expected"),
    [
        ("addition", "logistic", torch.float32, ["baddbmm", "sigmoid_", "addcmul"]),
        ("affine", "logistic", torch.float32, ["baddbmm", "sigmoid_", "addcmul", "addcmul"]),
        ("addition", "logistic", torch.bfloat16, ["_to_copy", "baddbmm", "sigmoid_", "addcmul", "_to_copy"]),
        ("addition", "constant", torch.float32, ["add"]),
        ("affine", "constant", torch.float32, ["addcmul", "add"]),
    ],
)
def test_a_site_takes_so_many_launches_and_no_more(how: str, when: str, dtype: Any, expected: list[str]) -> None:
    way, t = fused_way(HOW[how], WHEN[when], torch.tensor(0.7)), torch.randn(1, 1, WIDTH, dtype=dtype)
    way(t, None)
    with Watch() as watch:
        edit_with(way, t, None)
    assert watch.seen == expected


def tensors_in(root: object) -> list[Tensor]:
    """Return the tensors that can be reached from an object, other than through modules and classes."""
    found, left, seen = list[Tensor](), [root], set[int]()
    while left:
        one = left.pop()
        if id(one) in seen or isinstance(one, (type, ModuleType)) or (isinstance(one, dict) and "__name__" in one):
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            found.append(one)
        else:
            left += gc.get_referents(one)
    return found


@pytest.mark.parametrize(("how", "kept"), [("addition", 1), ("affine", 2)])
def test_an_apply_keeps_at_most_two_new_vectors_a_site(how: str, kept: int) -> None:
    way = fused_way(HOW[how], WHEN["logistic"], torch.tensor(0.7))
    way(torch.randn(2, 3, WIDTH), None)
    assert isinstance(way, Fused)
    given = {value.data_ptr() for method in (HOW[how], WHEN["logistic"]) for value in method.buffers()}
    held = {value.data_ptr(): value.numel() for value in tensors_in(way)}
    assert held.keys() & given  # the regulator's own vector is held as it is
    assert sum(count for place, count in held.items() if place not in given) == kept * WIDTH


def test_threads_with_other_batches_take_nothing_from_each_other() -> None:
    way = fused_way(HOW["affine"], WHEN["logistic"], torch.tensor([0.5, 2.0]))
    wrong: list[int] = []

    def run(rows: int) -> None:
        t = torch.randn(rows, 2, WIDTH)
        expected = General(HOW["affine"], WHEN["logistic"], torch.tensor([0.5, 2.0]), False)(t, None).t
        for _ in range(100):
            if not torch.allclose(way(t, None).t, expected, atol=1e-4):
                wrong.append(rows)

    threads = [threading.Thread(target=run, args=(rows,)) for rows in (2, 4, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_autocast_does_not_reach_into_an_edit() -> None:
    way, t = fused_way(HOW["affine"], WHEN["logistic"], torch.tensor(0.7)), torch.randn(2, 3, WIDTH)
    expected = edit_with(way, t, None).t
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(edit_with(way, t, None).t, expected)


def test_gradients_pass_through_the_fused_way_to_the_activations() -> None:
    way, t = fused_way(HOW["affine"], WHEN["logistic"], torch.tensor([0.5, 2.0])), torch.randn(2, 3, WIDTH).double()
    assert torch.autograd.gradcheck(lambda x: way(x, None).t, t.requires_grad_())


@pytest.mark.compile
@pytest.mark.parametrize("strengths", [0.4, [0.4, 1.5]], ids=["one", "rows"])
@pytest.mark.parametrize("when", [None, dsas.Constant()], ids=["logistic", "constant"])
def test_a_steered_model_compiles_in_one_piece_and_does_the_same(strengths: Any, when: Any) -> None:
    model, ids = tiny_model("llama", layers=2), torch.arange(16).view(2, 8)
    steering = random_steering(model, regulator=when)
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad(), steering.apply(model, strengths, record=False):
        steered = model(ids, use_cache=False).logits
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, steered)


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_from_the_second_pass_on_a_hook_does_the_same_by_a_shorter_way(dtype: Any, how: str, when: str) -> None:
    way, t = fused_way(HOW[how], WHEN[when], torch.tensor(0.7)), torch.randn(2, 3, WIDTH, dtype=dtype)
    assert isinstance(way, Fused)
    long: list[Tensor] = []
    gains: list[tuple[float, Any]] = []

    def change(output: Tensor) -> Tensor:
        long.append(output)
        return edit_with(way, output, None).t

    hook = shortened([way], 0, lambda *gain: gains.append(gain), (), lambda: True, change, lambda: None)
    expected = hook(torch.nn.Identity(), (), t)
    assert (len(long), gains) == (1, [])
    torch.testing.assert_close(hook(torch.nn.Identity(), (), t), expected, rtol=0, atol=0)
    assert (len(long), len(gains)) == (1, 1)
    applied = way.applied(t, way(t, None))
    ((factor, gain),) = gains
    torch.testing.assert_close((1 if gain is None else gain) * factor * torch.ones_like(applied), applied)


def test_what_the_shorter_way_was_not_made_for_goes_the_long_way() -> None:
    way = fused_way(HOW["addition"], WHEN["logistic"], torch.tensor(0.7))
    assert isinstance(way, Fused)
    seen: list[Any] = []

    def change(output: Any) -> Any:
        seen.append(output)
        return output

    hook = shortened([way], 0, None, (), lambda: True, change, lambda: None)
    module, t = torch.nn.Identity(), torch.randn(2, 3, WIDTH)
    hook(module, (), (t,))  # no plain tensor: no shorter way is made of it
    hook(module, (), t)
    hook(module, (), t[:1])  # another batch is no other kind
    others = [(t,), t.bfloat16(), torch.nn.Parameter(t), t.to("meta"), t[0], t[None]]
    for other in others:
        hook(module, (), other)
    with torch.autocast("cpu", torch.bfloat16):
        hook(module, (), t)
    assert [id(given) for given in seen[2:]] == [*map(id, others), id(t)]


def test_a_trace_of_many_passes_is_that_of_one() -> None:
    model, ids = tiny_model(), torch.arange(3, 9)[None]
    for when in (None, dsas.Constant(0.3)):
        steering = random_steering(model)
        if when is not None:
            steering = dsas.Steering([rule._replace(regulator=when) for rule in steering.rules], steering.model)
        with steering.apply(model, 0.5) as applied, torch.no_grad():
            model(ids)
            expected = applied.trace().strengths
            cache = model(ids[:, :2], use_cache=True).past_key_values
            for place in range(2, 6):
                model(ids[:, place : place + 1], past_key_values=cache)
            torch.testing.assert_close(applied.trace().strengths, expected)


@pytest.mark.parametrize("strengths", ["one per row", "alike"])
@pytest.mark.parametrize("how", HOW)
def test_strengths_follow_the_rows_when_as_many_rows_are_next_another_number_of_copies(
    how: str, strengths: str
) -> None:
    """Two branches of guidance stack the user's rows twice; without guidance the same batch has them once."""
    given = STRENGTHS[strengths]
    way, general = (kind(HOW[how], WHEN["logistic"], given) for kind in (fused_way, general_way))
    assert isinstance(way, Fused)
    t, forward_pass = torch.randn(6, 2, WIDTH), ForwardPass(6, 2)
    for copies in (1, 2, 1):
        forward_pass.copies = copies
        torch.testing.assert_close(way(t, forward_pass).t, general(t, forward_pass).t, rtol=1e-5, atol=1e-5)
    forward_pass.copies = 2
    once = torch.cat([t[:1], t[:1], t[:1]]).repeat(2, 1, 1)
    moved = (way(once, forward_pass).t - once).norm(dim=(1, 2))
    torch.testing.assert_close(moved / moved[0], (given / given[0]).repeat(2))


def general_way(how: Any, when: Any, strengths: Tensor) -> General:
    return General(how, when, strengths, False)
