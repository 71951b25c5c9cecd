"""Worker process: what runs in each process of `workers`, and first of all a check that its parent still runs.

It is imported before anything heavy, and what a worker needs comes as bytes that are read only afterwards, so that a
worker whose parent dies ends at once even while it still imports torch.

Limitations: before it, a worker imports the script that began it, if that is a file, as Python's `multiprocessing`
does for every process that it spawns. Code there outside of `if __name__ == "__main__":` is not interrupted.
"""

import multiprocessing
import os
import pickle
import signal
import threading
from contextlib import suppress
from typing import Any, Protocol


class Runs(Protocol):
    """The object that does the jobs."""

    def run(self, job: Any) -> Any:
        """Return the result of a job."""
        ...


_worker: Runs | None = None


def _die_with_parent() -> None:
    """End this process when the one that started it has ended, in whatever way."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def begin(made: bytes) -> None:
    """Make the object that does the jobs. made: the pickle of its maker and of the number of threads for torch."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    make, threads = pickle.loads(made)

    import torch

    torch.set_num_threads(threads)
    with suppress(ImportError):  # a bar per worker would break up the one that shows the progress of all
        from transformers.utils import logging

        logging.disable_progress_bar()
    _worker = make()


def work(job: Any) -> Any:
    """Return the result of a job."""
    assert _worker is not None
    return _worker.run(job)
