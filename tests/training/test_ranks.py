"""Several processes that train together against one: gradients, parameters, stopping, files."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import start_processes

pytest.importorskip("diffusers")

from together import SETS, everything, process

import dsas
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.training.ranks import Ranks

TOLERANCE = {torch.float64: {"rtol": 1e-10, "atol": 1e-12}, torch.float32: {"rtol": 1e-5, "atol": 1e-6}}
CASES = [(dtype, weight) for dtype in TOLERANCE for weight in (0.0, 0.7)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return everything(Ranks(), tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder, count = tmp_path_factory.mktemp("together"), 2
    start_processes(process, (count, folder), nprocs=count, start_method="spawn")
    return [torch.load(folder / f"found {number}", weights_only=False) for number in range(count)]


@pytest.mark.parametrize("size", [2, 9], ids=["5 batches", "1 batch"])
@pytest.mark.parametrize(("dtype", "weight"), CASES)
def test_gradients_and_the_loss_on_held_out_texts_are_those_of_one_process(
    alone: Any, together: Any, dtype: torch.dtype, weight: float, size: int
) -> None:
    one = alone[f"gradients {dtype} {weight} {size}"]
    for found in together:
        other = found[f"gradients {dtype} {weight} {size}"]
        assert other.keys() == one.keys()
        torch.testing.assert_close(other, one, **TOLERANCE[dtype])


@pytest.mark.parametrize(("dtype", "weight"), CASES)
def test_what_is_learned_is_what_one_process_learns_and_the_same_bits_on_every_rank(
    alone: Any, together: Any, dtype: torch.dtype, weight: float
) -> None:
    one, (first, *others) = (
        alone[f"learned {dtype} {weight}"],
        [found[f"learned {dtype} {weight}"] for found in together],
    )
    torch.testing.assert_close(first.values, one.values, **TOLERANCE[dtype])
    assert (first.steps, first.best_step, first.stopped) == (one.steps, one.best_step, one.stopped)
    for other in others:
        assert all(torch.equal(value, first.values[name]) for name, value in other.values.items())


def test_all_ranks_stop_early_after_the_same_step_as_one_process_does(alone: Any, together: Any) -> None:
    assert alone["early"].stopped == "early"
    assert {(found["early"].steps, found["early"].stopped) for found in together} == {(alone["early"].steps, "early")}


def test_an_interruption_of_one_rank_ends_all_after_the_same_whole_step_and_all_go_on_from_it(
    alone: Any, together: Any
) -> None:
    assert {(found["interrupted"].stopped, found["interrupted"].steps) for found in together} == {("interrupted", 3)}
    whole = alone["learned torch.float64 0.7"]
    for found in together:
        assert [row.step for row in found["resumed"].rows] == [row.step for row in whole.rows]
        torch.testing.assert_close(found["resumed"].values, whole.values, **TOLERANCE[torch.float64])


@pytest.mark.parametrize("objective", ["lineas", "e2e-dsas", "preference", "imitate", "pipeline"])
def test_train_gives_every_rank_the_steering_of_one_process(alone: Any, together: Any, objective: str) -> None:
    one, found = alone[objective], [of_rank[objective] for of_rank in together]
    assert {of_rank["digest"] for of_rank in found} == {found[0]["digest"]}
    torch.testing.assert_close(found[0]["values"], one["values"], rtol=1e-4, atol=1e-5)
    assert found[0]["settings"]["best_step"] == one["settings"]["best_step"]


def test_a_rank_that_is_to_train_its_own_does_so(alone: Any, together: Any) -> None:
    assert together[0]["own"]["digest"] == alone["own"]["digest"] != together[1]["own"]["digest"]


def test_ranks_that_do_not_fit_together_are_told_so_on_all_of_them(together: Any) -> None:
    for found in together:
        assert "ranks were given different models, texts or options" in found["different"]
        assert "is spread over the ranks itself (tensor parallel or FSDP)" in found["parallel"]
        assert found["from first"] == "the first rank cannot"


def test_under_torchrun_the_command_line_trains_one_steering_and_writes_it_once(tmp_path: Path) -> None:
    model: Any = tiny_model(layers=1)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    for name, texts in SETS.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(texts))
    given = [part for name in SETS for part in (f"--{name}", str(tmp_path / f"{name}.txt"))]
    options = ["train", str(tmp_path / "model"), *given, "--objective", "e2e-dsas", "--steps", "3", "--json"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    said = []
    for start in ([sys.executable, "-m"], torchrun):
        out = ["--out", str(tmp_path / f"out {len(start)}"), "--device", "cpu"]
        ran = subprocess.run([*start, "dsas.cli", *options, *out], capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
        said += [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    one, two = (dsas.Steering.from_pretrained(line["saved"]) for line in said)
    for rule, other in zip(one.rules, two.rules, strict=True):
        for name, value in rule.transform.named_buffers():
            torch.testing.assert_close(other.transform.get_buffer(name), value, rtol=1e-4, atol=1e-5)
    lines = (Path(said[1]["saved"]) / "training" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3]
