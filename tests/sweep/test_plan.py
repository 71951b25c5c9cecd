import json
from pathlib import Path
from typing import Any

import pytest

from dsas.errors import TextsError
from dsas.sweep.plan import Plan, SeriesPlan, read_plan

ONE = {"name": "caa", "transform": "caa", "regulator": "constant", "chosen": 1}
PLAN: dict[str, Any] = {"model": "m", "prompts": ["a"], "series": [ONE], "command": "dsas", "settings": {"n": 1}}


def test_a_plan_is_read_as_it_was_written(tmp_path: Path):
    (tmp_path / "sweep.json").write_text(json.dumps(PLAN))
    series = (SeriesPlan("caa", "caa", "constant", 1.0),)
    assert read_plan(tmp_path / "sweep.json") == Plan("m", ("a",), series, "dsas", {"n": 1})


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected a JSON object, got list"),
        (json.dumps({**PLAN, "model": 1}), "expected 'model' as str"),
        (json.dumps({**PLAN, "prompts": [1]}), "'prompts' as texts"),
        (json.dumps({**PLAN, "series": [ONE, {**ONE, "chosen": "x"}]}), "series 1: expected 'chosen' as int or float"),
        (json.dumps({**PLAN, "series": [{"nam": "x"}]}), "series 0: no field 'name'; closest: 'nam'"),
        (json.dumps({**PLAN, "series": [ONE, ONE]}), "different names"),
    ],
)
def test_a_plan_of_another_form_is_refused_by_file_and_field(tmp_path: Path, found: str, message: str):
    (tmp_path / "sweep.json").write_text(found)
    with pytest.raises(TextsError, match=rf"sweep\.json: .*{message}"):
        read_plan(tmp_path / "sweep.json")


def test_a_missing_plan_is_named(tmp_path: Path):
    with pytest.raises(TextsError, match="no such file"):
        read_plan(tmp_path / "sweep.json")
