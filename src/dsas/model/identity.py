"""Identity: which model a Steering was fitted on, and how close another model comes.

    exact       same class, same shapes, same weights
    compatible  same class, width, depth and site widths, other weights (a fine-tuned or quantised relative)
    refused     anything else, with a message that says what differs

The fingerprint hashes a few values of every parameter, rounded to bfloat16, so that loading the same weights as
float32 or bfloat16 gives the same one. It is computed once per model object, and again when a parameter was replaced or
written into, or when one of some 50 of them has another value in its middle. Weights kept outside the model
(`device_map`) are read where they are.

Limitations: once a model was fingerprinted, a write through `parameter.data` that spares those values is not noticed;
merging an adapter into every layer, or quantising, does not spare them.
"""

import hashlib
from dataclasses import asdict, dataclass
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dsas.errors import ModelMismatchError
from dsas.files.json_values import JsonObject
from dsas.model.device_map import stored

SAMPLES_PER_PARAMETER = 64
PROBED = 50  # parameters whose middle value tells whether the model is still the one that was hashed
Version = tuple[tuple[tuple[int, int], ...], tuple[float, ...]]  # of the parameters, and their middle values
_KNOWN: "WeakKeyDictionary[nn.Module, tuple[Version, str]]" = WeakKeyDictionary()


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
        """Read the identity of a transformers model (or of any module: width and depth are then 0)."""
        config = getattr(model, "config", None)
        get_text = getattr(config, "get_text_config", None)
        text = get_text() if callable(get_text) else config
        return cls(
            model_class=type(model).__name__,
            width=int(getattr(text, "hidden_size", 0) or 0),
            depth=int(getattr(text, "num_hidden_layers", 0) or 0),
            fingerprint=fingerprint(model),
        )

    def as_dict(self) -> JsonObject:
        """Return the identity as JSON-ready values."""
        return asdict(self)

    def compare(self, other: "ModelIdentity") -> Literal["exact", "compatible"]:
        """Return how well another model matches. Raises ModelMismatchError, naming every difference, if it does not."""
        differences = [
            f"{field} {getattr(self, field)!r} here, {getattr(other, field)!r} in the model given"
            for field in ("model_class", "width", "depth")
            if getattr(self, field) != getattr(other, field)
        ]
        if differences:
            raise ModelMismatchError(f"this Steering was fitted on another kind of model: {'; '.join(differences)}")
        return "exact" if self.fingerprint == other.fingerprint else "compatible"


def fingerprint(model: nn.Module, *, owner: nn.Module | None = None) -> str:
    """Return 16 hexadecimal digits over names, shapes and sampled values of the parameters.

    owner: the module that lives as long as the weights, where `model` is only made to look at them.
    """
    parameters = list(model.parameters())
    version = (
        # Tensors made in inference mode do not count the writes into them.
        tuple((_place(one), 0 if one.is_inference() else one._version) for one in parameters),
        _middles(parameters[:: max(1, len(parameters) // PROBED)]),
    )
    known = _KNOWN.get(owner or model)
    if known is None or known[0] != version:
        known = _KNOWN[owner or model] = version, _hashed(model)
    return known[1]


def _hashed(model: nn.Module) -> str:
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


def _middles(parameters: list[nn.Parameter]) -> tuple[float, ...]:
    """Return the value in the middle of each parameter that has values here, with one copy per device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for parameter in parameters:
        held = _is_plain(parameter) and not parameter.is_meta and parameter.numel()
        if held and parameter.is_floating_point():
            middle = parameter.detach()[tuple(size // 2 for size in parameter.shape)]
            by_device.setdefault(parameter.device, []).append(middle.to(torch.float32))
    return tuple(value for middles in by_device.values() for value in torch.stack(middles).tolist())


def _place(parameter: Tensor) -> int:
    """Return where the values are, or which tensor it is when it only stands for others, as a sharded one does."""
    return parameter.data_ptr() if _is_plain(parameter) else id(parameter)


def _is_plain(parameter: Tensor) -> bool:
    return type(parameter) in (Tensor, nn.Parameter)
