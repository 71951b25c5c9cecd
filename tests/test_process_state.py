"""Law 10: every public verb leaves the caller's process, model and tokenizer as they were."""

import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from campaigns.process_state import PURE, VERBS, Case, changed_by, prepared

import dsas

TESTS = Path(__file__).parent
THREADS = 3  # none of the numbers that anything here would choose
DRAWN = {"Python's random numbers"}  # the run-time type checks of the tests draw some


@pytest.fixture
def threads() -> Iterator[None]:
    matplotlib = pytest.importorskip("matplotlib")
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    with matplotlib.rc_context({"lines.linewidth": 7.5, "svg.fonttype": "path"}):
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def loaded_before(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Load a model once: what transformers starts for its first one, such as threads, stays."""
    VERBS["load_model"](prepared(tmp_path_factory.mktemp("loaded")))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
@pytest.mark.parametrize("verb", dict.fromkeys(VERBS.values()), ids=lambda verb: verb.__name__)
@pytest.mark.filterwarnings("ignore:every strength up to the limit")
@pytest.mark.usefixtures("loaded_before", "threads")
def test_a_verb_leaves_process_model_and_tokenizer_as_they_were(
    verb: Callable[[Case], None], training: bool, tmp_path: Path
) -> None:
    if verb is VERBS["(lm-eval)"]:
        pytest.importorskip("lm_eval")
    case = prepared(tmp_path)
    case.model.train(training)
    assert changed_by(verb, case) - DRAWN == set()


def test_the_table_of_verbs_is_complete() -> None:
    public = {name for name in dsas.__all__ if inspect.isfunction(getattr(dsas, name))}
    public |= {f"Steering.{name}" for name in vars(dsas.Steering) if not name.startswith("_") and name not in PURE}
    named = {name for name in VERBS if "(" not in name}
    assert public == named | {"Steering.from_pretrained"}


CASES = {
    "import dsas": "import torch, transformers, sklearn; before = everything(); import dsas; dsas.fit",
    "import of lm-eval": """
import dsas, makers
from dsas.evaluation.harness import steered_lm
from dsas.testing import tiny_model, tiny_tokenizer
model = tiny_model("llama", layers=1)
steering, tokenizer = makers.random_steering(model), tiny_tokenizer()
before = everything()
steered_lm(model, tokenizer, steering)
""",
}


@pytest.mark.parametrize("done", CASES.values(), ids=CASES)
def test_what_is_imported_leaves_random_numbers_filters_and_environment_as_they_were(done: str) -> None:
    pytest.importorskip("lm_eval")
    script = f"""
import os, random, warnings
def everything():
    return random.getstate(), list(warnings.filters), dict(os.environ)
{done}
assert everything() == before
"""
    run(["-c", script])


def test_no_verb_draws_from_the_random_numbers_of_python() -> None:
    printed = run(["-m", "campaigns.process_state"])
    assert [line for line in printed.splitlines() if not line.endswith(": []")] == []
    assert len(printed.splitlines()) == len(VERBS)


def run(arguments: list[str]) -> str:
    """Run Python without the run-time type checks, from tests/, and return what it printed."""
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=TESTS, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
