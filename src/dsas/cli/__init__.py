"""The command line: parse, call one function, print. Errors that are the user's to mend end with exit status 2.

One group of commands a file; importing the file puts its commands into `app`.
"""

import warnings

from dsas.cli import calibrate, demo, explain, fit, generate, images, inspect, pareto, playground, serve, train  # noqa: F401 - each puts its commands into `app`
from dsas.cli.options import app, show_warning

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line: exit status 0 done, 2 bad input, 130 interrupted."""
    warnings.showwarning = show_warning
    app()
