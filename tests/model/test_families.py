"""Families: what `benchmarks/families.py` checks of every causal family, here of a few that differ in kind."""

from pathlib import Path
from typing import Any

import pytest
from families import as_data, build, check

from dsas.model import families

# Sites that each shorthand names in four layers: residual, norm, attention, mlp, heads.
EXPECTED = {
    "deepseek_v2": (4, 4, 4, 4, 16),  # latent attention, experts
    "gemma3n_text": (0, 4, 4, 4, 16),  # a residual of several streams: steered at its feed-forward
    "jamba": (4, 4, 4, 4, 8),  # every second layer a state space
    "mamba": (4, 4, 4, 0, 0),
    "rwkv": (4, 4, 4, 4, 0),
}


def test_the_table_that_the_package_has_is_that_of_the_documentation() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "families.md"
    assert Path(families.__file__).with_suffix(".json").read_text(encoding="utf-8") == as_data(page.read_text())
    found = families.family_of("mamba")
    assert found is not None
    assert found.sites == {"residual": "4", "norm": "4", "attention": "4", "mlp": "-", "heads": "-"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", EXPECTED)
def test_a_family_is_fitted_steered_explained_and_generates_as_plain_hooks_have_it(family: str) -> None:
    model: Any = build(family)
    row = check(family, model)
    assert row.failed == {}
    assert tuple(row.sites[name] for name in ("residual", "norm", "attention", "mlp", "heads")) == EXPECTED[family]
    assert row.used == ("mlp" if family == "gemma3n_text" else "residual")
