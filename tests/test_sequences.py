"""State follows the sequence: however a row is run, it is steered as when it is run alone from its beginning."""

from contextlib import suppress
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from reference import Numbers, plain_activations, reference, similarity
from torch import Tensor
from ways_of_running import STRENGTH, WAYS, Row, Use, words

import dsas
from dsas.model.identity import ModelIdentity

METHODS = ("logistic", "cast", "generated", "mera", "constant", "evidence", "fading", "clean", "held")
SUMS = ("evidence", "fading", "held")
REFUSED = {("continuous_batching_over_a_shared_prefix", method) for method in ("cast", *SUMS)}
CELLS = [cell for cell in product(WAYS, METHODS) if cell not in REFUSED]
CLOSE = 1e-4


def sites_of(model: Any) -> list[dsas.Site]:
    """Return what every layer gives; of RWKV there is no shorthand."""
    return dsas.find_sites(model, "rwkv.blocks.*" if model.config.model_type == "rwkv" else "residual")


@cache
def numbers_of(model: Any, method: str) -> list[Numbers]:
    """Return what to do at every layer: seeded, and scaled so that on an unsteered text of this model values vary."""
    generator = torch.Generator().manual_seed(METHODS.index(method))
    paths, found = [site.path for site in sites_of(model)], []
    for path, t in zip(paths, plain_activations(model, paths, torch.tensor(words(0, 24))), strict=True):
        vector, theta = torch.randn(2, t.shape[1], generator=generator, dtype=torch.float64)
        scale = {"logistic": 2.0, "clean": 2.0, "evidence": 4.0, "fading": 4.0, "held": 4.0}.get(method, 0.5)
        theta = scale * theta / (t @ theta).std()
        means = torch.stack([t[start:end].mean(0) for start in range(1, 16, 3) for end in range(start + 1, start + 8)])
        found.append(
            Numbers(
                path,
                method,
                STRENGTH,
                0.3 * t.std() * vector,
                theta,
                bias=-float((t @ theta).mean()),
                threshold=0.1 if method in SUMS else float(similarity(means, theta).median()),
                start=1,
                stop=5,
                spare_first=method == "constant",
            )
        )
    return found


def evidence(numbers: Numbers) -> tuple[Tensor, Tensor, Tensor]:
    """Return theta, bias and cut."""
    return numbers.theta, *(torch.tensor(x, dtype=torch.float64) for x in (numbers.bias, numbers.threshold))


@cache
def steering_of(model: Any, method: str) -> dsas.Steering:
    regulators = {
        "logistic": lambda n: dsas.Logistic(n.theta, torch.tensor(n.bias, dtype=torch.float64)),
        "clean": lambda n: dsas.Clean(dsas.Logistic(n.theta, torch.tensor(n.bias, dtype=torch.float64))),
        "cast": lambda n: dsas.Cast(n.theta, torch.tensor(n.threshold, dtype=torch.float64)),
        "generated": lambda n: dsas.Schedule("generated", n.start, n.stop),
        "mera": lambda n: dsas.Mera(n.theta, torch.tensor(n.bias, dtype=torch.float64)),
        "constant": lambda n: dsas.Constant(),
        "evidence": lambda n: dsas.Evidence(*evidence(n), prior=2.0, memory=1.0),
        "fading": lambda n: dsas.Evidence(*evidence(n), prior=2.0, memory=0.8, by_turn=True),
        "held": lambda n: dsas.Held(dsas.Evidence(*evidence(n), prior=2.0, memory=1.0)),
    }
    rules = [
        dsas.Rule(site, dsas.Addition(numbers.vector), regulators[method](numbers))
        for site, numbers in zip(sites_of(model), numbers_of(model, method), strict=True)
    ]
    return dsas.Steering(rules, ModelIdentity.of(model))


def recorded(row: Row) -> tuple[int, Tensor]:
    """Return at which token the record of a row begins, and its strengths (site, token)."""
    assert row.trace is not None
    assert row.trace.token_ids is not None
    numbers = range(len(row.trace.real)) if row.number is None else [row.number]
    for number in numbers:
        real = row.trace.real[number]
        ids = row.trace.token_ids[number, real]
        for start in range(row.start + 1):
            if start + len(ids) >= row.stop and torch.equal(ids, row.ids[start : start + len(ids)]):
                return start, row.trace.strengths[:, number, real]
    raise AssertionError(f"no record of tokens {row.start} to {row.stop} of {row.ids.tolist()}: {row.trace.token_ids}")


def use_of(method: str, used: list[Any]) -> Use:
    """Return what applies the steering by this method to a model, and keeps the model."""

    def use(model: Any, strength: Any = STRENGTH, **options: Any) -> dsas.Applied:
        used.append(model)
        return steering_of(model, method).apply(model, strength, skip_sinks=method == "constant", **options)

    return use


@pytest.mark.parametrize(("way", "method"), CELLS)
def test_a_row_is_steered_as_when_it_is_run_alone_from_its_beginning(way: str, method: str) -> None:
    used: list[Any] = []
    values, ends_matter = [], method not in ("cast", "generated")
    for row in WAYS[way](use_of(method, used)):
        numbers = [n._replace(strength=row.strength) for n in numbers_of(used[-1], method)] if row.strength else []
        expected = reference(used[-1], numbers, row.ids, row.prompts)
        endless = reference(used[-1], numbers, row.ids, [(0, len(row.ids))])
        assert expected.margin > 1e-5, "choose another seed: a decision of cast is too close to tell"
        ends_matter = ends_matter or not torch.equal(expected.strengths, endless.strengths)
        if row.trace is not None:
            start, strengths = recorded(row)
            wanted = expected.strengths[:, start : start + strengths.shape[1]]
            values.append(expected.strengths.flatten() / row.strength)
            torch.testing.assert_close(strengths.double(), wanted, rtol=0, atol=CLOSE)
        compare_answers(row, expected.logits)
    assert torch.cat(values).std() > 0.05, "choose another seed: nothing varies here, so nothing is tested"
    assert ends_matter, "choose another seed: nothing changes here where a prompt's end is missed"


def compare_answers(row: Row, logits: Tensor) -> None:
    """Require the probabilities of the reference, or, where only the tokens are known, the likeliest tokens."""
    answers = logits[row.first : row.first + len(row.logits)].log_softmax(-1)
    if row.logits.isnan().all():
        assert row.ids[row.first + 1 : row.first + 1 + len(answers)].tolist() == answers.argmax(-1).tolist()
    else:
        torch.testing.assert_close(row.logits.double().log_softmax(-1), answers, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("method", ["cast", "evidence"])
def test_a_prompt_that_another_request_has_begun_is_refused_to_what_carries_state_and_the_advice_given_then_works(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    used: list[Any] = []
    way, use = WAYS["continuous_batching_over_a_shared_prefix"], use_of(method, used)
    for row in way(use, allow_block_sharing=False):
        compare_answers(row, reference(used[-1], numbers_of(used[-1], method), row.ids, row.prompts).logits)
    assert "StateError" not in caplog.text
    with suppress(dsas.StateError):  # generate_batch() runs the model in a thread of its own, and logs what it raises
        list(way(use))
    assert "allow_block_sharing=False" in caplog.text
