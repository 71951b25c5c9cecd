"""Identity: which model a Steering was fitted on, and how close another model comes.

    exact       same family, width and depth, same weights
    relative    same family, width and depth, other weights: tuned, adapted, quantised, or in another model
    refused     anything else, with a message that says what differs

The family is that of the decoder, so a model, its wrappers (`dsas.model.wrappers`) and a multimodal model that contains
its decoder are relatives. Sites are found by their paths relative to the decoder.

The fingerprint hashes a few values of every weight in use (`dsas.model.weights`), rounded to bfloat16, so that the same
weights loaded as float32 or bfloat16 have the same one. Weights that have been float16 may round differently, at most
to the neighbouring bfloat16 number. So a sketch is stored with it: some of these numbers, and whether they have been
float16. If this is so for one of two models only, their sketches are compared: up to one in eight numbers may be
neighbours instead of equal (one in sixteen is expected), or too small for float16. Both are computed once per model
object, and again when a weight was replaced or written into, when other adapters are active, or when the middle value
of one of some 50 weights has changed. Weights kept outside the model (`device_map`) are read where they are.

Limitations: once a model was fingerprinted, a write through `parameter.data` that leaves those values unchanged is not
noticed; merging an adapter into every layer, or quantising, does change them.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from dsas.errors import ModelMismatchError, closest
from dsas.files.json_values import JsonObject
from dsas.model.device_map import stored
from dsas.model.layers import check_one_stream, decoder_of
from dsas.model.sites import Site
from dsas.model.weights import Weight, acting_weights, how_kept, is_plain, part_of, shape_of, values_of
from dsas.model.wrappers import class_name, core_path, plain, plain_paths

SAMPLES_PER_PARAMETER = 64
SKETCHED = 256  # numbers in a sketch
_HALF, _TINY = "float16:", 2.0**-24  # prefix of a sketch of float16; its smallest number
PROBED = 50  # number of parameters whose middle value says whether the model is still the one that was hashed
# The state of the weights: their names, places and versions, and their middle values.
Version = tuple[tuple[tuple[str, int, int], ...], tuple[float, ...]]
_KNOWN: "WeakKeyDictionary[nn.Module, tuple[Version, Marks]]" = WeakKeyDictionary()
_KINDS = re.compile(r"(_\d+)?VL|Text|Model|Decoder|For[A-Z]\w*|LMHead")  # what class names of one family differ in


def family_of(name: str) -> str:
    """Return the family of a model class: the same for causal models, their decoders and models that contain them."""
    return _KINDS.sub("", name) or name


@dataclass(frozen=True)
class ModelIdentity:
    """What is recorded of a model: its class, `width` (hidden size), `depth` (layers) and weights' fingerprint.

    family: that of the decoder's class. decoder: its plain path. wrapped: path of the model inside its wrappers, with
    which the paths of sites begin. part: the process whose fingerprint it is, if each holds a part of the weights.
    sketch: numbers of the weights, in addition to the fingerprint. These are empty in older stored identities, and for
    a pipeline, whose other fields are those of its denoiser, with the fingerprint of text encoders and denoiser
    together.
    """

    model_class: str
    width: int
    depth: int
    fingerprint: str
    family: str = ""
    decoder: str = ""
    wrapped: str = ""
    part: str = ""
    sketch: str = field(default="", compare=False, repr=False)

    @classmethod
    def of(cls, model: nn.Module) -> "ModelIdentity":
        """Read the identity of a transformers model (or of any module: width and depth are then 0)."""
        where = core_path(model)
        core = model.get_submodule(where)
        config = getattr(core, "config", None)
        get_text = getattr(config, "get_text_config", None)
        text = get_text() if callable(get_text) else config
        decoder, path = _decoder(core)
        mark, sketch = marks(model)
        return cls(
            model_class=class_name(core),
            width=int(getattr(text, "hidden_size", 0) or 0),
            depth=int(getattr(text, "num_hidden_layers", 0) or 0),
            fingerprint=mark,
            family=family_of(class_name(decoder)),
            decoder=path,
            wrapped=where,
            part=part_of(model),
            sketch=sketch,
        )

    def as_dict(self) -> JsonObject:
        """Return the identity as JSON-ready values."""
        return asdict(self)

    def compare(self, other: "ModelIdentity") -> Literal["exact", "relative"]:
        """Return how well another model matches. Raises ModelMismatchError, naming every difference, if it does not."""
        known = self.family and other.family
        fields = ("width", "depth") if known and self.family == other.family else ("model_class", "width", "depth")
        differences = [
            f"{field} {getattr(self, field)!r} here, {getattr(other, field)!r} in the model given"
            for field in fields
            if getattr(self, field) != getattr(other, field)
        ]
        if known and self.family != other.family and not differences:
            differences = [f"family {self.family!r} here, {other.family!r} in the model given"]
        if differences:
            raise ModelMismatchError(
                f"this Steering was fitted on another kind of model: {'; '.join(differences)}; fit one on this model"
            )
        same = self.fingerprint == other.fingerprint or _rounded_apart(self.sketch, other.sketch)
        return "exact" if same else "relative"

    def differences(self, other: "ModelIdentity", model: nn.Module) -> list[str]:
        """Return, as phrases, the known differences of a relative; `model` is the model of the `other` identity."""
        inside = self.model_class != other.model_class
        kept = [*([f"the model is a {other.model_class}"] if inside else []), *how_kept(acting_weights(model))]
        parts = dict.fromkeys(identity.part for identity in (self, other) if identity.part)
        return [*kept, *(f"only the weights of the part {part} were compared" for part in parts)]

    def sites_in(self, model: nn.Module, sites: Sequence[Site]) -> list[Site]:
        """Return the sites that were fitted on the model of this identity as they are called in a relative.

        Raises ModelMismatchError, with the closest path, when a site is not there, and SiteError for a layer with
        several residual streams.
        """
        _, there = _decoder(model.get_submodule(core_path(model)))
        paths, own = dict(model.named_modules()), plain_paths(model)
        found, missing = list[Site](), list[Site]()
        for site in sites:
            path = plain(site.path, self.wrapped)
            if self.family and f"{path}.".startswith(f"{self.decoder}." if self.decoder else ""):
                path = ".".join(filter(None, (there, path.removeprefix(self.decoder).removeprefix("."))))
            actual = own.get(path, site.path)
            (found if actual in paths else missing).append(replace(site, path=actual))
        if missing:
            raise ModelMismatchError(
                f"this model has no module {missing[0].path!r} ({len(missing)} sites are missing); "
                f"closest: {closest(missing[0].path, paths)}"
            )
        for site in found:
            check_one_stream(model, site.path)
        return found


def fingerprint(model: nn.Module, *, owner: nn.Module | None = None) -> str:
    """Return 16 hexadecimal digits over names, shapes and sampled values of the weights; see `marks`."""
    return marks(model, owner=owner).fingerprint


class Marks(NamedTuple):
    """What identifies the weights of a model: fingerprint and sketch."""

    fingerprint: str
    sketch: str


def marks(model: nn.Module, *, owner: nn.Module | None = None) -> Marks:
    """Return fingerprint and sketch of the weights of a model.

    owner: the module that lives as long as the weights, if `model` was only made to read them.
    """
    weights = acting_weights(model)
    version = (
        # Tensors made in inference mode do not count writes.
        tuple((one.plain, _place(one.tensor), _writes(one.tensor)) for one in weights),
        _middles([one.tensor for one in weights[:: max(1, len(weights) // PROBED)]]),
    )
    known = _KNOWN.get(owner or model)
    if known is None or known[0] != version:
        known = _KNOWN[owner or model] = version, Marks(_hashed(model, weights), _sketch(model, weights))
    return known[1]


def _decoder(core: nn.Module) -> tuple[nn.Module, str]:
    """Return the decoder of a model without wrappers, and its plain path."""
    decoder = decoder_of(core)
    return decoder, plain(next((path for path, module in core.named_modules() if module is decoder), ""))


def _hashed(model: nn.Module, weights: Sequence[Weight]) -> str:
    digest = hashlib.sha256()
    for weight in weights:
        digest.update(f"{weight.plain}{shape_of(weight.tensor)}".encode())
        values = values_of(stored(model, weight.name, weight.tensor))
        if values is None or values.is_meta:
            continue
        flat = values.flatten()
        picked = flat[:: max(1, len(flat) // SAMPLES_PER_PARAMETER)][:SAMPLES_PER_PARAMETER].cpu()
        same = picked.to(torch.bfloat16).view(torch.int16) if picked.is_floating_point() else picked.long()
        digest.update(same.numpy().tobytes())
    return digest.hexdigest()[:16]


def _sketch(model: nn.Module, weights: Sequence[Weight]) -> str:
    """Return some numbers of the weights, rounded to bfloat16, as hexadecimal digits; empty where there are none."""
    floats = [one for one in weights if is_plain(one.tensor) and one.tensor.is_floating_point() and one.tensor.numel()]
    chosen = floats[:: max(1, len(floats) // SKETCHED)]
    tensors = [stored(model, one.name, one.tensor).detach() for one in chosen]
    if not tensors or any(one.is_meta for one in tensors):
        return ""
    each = -(-SKETCHED // len(tensors))
    picked = torch.cat([one.flatten()[:: max(1, one.numel() // each)][:each].cpu().double() for one in tensors])
    picked = picked[:SKETCHED]
    short = picked.to(torch.bfloat16)
    half = torch.equal(picked.half().double(), picked) and not torch.equal(short.double(), picked)
    return (_HALF if half else "") + short.view(torch.int16).numpy().astype("<i2").tobytes().hex()


def _rounded_apart(one: str, other: str) -> bool:
    """Whether two sketches, one of which has been float16, hold the same numbers."""
    if not one or not other or one.startswith(_HALF) == other.startswith(_HALF):
        return False
    try:
        found = [np.frombuffer(bytes.fromhex(each.removeprefix(_HALF)), dtype="<i2") for each in (one, other)]
    except ValueError:  # from a file that was changed
        return False
    if len(found[0]) != len(found[1]):
        return False
    here, there = (torch.from_numpy(each.astype(np.int16)) for each in found)
    tiny = (here.view(torch.bfloat16).double() - there.view(torch.bfloat16).double()).abs() <= _TINY
    apart = (here.int() - there.int()).abs()
    return bool(((apart <= 1) | tiny).all()) and float(((apart == 1) & ~tiny).double().mean()) <= 1 / 8


def _middles(tensors: Sequence[Tensor]) -> tuple[float, ...]:
    """Return the value in the middle of each tensor that has values here, with one copy per device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        held = is_plain(tensor) and not tensor.is_meta and tensor.numel()
        if held and tensor.is_floating_point():
            middle = tensor.detach()[tuple(size // 2 for size in tensor.shape)]
            by_device.setdefault(tensor.device, []).append(middle.to(torch.float32))
    return tuple(value for middles in by_device.values() for value in torch.stack(middles).tolist())


def _place(tensor: Tensor) -> int:
    """Return where the values are, or the identity of a tensor that only represents others, such as a sharded one."""
    return tensor.data_ptr() if is_plain(tensor) else id(tensor)


def _writes(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
