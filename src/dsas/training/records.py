"""Records: what training writes: the log of its steps and the state from which it resumes.

log.csv, log.jsonl      one line per step; a resumed training continues them, another one in this folder replaces them
state-<id>.safetensors  parameters, optimiser and best so far after the last whole step, in one file, replaced at once
tensorboard/            the same numbers as events, on request (extra `tensorboard`)

The id is a digest of everything that training depends on, so no other training resumes from a state.
"""

import json
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load, save
from torch import Tensor

from dsas.errors import MissingExtraError
from dsas.files.atomic import keep, kept, replace_files
from dsas.model.foreign import Foreign


class Row(NamedTuple):
    """One step: the loss at the parameters before it and, if evaluated, the held-out texts.

    term: the first term of the loss, transport or preference. control: the other term, not yet weighted. support:
    number of neurons with slope != 1 or offset != 0 after the step. dead: number of sites whose regulator was 0 on
    every source token that the step read. rate: learning rate of the transforms. separation: AUROC of the strengths of
    held-out source over control texts, mean over sites; 0.5 is chance. The last line has no step of its own, only a
    final evaluation.
    """

    step: int
    loss: float | None
    term: float | None
    control: float | None
    support: int
    dead: int
    rate: float
    seconds: float
    held_loss: float | None = None
    held_term: float | None = None
    held_control: float | None = None
    separation: float | None = None


class Course(NamedTuple):
    """The progress of training. done: whole steps. best_step: the number of steps that gave the best parameters."""

    done: int = 0
    best_step: int = 0
    best_loss: float | None = None
    waiting: int = 0
    ended: str = ""
    rows: tuple[Row, ...] = ()


class State(NamedTuple):
    """Course and tensors after a whole step; `best` holds the leaves alone."""

    course: Course
    now: dict[str, Tensor]
    best: dict[str, Tensor]


def write_state(file: Path, state: State) -> None:
    """Write a state, all or nothing."""
    parts = {"now": state.now, "best": state.best}
    tensors = {
        f"{part} {name}": value.cpu().contiguous() for part, named in parts.items() for name, value in named.items()
    }
    course = json.dumps(state.course).encode()
    keep(file, len(course).to_bytes(8, "little") + course + save(tensors))


def read_state(file: Path) -> State | None:
    """Return the state in a file; None if there is none, and with a warning if it is damaged."""
    data = kept(file, "training starts from the beginning")
    if data is None:
        return None
    begin = 8 + int.from_bytes(data[:8], "little")
    course = Course(*json.loads(data[8:begin]))
    course = course._replace(rows=tuple(Row(*row) for row in course.rows))
    parts: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}}
    for label, value in load(data[begin:]).items():
        part, _, name = label.partition(" ")
        parts[part][name] = value
    return State(course, parts["now"], parts["best"])


class Log:
    """The log files of one training, and its TensorBoard events; with no folder, nothing is written."""

    def __init__(self, folder: Path | None, *, tensorboard: bool = False) -> None:
        """Open the log. Raises MissingExtraError when TensorBoard is asked for and not installed."""
        self._folder = folder
        self._events = _writer(folder / "tensorboard") if tensorboard and folder is not None else None

    def begin(self, rows: tuple[Row, ...]) -> None:
        """Write the lines of the steps that are already done, and remove any others."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        head = ",".join(Row._fields) + "\r\n"
        texts = {"log.csv": head + "".join(map(_csv, rows)), "log.jsonl": "".join(map(_json, rows))}
        replace_files({self._folder / name: text.encode() for name, text in texts.items()})

    def add(self, row: Row) -> None:
        """Write one line."""
        if self._folder is None:
            return
        for name, line in (("log.csv", _csv(row)), ("log.jsonl", _json(row))):
            with (self._folder / name).open("a", newline="") as file:
                file.write(line)
        if self._events is not None:
            for key, value in row._asdict().items():
                if value is not None and key != "step":
                    self._events.add_scalar(key, value, row.step)

    def close(self) -> None:
        """Close the events."""
        if self._events is not None:
            self._events.close()


def _csv(row: Row) -> str:
    return ",".join("" if value is None else str(value) for value in row) + "\r\n"


def _json(row: Row) -> str:
    return json.dumps(row._asdict()) + "\n"


def _writer(folder: Path) -> Foreign:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("tensorboard", "tensorboard") from error
    return SummaryWriter(str(folder))
