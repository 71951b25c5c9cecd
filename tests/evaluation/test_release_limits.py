import json
from pathlib import Path
from typing import Any

import pytest

from dsas.errors import OptionError
from dsas.evaluation.release_limits import RELEASE_LIMITS, read_release_limits, release_limits


def test_what_is_not_named_keeps_its_default_and_null_switches_off(tmp_path: Path) -> None:
    on = {name: limit.default for name, limit in RELEASE_LIMITS.items() if limit.default is not None}
    assert release_limits() == on
    assert "refused" not in on
    (tmp_path / "limits.json").write_text(json.dumps({"refused": 0.8, "kl": None, "perplexity": 2}))
    expected = {**on, "refused": 0.8, "perplexity": 2.0}
    del expected["kl"]
    assert read_release_limits(tmp_path / "limits.json") == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"refusal": 0.8}, "no limit 'refusal'; closest: 'over-refusal', 'refused'"),
        ({"kl": "0.1"}, "expected a number or null as the limit 'kl', got '0.1'"),
        ({"kl": True}, "expected a number or null"),
        ({"kl": float("nan")}, "expected a number or null"),
        (dict.fromkeys(RELEASE_LIMITS), "every limit is switched off"),
        ([1], "expected one JSON object such as"),
    ],
)
def test_other_limits_are_refused_with_the_name_of_the_file(tmp_path: Path, given: Any, message: str) -> None:
    (tmp_path / "limits.json").write_text(json.dumps(given))
    with pytest.raises(OptionError, match=rf"limits\.json: {message}"):
        read_release_limits(tmp_path / "limits.json")
