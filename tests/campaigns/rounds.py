"""Rounds: how often a campaign does what it does: so often, for so long at most, and never on after Ctrl-C or SIGTERM.

What has been counted until then is printed in any case, with the number of rounds that it is of.
"""

import argparse
import signal
import time
import warnings
from collections.abc import Iterator, Sequence

import torch
from transformers.utils import logging

_ends: list[str] = []  # why no round begins any more
_minutes = [float("inf")]


def begun(what: str | None, rounds: int, *, parts: str = "", names: Sequence[str] = ()) -> argparse.Namespace:
    """Return what a campaign was asked for, and let signals end it after a round.

    rounds: how many, unless told otherwise. parts, names: what a part of it is called, and which there are.
    """
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="at most, per part of the campaign")
    if parts:
        parser.add_argument(f"--{parts}", action="append", choices=names, help="one of the parts; all")
    asked = parser.parse_args()
    _minutes[0] = asked.minutes
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda which, _: _ends.append(signal.Signals(which).name))
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    print(f"seed {asked.seed}", flush=True)
    return asked


def uncut() -> None:
    """Let signals end this process as they end others: it was forked, and does what is to be cut."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def among(most: int) -> Iterator[int]:
    """Yield the numbers of the rounds of one part, as long as there is time."""
    ends = time.monotonic() + 60 * _minutes[0]
    for number in range(most):
        if _ends or time.monotonic() > ends:
            return
        yield number
