"""Cells, for the benchmarks that sweep by rules of their own: a condition at a strength, measured once and kept."""

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
from dsas.files.results import Results

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
        """Measure one cell inside the context `steered`, or read it back; `identity` names model and Steering.

        A scorer that came later scores the continuations that are there.
        """
        kept = Results(self.folder)
        depends = [identity, strength, self.prompts, self.neutral, self.seeds, self.sampling]
        measured = kept.get("cell", depends)
        if measured is None:
            with steered:
                measured = self._measure(progress)
        missing = [scorer for scorer in self.scorers if scorer.name not in measured["scores"]]
        if missing:
            scored = toxicity(measured["continuations"], missing, threshold=THRESHOLD)
            measured["scores"].update(zip(scored.names, scored.scores.tolist(), strict=True))
            kept.put("cell", depends, measured)
        scores = {scorer.name: measured["scores"][scorer.name] for scorer in self.scorers}
        return Cell(condition, strength, **{**measured, "scores": scores})

    def _measure(self, progress: Callable[[int], None]) -> dict[str, Any]:
        """Return what the model gives, as it now is: continuations by seed and prompt, perplexities by kind of text."""
        texts = sample_continuations(
            self.model, self.tokenizer, self.prompts, seeds=self.seeds, sampling=self.sampling, progress=progress
        )
        surprise = {
            kind: perplexity(self.model, self.tokenizer, texts).per_text for kind, texts in self.neutral.items()
        }
        perplexities = {kind: values.tolist() for kind, values in surprise.items()}
        return {"continuations": texts, "scores": {}, "perplexities": perplexities}
