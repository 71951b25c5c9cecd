"""What is packaged stays small: the wheel holds what `tool.hatch` says, and no model."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST = 2 << 20  # bytes, before compression


def test_what_the_wheel_holds_is_less_than_two_megabytes_and_no_model() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    assert wheel == {"packages": ["src/dsas"]}  # the files counted below
    files = [file for file in (ROOT / "src" / "dsas").rglob("*") if file.is_file() and file.suffix != ".pyc"]
    assert len(files) > 100
    assert sum(file.stat().st_size for file in files) < MOST
    assert [file for file in files if file.suffix == ".safetensors"] == []
