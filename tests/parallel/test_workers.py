"""Jobs over workers, some of which die."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from dsas.errors import DsasWarning, OptionError, WorkerError
from dsas.parallel import workers
from dsas.parallel.workers import Spread, torch_threads, workers_of, workers_that_fit


class Squares:
    """Squares numbers; whoever gets the `fatal` one dies, if nobody did before or `always`."""

    def __init__(self, notes: Path, fatal: int = -1, always: bool = False) -> None:
        self._notes, self._fatal, self._always = notes, fatal, always

    def run(self, job: int) -> int:
        died = self._notes / "died"
        if job == self._fatal and (self._always or not died.exists()):
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return job**2


def by_value() -> None:
    """Let Ray send what is defined here, where its workers could not import it."""
    pytest.importorskip("ray").cloudpickle.register_pickle_by_value(sys.modules[__name__])


def run(spread: Spread, *given, **options) -> list[tuple[int, int]]:
    with workers_of(partial(Squares, *given, **options), spread) as workers:
        return [*workers.run(range(8)), *workers.run(range(8, 10))]


@pytest.mark.parametrize("spread", [Spread(), Spread(workers=2), Spread(ray="auto")], ids=["here", "processes", "ray"])
def test_every_job_is_done_once_and_the_workers_stay_for_the_next_ones(tmp_path, spread):
    if spread.ray:
        by_value()
    found = run(spread, tmp_path)
    assert sorted(found[:8]) == [(n, n**2) for n in range(8)]
    assert sorted(found[8:]) == [(n - 8, n**2) for n in (8, 9)]


@pytest.mark.parametrize("ray", [False, True], ids=["processes", "ray"])
def test_a_worker_that_is_killed_takes_only_its_job_with_it(tmp_path, ray):
    if ray:
        by_value()
        found = run(Spread(ray="auto"), tmp_path, fatal=3)
    else:
        with pytest.warns(DsasWarning, match="a worker died"):
            found = run(Spread(workers=2), tmp_path, fatal=3)
    assert (tmp_path / "died").exists()
    assert sorted(found[:8]) == [(n, n**2) for n in range(8)]


def test_a_job_that_kills_every_worker_ends_with_an_error_and_leaves_no_process(tmp_path):
    with pytest.warns(DsasWarning), pytest.raises(WorkerError, match="workers died 3 times"):
        run(Spread(workers=2), tmp_path, fatal=3, always=True)
    assert multiprocessing.active_children() == []


def test_who_stops_listening_leaves_no_process(tmp_path):
    with workers_of(partial(Squares, tmp_path), Spread(workers=2)) as workers:
        next(workers.run(range(8)))
    assert multiprocessing.active_children() == []


def test_less_than_one_worker_and_a_cluster_that_is_not_there_are_refused(tmp_path):
    with pytest.raises(OptionError, match="at least one worker, got 0"):
        run(Spread(workers=0), tmp_path)


class Threads:
    """Tells how many threads torch has where the job runs."""

    def run(self, job: int) -> int:
        return torch.get_num_threads()


@pytest.mark.parametrize("spread", [Spread(), Spread(workers=2)], ids=["here", "processes"])
def test_a_job_has_the_threads_asked_for_and_the_caller_keeps_those_it_had(spread):
    before = torch.get_num_threads()
    with torch_threads(5), workers_of(Threads, spread, threads=2) as hired:
        for done in hired.run(range(3)):
            assert (done.result, torch.get_num_threads()) == (2, 5)
    assert torch.get_num_threads() == before


class Failing:
    """Fails at every job."""

    def run(self, job: int) -> int:
        raise ValueError(job)


def test_a_job_that_fails_leaves_the_caller_its_threads():
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="0"), workers_of(Failing, Spread(), threads=before + 2) as hired:
        next(hired.run(range(2)))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("each", "expected"), [(1, 6), (1 << 30, 3), (2 << 30, 1), (9 << 30, 1)])
def test_there_are_as_many_workers_as_processors_and_as_memory_is_available(tmp_path, monkeypatch, each, expected):
    (tmp_path / "meminfo").write_text("MemTotal:       99999999 kB\nMemAvailable:    3670016 kB\n")  # 3.5 GiB
    monkeypatch.setattr(workers, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert workers_that_fit(each) == expected
    monkeypatch.setattr(workers, "MEMORY", tmp_path / "none")
    assert workers_that_fit(each) == 6


def test_workers_share_the_threads_of_this_process_and_never_get_none(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    spreads = (Spread(), Spread(workers=3), Spread(workers=9), Spread(ray="auto"))
    assert [spread.threads for spread in spreads] == [8, 2, 1, 1]


APART = """
import sys, ray
ray.init(include_dashboard=False, log_to_driver=False, num_cpus=1)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


def test_auto_joins_no_cluster_that_another_program_began_for_itself_and_is_left_when_the_work_is_done() -> None:
    ray = pytest.importorskip("ray")
    by_value()
    command = [sys.executable, "-c", APART]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = other.stdout.readline().strip()
        with workers_of(Threads, Spread(ray="auto")) as hired:
            assert [done.result for done in hired.run(range(2))] == [1, 1]
            assert ray.get_runtime_context().gcs_address not in ("", theirs)
        assert not ray.is_initialized()


def test_a_cluster_that_the_caller_has_joined_is_used_and_stays() -> None:
    ray = pytest.importorskip("ray")
    by_value()
    ray.init(address="local", include_dashboard=False, log_to_driver=False, num_cpus=1)
    try:
        own = ray.get_runtime_context().gcs_address
        with workers_of(Threads, Spread(ray="auto")) as hired:
            assert [done.result for done in hired.run(range(2))] == [1, 1]
        assert ray.get_runtime_context().gcs_address == own
    finally:
        ray.shutdown()


LIVES_ON = """
import os, sys, time
from dsas.parallel.workers import Spread, workers_of

class Sleeps:
    def run(self, job):
        time.sleep(job)
        return os.getpid()

if __name__ == "__main__":
    with workers_of(Sleeps, Spread(workers=2)) as workers:
        for done in workers.run([0.1, 0.1, 60, 60]):
            print(done.result, flush=True)
"""


def test_workers_end_when_the_process_that_began_them_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "lives_on.py"
    script.write_text(LIVES_ON)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = {int(parent.stdout.readline()) for _ in range(2)}
        parent.kill()
    ends = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < ends:
        time.sleep(0.1)
    assert [worker for worker in workers if Path(f"/proc/{worker}").exists()] == []
