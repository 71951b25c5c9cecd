"""The application that all commands belong to, and how their errors, warnings and interruptions end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from dsas.cli.output import say
from dsas.errors import DsasError, DsasWarning
from dsas.model.foreign import Foreign

UsageError: Any = typer.BadParameter.__bases__[0]  # click's own; newer releases of typer include a copy


class _Commands(TyperGroup):
    """Commands whose errors end as exit status 2, and whose interruption as 130, with one line instead of a trace."""

    def invoke(self, ctx: Any) -> Foreign:
        """Run the command that was asked for."""
        try:
            with _terminated_as_interrupted():
                return super().invoke(ctx)
        except DsasError as error:
            raise _ended(f"error: {error}", 2) from error
        except UsageError as error:
            command = error.ctx.command_path if error.ctx else "dsas"
            said = error.format_message().replace("Value error, ", "")  # what pydantic puts before the reason
            raise _ended(f"error: {said} (see {command} --help)", 2) from error
        except OSError as error:
            if error.errno is None:  # raised by a library, not by the system
                raise
            where = "" if error.filename is None else f": {error.filename}"
            raise _ended(f"error: {error.strerror}{where}; rerun the same command to resume", 2) from error
        except KeyboardInterrupt as interrupt:
            raise _ended("Interrupted; rerun the same command to resume.", 130) from interrupt


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, which writes finished work; do nothing outside the main thread."""

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # only once: a second signal must not interrupt the writing
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _ended(line: str, status: int) -> typer.Exit:
    say(line, error=True)
    return typer.Exit(status)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Steer generative models only when and where it is needed.",
)


def show_warning(message: Warning | str, category: type[Warning], *_where: Any) -> None:
    """Print a warning of dsas as one line on the error stream; warnings of other packages are not shown."""
    if issubclass(category, DsasWarning):
        say(f"warning: {message}", error=True)
