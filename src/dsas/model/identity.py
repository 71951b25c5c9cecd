"""Identity: which model a Steering was fitted on, and how close another model comes.

    exact       same class, same shapes, same weights
    compatible  same class, width, depth and site widths, other weights (a fine-tuned or quantised relative)
    refused     anything else, with a message that says what differs

The fingerprint hashes a few values of every parameter, rounded to bfloat16, so that loading the same weights as
float32 or bfloat16 gives the same one, in milliseconds. Weights kept outside the model (`device_map`) are read there.
"""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from dsas.errors import ModelMismatchError
from dsas.model.device_map import stored
from dsas.model.image_pipeline import Parts

SAMPLES_PER_PARAMETER = 64


@dataclass(frozen=True)
class ModelIdentity:
    """What is recorded of a model: its class, `width` (hidden size), `depth` (layers) and weights' fingerprint.

    Of a pipeline: those of its denoiser, and the fingerprint of text encoders and denoiser together.
    """

    model_class: str
    width: int
    depth: int
    fingerprint: str

    @classmethod
    def of(cls, model: nn.Module) -> "ModelIdentity":
        """Read the identity of a transformers model or a pipeline (or of any module: width and depth are then 0)."""
        if isinstance(model, Parts):
            width, depth = _sizes(model.denoiser)
            return cls(type(model.denoiser).__name__, width, depth, fingerprint(model.drawing()))
        config = getattr(model, "config", None)
        get_text = getattr(config, "get_text_config", None)
        text = get_text() if callable(get_text) else config
        return cls(
            model_class=type(model).__name__,
            width=int(getattr(text, "hidden_size", 0) or 0),
            depth=int(getattr(text, "num_hidden_layers", 0) or 0),
            fingerprint=fingerprint(model),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the identity as JSON-ready values."""
        return asdict(self)

    def compare(self, model: nn.Module) -> Literal["exact", "compatible"]:
        """Return how well `model` matches. Raises ModelMismatchError, naming every difference, when it does not."""
        other = ModelIdentity.of(model)
        differences = [
            f"{field} {getattr(self, field)!r} here, {getattr(other, field)!r} in the model given"
            for field in ("model_class", "width", "depth")
            if getattr(self, field) != getattr(other, field)
        ]
        if differences:
            raise ModelMismatchError(f"this Steering was fitted on another kind of model: {'; '.join(differences)}")
        return "exact" if self.fingerprint == other.fingerprint else "compatible"


def _sizes(denoiser: nn.Module) -> tuple[int, int]:
    """Return width and depth of a denoiser by its config: of a U-Net those of its narrow end and its levels."""
    config: Any = getattr(denoiser, "config", {})
    levels = config.get("block_out_channels")
    if levels:
        return int(levels[-1]), len(levels)
    heads, width = config.get("num_attention_heads") or 0, config.get("attention_head_dim") or 0
    return int(heads * width), int(config.get("num_layers") or 0)


def fingerprint(model: nn.Module) -> str:
    """Return 16 hexadecimal digits over names, shapes and sampled values of the parameters."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        plain = name.replace("_orig_mod.", "")  # which torch.compile puts into names
        digest.update(f"{plain}{tuple(parameter.shape)}".encode())
        values = stored(model, name, parameter)
        if values.is_meta or not values.is_floating_point():
            continue
        flat = values.flatten()
        picked = flat[:: max(1, len(flat) // SAMPLES_PER_PARAMETER)][:SAMPLES_PER_PARAMETER]
        digest.update(picked.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
