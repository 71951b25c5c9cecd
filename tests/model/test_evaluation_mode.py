"""Evaluation mode: blocks that overlap, and modules that were in it before."""

from contextlib import ExitStack

from torch import nn

from dsas.model.evaluation_mode import evaluation_mode


def test_of_overlapping_blocks_the_last_one_gives_each_module_its_own_mode_back() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2))
    model[1].eval()
    first, second = ExitStack(), ExitStack()
    first.enter_context(evaluation_mode(model))
    second.enter_context(evaluation_mode(model))
    assert [module.training for module in model.modules()] == [False] * 3
    first.close()
    assert [module.training for module in model.modules()] == [False] * 3
    second.close()
    assert [module.training for module in model.modules()] == [True, True, False]
