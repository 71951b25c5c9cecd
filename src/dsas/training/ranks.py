"""Ranks: the processes that train one Steering together, each on its share of the micro-batches.

    pooled vectors   of all ranks, gathered before the sort, which couples them  texts x width x sites numbers per step
    gradients        of the learned vectors, added up                            2 to 3 x width x sites numbers per step

They are the processes of torchrun (or of `accelerate launch`, which starts it), or of any program that has initialised
torch.distributed. They exchange data through main memory, over gloo, whatever runs on their devices.

Every rank has the whole model and gets the same result; only the first reads and writes files. Limitations: models that
are themselves spread over the ranks (tensor parallel, FSDP), whose ranks must run the same batches, are refused.
"""

import io
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dsas.errors import DsasError, OptionError
from dsas.model.foreign import Foreign

Item = TypeVar("Item")
TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun, and by programs that follow it
PATIENCE = timedelta(days=1)  # for slower ranks; a dead rank is reported to the others immediately


@final
class Ranks:
    """The processes that train together, seen from one of them; `ALONE` is a process by itself.

    number: which rank this is, 0 to count - 1.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        """Communicate over a process group on gloo; None means a single process."""
        self._group = group
        self.number, self.count = (dist.get_rank(group), dist.get_world_size(group)) if group is not None else (0, 1)

    @property
    def first(self) -> bool:
        """Whether this rank reads and writes files and shows progress."""
        return self.number == 0

    def local(self, jobs: Sequence[Item]) -> Sequence[Item]:
        """Return this rank's share of the jobs."""
        return jobs[self.number :: self.count]

    def gathered(self, results: Sequence[Item]) -> list[Item]:
        """Return the results of all jobs, in the order of the jobs, given those of this rank's; tensors on the CPU."""
        if self.count == 1:
            return list(results)
        found: list[Foreign] = [None] * self.count
        dist.all_gather_object(found, list(results), group=self._group)
        return [found[job % self.count][job // self.count] for job in range(sum(map(len, found)))]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks, in float64."""
        if self.count == 1:
            return
        flat = torch.cat([value.detach().to("cpu", torch.float64).flatten() for value in tensors])
        dist.all_reduce(flat, group=self._group)
        for value, total in zip(tensors, flat.split([value.numel() for value in tensors]), strict=True):
            value.copy_(total.view(value.shape))

    def from_first(self, make: Callable[[], Item]) -> Item:
        """Return on every rank what `make` returns, or raise what it raises; it is called only on the first."""
        if self.count == 1:
            return make()
        found, error, sent = None, None, [b""]
        if self.first:
            try:
                found = make()
            except DsasError as raised:
                error = raised
            packed = io.BytesIO()
            torch.save((found, error), packed)
            sent = [packed.getvalue()]
        dist.broadcast_object_list(sent, group_src=0, group=self._group)
        if not self.first:  # on the CPU: a device of the first rank may not exist here, or belong to another rank
            found, error = torch.load(io.BytesIO(sent[0]), map_location="cpu", weights_only=False)
        if error is not None:
            raise error
        return found  # pyright: ignore[reportReturnType]

    def check_same(self, what: str) -> None:
        """Raise OptionError, on every rank, unless all were given the same training."""
        if len(set(self.gathered([what]))) > 1:
            raise OptionError(
                f"the {self.count} ranks were given different models, texts or options, and train one Steering "
                "together: give all the same, or distributed=False to train one on each"
            )

    @contextmanager
    def interruptible(self) -> Iterator[Callable[[], None]]:
        """Give a function, called by all together, that raises KeyboardInterrupt on all once any was interrupted.

        Until then Ctrl-C waits, because a rank that left in the middle of a step would block the others.
        """
        if self.count == 1:
            yield lambda: None
            return
        asked = torch.zeros(1)

        def check() -> None:
            total = asked.clone()
            self.add_up([total])
            if total > 0:
                raise KeyboardInterrupt

        if threading.current_thread() is not threading.main_thread():  # only that rank gets the signal
            yield check
            return
        before = signal.signal(signal.SIGINT, lambda *_: asked.fill_(1))
        try:
            yield check
        finally:
            signal.signal(signal.SIGINT, before)


ALONE: Ranks = Ranks()


@contextmanager
def ranks_here(model: nn.Module, *, distributed: bool) -> Iterator[Ranks]:
    """Give the ranks that train together here; with distributed=False, or without others, a single process.

    Under torchrun, torch.distributed is initialised on gloo if it is not yet; it stays initialised for later calls.
    Raises OptionError for a model that is spread over the ranks itself.
    """
    if not (distributed and dist.is_available()):
        yield ALONE
        return
    if not dist.is_initialized():
        if not all(os.environ.get(name) for name in TORCHRUN) or os.environ["WORLD_SIZE"] == "1":
            yield ALONE
            return
        dist.init_process_group("gloo", timeout=PATIENCE)
    if dist.get_world_size() == 1:
        yield ALONE
        return
    from torch.distributed.tensor import DTensor

    if (getattr(model, "_tp_size", None) or 1) > 1 or any(isinstance(one, DTensor) for one in model.parameters()):
        raise OptionError(
            "this model is spread over the ranks itself (tensor parallel or FSDP), so that all must run the same "
            "batches: give distributed=False, and each rank a checkpoint folder of its own"
        )
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(group, dist.ProcessGroup)  # every rank belongs to it
    try:
        yield Ranks(group)
    finally:
        dist.destroy_process_group(group)


def is_first() -> bool:
    """Whether this process is alone or the first of its ranks."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
