"""lm-eval's steering CSV: it names features of sparse autoencoders, whose decoders are read as well.

    loader           sparsify (the default) stores a decoder as SPARSE_MODEL/HOOKPOINT/sae.safetensors, sae_lens as
                     SPARSE_MODEL/SAE_ID/sae_weights.safetensors
    action           add (the default): adds steering_coefficient x feature; clamp: sets the component along the
                     feature of an activation less the decoder's bias
    sparse_model     a folder, or a repository of the hub
    hookpoint        path of a module below the base model, such as layers.3
    feature_index    row of W_dec (feature, dim)

Source: `SteeredModel.derive_steer_config` in lm-eval 0.4.13, where "add" fails for every CSV, because a decoder has a
bias; here the bias is ignored, as for "add" in a .pt file.
Limitations: head_index is not supported (nor does lm-eval read it from a CSV), nor are names of releases that only
sae_lens knows.
"""

import csv
import math
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dsas.errors import ArtifactError
from dsas.formats.published import LARGEST_LAYER, Place, Published, whole
from dsas.formats.torch_vectors import LARGEST_FILE, action_of
from dsas.transforms.base import Transform

LARGEST_CSV = 2**24  # bytes
NEEDED = ("sparse_model", "hookpoint", "feature_index", "steering_coefficient")


class _Row(NamedTuple):
    """One line: which feature of which decoder, at which module, with which action."""

    loader: str
    action: str
    sparse_model: str
    hookpoint: str
    feature: int
    coefficient: float
    sae_id: str

    @property
    def weights(self) -> str:
        """The path of the decoder below the sparse model."""
        if self.loader == "sparsify":
            return f"{self.hookpoint}/sae.safetensors"
        return f"{self.sae_id}/sae_weights.safetensors"


def read_lm_eval_csv(file: Path) -> Published:
    """Read the rows and the features that they name. Raises ArtifactError for a missing or malformed file."""
    if file.stat().st_size > LARGEST_CSV:
        raise ArtifactError(f"{file} has {file.stat().st_size} bytes, more than the {LARGEST_CSV} of a steering CSV")
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            table = csv.DictReader(opened)
            lines = [dict(line) for _, line in zip(range(LARGEST_LAYER), table, strict=False)]
            missing = [name for name in NEEDED if name not in (table.fieldnames or ())]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ArtifactError(f"{file} is not a CSV file: {error}") from error
    if missing:
        raise ArtifactError(f"{file}: expected the columns {', '.join(NEEDED)}, missing: {', '.join(missing)}")
    edits: dict[Place, Transform] = {}
    for number, line in enumerate(lines, start=2):
        row, where = _row(line, f"{file}, line {number}"), f"{file}, line {number}"
        if row.hookpoint in edits:
            raise ArtifactError(f"{where}: an earlier line is for {row.hookpoint}, too")
        vector, bias = _feature(row, where)
        info = {"action": row.action, "steering_coefficient": row.coefficient, "steering_vector": vector}
        edits[row.hookpoint] = action_of(info | ({"bias": bias} if row.action == "clamp" else {}), where)
    return whole(Published("lm-eval", edits))


def _row(line: dict[str, str | None], where: str) -> _Row:
    """Return the row of a line. Raises ArtifactError, naming the line and the column."""
    said = {name: (value or "").strip() for name, value in line.items() if isinstance(value, str | None)}
    loader, action = said.get("loader") or "sparsify", said.get("action") or "add"
    if loader not in ("sparsify", "sae_lens"):
        raise ArtifactError(f"{where}: expected the loader sparsify or sae_lens, got {loader!r:.40}")
    if said.get("head_index"):
        raise ArtifactError(f"{where}: vectors for single attention heads are not supported")
    if not said["sparse_model"] or not said["hookpoint"] or (loader == "sae_lens" and not said.get("sae_id")):
        raise ArtifactError(f"{where}: expected a sparse_model and a hookpoint, and for sae_lens an sae_id")
    number, coefficient = said["feature_index"], math.nan
    with suppress(ValueError):
        coefficient = float(said["steering_coefficient"])
    if not number.isdecimal() or len(number) > 12 or not math.isfinite(coefficient):
        raise ArtifactError(
            f"{where}: expected a feature_index from 0 and a finite steering_coefficient, got {number!r:.20} and "
            f"{said['steering_coefficient']!r:.20}"
        )
    where_from = said["sparse_model"], said["hookpoint"], int(number), coefficient
    return _Row(loader, action, *where_from, said.get("sae_id", ""))


def _feature(row: _Row, where: str) -> tuple[Tensor, Tensor]:
    """Return one row of W_dec and b_dec; nothing else of the decoder is read into memory."""
    file = Path(row.sparse_model) / row.weights
    if not Path(row.sparse_model).is_dir():
        file = _downloaded(row, where)
    try:
        if file.stat().st_size > LARGEST_FILE * 4:
            raise ArtifactError(f"{where}: {file} has {file.stat().st_size} bytes, too many for a decoder")
        with safe_open(file, framework="pt") as opened:
            decoder = opened.get_slice("W_dec")
            shape = decoder.get_shape()
            if len(shape) != 2 or not row.feature < shape[0]:
                raise ArtifactError(f"{where}: expected a feature_index below {shape[:1]} of {file}, got {row.feature}")
            return decoder[row.feature], opened.get_tensor("b_dec")
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{where}: {file} is not a decoder with W_dec and b_dec: {error!s:.120}") from error


def _downloaded(row: _Row, where: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(row.sparse_model, row.weights))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{where}: {row.sparse_model!r:.80} is neither a folder nor a repository of the hub with {row.weights}"
        ) from error
