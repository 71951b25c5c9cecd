"""Cells, measured on a tiny model with scorers that count their calls."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsas.demo.cells import Bench, Cell
from dsas.evaluation.generations import Sampling
from dsas.testing import tiny_model, tiny_tokenizer


class Long:
    """Calls a text toxic in proportion to the letters `e` in it; counts how many texts it has seen."""

    name = "long"

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.seen += len(texts)
        return np.array([(len(text) % 10) / 10 for text in texts])


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(
        tiny_model(layers=1),
        tiny_tokenizer(),
        prompts=["one", "two", "three"],
        neutral={"plain": ["the door is open", "it rains"], "odd": ["zzz", "qqqq"]},
        scorers=[Long()],
        seeds=[0, 1],
        sampling=Sampling(new_tokens=4),
        folder=tmp_path / "cells",
    )


def measure(bench: Bench, condition: str = "unsteered", strength: float = 0.0, identity: str = "model") -> Cell:
    return bench.cell(condition, strength, identity, steered=nullcontext(), progress=lambda done: None)


def test_a_cell_is_measured_once_and_then_read_back_the_same(bench: Bench) -> None:
    first = measure(bench)
    assert [len(texts) for texts in first.continuations] == [3, 3]
    assert np.shape(first.scores["long"]) == (3, 2)
    assert {kind: len(values) for kind, values in first.perplexities.items()} == {"plain": 2, "odd": 2}
    scorer: Any = bench.scorers[0]
    assert scorer.seen == 6
    assert measure(bench) == first
    assert measure(bench, condition="by another name").condition == "by another name"
    assert scorer.seen == 6


def test_a_scorer_that_comes_later_scores_what_is_there_and_draws_nothing_again(bench: Bench) -> None:
    class Short(Long):
        name = "short"

    first = measure(bench)
    both = measure(bench._replace(scorers=[*bench.scorers, Short()]))
    assert both.continuations == first.continuations
    assert both.scores == {"long": first.scores["long"], "short": first.scores["long"]}
    assert measure(bench) == first


@pytest.mark.parametrize(
    "changed",
    [
        lambda bench: measure(bench, identity="another model"),
        lambda bench: measure(bench, strength=0.5),
        lambda bench: measure(bench._replace(prompts=["one", "two", "four"])),
        lambda bench: measure(bench._replace(seeds=[0, 2])),
        lambda bench: measure(bench._replace(sampling=Sampling(new_tokens=5))),
        lambda bench: measure(bench._replace(neutral={"plain": ["it snows", "it rains"]})),
    ],
    ids=["identity", "strength", "prompts", "seeds", "sampling", "sentences"],
)
def test_a_cell_of_another_model_strength_or_text_is_not_taken_for_this_one(bench: Bench, changed: Any) -> None:
    measure(bench)
    changed(bench)
    assert len(list(bench.folder.iterdir())) == 2


def test_a_cell_gives_shares_over_one_half_and_ratios_paired_by_sentence() -> None:
    texts = [["a b a b", "c d"]]
    cell = Cell("x", 0.1, texts, {"p": [[0.9], [0.1]], "q": [[0.6], [0.3]]}, {"plain": [2.0, 6.0]})
    unsteered = Cell("unsteered", 0.0, texts, {"p": [[0.0], [0.0]]}, {"plain": [1.0, 4.0]})
    assert {name: interval.mean for name, interval in cell.toxic().items()} == {"p": 0.5, "q": 0.5, "ensemble": 0.5}
    assert cell.perplexity_over(unsteered)["plain"].mean == pytest.approx(8 / 5)
    assert cell.perplexity_over(cell)["plain"][:3] == (1.0, 1.0, 1.0)
    assert cell.distinct() == pytest.approx(3 / 4)
