"""The reference: nothing public is missing from it, and nothing in it is missing from the package."""

import importlib
import re
from pathlib import Path

import pytest

import dsas
import dsas.testing
from dsas import errors

DOCS = Path(__file__).parents[2] / "docs"
ENTRY = re.compile(r"^::: (\S+)$", re.MULTILINE)
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md")}
ENTRIES = [entry for text in PAGES.values() for entry in ENTRY.findall(text)]
REGISTRIES = {"TRANSFORMS", "REGULATORS", "OBJECTIVES", "__version__"}  # the docs say what they are, in words


def test_every_public_name_has_an_entry() -> None:
    there = {entry.removeprefix("dsas.public.") for entry in ENTRIES}
    said = {name for name in REGISTRIES if any(f"`dsas.{name}`" in text for text in PAGES.values())}
    assert sorted(set(dsas.__all__) - there - said) == []


def test_every_entry_is_there_and_none_twice() -> None:
    assert sorted({entry for entry in ENTRIES if ENTRIES.count(entry) > 1}) == []
    for entry in ENTRIES:
        module, _, name = entry.rpartition(".")
        assert getattr(importlib.import_module(module), name).__doc__, entry


def test_what_authors_of_methods_check_by_has_entries() -> None:
    functions = {name for name in dsas.testing.__all__ if not name.isupper()}
    assert sorted(functions - {entry.rpartition(".")[2] for entry in ENTRIES}) == []


def test_every_error_and_warning_is_in_the_table_with_its_cause_and_remedy() -> None:
    rows = {
        row[0]: row[1:]
        for row in re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \|$", PAGES["errors"], re.MULTILINE)
    }
    kinds = {name for name in dsas.__all__ if isinstance(getattr(errors, name, None), type)} - {"DsasError"}
    assert set(rows) == kinds
    for name, (parent, cause, remedy) in rows.items():
        assert parent.strip("`") in {base.__name__ for base in getattr(errors, name).__mro__}, name
        assert cause
        assert remedy


@pytest.mark.parametrize("name", ["command_line", "in_project"])
def test_pages_are_made_of_the_commands_and_the_files_at_the_root(name: str) -> None:
    pytest.importorskip("mkdocs")
    site_pages = importlib.import_module("site_pages")
    if name == "command_line":
        text = site_pages.command_line()
        for command in ("fit", "calibrate", "pareto", "serve"):
            assert f"## dsas {command}\n" in text
        assert "| `--strength` |" in text
        assert "| `MODEL` | Folder, hub id or .gguf file of a transformers language model. |" in text
    else:
        assert site_pages.in_project("[a](docs/x.md#y) [b](SECURITY.md) [c](z.md)") == (
            "[a](../x.md#y) [b](security.md) [c](z.md)"
        )
