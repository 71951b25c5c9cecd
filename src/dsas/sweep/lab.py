"""Lab: runs jobs with any number of workers, and stores their results."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import final

from dsas.evaluation.generations import batch_count
from dsas.files.results import Results
from dsas.model.foreign import Foreign
from dsas.parallel.progress import progress_bar
from dsas.parallel.workers import Spread, Workers, workers_of
from dsas.steering.steering import Steering
from dsas.sweep.jobs import Job, Setup, Worker

JOBS = "jobs"


@contextmanager
def open_lab(out: Path, setup: Setup, spread: Spread, *, progress: bool) -> Iterator["Lab"]:
    """Give a lab that stores its results in the folder `jobs` of `out`; its workers end with it.

    Raises what `workers_of` raises.
    """
    with workers_of(partial(Worker, setup), spread, threads=setup.threads) as workers:
        yield Lab(out, setup, workers, progress)


@final
class Lab:
    """Runs jobs without stored results, and reads the results of the others."""

    def __init__(self, out: Path, setup: Setup, workers: Workers, progress: bool) -> None:
        self.setup = setup
        self._results, self._workers, self._progress = Results(out / JOBS), workers, progress

    def run(self, jobs: Sequence[Job], what: str) -> list[Foreign]:
        """Return the results of `jobs`, in their order; each is stored as soon as it is done."""
        known = {place: found for place, job in enumerate(jobs) if (found := self.found(job)) is not None}
        missing = [place for place in range(len(jobs)) if place not in known]
        with progress_bar(self._progress) as bar:
            task = bar.add_task(what, total=len(jobs), completed=len(known))
            for number, result in self._workers.run([jobs[place] for place in missing]):
                job = jobs[missing[number]]
                self._results.put(job.task, job.depends(self.setup), result)
                bar.advance(task)
        return [self.found(job) for job in jobs]

    def found(self, job: Job) -> Foreign:
        """Return the result of a job, or None when it has not been run."""
        return self._results.get(job.task, job.depends(self.setup))

    def generations(self, steering: Steering | None, strength: float, seed: int) -> list[Job]:
        """Return the jobs that continue every prompt once."""
        batches = range(batch_count(self.setup.prompts, self.setup.sampling))
        return [Job("generate", steering, strength, seed=seed, batch=batch) for batch in batches]

    def texts(self, steering: Steering | None, strength: float, seed: int) -> tuple[str, ...]:
        """Return the continuations in the order of the prompts; none before all of their jobs have run."""
        parts = [self.found(job) for job in self.generations(steering, strength, seed)]
        if None in parts:
            return ()
        return tuple(text for _, text in sorted((row, text) for part in parts for row, text in part))
