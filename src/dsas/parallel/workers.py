"""Workers: the same jobs in this process, in several, or over a Ray cluster.

A *job* is anything that can be pickled. Each worker makes one object with a method `run(job)`, by a function that can
be pickled, too. So a model is loaded once per worker and takes its memory once per worker; on a cluster its folder (or
the hub) must be readable on every node.

On a busy machine, several workers of one thread each lose only the share of the processor that others take; several
threads of one process would wait for one another at every step. In this process, jobs run with the requested number of
threads, and torch's own number is restored between jobs.

Results come as they are done, in any order, and are the caller's to keep. A worker that dies, killed or out of memory,
takes only its own job with it: that job is started again, three times at most.

Limitations: Ray itself ends every process that is connected to a cluster which goes away, half a minute later and
without an exception. So nobody is connected for longer than the work takes, and "auto" joins only a cluster that is
meant to be joined, never one that another program started for itself.
"""

import multiprocessing
import os
import pickle
import uuid
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, final

import torch

from dsas.errors import DsasWarning, MissingExtraError, OptionError, WorkerError
from dsas.parallel.worker_process import Runs, begin, work

ATTEMPTS = 3
MEMORY = Path("/proc/meminfo")


class Spread(NamedTuple):
    """Where jobs run: in `workers` processes on this machine (1 is this process itself), or on a Ray cluster.

    ray: its address; "auto" is that of RAY_ADDRESS, or that of `ray start` on this machine, or a new one on this
    machine that ends with the work; "" is none. A cluster that the caller has joined is used as it is.
    """

    workers: int = 1
    ray: str = ""

    @property
    def threads(self) -> int:
        """The number of torch's threads per worker: an equal share of this process's; 1 on a cluster."""
        return 1 if self.ray else max(1, torch.get_num_threads() // max(1, self.workers))


def workers_that_fit(each: int) -> int:
    """Return how many workers of one thread this machine has processors and memory for; each takes `each` bytes.

    each: > 0. The result is at least 1. Limitations: without /proc/meminfo, memory is not considered.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not MEMORY.is_file():
        return processors
    fields = dict(line.split(":") for line in MEMORY.read_text(encoding="ascii").splitlines())
    return max(1, min(processors, int(fields["MemAvailable"].split()[0]) * 1024 // each))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Give torch `count` threads inside the block, and restore their number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Done(NamedTuple):
    """A job's place in the list that was given, and its result."""

    number: int
    result: Any


class Workers(ABC):
    """Workers that run jobs; a context manager that always ends them."""

    @abstractmethod
    def run(self, jobs: Sequence[Any]) -> Iterator[Done]:
        """Run all jobs and yield each result when it is done. Raises WorkerError when workers died three times."""

    @abstractmethod
    def close(self) -> None:
        """End the workers now, with whatever they are doing."""

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def workers_of(make: Callable[[], Runs], spread: Spread, *, threads: int = 1) -> Workers:
    """Return the requested workers, which have not started yet.

    make: makes the object that runs the jobs, in each worker. threads: torch's threads in every worker; a cluster
    reserves as many processors per job.
    Raises OptionError for workers < 1 or an address that does not answer, MissingExtraError without ray.
    """
    if spread.workers < 1:
        raise OptionError(f"expected at least one worker, got {spread.workers}")
    if spread.ray:
        return _OverRay(make, spread.ray, threads)
    return _OverProcesses(make, spread.workers, threads) if spread.workers > 1 else _Here(make, threads)


@final
class _Here(Workers):
    def __init__(self, make: Callable[[], Runs], threads: int) -> None:
        self._make, self._threads, self._worker = make, threads, None

    def run(self, jobs: Sequence[Any]) -> Iterator[Done]:
        for number, job in enumerate(jobs):
            with torch_threads(self._threads):
                self._worker = self._worker or self._make()
                result = self._worker.run(job)
            yield Done(number, result)

    def close(self) -> None:
        """Do nothing: there is no worker to end."""


@final
class _OverProcesses(Workers):
    def __init__(self, make: Callable[[], Runs], count: int, threads: int) -> None:
        self._make, self._threads, self._count = make, threads, count
        self._pool: ProcessPoolExecutor | None = None

    def run(self, jobs: Sequence[Any]) -> Iterator[Done]:
        """Run as many at once as there are processes; they stay for the next jobs."""
        waiting, made = dict(enumerate(jobs)), pickle.dumps((self._make, self._threads))
        options = {"initializer": begin, "initargs": (made,)}
        for _ in range(ATTEMPTS):
            self._pool = self._pool or ProcessPoolExecutor(self._count, multiprocessing.get_context("spawn"), **options)
            try:
                futures = {self._pool.submit(work, job): number for number, job in waiting.items()}
                for future in as_completed(futures):
                    result = future.result()
                    waiting.pop(futures[future])
                    yield Done(futures[future], result)
                return
            except BrokenProcessPool:
                self.close()
                warnings.warn(f"a worker died; {len(waiting)} jobs are started again", DsasWarning, stacklevel=2)
        raise WorkerError(f"workers died {ATTEMPTS} times; if memory is short, use fewer workers")

    def close(self) -> None:
        if self._pool is None:
            return
        for process in list((self._pool._processes or {}).values()):
            process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)  # its own thread notices that they died, and cleans up
        self._pool = None


_served: dict[str, Runs] = {}  # in a Ray worker process, by the caller's key; only the last one is kept


def _work_on_ray(make: Callable[[], Runs], threads: int, whom: str, job: Any) -> Any:
    torch.set_num_threads(threads)
    if whom not in _served:
        _served.clear()
        _served[whom] = make()
    return _served[whom].run(job)


@final
class _OverRay(Workers):
    def __init__(self, make: Callable[[], Runs], address: str, threads: int) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("ray", "ray") from error
        self._ray: Any = ray
        self._joined = _join(ray, address)
        self._work = ray.remote(max_retries=ATTEMPTS, num_cpus=threads)(_work_on_ray)
        self._make, self._threads, self._whom = ray.put(make), threads, uuid.uuid4().hex
        self._waiting: dict[Any, int] = {}

    def run(self, jobs: Sequence[Any]) -> Iterator[Done]:
        """Run as many jobs at once as the cluster has processors for; Ray restarts those that die."""
        same = (self._make, self._threads, self._whom)
        self._waiting = {self._work.remote(*same, job): number for number, job in enumerate(jobs)}
        while self._waiting:
            (ready,), _ = self._ray.wait(list(self._waiting), num_returns=1)
            number = self._waiting.pop(ready)
            try:
                yield Done(number, self._ray.get(ready))
            except self._ray.exceptions.WorkerCrashedError as error:
                raise WorkerError(f"a job's workers died {ATTEMPTS} times: {error}") from error

    def close(self) -> None:
        """Take back what has not been done, and leave the cluster if it was joined for this work."""
        for left in self._waiting:
            self._ray.cancel(left, force=True)
        self._waiting = {}
        if self._joined:
            self._ray.shutdown()
            self._joined = False


def _join(ray: Any, address: str) -> bool:
    """Join a cluster, or start one; returns whether this process was in none before."""
    if ray.is_initialized():
        return False
    quiet = {"log_to_driver": False, "logging_level": "error"}
    try:
        ray.init(address=None if address == "auto" else address, include_dashboard=False, **quiet)
    except ConnectionError as error:
        if address != "auto" or os.environ.get("RAY_ADDRESS"):
            raise OptionError(f"no Ray cluster answers at {address!r}: {error}") from error
        ray.init(address="local", include_dashboard=False, **quiet)  # what `ray start` started is gone
    return True
