"""Workers: the same jobs in this process, in several, or over a Ray cluster.

Results come as they are done, in any order, and are the caller's to keep. A worker that dies, killed or out of memory,
takes only its own job with it: that job is started again, three times at most.

Each worker loads the model by itself, once, so it takes its memory once a worker; on a cluster the model's folder (or
the hub) must be readable on every node.
"""

import multiprocessing
import uuid
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, final

from dsas.errors import DsasWarning, MissingExtraError, OptionError, WorkerError
from dsas.sweep.jobs import Job, Setup, Worker

ATTEMPTS = 3


class Spread(NamedTuple):
    """Where jobs run: in `workers` processes of this machine, 1 being this process itself, or on a Ray cluster.

    ray: its address; "auto" is the one that is running here or, without one, a new one on this machine; "" is none.
    """

    workers: int = 1
    ray: str = ""


class Done(NamedTuple):
    """A job's place in the list that was given, and its result."""

    number: int
    result: Any


class Workers(ABC):
    """Those who run jobs; a context manager that lets them go, whatever happens."""

    @abstractmethod
    def run(self, jobs: Sequence[Job]) -> Iterator[Done]:
        """Run all jobs and yield each result when it is there. Raises WorkerError when workers died three times."""

    @abstractmethod
    def close(self) -> None:
        """End the workers now, and whatever they are at."""

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def workers_of(setup: Setup, spread: Spread) -> Workers:
    """Return the workers that were asked for; none of them has begun yet.

    Raises OptionError for workers < 1 or an address that does not answer, MissingExtraError without ray.
    """
    if spread.workers < 1:
        raise OptionError(f"expected at least one worker, got {spread.workers}")
    if spread.ray:
        return _OverRay(setup, spread.ray)
    return _OverProcesses(setup, spread.workers) if spread.workers > 1 else _Here(setup)


@final
class _Here(Workers):
    def __init__(self, setup: Setup) -> None:
        self._worker = Worker(setup)

    def run(self, jobs: Sequence[Job]) -> Iterator[Done]:
        """Run one after the other."""
        yield from (Done(number, self._worker.run(job)) for number, job in enumerate(jobs))

    def close(self) -> None:
        """Do nothing: there is no one to end."""


_worker: Worker | None = None  # of a worker process, which serves one setup


def _begin(setup: Setup) -> None:
    global _worker
    _worker = Worker(setup)


def _work(job: Job) -> Any:
    assert _worker is not None
    return _worker.run(job)


@final
class _OverProcesses(Workers):
    def __init__(self, setup: Setup, count: int) -> None:
        self._setup, self._count = setup, count
        self._pool: ProcessPoolExecutor | None = None

    def run(self, jobs: Sequence[Job]) -> Iterator[Done]:
        """Run as many at once as there are processes; they stay for the next jobs."""
        waiting = dict(enumerate(jobs))
        for _ in range(ATTEMPTS):
            self._pool = self._pool or self._started()
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
        """End the processes without waiting for their jobs."""
        if self._pool is None:
            return
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        self._pool = None

    def _started(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self._count, mp_context=context, initializer=_begin, initargs=(self._setup,))


_served: dict[str, Worker] = {}  # of a Ray worker process, by sweep; it keeps the last one only


def _work_on_ray(setup: Setup, sweep: str, job: Job) -> Any:
    if sweep not in _served:
        _served.clear()
        _served[sweep] = Worker(setup)
    return _served[sweep].run(job)


@final
class _OverRay(Workers):
    def __init__(self, setup: Setup, address: str) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("ray", "ray") from error
        self._ray: Any = ray
        _connect(ray, address)
        self._work = ray.remote(max_retries=ATTEMPTS, num_cpus=setup.threads)(_work_on_ray)
        self._setup, self._sweep = ray.put(setup), uuid.uuid4().hex
        self._waiting: dict[Any, int] = {}

    def run(self, jobs: Sequence[Job]) -> Iterator[Done]:
        """Run as many at once as the cluster has processors for; Ray starts again what dies."""
        self._waiting = {self._work.remote(self._setup, self._sweep, job): number for number, job in enumerate(jobs)}
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
