"""Published vectors: what a file of another library does to a model, and where.

    place     a number is the output of that decoder layer, from 0; -1 is the last; a text is the path of a module below
              the model's base model or in the whole model, or a part of a layer with its number, such as "mlp 3" or
              "input_layernorm 3"
    edit      a transform of dsas; adding a vector v is Addition(v), so that strength 1 is what was published

Every reader is one file that says what its format means by a layer, with the source for that.
"""

import re
from collections.abc import Mapping
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsas.errors import ArtifactError, SiteError, closest
from dsas.model.sites import Site, find_sites
from dsas.transforms.addition import Addition
from dsas.transforms.base import Transform

Place = int | str
_NUMBER = re.compile(r"-?[0-9]+")
_OF_LAYER = re.compile(r"(?:layers?|blocks?)[._ -]?([0-9]+)(?!.*[0-9])", re.IGNORECASE)  # as in "qwen2.layers.3"
LARGEST_LAYER = 10_000


class Published(NamedTuple):
    """Edits by place, as a format has them.

    of: the kind of model they are for, empty where the file does not say. layers: how many decoder layers that model
    has, 0 where it does not say.
    """

    format: str
    edits: dict[Place, Transform]
    of: str = ""
    layers: int = 0

    def at_sites(self, model: nn.Module) -> dict[Site, Transform]:
        """Return the edits at the model's sites, in its order. Raises SiteError for a place not there, or twice."""
        found = dict[Site, Transform]()
        for place, edit in self.edits.items():
            site = _site(model, place)
            if site in found:
                raise SiteError(f"two vectors are for {site} of this model, one of them for {place!r:.60}")
            found[site] = edit
        order = {path: number for number, (path, _) in enumerate(model.named_modules())}
        return dict(sorted(found.items(), key=lambda pair: order[pair[0].path]))


def additions(
    format: str, vectors: Mapping[Any, Any], of: str = "", *, scale: float = 1.0, at: str = "decoder_block"
) -> Published:
    """Return vectors to add at decoder layers. Raises ArtifactError, with the layer, for what is not a vector.

    at: the part of the layer, "decoder_block" for its output, "self_attn", "mlp" or the name of one of its norms.
    """
    edits = dict[Place, Transform]()
    for layer, value in vectors.items():
        number = layer_of(layer)
        part = _part_named(layer) if isinstance(layer, str) and at == "decoder_block" else at
        place: Place = number if part == "decoder_block" else f"{_PARTS.get(part, part)} {number}"
        if place in edits:
            raise ArtifactError(f"expected each layer once, and {layer!r:.60} is another one")
        edits[place] = Addition(vector_of(value, f"layer {layer}") * scale)
    return whole(Published(format, edits, of))


def layer_of(given: Any) -> int:
    """Return the number of a layer, or that in a name: the one that is there, or the last one if it is a layer's.

    Raises ArtifactError for anything else.
    """
    if isinstance(given, str):
        found = [given] if _NUMBER.fullmatch(given) else _OF_LAYER.findall(given) or re.findall(r"[0-9]+", given)
        given = int(found[0]) if len(found) == 1 and len(found[0]) <= 6 else given
    if not isinstance(given, Integral) or isinstance(given, bool) or abs(int(given)) > LARGEST_LAYER:
        raise ArtifactError(f"expected the number of a decoder layer, got {given!r:.60}")
    return int(given)


def vector_of(value: Any, where: str) -> Float[Tensor, " dim"]:
    """Return a vector as float32, without a leading axis of 1. Raises ArtifactError unless it is a finite vector."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        value = torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32).copy())
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.is_meta or value.layout != torch.strided:
        got = type(value).__name__
        if isinstance(value, Tensor | np.ndarray):
            form = f" {value.layout} on {value.device}" if isinstance(value, Tensor) else ""
            got = f"{tuple(value.shape)} {value.dtype}{form}"
        raise ArtifactError(f"{where}: expected a vector of real numbers, got {got}")
    vector = value.detach().cpu().float().squeeze()
    if vector.ndim != 1 or vector.numel() < 2:
        raise ArtifactError(f"{where}: expected one vector, got shape {tuple(value.shape)}")
    if not vector.isfinite().all():
        raise ArtifactError(f"{where} holds values that are not finite")
    return vector.contiguous()


def whole(published: Published) -> Published:
    """Return what was read. Raises ArtifactError where nothing in it does anything, or vectors differ in width."""
    if not published.edits:
        raise ArtifactError(f"it holds no vector in the format {published.format}")
    if all(isinstance(edit, Addition) and not edit.get_buffer("vector").any() for edit in published.edits.values()):
        raise ArtifactError("every vector in it is 0, so it would do nothing")
    widths = {int(next(edit.buffers()).numel()) for edit in published.edits.values()}
    if len(widths) > 1:
        raise ArtifactError(f"expected vectors of one width, got {sorted(widths)}")
    return published


def _part_named(name: str) -> str:
    """Return the part of a layer that a name with one number means; the layer's output where it names none.

    Raises ArtifactError for another place, such as the input of a layer, which is the output of the one before.
    """
    said = name.lower().removesuffix(".weight")
    after = re.split("[0-9]+", said)[-1]
    part = _NAMED.get(after.strip("._-/ "))
    if part is None and "." not in after and not _ELSEWHERE.search(said):
        inner = {_NAMED[word] for word in re.findall("[a-z]+", said) if _NAMED.get(word) in _PARTS}
        part = "decoder_block" if not inner else inner.pop() if len(inner) == 1 else None
    if part is None or _ELSEWHERE.search(said):
        raise ArtifactError(
            f"{name!r:.60} names another place than the output of a decoder layer, its attention or its MLP: if the "
            "vector is for one of these, say so in the name, or give {layer: vector} with numbers"
        )
    return part


_ELSEWHERE = re.compile(r"resid_(pre|mid)|hook_[a-z]\b|_proj")
_HIDDEN = ("hidden", "hidden_states", "resid", "residual", "resid_post", "hook_resid_post")
_NAMED = {  # what stands after the number of a layer in names, and its part
    **dict.fromkeys((*_HIDDEN, "output", "vector", "direction"), "decoder_block"),
    **dict.fromkeys(("mlp", "ffn", "feed_forward", "mlp_out", "hook_mlp_out"), "mlp"),
    **dict.fromkeys(("self_attn", "attn", "attention", "self_attention", "attn_out", "hook_attn_out"), "self_attn"),
    **{name: name for name in ("input_layernorm", "post_attention_layernorm")},
}
_PARTS = {"self_attn": "attention", "mlp": "mlp"}  # of a decoder layer, and the shorthand for it
_NORMS = ("input_layernorm", "post_attention_layernorm")  # of a decoder layer, where it has modules of these names


def part_of(given: Any) -> str:
    """Return a part of a decoder layer that can be steered. Raises ArtifactError for another one."""
    known = ("decoder_block", *_PARTS, *_NORMS)
    if given not in known:
        raise ArtifactError(f"expected vectors for one of {known}, got {given!r:.60}")
    return given


def _site(model: nn.Module, place: Place) -> Site:
    if isinstance(place, int):
        (site,) = find_sites(model, [place])
        return site
    part, _, number = place.rpartition(" ")
    if part in _PARTS.values():
        sites = find_sites(model, part)
        if not -len(sites) <= int(number) < len(sites):
            raise SiteError(f"there is no layer {number}: the model has {len(sites)}")
        return sites[int(number)]
    if part in _NORMS:
        (layer,) = find_sites(model, [int(number)])
        (site,) = find_sites(model, [f"{layer.path}.{part}"])
        return site
    base: Any = getattr(model, "base_model", model)
    below, whole = dict(base.named_modules()), dict(model.named_modules())
    if place not in below:
        if place in whole:
            return Site(place)
        raise SiteError(f"no module {place!r} below the {type(base).__name__}; closest: {closest(place, below)}")
    (path,) = (path for path, module in whole.items() if module is below[place])
    return Site(path)
