"""Sites: the named module outputs (or inputs) of a model at which steering may act.

A site is the path of a module and one of its tensors. Users name sites by shorthand
("residual", "norm", "attention", "mlp", "heads"), by the number of a layer, which means the residual stream after it
(-1 is the last), by exact path, by glob, by regular expression ("re:..."), or as `Site` objects; `find_sites` turns any
mix of them into a list in the order in which the modules are registered.

Globs match whole dotted paths or their tails: `*` stays inside one segment, `**` crosses dots. So "layers.*" is every
decoder layer and nothing inside one, and "*.post_attention_layernorm" is that norm in every layer. "@input" at the end
of a path, glob or expression means the modules' input instead of their output.

In image models every spatial position is a token: a picture (batch, dim, height, width) is read as (batch, position,
dim), row after row, and written back in its own shape and memory format. A block with two streams returns both, in an
order that differs by family (`STREAMS`): a path means the image's, and with "@text" at its end the text's.

Limitations: no volumes (videos).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from dsas.errors import ActivationError, SiteError, closest
from dsas.model.foreign import Foreign, Given
from dsas.model.layers import SHORTHANDS, check_one_stream, head_count, part_paths

_HINTS = {  # hints, by the number of dimensions that came
    2: (
        "; if these are (token, dim), as vision towers and mixtures have the tokens of all rows one after another, "
        "name it as dsas.Site(path, layout='flat')"
    ),
    4: (
        "; a picture (batch, dim, height, width) is named as dsas.Site(path, layout='picture'); where a residual has "
        "several streams, steer what is added to it, 'mlp' or 'attention'"
    ),
}
Layout = Literal["tokens", "picture", "channels", "flat", "time"]
_ALL_ROWS = re.compile(
    r".*(?:Router|MoE\w*Gate|Experts)"
)  # classes of mixtures that have the tokens of all rows as one
_TIME_FIRST = ("XLNetLayer", "XLNetRelativeAttention", "XLNetFeedForward")


@dataclass(frozen=True, slots=True)
class Site:
    """One tensor that a module takes or returns, or one of several equal parts of its width.

    path: dotted module path as `model.get_submodule` takes it.
    index: which element, when the module returns a tuple or list; ignored when it returns one tensor.
    side: "output", or "input" for the module's first argument.
    part, parts: the part-th of `parts` equal slices of the width (0 <= part < parts), such as the heads of an
    attention.
    layout: "tokens" is (batch, token, dim), "picture" that or (batch, dim, height, width), "channels" has dim second,
        "flat" is (token, dim): the patches of all pictures one after another, which are one row, or the tokens of all
        rows, as the router and the experts of a mixture have them; "time" has tokens first.
    """

    path: str
    index: int = 0
    side: Literal["output", "input"] = "output"
    part: int = 0
    parts: int = 1
    layout: Layout = "tokens"

    def __post_init__(self) -> None:
        if self.side not in ("output", "input") or not 0 <= self.part < self.parts:
            raise SiteError(f"a site has side 'output' or 'input' and 0 <= part < parts, got {self!r}")
        if self.layout not in get_args(Layout):
            raise SiteError(f"the layout of a site is one of {get_args(Layout)}, got {self!r}")

    def __str__(self) -> str:
        index = f"[{self.index}]" if self.index else ""
        side = "@input" if self.side == "input" else ""
        return f"{self.path}{index}{side}" + (f"#{self.part}/{self.parts}" if self.parts > 1 else "")

    @property
    def is_plain(self) -> bool:
        """Whether a tensor (batch, token, dim) that the module takes or returns is the activation itself."""
        return self.parts == 1 and self.layout not in ("channels", "flat", "time")

    def rows(self, given: Given, batch: Sequence[int]) -> int:
        """Return how many rows stand one after another in a flat activation; batch: the rows and tokens given."""
        if self.layout != "flat" or len(batch) != 2 or len(self._whole(given)) != batch[0] * batch[1]:
            return 1
        return batch[0]

    def read(self, given: Given, rows: int = 1) -> Tensor:
        """Return the activation (batch, token, dim) from what its module gives or takes; raises ActivationError.

        rows: into how many a flat one is divided.
        """
        if self._plain(given):
            return given
        value = self._tokens(self._whole(given), rows)
        return value if self.parts == 1 else value[..., self._slice(value)]

    def write(self, given: Given, value: Tensor) -> Foreign:
        """Return `given` with this site's activation replaced; `given` itself is not changed."""
        if self._plain(given):
            return value
        whole = self._whole(given)
        if self.parts > 1:
            tokens = self._tokens(whole, len(value))
            own = self._slice(tokens)
            value = torch.cat([tokens[..., : own.start], value, tokens[..., own.stop :]], dim=-1)
        if self._second(whole):
            last = whole.ndim == 4 and whole.is_contiguous(memory_format=torch.channels_last)
            memory = torch.channels_last if last else torch.contiguous_format
            value = value.transpose(1, 2).reshape(whole.shape).contiguous(memory_format=memory)
        if self.layout == "flat":
            value = value.reshape(whole.shape)
        elif self.layout == "time":
            value = value.transpose(0, 1)
        if not isinstance(given, (tuple, list)):
            return value
        items = list(given)
        items[self.index] = value
        if isinstance(given, list):
            return items
        return type(given)(*items) if hasattr(given, "_fields") else tuple(items)

    def grid(self, given: Given) -> tuple[int, int] | None:
        """Return height and width of the activation in its module's input or output; None when it has none."""
        whole = self._whole(given)
        return (whole.shape[2], whole.shape[3]) if whole.ndim == 4 else None

    def _plain(self, given: Given) -> bool:
        """Whether a module's input or output is the activation itself, as nearly always."""
        return self.is_plain and isinstance(given, Tensor) and given.ndim == 3

    def _whole(self, given: Given) -> Tensor:
        value = given[self.index] if isinstance(given, (tuple, list)) else given
        dimensions = {"tokens": (3,), "time": (3,), "flat": (2, 3)}.get(self.layout, (3, 4))
        if not isinstance(value, Tensor) or value.ndim not in dimensions:
            came = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            hint = _HINTS.get(value.ndim, "") if isinstance(value, Tensor) and self.layout != "flat" else ""
            wanted = "(token, dim)" if self.layout == "flat" else "(batch, token, dim)"
            raise ActivationError(f"site {self}: expected a tensor {wanted}, got {came}{hint}")
        return value

    def _second(self, whole: Tensor) -> bool:
        """Whether the width is the second dimension and not the last."""
        return whole.ndim == 4 or self.layout == "channels"

    def _tokens(self, whole: Tensor, rows: int = 1) -> Tensor:
        if self.layout == "flat" and whole.ndim == 2:
            whole = whole.unflatten(0, (rows, -1))
        elif self.layout == "time":
            whole = whole.transpose(0, 1)
        tokens = whole.flatten(2).transpose(1, 2) if self._second(whole) else whole
        if tokens.shape[-1] % self.parts:
            raise ActivationError(f"site {self}: a width of {tokens.shape[-1]} has no {self.parts} equal parts")
        return tokens

    def _slice(self, whole: Tensor) -> slice:
        width = whole.shape[-1] // self.parts
        return slice(self.part * width, (self.part + 1) * width)


def labels(sites: Sequence[Site]) -> list[str]:
    """Return a distinct name for each site in reports: its path, and its layout where paths repeat."""
    names = [str(site) for site in sites]
    return [f"{name}:{site.layout}" if names.count(name) > 1 else name for name, site in zip(names, sites, strict=True)]


# What a block of two streams returns, by its class: the order follows no rule, so it is listed (diffusers 0.42).
_TEXT_FIRST = """AuraFlowJoint BriaFibo Bria BriaSingle Chroma Flux Flux2 Flux2Single Flux3Single FluxSingle Joint
    LongCatImage LongCatImageSingle OvisImage OvisImageSingle QwenImage""".split()  # noqa: SIM905
_IMAGE_FIRST = """CogView3Plus CogView4 EasyAnimate GlmImage HiDreamImage HunyuanImage HunyuanImageSingle JoyImage
    JoyImageEditPlus""".split()  # noqa: SIM905
STREAMS: dict[str, tuple[str, str]] = {
    **{f"{name}TransformerBlock": ("text", "image") for name in _TEXT_FIRST},
    **{f"{name}TransformerBlock": ("image", "text") for name in _IMAGE_FIRST},
}
# Blocks that return one sequence of both streams, the prompt's tokens first; a pass says how many these are.
JOINT: dict[str, tuple[str, str]] = {
    f"{name}TransformerBlock": ("text", "image") for name in ("AuraFlowSingle", "ChromaSingle", "Flux2Single")
}
# Blocks that return one sequence of both streams with other lengths in each row: both are one site.
MIXED = ("Lumina2TransformerBlock", "ZImageTransformerBlock")
_PICTURE = (nn.GroupNorm, _BatchNorm, _ConvNd)  # modules with the width second, whatever the shape
DEFAULT_SITES = "residual"
SitePatterns = str | int | Site | Sequence[str | int | Site]


def find_sites(model: nn.Module, patterns: SitePatterns = DEFAULT_SITES) -> list[Site]:
    """Return the sites of `model` that `patterns` name, without repeats, in the order of the model's modules.

    Raises SiteError, with the closest names, for a pattern that matches nothing.
    """
    asked = listed(patterns)
    if not asked:
        raise SiteError(f"expected at least one site pattern, got none; try {DEFAULT_SITES!r}")
    order = {path: i for i, (path, _) in enumerate(model.named_modules()) if path}
    found: dict[Site, None] = {}
    for pattern in asked:
        found.update(dict.fromkeys(_match(model, pattern, list(order))))
    for site in found:
        check_one_stream(model, site.path)
    return sorted(found, key=lambda site: (order[site.path], site.side != "input", site.index, site.parts, site.part))


def listed(patterns: Given) -> list[str | int | Site]:
    """Return patterns, numbers of other libraries as int. Raises SiteError for what names no site."""
    one = isinstance(patterns, (str, Site)) or not isinstance(patterns, Iterable) or getattr(patterns, "ndim", 1) == 0
    found: list[Foreign] = [patterns] if one else [*cast("Iterable[Foreign]", patterns)]
    names = [isinstance(one, (str, Site)) or (hasattr(one, "__index__") and not isinstance(one, bool)) for one in found]
    if not all(names):
        wrong = found[names.index(False)]
        raise SiteError(f"expected a shorthand, the number of a layer, a path, a pattern or a dsas.Site, got {wrong!r}")
    return [one if isinstance(one, (str, Site)) else one.__index__() for one in found]


def _match(model: nn.Module, pattern: str | int | Site, paths: list[str]) -> list[Site]:
    if isinstance(pattern, Site):
        if pattern.path not in paths:
            raise SiteError(
                f"no module {pattern.path!r} in {type(model).__name__}; {_near(model, pattern.path, paths)}"
            )
        return [pattern]
    if isinstance(pattern, int) or (pattern not in paths and re.fullmatch(r"-?\d+", pattern)):
        return [_layer(model, int(pattern), paths)]
    if pattern in SHORTHANDS or pattern in getattr(model, "shorthands", ()):
        return _shorthand(model, pattern, paths)
    pattern, _, which = pattern.partition("@")
    if which not in ("", "input", "output", "image", "text"):
        raise SiteError(f"what follows @ must be 'input', 'output', 'image' or 'text', got {which!r}")
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern[3:])
        except re.error as error:
            raise SiteError(f"{pattern!r} is not a regular expression: {error}") from error
        matched = [path for path in paths if expression.fullmatch(path)]
    else:
        matched = _glob(pattern, paths)
    if not matched:
        raise SiteError(f"{pattern!r} matches no module of {type(model).__name__}; {_near(model, pattern, paths)}")
    return [_site(path, model.get_submodule(path), which) for path in matched]


def _site(path: str, module: nn.Module, which: str = "") -> Site:
    """Return the site at a module, with the stream and the layout that its class has."""
    layout: Layout = "tokens"
    if isinstance(module, _PICTURE):
        layout = "channels"
    elif any(isinstance(child, _PICTURE) for child in module.children()):
        layout = "picture"
    elif type(module).__name__ in _TIME_FIRST:
        layout = "time"
    elif _ALL_ROWS.fullmatch(type(module).__name__):
        layout = "flat"
    if which == "input":
        return Site(path, side="input", layout=layout)
    streams = STREAMS.get(type(module).__name__) or JOINT.get(type(module).__name__)
    if streams is None and which in ("image", "text"):
        raise SiteError(f"{path!r} ({type(module).__name__}) is not a block of two streams, so it has no @{which}")
    stream = "text" if which == "text" else "image"
    return Site(path, index=streams.index(stream) if streams else 0, layout=layout)


def _near(model: nn.Module, pattern: str, paths: list[str]) -> str:
    near = closest(pattern.removeprefix("re:").replace("*", "0"), paths)
    return f"closest: {near}; shorthands: {', '.join(getattr(model, 'shorthands', SHORTHANDS))}"


def _glob(pattern: str, paths: Iterable[str]) -> list[str]:
    pieces = re.split(r"(\*\*|\*|\?)", pattern)
    wild = {"**": ".*", "*": r"[^.]*", "?": r"[^.]"}
    body = "".join(wild.get(piece, re.escape(piece)) for piece in pieces)
    expression = re.compile(rf"(?:.*\.)?{body}")
    return [path for path in paths if expression.fullmatch(path)]


def _shorthand(model: nn.Module, name: str, paths: list[str]) -> list[Site]:
    own: dict[str, tuple[str, ...]] | None = getattr(model, "shorthands", None)
    if own is not None:
        found = dict.fromkeys(path for pattern in own.get(name, ()) for path in _glob(pattern, paths))
        if not found:
            known = ", ".join(map(repr, own)) or "none"
            raise SiteError(f"the shorthand {name!r} is not known for this pipeline; it has {known}, or name modules")
        return [_site(path, model.get_submodule(path)) for path in found]
    found = part_paths(model, name)
    if name != "heads":
        return [_site(path, model.get_submodule(path)) for path in found]
    counts = {path: head_count(model, path) for path in found}
    return [Site(path, side="input", part=head, parts=n) for path, n in counts.items() for head in range(n)]


def _layer(model: nn.Module, number: int, paths: list[str]) -> Site:
    """Return the residual stream after a layer, counted from 0, or from the end as lists are."""
    layers = _shorthand(model, "residual", paths)
    if not -len(layers) <= number < len(layers):
        raise SiteError(f"{type(model).__name__} has {len(layers)} layers, 0 to {len(layers) - 1}; got {number}")
    return layers[number]
