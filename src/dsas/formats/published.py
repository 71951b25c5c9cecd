"""Published vectors: what a file of another library does to a model, and where.

    place     a number is the output of that decoder layer, from 0; -1 is the last; a text is the path of a module below
              the model's base model or in the whole model, or a part of a layer with its number, such as "mlp 3" or
              "input_layernorm 3"
    edit      a transform of dsas; adding a vector v is Addition(v), so that strength 1 is what was published

Every reader is one file that says what its format means by a layer, with the source for that.
"""

import re
from collections.abc import Mapping
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
    """Return vectors to add at decoder layers. Raises ArtifactError, naming the layer, for a value that is no vector.

    at: the part of the layer, "decoder_block" for its output, "self_attn", "mlp" or the name of one of its norms.
    """
    edits, seen = dict[Place, Transform](), set[int]()
    for layer, value in vectors.items():
        number = layer_of(layer)
        if number in seen:
            raise ArtifactError(f"expected each layer once, and {layer!r:.60} is another one")
        seen.add(number)
        place: Place = number if at == "decoder_block" else f"{_PARTS.get(at, at)} {number}"
        edits[place] = Addition(vector_of(value, f"layer {layer}") * scale)
    return whole(Published(format, edits, of))


def layer_of(given: Any) -> int:
    """Return the number of a layer, or the one number in a name. Raises ArtifactError for anything else."""
    if isinstance(given, str):
        found = [given] if _NUMBER.fullmatch(given) else re.findall(r"[0-9]+", given)
        given = int(found[0]) if len(found) == 1 and len(found[0]) <= 6 else given
    if not isinstance(given, int) or isinstance(given, bool) or abs(given) > LARGEST_LAYER:
        raise ArtifactError(f"expected the number of a decoder layer, got {given!r:.60}")
    return given


def vector_of(value: Any, where: str) -> Float[Tensor, " dim"]:
    """Return a vector as float32, without a leading axis of 1. Raises ArtifactError unless it is a finite vector."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        value = torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32).copy())
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.is_meta or value.layout != torch.strided:
        got = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise ArtifactError(f"{where}: expected a vector of real numbers, got {got}")
    vector = value.detach().cpu().float().squeeze()
    if vector.ndim != 1 or vector.numel() < 2:
        raise ArtifactError(f"{where}: expected one vector, got shape {tuple(value.shape)}")
    if not vector.isfinite().all():
        raise ArtifactError(f"{where} holds values that are not finite")
    return vector.contiguous()


def whole(published: Published) -> Published:
    """Return what was read. Raises ArtifactError where there is nothing in it, or vectors differ in width."""
    if not published.edits:
        raise ArtifactError(f"it holds no vector in the format {published.format}")
    widths = {int(next(edit.buffers()).numel()) for edit in published.edits.values()}
    if len(widths) > 1:
        raise ArtifactError(f"expected vectors of one width, got {sorted(widths)}")
    return published


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
