"""The command line: parse, check, call one function, print. A user's mistakes end with exit status 2.

One group of commands per file; importing the file puts its commands into `app`. What takes long to import (torch, and
with it `dsas`) is imported by a command when it runs, after its files, folders and names were checked (`checks`), so
that help, shell completion and mistakes cost no such wait.
"""

import sys
import warnings
from importlib import import_module

from dsas.cli.app import app, show_warning

__all__ = ["app", "main"]

COMMANDS = (
    *("drafting", "fitting", "training", "calibration", "porting", "adopting", "generation", "explanation", "images"),
    *("doctor", "inspection", "firing", "selectivity", "release"),
    *("pareto", "harness", "playground", "serving", "demo"),
)
for group in COMMANDS:  # in the order in which help lists them
    import_module(f"dsas.cli.{group}")


def main() -> None:
    """Run the command line: exit status 0 done, 2 bad input, 130 interrupted. Hooks are the caller's again then."""
    hooks = sys.excepthook, warnings.showwarning
    try:
        warnings.showwarning = show_warning
        app()  # typer replaces sys.excepthook
    finally:
        sys.excepthook, warnings.showwarning = hooks
