"""The page on reports as tables: which columns it says that a command writes, and which commands write none."""

import re
from pathlib import Path

TEXT = (Path(__file__).parents[1] / "docs" / "reference" / "tables.md").read_text(encoding="utf-8")
MORE = {"explain": ["regulator", "dose", "alone", "role", "counted", "kl"]}  # which are there only when recorded


def columns_of(command: str) -> list[str]:
    """Return the columns that the page names under a command, less those that are not always there."""
    (section,) = re.findall(rf"^## (?:[^\n]*, )?`dsas {command}`(?:, [^\n]*)?\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S)
    return [name for name in re.findall(r"^\| `(\w+)` \|", section, re.M) if name not in MORE.get(command, ())]


def named() -> tuple[set[str], set[str]]:
    """Return the commands that are in the page's table, and those of which it says that they report nothing there."""
    before, _, after = TEXT.partition("In Python:")[0].partition("`dsas export`")
    in_table = {name for line in before.splitlines() if line.startswith("|") for name in _commands(line)}
    return in_table, _commands(f"`dsas export`{after}")


def _commands(text: str) -> set[str]:
    return set(re.findall(r"`dsas ([a-z-]+)[ `]", text))
