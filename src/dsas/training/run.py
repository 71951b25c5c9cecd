"""Run: what the trainer runs and reads, a language model on texts or a pipeline on prompts.

A pipeline is run by its own call without the guard that keeps gradients out of it, from the prompt to the latents;
they flow through every denoising step and the scheduler between. Left out: gradients through the decoder.
"""

import inspect
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dsas.errors import OptionError
from dsas.fitting.activations import pooler
from dsas.fitting.closed_form import reading_of
from dsas.fitting.collect import collect, collect_drawn, cut_rows, inputs_of, read_batches
from dsas.model.drawing import Drawing, Prompts, draw, places_of, prompt_batches, watch
from dsas.model.evaluation_mode import on_device
from dsas.model.examples import Batch, pad_token, tokenize
from dsas.model.image_pipeline import Parts, PassReader
from dsas.model.reading import Reading
from dsas.model.sites import Site
from dsas.runtime.rule import Rule
from dsas.training.learner import Learner
from dsas.training.passes import Work
from dsas.training.plan import Plan
from dsas.training.preference import Choices, Preference, pairs_of
from dsas.training.ranks import Ranks
from dsas.training.trainer import Data, Trainer


class Run(NamedTuple):
    """What is run and how; texts: all of each set, from which prompts have their places."""

    model: nn.Module
    tokenizer: Any
    sites: list[Site]
    reading: Any
    texts: dict[str, list[str]]
    folder: Path | None
    progress: bool
    ranks: Ranks = Ranks()

    def collect(self, texts: list[str]) -> dict[Site, Tensor]:
        """Return each text's pooled activation (text, dim) at every site, of the unsteered model; the first rank's."""
        return self.ranks.from_first(lambda: self._collect(texts))

    def _collect(self, texts: list[str]) -> dict[Site, Tensor]:
        kept: dict[str, Any] = {"checkpoint": self.folder, "progress": self.progress}
        if not isinstance(self.model, Parts):
            return collect(self.model, self.tokenizer, texts, self.sites, reading=self.reading, **kept)
        places = places_of(self.texts, texts)
        found = collect_drawn(self.model, texts, places, self.sites, drawing=self.reading, **kept)
        return {site: value.mean((1, 2)) for site, value in found.items()}

    def batches(self, texts: list[str]) -> list[Batch] | list[Prompts]:
        """Return texts as micro-batches, small enough for every rank to get one."""
        if not texts:
            return []
        size = min(self.reading.batch_size, math.ceil(len(texts) / self.ranks.count))
        if isinstance(self.model, Parts):
            return prompt_batches(texts, places_of(self.texts, texts), size)
        return read_batches(self.tokenizer, texts, self.reading._replace(batch_size=size))

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
        rows = {
            name: cut_rows(tokenize(self.tokenizer, texts), self.reading.max_tokens) if texts else []
            for name, texts in split.items()
        }
        pairs, held = (pairs_of(rows[f"{part}source"], rows[f"{part}target"]) for part in ("", "held_"))
        pad = pad_token(self.tokenizer)
        data = Choices(pairs, rows["control"], target, held, rows["held_control"], pad, self.reading.batch_size, seed)
        return Preference(work, rules, data, plan, self.ranks)

    def read(self) -> list[Any]:
        """Return how the model is read, JSON-ready."""
        if not isinstance(self.model, Parts):
            return list(self.reading)
        return [self.reading.as_dict(), self.model.schedule]

    def work(self, *, checkpointing: bool) -> Work:
        """Return the model as the trainer takes it."""
        model = self.model
        if not isinstance(model, Parts):
            return Work(
                model,
                run=lambda batch: model(**on_device(model, inputs_of(batch)), use_cache=False),
                real=lambda batch: batch.mask,
                pool=pooler(self.reading.pooling, self.reading.skip_sinks),
                checkpointing=checkpointing,
            )
        reader = PassReader(model, self.reading.branch)
        call = inspect.unwrap(type(model.pipeline).__call__)  # torch.no_grad() is wrapped around it
        return Work(
            model,
            run=lambda batch: draw(model.pipeline, batch, self.reading, call=call),
            real=lambda batch: torch.ones(len(batch.prompts), 1, dtype=torch.bool),
            pool=lambda t, _: t.to(torch.promote_types(t.dtype, torch.float32)).mean(1),
            watch=lambda hooks: watch(hooks, reader, model, self.sites),
            step=reader.at,
        )


def training_reading(
    model: nn.Module, tokenizer: Any, reading: Reading | Drawing | None, *, checkpointing: bool, logits: bool
) -> Reading | Drawing:
    """Return how to read a model that is trained on. Raises OptionError for what training cannot do."""
    default = Drawing(steps=1) if isinstance(model, Parts) else Reading(batch_size=32)
    reading = reading_of(model, tokenizer, reading or default)
    if isinstance(reading, Drawing):
        reading.check()
        if logits:
            raise OptionError("objective='preference' asks what a language model would say; a pipeline says nothing")
        if checkpointing or reading.per_step or reading.images > 1 or (reading.pooling, reading.branch) not in _READ:
            raise OptionError(
                "training on a pipeline takes no checkpointing, and a Drawing of one image a prompt, one regulator for "
                f"all steps, pooling 'mean' and one branch; got checkpointing={checkpointing} and {reading}"
            )
    return reading


_READ = (("mean", "conditional"), ("mean", "unconditional"))
