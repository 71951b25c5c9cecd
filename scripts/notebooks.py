"""Tutorials: texts in jupytext's percent format, run as notebooks, and shown with the outputs of their cells.

    python scripts/notebooks.py [NAME ...] [--missing]

runs docs/tutorials/NAME.py (all of them when none is named) cell by cell in a fresh kernel and writes
out/tutorials/NAME.ipynb, which `scripts/site_pages.py` puts into the site. `--missing` runs only those whose text has
changed since. Exit status 1 when a cell raises, or when a tutorial uses more processor time than its limit. Processor
time is what counts, because it hardly depends on what else the machine is doing.
"""

import argparse
import base64
import hashlib
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS, RESULTS = ROOT / "docs" / "tutorials", ROOT / "out" / "tutorials"
LIMIT = 180  # seconds of processor time, for a whole tutorial
LONGEST = 6000  # characters of a cell's printed output that are shown


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--missing", action="store_true", help="only those whose text has changed since they ran")
    given = parser.parse_args()
    paths = [TUTORIALS / f"{name}.py" for name in given.names] or sorted(TUTORIALS.glob("*.py"))
    late = []
    for path in paths:
        if given.missing and result_of(path) is not None:
            continue
        seconds, busy = run(path)
        print(f"{path.stem}: {seconds:.0f} s, of which {busy:.0f} s of processor time", flush=True)
        late += [path.stem] if busy > LIMIT else []
    if late:
        sys.exit(f"more than {LIMIT} s of processor time: {', '.join(late)}")


def run(path: Path) -> tuple[float, float]:
    """Run one tutorial in a kernel of its own, keep it with its outputs, and return its seconds and processor time."""
    import jupytext
    import nbformat
    from nbclient import NotebookClient

    notebook = jupytext.read(path)
    RESULTS.mkdir(parents=True, exist_ok=True)
    began, before = time.monotonic(), _processor_seconds()
    client = NotebookClient(
        notebook, timeout=4 * LIMIT, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
    seconds, busy = time.monotonic() - began, _processor_seconds() - before
    notebook.metadata["dsas"] = {"text": _digest(path), "seconds": round(seconds)}
    nbformat.write(notebook, RESULTS / f"{path.stem}.ipynb")
    return seconds, busy


def result_of(path: Path) -> Any:
    """Return the notebook from a tutorial's present text, or None when it has not run."""
    import nbformat

    kept = RESULTS / f"{path.stem}.ipynb"
    if not kept.is_file():
        return None
    notebook = nbformat.read(kept, as_version=4)
    return notebook if notebook.metadata.get("dsas", {}).get("text") == _digest(path) else None


def markdown_of(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return a tutorial as Markdown, with outputs where it has run, and the pictures it shows by file name."""
    import jupytext

    found = result_of(path)
    pictures: dict[str, bytes] = {}
    parts = []
    for cell in (found or jupytext.read(path)).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.get("outputs", []):
            parts.extend(_shown(output, path.stem, pictures))
    title, *rest = parts
    seconds = f" It took {found.metadata['dsas']['seconds']} seconds when this page was made." if found else (
        " This page was made without running it, so it shows no output: `make notebooks` runs it."
    )  # fmt: skip
    note = f"*A notebook: its text is docs/tutorials/{path.name}, and CI runs it.{seconds}*"
    head, _, body = title.partition("\n")
    return "\n\n".join([head, note, body, *rest]) + "\n", pictures


def _processor_seconds() -> float:
    """Return the processor time of all processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _shown(output: Any, stem: str, pictures: dict[str, bytes]) -> Iterator[str]:
    """Give the Markdown of one output: a picture, HTML as it is, or text in a block."""
    data = output.get("data", {})
    if "image/png" in data:
        name = f"{stem}-{len(pictures) + 1}.png"
        pictures[name] = base64.b64decode(data["image/png"])
        yield f"![{stem}: what the cell above shows]({name})"
    elif "text/html" in data:
        yield f'<div class="output">\n{data["text/html"]}\n</div>'
    else:
        text = data.get("text/plain") or output.get("text", "")
        if output.get("name") != "stderr" and text.strip():
            yield f'<div class="output" markdown>\n\n```text\n{text.rstrip()[:LONGEST]}\n```\n\n</div>'


if __name__ == "__main__":
    main()
