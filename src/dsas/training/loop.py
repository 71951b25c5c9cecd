"""Loop: step after step, with bars, log, checkpoint, early stopping and a Ctrl-C that keeps the best.

Everything that a later step depends on is copied after every whole step. Whatever happens during a step, that copy is
written and resumed from, so a resumed training gives the same bits as one that was never interrupted. With several
ranks, the first one writes files and shows progress; all resume from its state and stop after the same step.
"""

import time
from pathlib import Path
from typing import Literal, NamedTuple

from rich.progress import TaskID
from torch import Tensor

from dsas.parallel.progress import SECONDS_BETWEEN_CHECKPOINTS, Bar, progress_bar
from dsas.training.learner import Learner
from dsas.training.records import Course, Log, Row, State, read_state, write_state

Stopped = Literal["finished", "early", "interrupted", "diverged"]


class Learned(NamedTuple):
    """The best parameters by name, the log, the number of steps, and why training ended."""

    values: dict[str, Tensor]
    rows: tuple[Row, ...]
    stopped: Stopped
    steps: int
    best_step: int


def learn(trainer: Learner, *, file: Path | None = None, log: Log | None = None, progress: bool = True) -> Learned:
    """Train to the end of the plan, or until the held-out loss no longer falls, or Ctrl-C; return the best parameters.

    file: where the state is stored, to resume from. Without a held-out part, the best parameters are the last.
    """
    log = log or Log(None)
    keeper = _Keeper(trainer, file)
    log.begin(keeper.state.course.rows)
    stopped = ""
    with progress_bar(progress) as bar, trainer.ranks.interruptible() as check, keeper:
        task = bar.add_task("training", total=trainer.plan.steps, completed=keeper.state.course.done)
        try:
            while not keeper.state.course.ended:
                check()
                keeper.advance()
                row = keeper.state.course.rows[-1]
                log.add(row)
                _show(bar, task, row)
        except KeyboardInterrupt:
            stopped = "interrupted"
        finally:
            log.close()
    course = keeper.state.course
    why: Stopped = stopped or course.ended  # pyright: ignore[reportAssignmentType]
    return Learned(keeper.state.best, course.rows, why, course.done, course.best_step)


class _Keeper:
    """Holds the state after the last whole step; a context manager that writes it when it is left."""

    def __init__(self, trainer: Learner, file: Path | None) -> None:
        self._trainer, self._written = trainer, time.monotonic()
        self._file = file if trainer.ranks.first else None
        found = read_state(self._file) if self._file is not None else None
        self.state = trainer.ranks.from_first(lambda: found or State(Course(), trainer.state(), self._leaves()))
        trainer.restore(self.state.now)

    def advance(self) -> None:
        """Take one step or, after the last one, a final evaluation."""
        trainer, (course, _, best) = self._trainer, self.state
        number, last = course.done, course.done == trainer.plan.steps
        found = trainer.look() if self._looks(number) else {}
        if found:
            better = course.best_loss is None or found["held_loss"] < course.best_loss
            course = course._replace(waiting=0 if better else course.waiting + 1)
            if better:
                course, best = course._replace(best_step=number, best_loss=found["held_loss"]), self._leaves()
        if last or course.waiting >= trainer.plan.held_out.patience:
            row = trainer.row(number)._replace(**found)
            course = course._replace(ended="finished" if last else "early", rows=(*course.rows, row))
            self._put(State(course, self.state.now, best))
            return
        row = trainer.step(number)._replace(**found)
        if row.loss is None:
            self._put(State(course._replace(ended="diverged", rows=(*course.rows, row)), self.state.now, best))
            return
        course = course._replace(done=number + 1, rows=(*course.rows, row))
        if not trainer.plan.held_out.share:
            course, best = course._replace(best_step=number + 1), self._leaves()
        self._put(State(course, trainer.state(), best))

    def _looks(self, number: int) -> bool:
        held = self._trainer.plan.held_out
        return held.share > 0 and (number % held.every == 0 or number == self._trainer.plan.steps)

    def _leaves(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self._trainer.leaves.items()}

    def _put(self, state: State) -> None:
        self.state = state
        if time.monotonic() - self._written > SECONDS_BETWEEN_CHECKPOINTS:
            self._write()

    def _write(self) -> None:
        if self._file is not None:
            write_state(self._file, self.state)
        self._written = time.monotonic()

    def __enter__(self) -> "_Keeper":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._write()


def _show(bar: Bar, task: TaskID, row: Row) -> None:
    terms = [("loss", row.loss), ("term", row.term), ("control", row.control), ("held out", row.held_loss),
             ("separation", row.separation)]  # fmt: skip
    said = ", ".join(f"{name} {value:.4g}" for name, value in terms if value is not None)
    bar.update(task, description=f"training: {said}, support {row.support}", completed=row.step + 1)
