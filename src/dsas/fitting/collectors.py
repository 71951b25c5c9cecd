"""Collectors: two ways to collect what each site is fitted on, at all sites at once or one site after another.

Both are generators: each yields a site's data and is sent the rule that was made from it.
"""

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dsas.fitting.collect import collect, numbered
from dsas.fitting.gathering import Gathered
from dsas.fitting.incremental import PausedPasses
from dsas.fitting.site_rule import SiteData
from dsas.model.examples import ExampleSets
from dsas.model.labelled_tokens import LabelledTokens
from dsas.model.sites import Site
from dsas.model.subject import Examples, Subject
from dsas.parallel.progress import progress_bar
from dsas.runtime.rule import Rule

Collected = Generator[SiteData, Rule, None]


class Task(NamedTuple):
    """What to collect: the subject, how its examples are read, at which sites, and where activations are stored.

    gathered: the examples that are kept, with their vectors, of all that there are.
    """

    subject: Subject
    examples: Examples
    sets: ExampleSets
    sites: Sequence[Site]
    checkpoint: str | Path | None
    progress: bool
    gathered: Gathered


def collected(task: Task) -> Collected:
    """Return the collector that the options of reading ask for."""
    return _one_after_another(task) if task.examples.incremental else _at_once(task)


def _at_once(task: Task) -> Collected:
    examples, found = task.examples, task.gathered
    tokens = _labelled(task)
    for site in task.sites:
        parts = found.vectors(site)
        data = _site_data(site, parts, by_position=examples.by_position)._replace(moments=found.moments(site))
        steps = parts["source"].shape[1]
        if examples.per_step and steps > 1:  # the text encoders run once
            each = [{name: x[:, k : k + 1] for name, x in parts.items()} for k in range(steps)]
            of_steps = (_site_data(site, one, by_position=examples.by_position) for one in each)
            data = data._replace(steps=tuple(of_steps))
        yield data if tokens is None else data._replace(tokens=tokens)


def _one_after_another(task: Task) -> Collected:
    """Yield each site's data with the earlier sites already steered; target data come from the unsteered model."""
    if task.sets.spans is not None:
        _labelled(task)  # which raises OptionError
    examples, size = task.examples, task.examples.batch_size
    target = task.sets.target
    kept = {"checkpoint": task.checkpoint, "progress": task.progress}
    goal = collect(examples, target, range(len(target)), task.sites, **kept)
    texts, rows = numbered({"source": task.sets.source, "control": task.sets.control})
    batches = examples.batches(texts, range(len(texts)), size)
    order = torch.tensor([row for batch in batches for row in batch.rows]).argsort()
    with PausedPasses(task.subject, examples, batches, task.sites) as passes:
        for held in passes:
            pooled = torch.cat(held.vectors)[order]
            aims = goal[held.site].mean((1, 2))
            rule = yield SiteData(held.site, pooled[rows["source"]], pooled[rows["control"]], aims)
            passes.steer(rule)


def _labelled(task: Task) -> LabelledTokens | None:
    """Return the labelled tokens of source and control, None when no source example has spans."""
    spans = task.sets.spans
    if spans is None:
        return None
    texts = [*task.sets.source, *task.sets.control]
    marks = [*spans, *([()] * len(task.sets.control))]
    with progress_bar(task.progress) as bar:
        number = bar.add_task("collecting tokens", total=None)
        return task.examples.labelled_tokens(texts, marks, task.sites, lambda: bar.advance(number))


def _site_data(site: Site, parts: Mapping[str, Tensor], *, by_position: bool) -> SiteData:
    """Return what one site is fitted on, from vectors (example, step, sample, dim) of each set.

    by_position: whether to learn from every sample (a position), and not only from their mean.
    """
    source, control, target = (parts[name].mean((1, 2)) for name in ("source", "control", "target"))
    if not by_position:
        return SiteData(site, source, control, target)
    samples = {name: x.flatten(0, 2) for name, x in parts.items()}
    both = [parts["source"], parts["control"]]
    owners = torch.arange(sum(map(len, both))).repeat_interleave(both[0].shape[1] * both[0].shape[2])
    shown = torch.arange(len(owners)) < len(samples["source"])
    tokens = LabelledTokens({site: torch.cat([samples["source"], samples["control"]])}, shown, owners)
    return SiteData(site, source, control, target, tokens, (samples["source"], samples["target"]))
