"""Workers: the same jobs in this process, in several, or over a Ray cluster.

A *job* is anything that can be pickled; who does it is made by each worker for itself, once, by a function that can be
pickled, too, and has a method `run(job)`. So a model is loaded once a worker and takes its memory once a worker; on a
cluster its folder (or the hub) must be readable on every node.

Several workers of one thread each lose to a busy neighbour the share of the processor that it takes, and no more;
several threads of one process would wait for one another at every step. In this process, jobs run with the number of
threads that was asked for, and between them torch has the threads that it had.

Results come as they are done, in any order, and are the caller's to keep. A worker that dies, killed or out of memory,
takes only its own job with it: that job is started again, three times at most.
"""

import multiprocessing
import os
import signal
import threading
import uuid
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol, final

import torch

from dsas.errors import DsasWarning, MissingExtraError, OptionError, WorkerError

ATTEMPTS = 3
MEMORY = Path("/proc/meminfo")


class Spread(NamedTuple):
    """Where jobs run: in `workers` processes of this machine, 1 being this process itself, or on a Ray cluster.

    ray: its address; "auto" is the one that is running here or, without one, a new one on this machine; "" is none.
    """

    workers: int = 1
    ray: str = ""

    @property
    def threads(self) -> int:
        """How many of torch's threads each worker gets: an equal share of this process's; 1 on a cluster."""
        return 1 if self.ray else max(1, torch.get_num_threads() // max(1, self.workers))


def workers_that_fit(each: int) -> int:
    """Return how many workers of one thread this machine has processors for, and memory, of which each takes so much.

    each: bytes, > 0. At least 1. Limitations: where there is no /proc/meminfo, memory is not looked at.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not MEMORY.is_file():
        return processors
    fields = dict(line.split(":") for line in MEMORY.read_text(encoding="ascii").splitlines())
    return max(1, min(processors, int(fields["MemAvailable"].split()[0]) * 1024 // each))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch have `count` threads inside, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Runs(Protocol):
    """Who does jobs."""

    def run(self, job: Any) -> Any:
        """Return the result of a job."""
        ...


class Done(NamedTuple):
    """A job's place in the list that was given, and its result."""

    number: int
    result: Any


class Workers(ABC):
    """Those who run jobs; a context manager that lets them go, whatever happens."""

    @abstractmethod
    def run(self, jobs: Sequence[Any]) -> Iterator[Done]:
        """Run all jobs and yield each result when it is there. Raises WorkerError when workers died three times."""

    @abstractmethod
    def close(self) -> None:
        """End the workers now, and whatever they are at."""

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def workers_of(make: Callable[[], Runs], spread: Spread, *, threads: int = 1) -> Workers:
    """Return the workers that were asked for; none of them has begun yet.

    make: makes who does the jobs, in each worker. threads: torch's in every worker; a cluster keeps as many processors
    for a job.
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
        """Do nothing: there is no one to end."""


_worker: Runs | None = None  # of a worker process


def _die_with_parent() -> None:
    """End this process when the one that started it has ended, however that was: it has nobody to work for."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _begin(make: Callable[[], Runs], threads: int) -> None:
    global _worker
    threading.Thread(target=_die_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    torch.set_num_threads(threads)
    with suppress(ImportError):  # a bar per worker would tear the one that shows the progress of all
        from transformers.utils import logging

        logging.disable_progress_bar()
    _worker = make()


def _work(job: Any) -> Any:
    assert _worker is not None
    return _worker.run(job)


@final
class _OverProcesses(Workers):
    def __init__(self, make: Callable[[], Runs], count: int, threads: int) -> None:
        self._begun, self._count = (make, threads), count
        self._pool: ProcessPoolExecutor | None = None

    def run(self, jobs: Sequence[Any]) -> Iterator[Done]:
        """Run as many at once as there are processes; they stay for the next jobs."""
        waiting, options = dict(enumerate(jobs)), {"initializer": _begin, "initargs": self._begun}
        for _ in range(ATTEMPTS):
            self._pool = self._pool or ProcessPoolExecutor(self._count, multiprocessing.get_context("spawn"), **options)
            try:
                futures = {self._pool.submit(_work, job): number for number, job in waiting.items()}
                for future in as_completed(futures):
                    result = future.result()
                    waiting.pop(futures[future])
                    yield Done(futures[future], result)
                return
            except BrokenProcessPool:
                self.close()
                warnings.warn(f"a worker died; {len(waiting)} jobs are started again", DsasWarning, stacklevel=2)
        raise WorkerError(f"workers died {ATTEMPTS} times; where memory is short, take fewer of them")

    def close(self) -> None:
        if self._pool is None:
            return
        for process in list((self._pool._processes or {}).values()):
            process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)  # its own thread sees that they died, and buries them
        self._pool = None


_served: dict[str, Runs] = {}  # of a Ray worker process, by whom it works for; it keeps the last one only


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
        _connect(ray, address)
        self._work = ray.remote(max_retries=ATTEMPTS, num_cpus=threads)(_work_on_ray)
        self._make, self._threads, self._whom = ray.put(make), threads, uuid.uuid4().hex
        self._waiting: dict[Any, int] = {}

    def run(self, jobs: Sequence[Any]) -> Iterator[Done]:
        """Run as many at once as the cluster has processors for; Ray starts again what dies."""
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
        """Take back what has not been done; the cluster stays."""
        for left in self._waiting:
            self._ray.cancel(left, force=True)
        self._waiting = {}


def _connect(ray: Any, address: str) -> None:
    if ray.is_initialized():
        return
    quiet = {"log_to_driver": False, "logging_level": "error"}
    try:
        ray.init(address=address, **quiet)
    except ConnectionError as error:
        if address != "auto":
            raise OptionError(f"no Ray cluster answers at {address!r}: {error}") from error
        ray.init(include_dashboard=False, **quiet)
