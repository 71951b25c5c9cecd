"""Commands that are cut by signals, or that cannot write, by a few rounds of the campaign of commands."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from makers import random_steering

from dsas.testing import tiny_model, tiny_tokenizer

TESTS = Path(__file__).parents[1]


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="needs /proc and forks")
def test_a_command_cut_by_a_signal_or_refused_by_the_disk_leaves_no_worker_and_gives_the_same_when_run_again() -> None:
    command = [sys.executable, "-m", "campaigns.commands", "--rounds", "3", "--seed", "1"]
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    named = [part for name in ("fit", "train", "calibrate") for part in ("--command", name)]
    ended = subprocess.run(
        [*command, *named], cwd=TESTS, capture_output=True, text=True, env=environment, check=False
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("one line") >= 3  # a folder that cannot be written, once for each command
    assert ended.stdout.count("cut)") >= 3


def test_a_full_disk_is_one_line_that_names_the_file_and_what_lay_there_stays(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    model = tiny_model(layers=1)
    random_steering(model).save_pretrained(tmp_path / "detox")
    before = (tmp_path / "detox" / "config.json").read_bytes()
    model.save_pretrained(tmp_path / "model")  # pyright: ignore[reportAttributeAccessIssue]
    for name in ("rude", "plain", "kind"):
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name} {number}" for number in range(8)))
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    sets = ["--source", tmp_path / "rude.txt", "--control", tmp_path / "plain.txt", "--target", tmp_path / "kind.txt"]
    monkeypatch.setattr("os.fsync", full)
    ended = run("fit", tmp_path / "model", *sets, "--out", tmp_path / "detox", "--json")
    assert ended.status == 2
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error")]
    assert line.startswith(f"error: cannot write to {tmp_path}")
    assert "No space left on device" in line
    assert (tmp_path / "detox" / "config.json").read_bytes() == before
