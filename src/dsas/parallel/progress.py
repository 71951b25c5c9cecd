"""Progress: one kind of bar for all long work, on stderr; plain lines where stderr is not a terminal.

    sampling: 3 of 9, 1:20 left

Without a terminal there is a line when a task begins, at most one every ten seconds while it goes on, and one when it
ends. The time left is extrapolated from the items done so far, so it is rough where items differ.
"""

import time
from collections.abc import Callable
from types import TracebackType
from typing import final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_CHECKPOINTS = 30.0
SECONDS_BETWEEN_LINES = 10.0


def progress_bar(show: bool) -> "Bar":
    """Return the progress bar for all long work in dsas, silent when not shown."""
    return Bar(Console(stderr=True), show=show)


@final
class _Lines:
    """A task reported in lines: how much is done, of how much, and how long the rest takes."""

    def __init__(self, write: Callable[[str], None], what: str, total: int | None, done: int) -> None:
        self._write, self.what, self._total, self._first = write, what, total, done
        self.done, self._begun = done, time.monotonic()
        self._written, self._ended = self._begun, False
        self._write(what if total is None else f"{what}: {self._counted()}")

    def advance(self, done: int) -> None:
        self.done = done
        now = time.monotonic()
        if self._total is not None and done >= self._total:
            self.end()
        elif now - self._written >= SECONDS_BETWEEN_LINES:
            self._written = now
            self._write(f"{self.what}: {self._counted()}{self._left(now - self._begun)}")

    def end(self) -> None:
        if not self._ended and self.done > self._first:
            self._write(f"{self.what}: {self._counted()} in {_said(time.monotonic() - self._begun)}")
        self._ended = True

    def _counted(self) -> str:
        return f"{self.done} done" if self._total is None else f"{self.done} of {self._total}"

    def _left(self, seconds: float) -> str:
        here = self.done - self._first
        return f", {_said(seconds * (self._total - self.done) / here)} left" if self._total and here > 0 else ""


@final
class Bar:
    """The tasks of some long work, as bars on a terminal and as lines elsewhere; a context manager."""

    def __init__(self, console: Console, *, show: bool) -> None:
        what = TextColumn("{task.description}", markup=False)
        columns = (what, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._drawn = Progress(*columns, console=console, disable=not show or not console.is_terminal, transient=True)
        self._console, self._plain = console, show and not console.is_terminal
        self._lines: dict[TaskID, _Lines] = {}

    def __enter__(self) -> "Bar":
        self._drawn.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drawn.stop()
        for lines in self._lines.values() if kind is None else ():
            lines.end()

    def add_task(self, what: str, *, total: int | None, completed: int = 0) -> TaskID:
        """Begin a task of `total` items (None if unknown), of which `completed` were done before."""
        task = self._drawn.add_task(what, total=total, completed=completed)
        if self._plain:
            self._lines[task] = _Lines(self._write, what, total, completed)
        return task

    def advance(self, task: TaskID, items: int = 1) -> None:
        """Count some more items as done."""
        self._drawn.advance(task, items)
        if self._plain:
            self._lines[task].advance(self._lines[task].done + items)

    def update(self, task: TaskID, *, completed: int, description: str = "") -> None:
        """Set how many items are done in all and, unless it is empty, what is being done."""
        self._drawn.update(task, completed=completed, description=description or None)
        if self._plain:
            self._lines[task].what = description or self._lines[task].what
            self._lines[task].advance(completed)

    def _write(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _said(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
