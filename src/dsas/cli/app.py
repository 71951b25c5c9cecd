"""The application that all commands belong to, and how their errors, warnings and interruptions end."""

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from dsas.errors import DsasError, DsasWarning
from dsas.model.foreign import Foreign

UsageError: Any = typer.BadParameter.__bases__[0]  # click's, which newer releases of typer bring themselves


class _Commands(TyperGroup):
    """Commands whose errors end as exit status 2, and whose interruption as 130, with one line instead of a trace."""

    def invoke(self, ctx: Any) -> Foreign:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except DsasError as error:
            raise _ended(f"error: {error}", 2) from error
        except UsageError as error:
            command = error.ctx.command_path if error.ctx else "dsas"
            said = error.format_message().replace("Value error, ", "")  # what pydantic puts before the reason
            raise _ended(f"error: {said} (see {command} --help)", 2) from error
        except KeyboardInterrupt as interrupt:
            raise _ended("Interrupted; rerun the same command to resume.", 130) from interrupt


def _ended(line: str, status: int) -> typer.Exit:
    print(line, file=sys.stderr)
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
        print(f"warning: {message}", file=sys.stderr)
