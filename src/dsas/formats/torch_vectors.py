"""Vectors in files of torch and safetensors, and in objects of other libraries.

    steering-vectors   {"layer_activations": {layer: vector}, "layer_type": "decoder_block"}, or its SteeringVector:
                       added to the output of that part of decoder layer `layer`, from 0: the layer's own
                       ("decoder_block"), or its "self_attn", "mlp", "input_layernorm" or "post_attention_layernorm"
                       (`SteeringVector.patch_activations` in steering-vectors 0.12)
    repeng             a ControlVector, or {"directions": {layer: vector}}: `directions[layer]` is added to the output
                       of decoder layer `layer`, from 0 (`ControlModel` in repeng 0.4)
    persona            {trait}_response_avg_diff.pt and the like, one tensor (layers + 1, dim): entry i + 1 is added to
                       the output of decoder layer i, from 0; entry 0, of the embeddings, is left out
                       (persona vectors, arXiv 2507.21509)
    lm-eval            {module: {"steering_vector", "steering_coefficient", "action", "bias", "head_index"}}: "add" adds
                       coefficient x vector to what the module gives, "clamp" sets what it is along the vector
                       (`SteeredModel` in lm-eval 0.4.12)
    layers             {layer: vector}, by number or by a name with one number in it: added to the output of that
                       layer, from 0, or of the part that the name says ("layers.3.mlp", "blocks.3.hook_attn_out",
                       "layers.3.input_layernorm"); names of other places, such as "hook_resid_pre", are refused

Limitations: no pickles beyond `torch.load(weights_only=True)`, no vectors for single heads ("head_index").
"""

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dsas.errors import ArtifactError
from dsas.formats.published import Place, Published, additions, part_of, vector_of, whole
from dsas.transforms.ablation import Ablation
from dsas.transforms.addition import Addition
from dsas.transforms.base import Transform

LARGEST_FILE = 2**32  # bytes


def read_torch(file: Path) -> Published:
    """Read a .pt, .pth or .bin file. Raises ArtifactError for anything that is not of the kinds above."""
    return read_object(load_torch(file), str(file), persona=file.name.endswith("_diff.pt"))


def load_torch(file: Path) -> Any:
    """Return what torch saved in a file, without running code. Raises ArtifactError before anything is allocated.

    A file that torch wrote is an archive whose parts are stored as they are: none is larger than the file.
    """
    _check_size(file)
    try:
        with zipfile.ZipFile(file) as parts:
            sizes = [(part.file_size, part.compress_type) for part in parts.infolist()]
        if sum(size for size, _ in sizes) > LARGEST_FILE or any(kind != zipfile.ZIP_STORED for _, kind in sizes):
            raise ArtifactError(f"{file} holds compressed parts, which torch never writes")
        return torch.load(file, map_location="cpu", weights_only=True)
    except ArtifactError:
        raise
    except Exception as error:  # torch and zipfile may raise anything on a file from a stranger
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ArtifactError(
            f"{file} is not a file of tensors that torch reads without running code: {reason:.120}. If another "
            "library pickled an object of its own, load it there and give the object itself to dsas.adopt"
        ) from error


def read_safetensors(file: Path) -> Published:
    """Read a .safetensors file with one tensor per layer. Raises ArtifactError for anything else."""
    _check_size(file)
    try:
        with safe_open(file, framework="pt") as opened:
            named = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{file} is not a safetensors file: {error}") from error
    return additions("layers", named)


def read_object(given: Any, where: str, *, persona: bool = False) -> Published:
    """Read the contents of a file, or an object of repeng or steering-vectors.

    persona: whether a tensor (layers + 1, dim) is one of persona vectors. Raises ArtifactError for anything else.
    """
    if isinstance(directions := getattr(given, "directions", None), Mapping):
        return additions("repeng", directions, of=str(getattr(given, "model_type", "")))
    if isinstance(activations := getattr(given, "layer_activations", None), Mapping):
        return additions("steering-vectors", activations, at=part_of(getattr(given, "layer_type", "decoder_block")))
    if isinstance(given, Tensor):
        return _rows(given, where, persona=persona)
    if not isinstance(given, Mapping) or not given:
        raise ArtifactError(f"{where}: expected vectors by layer, got {type(given).__name__}")
    if isinstance(given.get("layer_activations"), Mapping):
        part = part_of(given.get("layer_type", "decoder_block"))
        return additions("steering-vectors", given["layer_activations"], at=part)
    if isinstance(given.get("directions"), Mapping):
        return additions("repeng", given["directions"], of=str(given.get("model_type", "")))
    if all(isinstance(value, Mapping) for value in given.values()):
        return whole(Published("lm-eval", {_path(key): action_of(value, key) for key, value in given.items()}))
    return additions("layers", given)


def _rows(given: Tensor, where: str, *, persona: bool) -> Published:
    if not persona or given.ndim != 2 or len(given) < 2:
        raise ArtifactError(
            f"{where} holds one tensor {tuple(given.shape)}, which does not say what its rows are: name it "
            "..._diff.pt if row i + 1 is for layer i, as in persona vectors, or give {layer: vector}"
        )
    return additions("persona", dict(enumerate(given[1:])))._replace(layers=len(given) - 1)


def _path(key: Any) -> Place:
    if not isinstance(key, str) or not key:
        raise ArtifactError(f"expected the path of a module, got {key!r:.60}")
    return key


def action_of(info: Mapping[Any, Any], where: str) -> Transform:
    """Return what one entry of lm-eval does to an activation. Raises ArtifactError, naming the place."""
    vector = vector_of(info.get("steering_vector"), where)
    action, bias, given = info.get("action"), info.get("bias"), info.get("steering_coefficient", 1.0)
    coefficient = float(given) if isinstance(given, int | float) else math.nan
    if not math.isfinite(coefficient):
        raise ArtifactError(f"{where}: expected a finite steering_coefficient, got {given!r:.60}")
    if info.get("head_index") is not None:
        raise ArtifactError(f"{where}: vectors for single attention heads are not supported")
    if action == "add" and bias is None:
        return Addition(vector * coefficient)
    if action != "clamp":
        raise ArtifactError(f"{where}: expected the action 'add' without bias, or 'clamp', got {action!r:.40}")
    length = vector.norm()
    if not length > 0:
        raise ArtifactError(f"{where}: a clamp needs a direction, and its vector is 0")
    direction = vector / length
    beyond = vector_of(bias, f"{where}, bias") @ direction if bias is not None else 0.0
    return Ablation(direction, torch.as_tensor(coefficient + beyond, dtype=torch.float32))


def _check_size(file: Path) -> None:
    if not file.is_file():
        raise ArtifactError(f"{file}: no such file")
    if (size := file.stat().st_size) > LARGEST_FILE:
        raise ArtifactError(f"{file} has {size} bytes, more than the {LARGEST_FILE} of a file of vectors")
