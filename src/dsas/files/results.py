"""Results: slow measurements, each in a JSON file of its own, so that none is repeated after an interruption.

A file is named by what was measured and by a hash over all that the result depends on: `read-0f3c....json`. So a result
is found again only if nothing that it depends on has changed, whichever process measured it. It carries a SHA-256 of
its file's name and contents, so that a damaged file, or another one, is not mistaken for it.

Limitations: nothing is ever deleted, and what a result depends on cannot be read back from its file.
"""

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

from dsas.errors import DsasWarning
from dsas.files.atomic import replace_files

FORMAT = 2  # version of the files: raise it when the meaning of their contents changes


@final
class Results:
    """The results in one folder, which is made when the first of them is written.

    name: what was measured, in letters that a file name may have. depends: JSON-ready values, all that the result
    depends on. A result is JSON-ready, too, and not None.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)

    def get(self, name: str, depends: Any) -> Any:
        """Return the result, or None where there is none; a file that cannot be read warns and counts as none."""
        file = self._file(name, depends)
        if not file.is_file():
            return None
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if found["sha256"] == _digest(file, found["result"]):
                return found["result"]
        except FileNotFoundError:  # removed just now, for example by a command that has ended
            return None
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        warnings.warn(f"{file} is damaged: its result is measured again", DsasWarning, stacklevel=2)
        return None

    def put(self, name: str, depends: Any, result: Any) -> None:
        """Store a result; an older one of the same name is replaced once the whole file is on disk."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._file(name, depends)
        kept = {"sha256": _digest(file, result), "result": result}
        replace_files({file: json.dumps(kept).encode()})

    def remember(self, name: str, depends: Any, measure: Callable[[], Any]) -> Any:
        """Return the result; measure and store it where there is none."""
        if (found := self.get(name, depends)) is not None:
            return found
        measured = measure()
        self.put(name, depends, measured)
        return json.loads(json.dumps(measured))  # as `get` gives it

    def _file(self, name: str, depends: Any) -> Path:
        said = json.dumps([FORMAT, name, depends], sort_keys=True)
        return self._folder / f"{name}-{hashlib.sha256(said.encode()).hexdigest()[:16]}.json"


def _digest(file: Path, result: Any) -> str:
    return hashlib.sha256(json.dumps([file.name, result], sort_keys=True).encode()).hexdigest()
