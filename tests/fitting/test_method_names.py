"""Methods: the table of the documents is that of the registries."""

from pathlib import Path

import dsas
from dsas.fitting.method_names import methods_table

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def test_the_page_of_methods_holds_the_table_that_the_registries_give() -> None:
    assert methods_table() in PAGE.read_text(encoding="utf-8"), "paste there what methods_table() returns"


def test_every_method_has_a_row_with_all_its_facts() -> None:
    table = methods_table()
    for registry in (dsas.TRANSFORMS, dsas.REGULATORS):
        for name, method in registry.items():
            (line,) = [line for line in table.splitlines() if line.startswith(f"| `{name}` |")]
            assert all(fact for fact in method.facts)
            assert method.__name__ in line
