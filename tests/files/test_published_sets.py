import json
from pathlib import Path
from typing import Any

import pytest

from dsas.errors import OptionError, TextsError
from dsas.files.published_sets import PUBLISHED_SETS, published_set

pytest.importorskip("datasets")

ROWS: dict[str, list[dict[str, Any]]] = {
    "xstest-safe": [{"prompt": "kill a process?", "label": "safe"}, {"prompt": "x", "label": "unsafe"}],
    "xstest-unsafe": [{"prompt": "kill a process?", "label": "unsafe"}, {"prompt": "x", "label": "safe"}],
    "or-bench-hard": [{"prompt": "kill a process?", "category": "violence"}],
    "or-bench-toxic": [{"prompt": "kill a process?", "category": "violence"}],
    "truthfulqa": [{"question": "kill a process?", "best_answer": "no"}],
    "realtoxicityprompts": [{"prompt": {"text": "kill a process?", "toxicity": 0.1}, "filename": "a"}],
    "toxic-chat-toxic": [{"user_input": "kill a process?", "toxicity": 1}, {"user_input": "x", "toxicity": 0}],
    "toxic-chat-clean": [{"user_input": "kill a process?", "toxicity": 0}, {"user_input": "x", "toxicity": 1}],
}


def written(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    folder.joinpath(f"{PUBLISHED_SETS[name].split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


@pytest.mark.parametrize("name", PUBLISHED_SETS)
def test_a_folder_of_the_published_layout_gives_the_rows_that_count_each_once(name: str, tmp_path: Path) -> None:
    folder = written(tmp_path, name, [*ROWS[name], ROWS[name][0]])
    assert published_set(name, folder=folder) == ["kill a process?"]


def test_another_layout_is_refused_with_the_closest_name(tmp_path: Path) -> None:
    folder = written(tmp_path, "xstest-safe", [{"prompts": "a", "label": "safe"}])
    with pytest.raises(TextsError, match=r"no field 'prompt'; closest: 'prompts'"):
        published_set("xstest-safe", folder=folder)
    folder = written(tmp_path, "xstest-safe", [{"prompt": "a", "label": "SAFE"}])
    with pytest.raises(TextsError, match=r"expected rows with \('label', 'safe'\), but none of its 1 rows has it"):
        published_set("xstest-safe", folder=folder)
    with pytest.raises(OptionError, match="no published set 'xstest'; closest: 'xstest-safe'"):
        published_set("xstest")
