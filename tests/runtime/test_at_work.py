"""What steers a model, found on the model itself."""

import gc
import weakref

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


def test_a_steering_keeps_no_model_alive_after_its_block() -> None:
    model = tiny_model("llama", layers=1)
    steering = random_steering(model)
    with steering.apply(model, 0.1):
        logits_of(model, torch.tensor([[1, 2, 3]]))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
