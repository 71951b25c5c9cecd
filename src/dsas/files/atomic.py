"""Atomic writes: every file is written beside its place, flushed, and only then moved over it.

A full disk or an interruption leaves the files that were there as they were.
"""

import os
from collections.abc import Mapping
from pathlib import Path


def replace_files(contents: Mapping[Path, bytes]) -> None:
    """Write several files so that either all of them are new, or, on any error while writing, none is."""
    beside = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    try:
        for path, data in contents.items():
            with open(beside[path], "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            os.replace(beside[path], path)
    finally:
        for temporary in beside.values():
            temporary.unlink(missing_ok=True)
