"""Incremental fitting: sites are visited as the model runs them, and what was read goes with its own text."""

from typing import Any

import pytest
import torch
from torch import Tensor

import dsas
from dsas.errors import DsasWarning
from dsas.fitting.incremental import PausedPasses
from dsas.model.subject import subject_of
from dsas.testing import tiny_model, tiny_tokenizer

# A llama block runs self_attn, post_attention_layernorm, mlp, and registers the norm last.
SITES = ["attention", "norm", "mlp"]
SHORT, LONG = [f"NO {n}" for n in range(4)], [f"there is nobody at the door {n}" for n in range(4)]
MIXED = {"source": [SHORT[0], LONG[0], SHORT[1], LONG[1]], "control": [LONG[2], SHORT[2], LONG[3], SHORT[3]]}
TARGET = [f"thank you {n}" for n in range(4)]
AT_ONCE = dsas.Reading()


class Kept(dsas.Transform):
    """Keeps what it was fitted on, and moves every token to the target's mean."""

    def __init__(self, source: Tensor, target: Tensor) -> None:
        super().__init__()
        self.keep(source=source, target=target)

    @classmethod
    def fit(cls, source: Tensor, target: Tensor) -> "Kept":
        return cls(source, target)

    def edit(self, t: Tensor) -> Tensor:
        return self.target.mean(0) - t.float()


def fitted(model: Any, reading: dsas.Reading = AT_ONCE, **options: Any) -> dsas.Steering:
    options = {"sites": SITES, "transform": Kept.fit, "regulator": "constant", "selection": "all", **options}
    return dsas.fit(model, tiny_tokenizer(), **MIXED, target=TARGET, progress=False, reading=reading, **options)


def both(model: Any, reading: dsas.Reading = AT_ONCE, **options: Any) -> list[dict[str, Tensor]]:
    """Return what each site was fitted on, at once and one site after another."""
    return [sources(fitted(model, reading._replace(incremental=one), **options)) for one in (False, True)]


def sources(steering: dsas.Steering) -> dict[str, Tensor]:
    return {rule.site.path.removeprefix("model.layers."): rule.transform.source for rule in steering.rules}


def test_sites_are_held_up_in_the_order_in_which_the_model_runs_them() -> None:
    model = tiny_model(layers=2)
    found, ran = dsas.find_sites(model, SITES), []
    handles = [
        model.get_submodule(site.path).register_forward_hook(lambda *_, path=site.path: ran.append(path))
        for site in found
    ]
    subject = subject_of(model, tiny_tokenizer())
    examples = subject.examples(dsas.Reading())
    batches = examples.batches(SHORT, range(len(SHORT)), 16)
    with torch.no_grad():
        examples.run(batches[0])
    for handle in handles:
        handle.remove()
    with PausedPasses(subject, examples, batches, found) as passes:
        held = [one.site.path for one in passes]
    assert held == ran
    assert held != [site.path for site in found]


def test_the_rules_come_back_in_the_order_of_the_sites_whatever_the_order_in_which_the_model_runs_them() -> None:
    model = tiny_model(layers=2)
    for incremental in (False, True):
        steering = fitted(model, dsas.Reading(incremental=incremental))
        assert [rule.site for rule in steering.rules] == dsas.find_sites(model, SITES)


def test_each_site_is_fitted_with_those_before_it_in_the_model_steered_and_those_after_it_not() -> None:
    model = tiny_model(layers=1)
    plain, found = both(model)
    torch.testing.assert_close(found["0.self_attn"], plain["0.self_attn"], rtol=1e-4, atol=1e-4)
    first = fitted(model, sites="attention")
    with first.apply(model), pytest.warns(DsasWarning, match="a Steering is applied to this model at 2 modules"):
        after = sources(fitted(model, sites="norm"))["0.post_attention_layernorm"]
    torch.testing.assert_close(found["0.post_attention_layernorm"], after, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(after, plain["0.post_attention_layernorm"], rtol=1e-2, atol=1e-2)


def test_what_was_read_of_texts_of_all_lengths_goes_with_its_own_text() -> None:
    """Batches are made of texts of like length, so they are not in the order of the sets."""
    model = tiny_model(layers=1)
    plain, found = both(model, dsas.Reading(batch_size=3), sites="model.layers.0")
    torch.testing.assert_close(found["0"], plain["0"], rtol=1e-4, atol=1e-4)


def test_how_texts_are_read_is_the_same_one_site_after_another_as_at_once() -> None:
    model = tiny_model(layers=1)
    seen = []
    for reading in (dsas.Reading(), dsas.Reading(skip_sinks=False), dsas.Reading("last")):
        plain, found = both(model, reading, sites="model.layers.0")
        torch.testing.assert_close(found["0"], plain["0"], rtol=1e-4, atol=1e-4)
        seen.append(found["0"])
    assert all(not torch.allclose(seen[0], other, atol=1e-2) for other in seen[1:])
