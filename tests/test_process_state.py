"""Law 10: every public verb leaves the caller's process, model and tokenizer as they were."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dsas
from dsas.fitting.text_checks import inspect_texts, separability
from dsas.model.evaluation_mode import evaluation_mode
from dsas.model.identity import fingerprint
from dsas.sweep.jobs import PACKAGED, Part, Setup
from dsas.sweep.run import Grid, Series, run_sweep

RUDE, PLAIN, KIND = (
    [f"w{i} w{i + 1} w{j}" for i in range(start, start + 10)] for start, j in ((20, 3), (40, 5), (60, 7))
)
THREADS = 3  # none of the numbers that anything here would choose


class Even:
    """A scorer that finds every text with an even number of letters toxic."""

    name = "even"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([float(len(text) % 2 == 0) for text in texts])


class Case:
    """A model, its tokenizer and a Steering for it, with a folder to write to."""

    def __init__(self, model: Any, tokenizer: Any, folder: Path) -> None:
        self.model, self.tokenizer, self.folder = model, tokenizer, folder
        self.steering = self.fitted()

    def fitted(self, **options: Any) -> dsas.Steering:
        sets = {"source": RUDE, "control": PLAIN, "target": KIND}
        return dsas.fit(
            self.model, self.tokenizer, **sets, sites="residual", selection="all", progress=False, **options
        )

    def setup(self) -> Setup:
        self.model.save_pretrained(self.folder / "model")
        self.tokenizer.save_pretrained(self.folder / "model")
        parts = {name: Part({"plain": tuple(PLAIN[:2])}) for name in ("tune", "report")}
        return Setup(
            str(self.folder / "model"), fingerprint(self.model), ("w3", "w4 w5"), parts, scorers=("even",),
            judge=str(self.folder / "model"), device="cpu",
        )  # fmt: skip


def fit(case: Case) -> None:
    case.fitted(regulator="logistic", checkpoint=case.folder / "collected")


def fit_incrementally(case: Case) -> None:
    case.fitted(reading=dsas.Reading(incremental=True))


def apply(case: Case) -> None:
    with evaluation_mode(case.model), case.steering.apply(case.model, 0.5) as applied:  # dropout would draw numbers
        case.model.generate(torch.tensor([[3, 4]]), max_new_tokens=3, do_sample=False, pad_token_id=0)
    applied.trace()


def train(case: Case) -> None:
    dsas.train(
        case.model, case.tokenizer, source=RUDE, control=PLAIN, target=KIND, steps=2,
        running=dsas.Running(progress=False), checkpoint=case.folder / "trained",
    )  # fmt: skip


def calibrate(case: Case) -> None:
    dsas.calibrate(
        case.model,
        case.tokenizer,
        case.steering,
        tune=PLAIN[:4],
        held_out=KIND[:4],
        limit=0.01,
        budget=dsas.Budget("perplexity", 50.0),
        progress=False,
    )


def explain(case: Case) -> None:
    dsas.explain(case.model, case.tokenizer, case.steering, prompt="w3 w4", generate=3, next_tokens=2)


def inspect(case: Case) -> None:
    inspect_texts(RUDE, PLAIN, target=KIND)
    separability(case.model, case.tokenizer, source=RUDE, control=PLAIN, progress=False)


def sweep(case: Case) -> None:
    series = [Series("caa", case.steering, "caa", "logistic", (0.1,))]
    run_sweep(case.folder / "out", case.setup(), series, grid=Grid((0,), limit=50.0), progress=False)


VERBS: list[Callable[[Case], None]] = [
    fit, fit_incrementally, apply, train, calibrate, explain, inspect, sweep,
]  # fmt: skip


def state(case: Case) -> dict[str, Any]:
    """Return everything that is the caller's and no verb may change.

    Python's own random numbers are not in it: the run-time type checks of the tests draw some. dsas draws none.
    """
    parameters = dict(case.model.named_parameters())
    return {
        "threads": torch.get_num_threads(),
        "torch's random numbers": torch.get_rng_state().tolist(),
        "numpy's random numbers": repr(np.random.get_state()),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "modes": {name: module.training for name, module in case.model.named_modules()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in parameters.items()},
        "grads": {name: parameter.grad for name, parameter in parameters.items()},
        "weights": {name: parameter.detach().clone().tolist() for name, parameter in parameters.items()},
        "hooks": {name: len(module._forward_hooks) for name, module in case.model.named_modules()},
        "generation": case.model.generation_config.to_dict(),
        "padding": (case.tokenizer.padding_side, case.tokenizer.pad_token, case.tokenizer.truncation_side),
    }


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(PACKAGED, "even", Even)
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
@pytest.mark.filterwarnings("ignore:every strength up to the limit")
@pytest.mark.usefixtures("threads")
def test_a_verb_leaves_process_model_and_tokenizer_as_they_were(verb, training, llama, tokenizer, tmp_path) -> None:
    case = Case(llama.train(training), tokenizer, tmp_path)
    frozen = next(iter(llama.parameters()))
    frozen.requires_grad_(False)
    before = state(case)
    verb(case)
    after = state(case)
    assert {name for name, value in before.items() if after[name] != value} == set()
