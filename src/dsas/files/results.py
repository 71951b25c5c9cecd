"""Results: measurements that take long, kept as JSON files that are named by what they depend on."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dsas.files.atomic import replace_files


def remembered(folder: Path, depends: Sequence[Any], measure: Callable[[], Any]) -> Any:
    """Return what `measure` gives (JSON-ready), from a file in `folder` when all it depends on is what it was."""
    file = memory_file(folder, depends)
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        replace_files({file: json.dumps(measure()).encode()})
    return json.loads(file.read_text(encoding="utf-8"))


def memory_file(folder: Path, depends: Sequence[Any]) -> Path:
    """Return the file that remembers what depends on these JSON-ready values."""
    return folder / f"{hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:16]}.json"
