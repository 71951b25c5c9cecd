"""Shards: the batches of a collection, a few at a time, on models that other processes hold.

A shard is whole batches, padded as one process would pad them, and what it gives is put where its texts stand. So any
split, in any order, over any number of workers, with any of them killed and its shard done again, gives the vectors
that one process gives; nothing is summed, so nothing is rounded otherwise.

Each worker loads the model from the folder or hub id that it came from, and refuses one whose weights are not those of
the model at hand.

Left out: models that are not loaded by name (give the one process its devices with `device_map` instead), pipelines.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from dsas.errors import ModelMismatchError, OptionError
from dsas.fitting.activations import pooled_activations
from dsas.model.identity import fingerprint
from dsas.model.reading import Pooling
from dsas.model.sites import Site
from dsas.parallel.workers import Spread, workers_of

BATCHES = 4  # in a shard


class Pooled(NamedTuple):
    """How a worker reads: where the model is to be had, which one it must be, and what is read of it.

    precision, device: as `load_model` takes them. threads: torch's, in every worker.
    """

    model: str
    fingerprint: str
    precision: str
    device: str
    sites: tuple[Site, ...]
    pooling: Pooling
    skip_sinks: bool
    threads: int


def pooled_shards(
    how: Pooled, batches: Sequence[Mapping[str, Tensor]], spread: Spread
) -> Iterator[tuple[int, dict[Site, Tensor]]]:
    """Yield the number of each batch and its vectors, as `pooled_activations` gives them, in any order.

    Raises OptionError and WorkerError as `dsas.parallel.workers`, ModelMismatchError when workers find another model.
    """
    shards = [batches[start : start + BATCHES] for start in range(0, len(batches), BATCHES)]
    if not shards:
        return
    with workers_of(partial(_Reader, how), spread, threads=how.threads) as workers:
        for done in workers.run(shards):
            for place, vectors in enumerate(done.result):
                yield done.number * BATCHES + place, dict(zip(how.sites, vectors, strict=True))


def pooled_by_name(
    model: nn.Module, sites: Sequence[Site], *, pooling: Pooling, skip_sinks: bool, threads: int = 1
) -> Pooled:
    """Return how workers read what is read of `model` here. Raises OptionError for one from nowhere or spread."""
    name = getattr(getattr(model, "config", None), "_name_or_path", "")
    if not name:
        raise OptionError("workers load the model from its folder or hub id, and this one was loaded from neither")
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        raise OptionError("workers load the model whole, each on one device, and this one is spread over several")
    weights = next(model.parameters())
    precision = str(weights.dtype).removeprefix("torch.")
    return Pooled(name, fingerprint(model), precision, str(weights.device), tuple(sites), pooling, skip_sinks, threads)


@final
class _Reader:
    """Who reads shards: a model of its own."""

    def __init__(self, how: Pooled) -> None:
        from dsas.model.loading import load_model  # loads transformers, which `import dsas` must not

        torch.set_num_threads(how.threads)
        self._how, self._model = how, load_model(how.model, device=how.device, precision=how.precision).model
        if fingerprint(self._model) != how.fingerprint:
            raise ModelMismatchError(
                f"the weights that workers find in {how.model!r} are not those of the model at hand: save it and load "
                "it from there, or fit it in one process"
            )

    def run(self, job: Sequence[Mapping[str, Tensor]]) -> list[list[Tensor]]:
        """Return for each batch of a shard the vectors of every site, in their order."""
        how = self._how
        found = pooled_activations(self._model, job, how.sites, pooling=how.pooling, skip_sinks=how.skip_sinks)
        return [[vectors[site] for site in how.sites] for vectors in found]
