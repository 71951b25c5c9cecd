"""Methods by name: what a regulator can learn from, and the table of the documents, which is that of the registries."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from makers import methods_table

import dsas
from dsas.fitting.method_names import regulator_fit, takes_groups

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "methods.md"


def test_the_page_of_methods_holds_the_table_that_the_registries_give() -> None:
    assert methods_table() in PAGE.read_text(encoding="utf-8"), "paste there what methods_table() returns"


def test_every_method_has_a_row_with_all_its_facts() -> None:
    table = methods_table()
    for registry in (dsas.TRANSFORMS, dsas.REGULATORS):
        for name, method in registry.items():
            (line,) = [line for line in table.splitlines() if line.startswith(f"| `{name}` |")]
            assert all(fact for fact in method.facts)
            assert method.__name__ in line


@pytest.mark.parametrize(
    ("regulator", "expected"),
    [
        ("logistic", True),
        (partial(dsas.Logistic.fit, components=2), True),
        (lambda *sets, **options: dsas.Logistic.fit(*sets, **options), True),
        ("rectified", False),
        ("logistic*posterior", False),
        (dsas.Constant(), False),
        (partial(dsas.Cast.fit), False),
        (dict, False),
    ],
)
def test_whether_a_regulator_learns_from_single_tokens_is_told_by_the_signature_of_its_fit(
    regulator: Any, expected: bool
) -> None:
    assert takes_groups(regulator_fit(regulator)) is expected
