"""Sites: the named module outputs (or inputs) of a model at which steering may act.

A site is the path of a module and which of its tensors is meant. Users name sites by shorthand
("residual", "norm", "attention", "mlp", "heads"), by exact path, by glob, by regular expression ("re:..."), or as
`Site` objects; `find_sites` turns any mix of them into a list in the order in which the modules are registered.

Globs match whole dotted paths or their tails: `*` stays inside one segment, `**` crosses dots. So "layers.*" is every
decoder layer and nothing inside one, and "*.post_attention_layernorm" is that norm in every layer. "@input" at the end
of a path, glob or expression means what the modules take instead of what they give.

Left out: image-shaped activations.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dsas.errors import ActivationError, SiteError, closest


@dataclass(frozen=True, slots=True)
class Site:
    """One tensor (batch, token, dim) that one module gives or takes, or one of several equal parts of its width.

    path: dotted module path as `model.get_submodule` takes it.
    index: which element, when the module gives a tuple or list; ignored when it gives one tensor.
    side: "output", or "input" for the module's first argument.
    part, parts: the part-th of `parts` equal slices of the width (0 <= part < parts), as the heads of an attention.
    """

    path: str
    index: int = 0
    side: Literal["output", "input"] = "output"
    part: int = 0
    parts: int = 1

    def __post_init__(self) -> None:
        if self.side not in ("output", "input") or not 0 <= self.part < self.parts:
            raise SiteError(f"a site has side 'output' or 'input' and 0 <= part < parts, got {self!r}")

    def __str__(self) -> str:
        index = f"[{self.index}]" if self.index else ""
        side = "@input" if self.side == "input" else ""
        return f"{self.path}{index}{side}" + (f"#{self.part}/{self.parts}" if self.parts > 1 else "")

    def read(self, given: Any) -> Tensor:
        """Return the activation from what its module gives or takes. Raises ActivationError if there is none."""
        if self.parts == 1 and isinstance(given, Tensor) and given.ndim == 3:
            return given
        value = self._whole(given)
        return value if self.parts == 1 else value[..., self._slice(value)]

    def write(self, given: Any, value: Tensor) -> Any:
        """Return `given` with this site's activation replaced; what was given is left as it was."""
        if self.parts == 1 and isinstance(given, Tensor):
            return value
        if self.parts > 1:
            whole = self._whole(given)
            own = self._slice(whole)
            value = torch.cat([whole[..., : own.start], value, whole[..., own.stop :]], dim=-1)
        if not isinstance(given, (tuple, list)):
            return value
        items = list(given)
        items[self.index] = value
        if isinstance(given, list):
            return items
        return type(given)(*items) if hasattr(given, "_fields") else tuple(items)

    def _whole(self, given: Any) -> Tensor:
        value = given[self.index] if isinstance(given, (tuple, list)) else given
        if not isinstance(value, Tensor) or value.ndim != 3:
            came = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ActivationError(f"site {self}: expected a tensor (batch, token, dim), got {came}")
        if value.shape[-1] % self.parts:
            raise ActivationError(f"site {self}: a width of {value.shape[-1]} has no {self.parts} equal parts")
        return value

    def _slice(self, whole: Tensor) -> slice:
        width = whole.shape[-1] // self.parts
        return slice(self.part * width, (self.part + 1) * width)


class Family(NamedTuple):
    """Where one family of models keeps its parts: globs below a decoder layer, first match wins.

    Only modules that give (batch, token, dim): OPT's last norm and fc2 do not, so it has no "norm" and no "mlp".
    heads: the attention's output projection, whose input is the heads side by side.
    """

    layer: str
    norm: str
    attention: str
    mlp: str
    heads: str


# One row per naming scheme; a shorthand takes the first row whose layer glob matches the model.
FAMILIES: tuple[Family, ...] = (
    Family("layers.*", "post_feedforward_layernorm", "self_attn", "mlp", "self_attn.o_proj"),  # Gemma 2 and 3, OLMo 2
    Family(
        "layers.*", "post_attention_layernorm", "self_attn", "mlp", "self_attn.o_proj"
    ),  # Llama, Mistral, Qwen 2/3, Phi-3
    Family(
        "layers.*", "post_attention_layernorm", "self_attn", "block_sparse_moe", "self_attn.o_proj"
    ),  # Mixtral, older releases
    Family("h.*", "ln_2", "attn", "mlp", "attn.c_proj"),  # GPT-2
    Family("gpt_neox.layers.*", "post_attention_layernorm", "attention", "mlp", "attention.dense"),  # GPT-NeoX, Pythia
    Family(
        "layers.*", "post_attention_layernorm", "attention", "mlp", "attention.dense"
    ),  # the same, seen from its decoder
    Family("h.*", "post_attention_layernorm", "self_attention", "mlp", "self_attention.dense"),  # Falcon, BLOOM
    Family("layers.*", "-", "self_attn", "-", "self_attn.out_proj"),  # OPT
)
SHORTHANDS: tuple[str, ...] = ("residual", "norm", "attention", "mlp", "heads")
DEFAULT_SITES = "residual"


SitePatterns = str | Site | Sequence[str | Site]


def find_sites(model: nn.Module, patterns: SitePatterns = DEFAULT_SITES) -> list[Site]:
    """Return the sites of `model` that `patterns` name, without repeats, in the order of the model's modules.

    Raises SiteError, with the closest names, for a pattern that matches nothing.
    """
    asked = [patterns] if isinstance(patterns, (str, Site)) else list(patterns)
    if not asked:
        raise SiteError(f"expected at least one site pattern, got none; try {DEFAULT_SITES!r}")
    order = {path: i for i, (path, _) in enumerate(model.named_modules()) if path}
    found: dict[Site, None] = {}
    for pattern in asked:
        found.update(dict.fromkeys(_match(model, pattern, list(order))))
    return sorted(found, key=lambda site: (order[site.path], site.side != "input", site.index, site.parts, site.part))


def _match(model: nn.Module, pattern: str | Site, paths: list[str]) -> list[Site]:
    if isinstance(pattern, Site):
        if pattern.path not in paths:
            raise SiteError(f"no module {pattern.path!r} in {type(model).__name__}; {_near(pattern.path, paths)}")
        return [pattern]
    if pattern in SHORTHANDS:
        return _shorthand(model, pattern, paths)
    pattern, _, side = pattern.partition("@")
    if side not in ("", "input", "output"):
        raise SiteError(f"what follows @ must be 'input' or 'output', got {side!r}")
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern[3:])
        except re.error as error:
            raise SiteError(f"{pattern!r} is not a regular expression: {error}") from error
        matched = [path for path in paths if expression.fullmatch(path)]
    else:
        matched = _glob(pattern, paths)
    if not matched:
        raise SiteError(f"{pattern!r} matches no module of {type(model).__name__}; {_near(pattern, paths)}")
    return [Site(path, side="input" if side == "input" else "output") for path in matched]


def _near(pattern: str, paths: list[str]) -> str:
    near = closest(pattern.removeprefix("re:").replace("*", "0"), paths)
    return f"closest: {near}; shorthands: {', '.join(SHORTHANDS)}"


def _glob(pattern: str, paths: Iterable[str]) -> list[str]:
    pieces = re.split(r"(\*\*|\*|\?)", pattern)
    wild = {"**": ".*", "*": r"[^.]*", "?": r"[^.]"}
    body = "".join(wild.get(piece, re.escape(piece)) for piece in pieces)
    expression = re.compile(rf"(?:.*\.)?{body}")
    return [path for path in paths if expression.fullmatch(path)]


def _shorthand(model: nn.Module, name: str, paths: list[str]) -> list[Site]:
    decoder = decoder_of(model)
    prefix = next((path for path in paths if model.get_submodule(path) is decoder), "")
    inside = [path.removeprefix(f"{prefix}.") for path in paths if not prefix or path.startswith(f"{prefix}.")]
    for family in FAMILIES:
        layers = [path for path in _glob(family.layer, inside) if path[-1].isdigit()]
        parts = [f"{layer}.{getattr(family, name)}" for layer in layers] if name != "residual" else layers
        if parts and all(part in inside for part in parts):
            found = [f"{prefix}.{part}" if prefix else part for part in parts]
            return _heads(model, found) if name == "heads" else [Site(path) for path in found]
    raise SiteError(
        f"the shorthand {name!r} is not known for {type(model).__name__}; name the modules by path or glob, "
        f"for example one of {', '.join(map(repr, paths[:6]))}"
    )


def _heads(model: nn.Module, paths: list[str]) -> list[Site]:
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    count = int(getattr(text, "num_attention_heads", 0))
    if count < 1:
        raise SiteError(f"{type(model).__name__} does not say in its config how many attention heads it has")
    return [Site(path, side="input", part=head, parts=count) for path in paths for head in range(count)]


def decoder_of(model: nn.Module) -> nn.Module:
    """Return the module that runs the decoder layers: what every language-model head calls exactly once a pass."""
    find = getattr(model, "get_decoder", None)
    decoder = find() if callable(find) else None
    return decoder if isinstance(decoder, nn.Module) else model
