"""Troubleshooting: every class of error and every warning of the library is on the page."""

import ast
import re
from pathlib import Path

from dsas import errors

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "howto" / "troubleshooting.md").read_text(encoding="utf-8")
SOURCE = ROOT / "src" / "dsas"
# Where a message is put together elsewhere, a piece of each.
MADE_ELSEWHERE = {
    "methods/registry.py": ["is not used"],
    "model/loading.py": ["could be loaded, so only texts are read"],
    "training/gradients.py": ["steps: this is the best so far (step", "steps: this is the best before it (step"],
}


def warned() -> dict[str, list[str]]:
    """Return, by module, the first unchanging piece of at least three words of each warning that it gives."""
    found: dict[str, list[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        module, used = path.relative_to(SOURCE).as_posix(), False
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn"):
                continue
            pieces = [part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)]
            fixed = [piece for piece in pieces if isinstance(piece, str) and len(piece.split()) > 2]
            if isinstance(node.args[0], ast.JoinedStr | ast.Constant):
                found.setdefault(module, []).append(fixed[0])
            elif not used:
                found.setdefault(module, []).extend(MADE_ELSEWHERE[module])
                used = True
    return found


def test_every_warning_is_on_the_page_by_a_piece_of_its_message() -> None:
    pieces = warned()
    assert sum(map(len, pieces.values())) > 25
    page = " ".join(PAGE.split())
    missing = {
        module: piece
        for module, some in pieces.items()
        for piece in some
        if not any(part.strip() in page for part in beginnings(piece))
    }
    assert missing == {}


def beginnings(piece: str) -> list[str]:
    """Return the piece, and the first five words of it, which tell it from all others."""
    words = piece.split()
    return [" ".join(words), " ".join(words[:5])] if len(words) > 5 else [" ".join(words)]


def test_every_class_of_error_has_a_heading_or_is_the_root() -> None:
    kinds = {
        name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.DsasError)
    }
    headings = set(re.findall(r"^### (\w+Error)$", PAGE, re.MULTILINE))
    assert headings == kinds - {"DsasError"}


def test_the_table_of_extras_is_that_of_the_package() -> None:
    import tomllib

    install = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"^\| `([\w-]+)` \|", install, re.MULTILINE)) == set(extras)
