"""Run: the training texts as vectors and in batches; gradients flow through whatever the subject runs.

Limitations: in a pipeline gradients flow from the prompt to the latents, not through the decoder.
"""

import math
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from dsas.fitting.collect import collect, places_of
from dsas.model.conversation import Content
from dsas.model.foreign import Foreign
from dsas.model.sites import Site
from dsas.model.subject import Examples
from dsas.training.passes import Work
from dsas.training.plan import Running
from dsas.training.ranks import ALONE, Ranks


class Run(NamedTuple):
    """What is run and how.

    texts: all texts of each set, which give prompts their places. steered: modules at which another Steering is
    applied.
    """

    examples: Examples
    sites: list[Site]
    texts: dict[str, list[Content]]
    folder: Path | None
    running: Running = Running()
    ranks: Ranks = ALONE
    steered: tuple[str, ...] = ()

    def collect(self, texts: list[Content]) -> dict[Site, Tensor]:
        """Return each text's pooled activation (text, dim) at every unsteered site, computed by the first rank."""
        return self.ranks.from_first(lambda: self._collect(texts))

    def _collect(self, texts: list[Content]) -> dict[Site, Tensor]:
        places, progress = places_of(self.texts, texts), self.running.progress and self.ranks.first
        found = collect(self.examples, texts, places, self.sites, checkpoint=self.folder, progress=progress)
        return {site: value.mean((1, 2)) for site, value in found.items()}

    def batches(self, texts: list[Content]) -> list[Foreign]:
        """Return texts as micro-batches, small enough for every rank to get one."""
        size = min(self.examples.batch_size, math.ceil(len(texts) / self.ranks.count))
        return self.examples.batches(texts, places_of(self.texts, texts), size) if texts else []

    def work(self) -> Work:
        """Return the model in the form that passes take."""
        one = self.examples
        return Work(
            one.module, one.run, one.real, one.counted, one.pool, self.running.checkpointing, one.follow,
            one.prompt_lengths,
        )  # fmt: skip
