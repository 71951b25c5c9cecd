"""Process state: the verbs of dsas, each called once, and all that is the caller's and no verb may change.

python -m campaigns.process_state          (from tests/) prints by verb what it changed
"""

import contextlib
import gc
import locale
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers.utils import logging

import dsas
from dsas.cli import main
from dsas.evaluation.harness import steered_lm
from dsas.fitting.text_checks import inspect_texts, separability
from dsas.model.evaluation_mode import evaluation_mode
from dsas.model.identity import fingerprint
from dsas.reports.front import FrontPoint, front_figure, front_multiples
from dsas.sweep.jobs import PACKAGED, Part, Setup
from dsas.sweep.run import Grid, Series, run_sweep
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.views.pictures import grid_figure, png_of

RUDE, PLAIN, KIND = (
    [f"{word} {number} {word}" for number in range(start, start + 10)]
    for word, start in (("fool", 20), ("sun", 40), ("thanks", 60))
)


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
        tiny_tokenizer().save_pretrained(self.folder / "model")
        parts = {name: Part({"plain": tuple(PLAIN[:2])}) for name in ("tune", "report")}
        return Setup(
            str(self.folder / "model"), fingerprint(self.model), ("sun", "fool 4"), parts, scorers=("even",),
            judge=str(self.folder / "model"), device="cpu",
        )  # fmt: skip


def fit(case: Case) -> None:
    case.fitted(regulator="logistic", checkpoint=case.folder / "collected")


def fit_incrementally(case: Case) -> None:
    case.fitted(reading=dsas.Reading(incremental=True))


def apply(case: Case) -> None:
    with evaluation_mode(case.model), case.steering.apply(case.model, 0.5) as applied:  # dropout would draw numbers
        case.model.generate(torch.tensor([[63, 64]]), max_new_tokens=3, do_sample=False, pad_token_id=0)
    applied.trace()


def train(case: Case) -> None:
    dsas.train(
        case.model, case.tokenizer, source=RUDE, control=PLAIN, target=KIND, steps=2,
        running=dsas.Running(progress=False), checkpoint=case.folder / "trained",
    )  # fmt: skip


def adopt(case: Case) -> None:
    vectors = {1: torch.ones(case.model.config.hidden_size)}
    sets = {"source": RUDE, "control": PLAIN, "progress": False, "selection": "all"}
    dsas.adopt(vectors, case.model, case.tokenizer, **sets)
    constant = dsas.adopt(vectors, case.model, regulator="constant")
    with tempfile.TemporaryDirectory() as folder:
        dsas.write_gguf(constant, Path(folder) / "vector.gguf")
        dsas.read_vectors(Path(folder) / "vector.gguf")


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
    dsas.explain(case.model, case.tokenizer, case.steering, prompt="fool 4", generate=3, next_tokens=2)


def inspect_sets(case: Case) -> None:
    inspect_texts(RUDE, PLAIN, target=KIND)
    separability(case.model, case.tokenizer, source=RUDE, control=PLAIN, progress=False)


def fuse(case: Case) -> None:
    with evaluation_mode(case.model), case.fitted(regulator="constant").fuse(case.model, 0.5):
        case.model(torch.tensor([[63, 64]]))


def port(case: Case) -> None:
    case.steering.port(case.model, case.tokenizer, source=RUDE, control=PLAIN)


def store(case: Case) -> None:
    case.steering.save_pretrained(case.folder / "steering")
    dsas.Steering.from_pretrained(case.folder / "steering")


def load_model(case: Case) -> None:
    case.setup()
    dsas.load_model(str(case.folder / "model"), device="cpu")


def find(case: Case) -> None:
    dsas.find_sites(case.model, "residual")
    with case.steering.apply(case.model):
        with dsas.unsteered(case.model):
            dsas.installed(case.model)
        dsas.remove_all(case.model)


def general_texts(case: Case) -> None:
    with contextlib.suppress(dsas.TextsError):  # a random model may not say enough
        dsas.general_texts(case.model, case.tokenizer, 2, new_tokens=3, progress=False)


def draft(case: Case) -> None:
    questions = [f"Is it {number} in the {thing}?" for thing in ("sun", "rain", "snow") for number in range(2)]
    prompts = dsas.Prompts(["{question} Sing."], ["{question} Never sing."], template={})
    given = {"questions": questions, "prompts": prompts, "new_tokens": 3, "least": 4, "progress": False}
    with mock.patch.object(case.tokenizer, "chat_template", "{{ messages | map(attribute='content') | join('|') }}"):
        dsas.draft(case.model, case.tokenizer, "sings", **given)


def lm_eval(case: Case) -> None:
    from lm_eval.api.instance import Instance

    lm = steered_lm(case.model, case.tokenizer, case.steering, 0.5)
    lm.loglikelihood([Instance("loglikelihood", {}, ("sun", " 4"), 0)], disable_tqdm=True)
    lm.generate_until([Instance("generate_until", {}, ("sun", {"max_gen_toks": 2}), 0)], disable_tqdm=True)


def plot(case: Case) -> None:
    points = [FrontPoint("caa", strength, 1 + strength, 1.0, 1.5, 0.4, 0.3, 0.5) for strength in (0.1, 0.2)]
    front_figure(points, x_label="x", y_label="y")
    front_multiples({"one": points}, x_label="x", y_label="y")
    with evaluation_mode(case.model), case.steering.apply(case.model, 0.5) as applied:
        case.model(torch.tensor([[63, 64]]))
    applied.trace().plot()
    png_of(grid_figure([[np.zeros((2, 2, 3), np.float32)]], rows=["a"], columns=["b"]))


def command_line(case: Case) -> None:
    case.steering.save_pretrained(case.folder / "steering")
    for command in (["info", str(case.folder / "steering")], ["info", str(case.folder / "nothing")]):
        with (
            mock.patch.object(sys, "argv", ["dsas", *command]),
            contextlib.redirect_stdout(None),
            contextlib.redirect_stderr(None),
            contextlib.suppress(SystemExit),
        ):
            main()


def sweep(case: Case) -> None:
    series = [Series("caa", case.steering, "caa", "logistic", (0.1,))]
    with mock.patch.dict(PACKAGED, even=Even):
        run_sweep(case.folder / "out", case.setup(), series, grid=Grid((0,), limit=50.0), progress=False)


# By public name; what has no verb of its own name is said in brackets.
VERBS: dict[str, Callable[[Case], None]] = {
    "fit": fit, "fit(incremental)": fit_incrementally, "train": train, "calibrate": calibrate, "draft": draft,
    "general_texts": general_texts, "explain": explain, "load_model": load_model, "find_sites": find,
    "installed": find, "remove_all": find, "unsteered": find, "adopt": adopt, "read_vectors": adopt,
    "write_gguf": adopt,
    "Steering.apply": apply, "Steering.fuse": fuse, "Steering.port": port,
    "Steering.save_pretrained": store, "Steering.from_pretrained": store, "(sweep)": sweep,
    "(inspection)": inspect_sets,
    "(lm-eval)": lm_eval, "(figures)": plot, "(command line)": command_line,
}  # fmt: skip
OTHER_HOOKS = ("_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
LOGS = [getLogger(name) for name in ("", "dsas", "torch", "transformers", "huggingface_hub", "matplotlib", "asyncio")]
# What only reads or makes an object, and touches neither the model nor the process.
PURE = ("calibrated", "card", "default_strength", "described", "digest", "report", "rules_on", "strength", "within")


def state(case: Case) -> dict[str, Any]:
    """Return everything that is the caller's and no verb may change."""
    import matplotlib

    core, parameters = case.tokenizer.backend_tokenizer, dict(case.model.named_parameters())
    return {
        "threads": torch.get_num_threads(),
        "Python's random numbers": random.getstate(),
        "torch's random numbers": torch.get_rng_state().tolist(),
        "numpy's random numbers": repr(np.random.get_state()),
        "dtype": torch.get_default_dtype(),
        "determinism": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic),
        "gradients": torch.is_grad_enabled(),
        "warnings": list(warnings.filters),
        "what shows warnings and errors": (warnings.showwarning, sys.excepthook),
        "matplotlib": ({**matplotlib.rcParams}, dict.get(matplotlib.rcParams, "backend")),
        "environment": dict(os.environ),
        "modes": {name: module.training for name, module in case.model.named_modules()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in parameters.items()},
        "grads": {name: parameter.grad for name, parameter in parameters.items()},
        "weights": {name: parameter.detach().clone().tolist() for name, parameter in parameters.items()},
        "hooks": {name: len(module._forward_hooks) for name, module in case.model.named_modules()},
        "other hooks": {
            name: tuple(len(vars(module)[kind]) for kind in OTHER_HOOKS) for name, module in case.model.named_modules()
        },
        "attributes": {name: sorted(vars(module)) for name, module in case.model.named_modules()},
        "classes": {name: type(module) for name, module in case.model.named_modules()},
        "buffers": {name: buffer.tolist() for name, buffer in case.model.named_buffers()},
        "generation": case.model.generation_config.to_dict(),
        "config": case.model.config.to_dict(),
        "truncation and padding": (core.truncation, core.padding),
        "padding": (case.tokenizer.padding_side, case.tokenizer.pad_token, case.tokenizer.truncation_side),
        "vocabulary": (len(case.tokenizer), case.tokenizer.chat_template, case.tokenizer.model_max_length),
        "signals": [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)],
        "logging": [(log.level, log.propagate, list(log.handlers), log.disabled) for log in LOGS],
        "folders and imports": (os.getcwd(), list(sys.path), tempfile.tempdir, list(sys.meta_path)),
        "threads and processes": (lasting_threads(), multiprocessing.active_children()),
        "streams": (sys.stdout, sys.stderr, sys.stdin, sys.displayhook, threading.excepthook, sys.unraisablehook),
        "Python": (sys.getrecursionlimit(), sys.getswitchinterval(), gc.isenabled(), locale.setlocale(locale.LC_ALL)),
        "numbers": (np.geterr(), torch.get_float32_matmul_precision(), torch.get_default_device()),
        "torch": (torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.backends.mkldnn.enabled),
        "transformers": (logging.get_verbosity(), logging.is_progress_bar_enabled()),
        "start of processes": multiprocessing.get_start_method(allow_none=True),
    }


def lasting_threads() -> int:
    """Return how many threads keep the process alive, once those of a pool that is already closed have ended."""
    for _ in range(100):
        if sum(not one.daemon for one in threading.enumerate()) == 1:
            break
        time.sleep(0.02)
    return sum(not one.daemon for one in threading.enumerate())


def prepared(folder: Path) -> Case:
    """Return a model and a tokenizer whose state is none that anything here would choose."""
    model, tokenizer = tiny_model("llama", layers=2, attention_dropout=0.5), tiny_tokenizer()
    model.config.architectures = [type(model).__name__]  # as a model that was saved has it
    case = Case(model.train(), tokenizer, folder)
    next(iter(model.parameters())).requires_grad_(False)
    tokenizer.backend_tokenizer.enable_truncation(5, strategy="only_first")
    tokenizer.backend_tokenizer.enable_padding(length=7)
    return case


def changed_by(verb: Callable[[Case], None], case: Case) -> set[str]:
    """Return what a verb has changed."""
    before = state(case)
    verb(case)
    after = state(case)
    return {name for name, value in before.items() if after[name] != value}


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable_progress_bar()
    left = set[str]()
    for name, verb in VERBS.items():
        with tempfile.TemporaryDirectory() as root:
            verb(made := prepared(Path(root)))  # what is imported by its first call is imported
            changed = changed_by(verb, made)
            print(f"{name}: {sorted(changed)}", flush=True)
            left |= changed
    raise SystemExit(bool(left))
