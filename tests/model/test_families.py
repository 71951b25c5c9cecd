"""Families: what `benchmarks/families.py` checks of every causal family, here of a few that differ in kind."""

from typing import Any

import pytest
from families import build, check

# Sites that each shorthand names in four layers: residual, norm, attention, mlp, heads.
EXPECTED = {
    "deepseek_v2": (4, 4, 4, 4, 16),  # latent attention, experts
    "gemma3n_text": (4, 4, 4, 4, 16),  # a residual of several streams: steered at its feed-forward
    "jamba": (4, 4, 4, 4, 8),  # every second layer a state space
    "mamba": (4, 4, 4, 0, 0),
    "rwkv": (4, 4, 4, 4, 0),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", EXPECTED)
def test_a_family_is_fitted_steered_explained_and_generates_as_plain_hooks_have_it(family: str) -> None:
    model: Any = build(family)
    row = check(family, model)
    assert row.failed == {}
    assert tuple(row.sites[name] for name in ("residual", "norm", "attention", "mlp", "heads")) == EXPECTED[family]
    assert row.used == ("mlp" if family == "gemma3n_text" else "residual")
