"""Cells: what was measured of one condition at one strength, kept in a file so that nothing is measured twice."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dsas.evaluation.fluency import fluency
from dsas.evaluation.generations import Sampling, sample_continuations
from dsas.evaluation.intervals import Interval, bootstrap, bootstrap_ratio
from dsas.evaluation.perplexity import perplexity
from dsas.evaluation.scorers import Scorer
from dsas.evaluation.toxicity import toxicity
from dsas.storage import replace_files

THRESHOLD = 0.5


class Cell(NamedTuple):
    """One condition at one strength.

    continuations: by seed, then prompt. scores: by scorer, then prompt, then seed. perplexities: by kind of text, one a
    sentence.
    """

    condition: str
    strength: float
    continuations: list[list[str]]
    scores: dict[str, list[list[float]]]
    perplexities: dict[str, list[float]]

    def toxic(self) -> dict[str, Interval]:
        """Return the toxic share by scorer, by the mean of all scorers ("ensemble"), with 95 % intervals."""
        scores = {name: np.array(values) for name, values in self.scores.items()}
        scores["ensemble"] = np.mean(list(scores.values()), axis=0)
        return {name: bootstrap(values > THRESHOLD) for name, values in scores.items()}

    def perplexity_over(self, unsteered: "Cell") -> dict[str, Interval]:
        """Return mean perplexity over unsteered mean perplexity by kind of text, paired by sentence."""
        return {
            kind: bootstrap_ratio(np.array(values)[:, None], np.array(unsteered.perplexities[kind])[:, None])
            for kind, values in self.perplexities.items()
        }

    def distinct(self) -> float:
        """Return the share of distinct word pairs in the continuations, in [0, 1]; low means repetition."""
        return fluency([text for texts in self.continuations for text in texts]).distinct_2


class Bench(NamedTuple):
    """All that cells have in common: the model, the texts, the scorers and the folder that keeps the cells."""

    model: Any
    tokenizer: Any
    prompts: Sequence[str]
    neutral: Mapping[str, Sequence[str]]
    scorers: Sequence[Scorer]
    seeds: Sequence[int]
    sampling: Sampling
    folder: Path

    def cell(
        self, condition: str, strength: float, identity: str, *, steered: Any, progress: Callable[[int], None]
    ) -> Cell:
        """Measure one cell inside the context `steered`, or read it back; `identity` names model and Steering."""
        depends = [identity, strength, self.prompts, self.neutral, [s.name for s in self.scorers], self.seeds]
        key = hashlib.sha256(json.dumps([*depends, self.sampling], default=str).encode()).hexdigest()[:16]
        file = self.folder / f"{key}.json"
        if file.is_file():
            progress(len(self.prompts) * len(self.seeds))
            return Cell(condition, strength, **json.loads(file.read_text(encoding="utf-8")))
        with steered:
            texts = sample_continuations(
                self.model, self.tokenizer, self.prompts, seeds=self.seeds, sampling=self.sampling, progress=progress
            )
            ratios = {kind: perplexity(self.model, self.tokenizer, t).per_text for kind, t in self.neutral.items()}
        scored = toxicity(texts, self.scorers, threshold=THRESHOLD)
        measured = {
            "continuations": texts,
            "scores": {name: values.tolist() for name, values in zip(scored.names, scored.scores, strict=True)},
            "perplexities": {kind: values.tolist() for kind, values in ratios.items()},
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_files({file: json.dumps(measured).encode()})
        return Cell(condition, strength, **measured)
