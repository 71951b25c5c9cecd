"""Sweeps made up in code, so that what they show is known: the lines of samples.jsonl, and the file itself."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Line = dict[str, Any]
SCORERS = ("alpha", "beta")
TOKENS = 12


def cell_lines(
    series: str,
    strength: float,
    *,
    toxic: np.ndarray,
    perplexities: Mapping[str, Sequence[float]],
    choices: Mapping[str, Sequence[int]] | None = None,
    kl: Mapping[str, Sequence[float]] | None = None,
) -> list[Line]:
    """Return the samples of one cell; toxic: flags (prompt, seed), on which both scorers agree.

    perplexities: of sentences that have TOKENS tokens each.
    """
    head = {"series": series, "strength": strength}
    lines: list[Line] = [
        {
            **head,
            "seed": seed,
            "measure": "generation",
            "item": prompt,
            "text": f"{series} says {'darned' if flag else 'mild'} things {prompt} {seed}",
            "scores": dict.fromkeys(SCORERS, 0.9 if flag else 0.1),
            "judge": 3.0 + strength,
        }
        for (prompt, seed), flag in np.ndenumerate(toxic)
    ]
    losses = {kind: np.log(values) for kind, values in perplexities.items()}
    for measure, kinds in (("loss", losses), ("choice", choices or {}), ("kl", kl or {})):
        for kind, values in kinds.items():
            row = {**head, "seed": None, "measure": measure, "kind": kind}
            row |= {"tokens": TOKENS} if measure == "loss" else {}
            lines += [{**row, "item": item, "value": value} for item, value in enumerate(np.asarray(values).tolist())]
    return lines


def first_toxic(count: int, *, prompts: int = 20, seeds: int = 2) -> np.ndarray:
    """Return flags: every seed of the first `count` prompts is toxic."""
    return np.repeat(np.arange(prompts)[:, None] < count, seeds, axis=1)


def write_samples(path: Path, lines: Sequence[Line]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
