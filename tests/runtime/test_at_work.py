"""What steers a model, found on the model itself."""

import gc
import weakref

import pytest
import torch
from makers import logits_of, random_steering

import dsas
from dsas.testing import tiny_model


def test_what_was_installed_is_listed_and_taken_off_though_its_handle_was_lost() -> None:
    model, ids = tiny_model("llama", layers=2), torch.tensor([[1, 2, 3]])
    plain, first, second = logits_of(model, ids), random_steering(model, seed=1), random_steering(model, seed=2)
    assert dsas.installed(model) == []
    kept = first.apply(model, 0.1).install()
    second.apply(model, 0.2).install()
    (one, other) = dsas.installed(model)
    assert one is kept
    assert float(other.strength) == float(torch.tensor(0.2))
    assert dsas.remove_all(model) == 2
    assert dsas.installed(model) == []
    assert torch.equal(logits_of(model, ids), plain)


def test_inside_unsteered_nothing_acts_and_afterwards_each_acts_as_before_unless_it_was_taken_off() -> None:
    model, ids = tiny_model("llama", layers=2), torch.tensor([[1, 2, 3], [4, 5, 6]])
    plain, first, second = logits_of(model, ids), random_steering(model, seed=1), random_steering(model, seed=2)
    kept, gone = first.apply(model, [0.5, 0.0]).install(), second.apply(model, 0.7).install()
    both = logits_of(model, ids)
    assert not torch.equal(both, plain)
    with dsas.unsteered(model):
        assert torch.equal(logits_of(model, ids), plain)
    with pytest.raises(IndexError), dsas.unsteered(model):
        [].pop()
    assert torch.equal(logits_of(model, ids), both)
    with dsas.unsteered(model):
        gone.remove()
    assert dsas.installed(model) == [kept]
    alone = logits_of(model, ids)
    assert torch.equal(alone[1], plain[1])
    assert not torch.equal(alone[0], plain[0])
    kept.remove()
    with dsas.unsteered(model), first.apply(model, [0.5, 0.0]):
        assert torch.equal(logits_of(model, ids), alone)


def test_a_steering_keeps_no_model_alive_after_its_block() -> None:
    model = tiny_model("llama", layers=1)
    steering = random_steering(model)
    with steering.apply(model, 0.1):
        logits_of(model, torch.tensor([[1, 2, 3]]))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
