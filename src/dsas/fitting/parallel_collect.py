"""Parallel collection: the batches of a collection, a few at a time, on models in other processes.

A shard is a few whole batches, padded as one process would pad them, and its vectors are placed by the positions of its
texts. So any split, in any order, over any number of workers, with any of them killed and its shard repeated, gives the
vectors that one process gives; nothing is summed, so nothing is rounded differently.

Each worker loads the model from the folder or hub id that it came from, and rejects one whose weights differ from those
of the model being fitted.

Limitations: not for models that were not loaded by name (give the one process its devices with `device_map` instead),
nor for pipelines.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple, final

from torch import Tensor, nn

from dsas.errors import ModelMismatchError, OptionError
from dsas.model.foreign import Foreign
from dsas.model.identity import fingerprint
from dsas.model.reading import Reading
from dsas.model.sites import Site
from dsas.model.subject import Examples, subject_of
from dsas.parallel.workers import Spread, workers_of

BATCHES = 4  # batches per shard


class Source(NamedTuple):
    """Where workers load the model from, which one it must be, and how it is read.

    precision, device: as `load_model` takes them. threads: torch's, in every worker.
    """

    model: str
    fingerprint: str
    precision: str
    device: str
    sites: tuple[Site, ...]
    reading: Reading
    threads: int


def vectors_by_workers(
    examples: Examples, batches: Sequence[Foreign], sites: Sequence[Site]
) -> Iterator[tuple[int, dict[Site, Tensor]]]:
    """Yield the number of each batch and its vectors, as `examples.vectors` gives them, in any order.

    Raises OptionError and WorkerError as `dsas.parallel.workers`, OptionError for a model without a folder or hub id,
    or spread over devices, ModelMismatchError when workers find another model.
    """
    spread = examples.spread
    source = source_of(examples.module, sites, examples.reading, threads=spread.threads)
    shards = [batches[start : start + BATCHES] for start in range(0, len(batches), BATCHES)]
    if not shards:
        return
    with workers_of(partial(_Reader, source), spread, threads=source.threads) as workers:
        for done in workers.run(shards):
            for place, vectors in enumerate(done.result):
                yield done.number * BATCHES + place, dict(zip(source.sites, vectors, strict=True))


def source_of(model: nn.Module, sites: Sequence[Site], reading: Reading, *, threads: int = 1) -> Source:
    """Return where workers get `model`. Raises OptionError for one without folder or hub id, or spread over devices."""
    name = getattr(getattr(model, "config", None), "_name_or_path", "")
    if not name:
        raise OptionError("workers load the model from its folder or hub id, but this one was loaded from neither")
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        raise OptionError("each worker loads the whole model on one device, but this one is spread over several")
    weights = next(model.parameters())
    precision = str(weights.dtype).removeprefix("torch.")
    alone = reading._replace(spread=Spread())
    return Source(name, fingerprint(model), precision, str(weights.device), tuple(sites), alone, threads)


@final
class _Reader:
    """A reader of shards, with a model of its own."""

    def __init__(self, source: Source) -> None:
        from dsas.model.loading import load_model  # loads transformers, which `import dsas` must not

        loaded = load_model(source.model, device=source.device, precision=source.precision)
        if fingerprint(loaded.model) != source.fingerprint:
            raise ModelMismatchError(
                f"the weights that workers find in {source.model!r} are not those of this model: save it "
                "and load it from there, or fit it in one process"
            )
        self._sites, self._examples = source.sites, subject_of(*loaded).examples(source.reading)

    def run(self, job: Sequence[Foreign]) -> list[list[Tensor]]:
        return [[vectors[site] for site in self._sites] for vectors in self._examples.vectors(job, self._sites)]
