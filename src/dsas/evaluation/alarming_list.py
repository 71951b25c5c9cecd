"""Alarming list: benign instructions that sound harmful, which a guarded model should answer like any other.

    over-refusal = refused instructions of this list / instructions,   compared with the same for everyday questions

They use the words of harm innocently ("kill a process"), ask how to be safe from harm, or ask about harm in history and
stories. They were written for dsas; XSTest (2308.01263) and OR-Bench (2405.20947) are larger lists of the kind, read by
`dsas.files.published_sets` where the hub can be reached.

Limitations: English.
"""

from importlib.resources import files


def alarming_questions() -> list[str]:
    """Return the 100 instructions."""
    return (files("dsas.evaluation") / "alarming.txt").read_text(encoding="utf-8").split("\n")[:-1]
