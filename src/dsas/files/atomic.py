"""Atomic writes: every file is written beside its place, flushed, and only then moved over it.

A full disk or an interruption leaves the files that were there as they were. The temporary file has a name that cannot
be guessed and must not exist yet, so it follows no link.
"""

import hashlib
import os
import secrets
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from dsas.errors import DsasWarning

DIGEST = hashlib.sha256().digest_size


def replace_files(contents: Mapping[Path, bytes]) -> None:
    """Write several files and then replace them in their order; on an error while writing, none is replaced.

    Raises OSError, with the file's name.
    """
    beside: dict[Path, Path] = {}
    try:
        for path, data in contents.items():
            # Not made from the file's own name, which may already be as long as names can be.
            beside[path] = path.with_name(f".{secrets.token_hex(8)}.tmp")
            _write(beside[path], path, data)
        for path in contents:
            os.replace(beside[path], path)
    finally:
        for temporary in beside.values():
            with suppress(OSError):  # already moved, or on a disk that is gone
                temporary.unlink(missing_ok=True)


def _write(beside: Path, path: Path, data: bytes) -> None:
    try:
        made = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with open(made, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error


def keep(file: Path, data: bytes) -> None:
    """Write a file for `kept` to read: the data, followed by a SHA-256 of the file's name and the data.

    The name says what the data depend on, so the data of another file are not mistaken for them. The folder is made
    when missing.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_files({file: data + _digest(file, data)})


def kept(file: Path, instead: str) -> bytes | None:
    """Return what `keep` wrote, None where there is no file, or None with a warning where it is damaged.

    instead: what is done without it, for the warning.
    """
    try:
        whole = file.read_bytes() if file.is_file() else None
    except FileNotFoundError:  # removed just now, for example by a command that has ended
        whole = None
    if whole is None:
        return None
    data, digest = whole[:-DIGEST], whole[-DIGEST:]
    if digest == _digest(file, data):
        return data
    warnings.warn(f"{file} is damaged (it does not match its digest): {instead}", DsasWarning, stacklevel=3)
    return None


def _digest(file: Path, data: bytes) -> bytes:
    return hashlib.sha256(file.name.encode() + b"/" + data).digest()
