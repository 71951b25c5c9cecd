"""The first second of a command: help and completion load nothing heavy, and a shell completes what can be known."""

import os
import subprocess
import sys

import pytest
from make_options import options

HEAVY = {"torch", "numpy", "transformers", "sklearn", "scipy", "safetensors", "huggingface_hub", "matplotlib", "pandas"}
PROGRAM = """
import sys
from dsas.cli import main
sys.argv = ["dsas", *sys.argv[1:]]
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
print(*sorted({name.split(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True, text=True, check=True, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("command", ["", *options()])
def test_help_is_shown_without_importing_what_computes(command: str) -> None:
    shown = run(*command.split(), "--help")
    assert "Usage: " in shown.stdout
    assert not HEAVY & set(shown.stderr.split())


def completed(*words: str) -> list[str]:
    """Return what bash is offered for the last word, and hold that nothing heavy was imported for it."""
    line = " ".join(["dsas", *words])
    asked = run(_DSAS_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words)))
    assert not HEAVY & set(asked.stderr.split())
    return asked.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["cali"], ["calibrate"]),
        (["fit", "--transf"], ["--transform"]),
        (["fit", "--transform", "line"], ["linear-act", "lineas"]),
        (["fit", "--regulator", "log"], ["logistic"]),
        (["fit", "--regulator", "logistic*c"], ["logistic*constant", "logistic*cast"]),
        (["fit", "--sites", "m"], ["mlp"]),
        (["fit", "--selection", "t"], ["threshold", "top"]),
        (["pareto", "--scorer", "tox"], ["tox-block", "toxic-comment-classifier"]),
        (["train", "--objective", "e"], ["e2e-dsas"]),
        (["train", "--regulator-form", ""], ["sigmoid", "relu"]),
        (["train", "--start", "s"], ["scratch"]),
        (["generate", "--precision", "f"], ["float32", "float16"]),
        (["generate", "--device", "b"], ["balanced"]),
        (["calibrate", "--budget", "p"], ["perplexity="]),
        (["fit", "--source", "README"], []),  # nothing of ours, and so the shell completes files
    ],
)
def test_a_shell_completes_commands_options_choices_and_names(words: list[str], offered: list[str]) -> None:
    assert completed(*words) == offered


def test_a_shell_completes_files_where_nothing_else_is_offered() -> None:
    script = run(_DSAS_COMPLETE="source_bash").stdout
    assert "complete -o default -F" in script
