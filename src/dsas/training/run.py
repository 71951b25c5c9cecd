"""Run: what the trainer runs and reads, a language model on texts or a pipeline on prompts.

A pipeline is run by its own call without the guard that keeps gradients out of it, from the prompt to the latents;
they flow through every denoising step and the scheduler between. Left out: gradients through the decoder.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from dsas.fitting.collect import collect, places_of
from dsas.model.sites import Site
from dsas.model.subject import Examples
from dsas.runtime.rule import Rule
from dsas.training.learner import Learner
from dsas.training.passes import Work
from dsas.training.plan import Plan
from dsas.training.preference import Choices, Preference, pairs_of
from dsas.training.ranks import Ranks
from dsas.training.trainer import Data, Trainer


class Run(NamedTuple):
    """What is run and how; texts: all of each set, in which prompts have their places."""

    examples: Examples
    sites: list[Site]
    texts: dict[str, list[str]]
    folder: Path | None
    progress: bool
    ranks: Ranks = Ranks()

    def collect(self, texts: list[str]) -> dict[Site, Tensor]:
        """Return each text's pooled activation (text, dim) at every site, of the unsteered model; the first rank's."""
        return self.ranks.from_first(lambda: self._collect(texts))

    def _collect(self, texts: list[str]) -> dict[Site, Tensor]:
        places = places_of(self.texts, texts)
        found = collect(self.examples, texts, places, self.sites, checkpoint=self.folder, progress=self.progress)
        return {site: value.mean((1, 2)) for site, value in found.items()}

    def batches(self, texts: list[str]) -> list[Any]:
        """Return texts as micro-batches, small enough for every rank to get one."""
        size = min(self.examples.batch_size, math.ceil(len(texts) / self.ranks.count))
        return self.examples.batches(texts, places_of(self.texts, texts), size) if texts else []

    def trainer(
        self, work: Work, rules: list[Rule], target: list[Tensor], split: dict[str, list[str]], plan: Plan
    ) -> Learner:
        """Return what learns from activations; target: pooled activations of each rule's site."""
        parts = {name: self.batches(split[name]) for name in ("source", "control", "held_source", "held_control")}
        return Trainer(work, rules, Data(target=target, **parts), plan, self.ranks)

    def preference(
        self, work: Work, rules: list[Rule], target: list[Tensor], split: dict[str, list[str]], plan: Plan, seed: int
    ) -> Learner:
        """Return what learns from pairs of texts; target: as in `trainer`; seed: of the order in which they come."""
        rows = {name: self.examples.token_rows(texts) for name, texts in split.items()}
        pairs, held = (pairs_of(rows[f"{part}source"], rows[f"{part}target"]) for part in ("", "held_"))
        pad, size = self.examples.pad_token(), self.examples.batch_size
        data = Choices(pairs, rows["control"], target, held, rows["held_control"], pad, size, seed)
        return Preference(work, rules, data, plan, self.ranks)

    def read(self) -> list[Any]:
        """Return how the model is read, JSON-ready."""
        return self.examples.depends((), ())

    def work(self, *, checkpointing: bool) -> Work:
        """Return the model as the trainer takes it."""
        one = self.examples
        return Work(one.module, one.run, one.real, one.pool, checkpointing, one.follow)
