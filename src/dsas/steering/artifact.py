"""Storage: a Steering as a folder of `config.json`, `model.safetensors` and a README card.

No pickle, and no code is imported from a file: the config names methods of the registries. Every file is written beside
its place, flushed, and only then moved over it, so that a full disk or an interruption leaves the old artifact as it
was. The config carries SHA-256 digests of the tensors and of itself: what was truncated or tampered with is refused.
"""

import hashlib
import json
from collections.abc import Mapping
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


class Artifact(NamedTuple):
    """What a folder holds: JSON-ready values and named float32 tensors."""

    config: JsonObject
    tensors: dict[str, Tensor]


def write_artifact(folder: str | Path, artifact: Artifact, *, card: str) -> None:
    """Write an artifact into `folder` (made when missing), replacing what was there only once all is on disk.

    Raises OSError when it cannot be written; the files that were there are then unchanged.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Cloned, because safetensors refuses tensors that share memory, as those of a method used at two sites do.
    tensors = save({name: value.detach().cpu().contiguous().clone() for name, value in artifact.tensors.items()})
    config = {"schema": SCHEMA, **artifact.config, "tensors_sha256": hashlib.sha256(tensors).hexdigest()}
    config["config_sha256"] = _digest(config)
    contents = {TENSORS: tensors, CARD: card.encode(), CONFIG: json.dumps(config, indent=2).encode()}
    replace_files({folder / name: data for name, data in contents.items()})


def read_artifact(folder: str | Path) -> Artifact:
    """Read an artifact back. Raises ArtifactError, saying which file and why, for anything that is not intact."""
    folder = Path(folder)
    check_files(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{folder / CONFIG} is truncated or not JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("schema"), int):
        raise ArtifactError(f"{folder / CONFIG} is not the config of a Steering: it has no schema number")
    if config["schema"] > SCHEMA:
        raise ArtifactError(
            f"{folder} has schema {config['schema']}, this dsas reads up to {SCHEMA}: it was written by dsas "
            f"{config.get('dsas_version', 'of a newer version')}; upgrade dsas to read it"
        )
    data = (folder / TENSORS).read_bytes()
    if config.get("tensors_sha256") != hashlib.sha256(data).hexdigest():
        raise ArtifactError(f"{folder / TENSORS} does not match its digest: truncated or tampered with")
    if config.get("config_sha256") != _digest(config):
        raise ArtifactError(f"{folder / CONFIG} does not match its digest: it was edited after it was written")
    return Artifact(config, _intact(folder, data))


def _intact(folder: Path, data: bytes) -> dict[str, Tensor]:
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ArtifactError(f"{folder / TENSORS} is not a safetensors file: {error}") from error
    broken = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if broken:
        raise ArtifactError(f"{folder / TENSORS}: {', '.join(broken)} hold values that are not finite")
    return tensors


def _digest(config: Mapping[str, Json]) -> str:
    without = {key: value for key, value in config.items() if key != "config_sha256"}
    return hashlib.sha256(json.dumps(without, sort_keys=True).encode()).hexdigest()
