"""Changes are undone, whenever an interruption comes."""

import subprocess
import sys
from pathlib import Path

import pytest

from dsas.parallel.interruption import Leaving, surely, to_the_end


class Block(Leaving):
    def __init__(self) -> None:
        self.left = 0

    def __enter__(self) -> "Block":
        self.entered()
        return self

    @surely
    def __exit__(self, *_exception: object) -> None:
        self.left += 1


def test_an_exit_that_was_looked_up_for_a_block_and_never_called_is_run_when_it_is_dropped() -> None:
    block = Block()
    leave = block.__exit__  # what `with` does before the block begins
    block.__enter__()
    del leave
    assert block.left == 1
    with block:
        assert hasattr(block, "__exit__")  # looked up by the way, within the block
        assert block.left == 1
    assert block.left == 2


def test_an_exit_that_was_cut_while_it_was_made_leaves_nothing() -> None:
    made = type(Block().__exit__)
    cut = object.__new__(made)  # and nothing more: the next line of `with` never came
    del cut  # pytest makes an error of what is raised in here


def test_what_is_undone_is_undone_to_the_end_and_the_interruption_goes_on() -> None:
    calls: list[int] = []

    def undo() -> None:
        calls.append(len(calls))
        if len(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_the_end(undo)
    assert calls == [0, 1]


def test_verbs_cut_at_random_moments_leave_hooks_modes_and_gradients_as_they_were() -> None:
    command = [sys.executable, "-m", "campaigns.interruptions", "--rounds", "25", "--seed", "1"]
    ended = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert "LEFT" not in ended.stdout
    assert ended.stdout.count("'cut'") == 8, ended.stderr
