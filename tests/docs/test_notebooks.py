"""Tutorials: what a notebook gave is what its page shows; what raises or is out of date is not taken for a result."""

import importlib
import os
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jupytext")
pytest.importorskip("nbclient")

TEXT = """# %% [markdown]
# # A title
#
# A line.

# %%
x = 6 * 7
print("forty", "two")
x

# %%
from IPython.display import HTML, Image

HTML("<b>bold</b>")

# %%
{last}
"""
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture
def notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = importlib.import_module("notebooks")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "jupyter"))
    assert os.environ["IPYTHONDIR"]
    return module


@pytest.mark.filterwarnings("ignore")
def test_a_page_shows_text_html_and_pictures_of_its_own_run_and_none_after_the_text_has_changed(
    notebooks: Any, tmp_path: Path
) -> None:
    path = tmp_path / "shown.py"
    path.write_text(TEXT.replace("{last}", f"import base64\nImage(base64.b64decode('{PNG}'))"))
    before, _ = notebooks.markdown_of(path)
    assert "was made without running it" in before
    assert "forty two" not in before

    notebooks.run(path)
    page, pictures = notebooks.markdown_of(path)
    assert page.startswith("# A title\n")
    assert "```text\nforty two\n```" in page
    assert "```text\n42\n```" in page
    assert "<b>bold</b>" in page
    assert list(pictures) == ["shown-1.png"]
    assert pictures["shown-1.png"].startswith(b"\x89PNG")
    assert re.search(r"It took \d+ seconds", page)

    path.write_text(path.read_text() + "# %%\n1\n")
    assert notebooks.result_of(path) is None


@pytest.mark.filterwarnings("ignore")
def test_a_cell_that_raises_ends_the_run_and_leaves_no_result(notebooks: Any, tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text(TEXT.replace("{last}", "raise ValueError('no')"))
    with pytest.raises(Exception, match="ValueError"):
        notebooks.run(path)
    assert notebooks.result_of(path) is None
