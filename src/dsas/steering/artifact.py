"""Storage: a Steering as a folder of `config.json`, `model.safetensors` and a README card.

No pickle, and no code is imported from a file: the config names methods of the registries. The config carries SHA-256
digests of the tensors and of itself: truncated or modified files are refused. New tensors are written next to
the old ones, under a name with their digest, until their config is in place. So a reader always finds the whole old
Steering or the whole new one, even if the writer was killed at any moment.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dsas.errors import ArtifactError
from dsas.files.atomic import replace_files
from dsas.files.json_values import Json, JsonObject
from dsas.steering.folder import CARD, CONFIG, TENSORS, check_files

SCHEMA = 1
LARGEST_CONFIG = 2**26  # largest config or header of tensors, in bytes
OWN_NAME = re.compile(r"model-[0-9a-f]{16}\.safetensors")
NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # floats that torch can compute with
READINGS = 100  # of a folder that somebody writes into again and again


class Artifact(NamedTuple):
    """The contents of a folder: JSON-ready values and named float32 tensors."""

    config: JsonObject
    tensors: dict[str, Tensor]


def write_artifact(folder: str | Path, artifact: Artifact, *, card: str) -> None:
    """Write an artifact into `folder` (made when missing); old files are replaced only once all new ones are on disk.

    Raises OSError when it cannot be written; the files that were there are then unchanged.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Cloned, because safetensors refuses tensors that share memory, as those of a method used at two sites do.
    tensors = save({name: value.detach().cpu().contiguous().clone() for name, value in artifact.tensors.items()})
    config = {"schema": SCHEMA, **artifact.config, "tensors_sha256": hashlib.sha256(tensors).hexdigest()}
    config["config_sha256"] = _digest(config)
    own = folder / _own_name(config)
    with _only_writer(folder):
        said = card.encode(errors="backslashreplace")  # half a character, as in a file name that is no UTF-8
        contents = {own: tensors, folder / CARD: said, folder / CONFIG: json.dumps(config, indent=2).encode()}
        replace_files(contents)  # the config last, when the tensors that it names exist
        os.replace(own, folder / TENSORS)
        for left in folder.iterdir():
            if OWN_NAME.fullmatch(left.name):  # left by an interrupted writer
                left.unlink(missing_ok=True)


def read_artifact(folder: str | Path) -> Artifact:
    """Read an artifact back. Raises ArtifactError, saying which file and why, for anything that is not intact."""
    folder = Path(folder)
    check_files(folder)
    for _ in range(READINGS):
        before = _which(folder / CONFIG)
        config = _config(folder)
        for name in (_own_name(config), TENSORS):  # the first name until the writer renames the file to the second
            with suppress(FileNotFoundError):
                data = _tensor_bytes(folder / name)
                if config["tensors_sha256"] == hashlib.sha256(data).hexdigest():
                    return Artifact(config, _intact(folder, data))
        if _which(folder / CONFIG) == before:  # not its contents, which may have been written twice meanwhile
            break
    raise ArtifactError(f"{folder / TENSORS} does not match its digest: truncated or tampered with")


def _which(file: Path) -> tuple[int, ...]:
    """Return what distinguishes a file from one that replaces it."""
    found = file.stat()
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def _config(folder: Path) -> JsonObject:
    file = folder / CONFIG
    if file.stat().st_size > LARGEST_CONFIG:
        raise ArtifactError(
            f"{file} has {file.stat().st_size} bytes, the config of a Steering at most {LARGEST_CONFIG}"
        )
    try:
        config = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{file} is truncated or not JSON: {error}") from error
    schema = config.get("schema") if isinstance(config, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise ArtifactError(f"{file} is not the config of a Steering: it has no schema number")
    if schema > SCHEMA:
        raise ArtifactError(
            f"{folder} has schema {str(schema)[:20]}, this dsas reads up to {SCHEMA}: it was written by dsas "
            f"{config.get('dsas_version', 'of a newer version')!s:.40}; upgrade dsas to read it"
        )
    if not re.fullmatch("[0-9a-f]{64}", str(config.get("tensors_sha256"))):
        raise ArtifactError(f"{file} has no digest of its tensors")
    if config.get("config_sha256") != _digest(config):
        raise ArtifactError(f"{file} does not match its digest: it was edited after it was written")
    return config


def _tensor_bytes(file: Path) -> bytes:
    """Read a safetensors file that is as long as its header says, and no other."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        header = int.from_bytes(opened.read(8), "little")
        whole = -1
        if 0 < header <= min(size - 8, LARGEST_CONFIG):
            with suppress(ValueError, RecursionError, TypeError, LookupError, AttributeError, OverflowError):
                named = json.loads(opened.read(header))
                ends = (entry["data_offsets"][1] for name, entry in named.items() if name != "__metadata__")
                whole = 8 + header + int(max(ends, default=0))
        if size != whole:
            raise ArtifactError(f"{file} does not match its digest: truncated or tampered with (it has {size} bytes)")
        opened.seek(0)
        return opened.read()


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Wait until no other process writes into this folder, if the system has such locks."""
    try:
        from fcntl import LOCK_EX, flock
    except ImportError:
        yield
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        flock(held, LOCK_EX)
        yield
    finally:
        os.close(held)


def _own_name(config: JsonObject) -> str:
    """Return the name that the tensors of a config have while they are being written."""
    return f"model-{config['tensors_sha256'][:16]}.safetensors"


def _intact(folder: Path, data: bytes) -> dict[str, Tensor]:
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ArtifactError(f"{folder / TENSORS} is not a safetensors file: {error}") from error
    broken = [name for name, value in tensors.items() if value.dtype not in NUMBERS or not value.isfinite().all()]
    if broken:
        raise ArtifactError(f"{folder / TENSORS}: {', '.join(broken)} hold values that are not finite")
    return tensors


def _digest(config: Mapping[str, Json]) -> str:
    without = {key: value for key, value in config.items() if key != "config_sha256"}
    return hashlib.sha256(json.dumps(without, sort_keys=True).encode()).hexdigest()
