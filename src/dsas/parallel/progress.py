"""Progress: one kind of bar for all long work."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_CHECKPOINTS = 30.0


def progress_bar(show: bool) -> Progress:
    """Return the progress bar of all long work here, on stderr, silent when not shown."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not show, transient=True)
