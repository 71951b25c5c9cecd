"""Marks on modules that were changed: they nest, are gone afterwards, and leave what others put there."""

import gc
import weakref
from functools import partial

from torch import nn

from dsas.model.compiled_code import has_own_forward, mark_changed, unmark


def test_marks_nest_in_any_order_and_leave_a_module_as_it_was() -> None:
    module = nn.Linear(2, 2)
    mark_changed(module, "first")
    mark_changed(module, "second")
    assert "forward" in vars(module)
    assert not has_own_forward(module)
    unmark(module, "first")
    assert "forward" in vars(module)
    for _ in range(2):
        unmark(module, "second")
        assert "forward" not in vars(module)


def test_a_forward_that_somebody_replaced_before_or_meanwhile_is_kept() -> None:
    module, theirs, later = nn.Linear(2, 2), partial(nn.Linear(2, 2).forward), partial(nn.Linear(2, 2).forward)
    module.forward = theirs
    mark_changed(module, "ours")
    assert vars(module)["forward"] is not theirs
    assert has_own_forward(module)
    unmark(module, "ours")
    assert vars(module)["forward"] is theirs
    mark_changed(module, "ours")
    module.forward = later
    unmark(module, "ours")
    assert vars(module)["forward"] is later


def test_a_mark_keeps_no_module_alive() -> None:
    module = nn.Linear(2, 2)
    mark_changed(module, "ours")
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None
