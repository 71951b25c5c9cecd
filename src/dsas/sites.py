"""Sites: the named module outputs of a model at which steering may act.

A site is the path of a module and which of its tensors is meant. Users name sites by shorthand
("residual", "norm", "attention", "mlp"), by exact path, by glob, by regular expression ("re:..."), or as `Site`
objects; `find_sites` turns any mix of them into a list in the order in which the modules are registered.

Globs match whole dotted paths or their tails: `*` stays inside one segment, `**` crosses dots. So "layers.*" is every
decoder layer and nothing inside one, and "*.post_attention_layernorm" is that norm in every layer.

Left out: image-shaped activations, module inputs.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from dsas.errors import ActivationError, SiteError, closest


@dataclass(frozen=True, slots=True)
class Site:
    """One tensor (batch, token, dim) that one module gives.

    path: dotted module path as `model.get_submodule` takes it.
    index: which element, when the module returns a tuple or list; ignored when it returns one tensor.
    """

    path: str
    index: int = 0

    def __str__(self) -> str:
        return self.path if self.index == 0 else f"{self.path}[{self.index}]"

    def read(self, output: Any) -> Tensor:
        """Return this site's activation from a module's output. Raises ActivationError when there is none."""
        value = output[self.index] if isinstance(output, (tuple, list)) else output
        if not isinstance(value, Tensor) or value.ndim != 3:
            came = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ActivationError(f"site {self}: expected a tensor (batch, token, dim), got {came}")
        return value

    def write(self, output: Any, value: Tensor) -> Any:
        """Return `output` with this site's activation replaced; the given output is left as it was."""
        if not isinstance(output, (tuple, list)):
            return value
        items = list(output)
        items[self.index] = value
        if isinstance(output, list):
            return items
        return type(output)(*items) if hasattr(output, "_fields") else tuple(items)


class Family(NamedTuple):
    """Where one family of models keeps its parts: globs below a decoder layer, first match wins.

    Only modules that give (batch, token, dim): OPT's last norm and fc2 do not, so it has no "norm" and no "mlp".
    """

    layer: str
    norm: str
    attention: str
    mlp: str


# One row per naming scheme; a shorthand takes the first row whose layer glob matches the model.
FAMILIES: tuple[Family, ...] = (
    Family("layers.*", "post_feedforward_layernorm", "self_attn", "mlp"),  # Gemma 2 and 3, OLMo 2
    Family("layers.*", "post_attention_layernorm", "self_attn", "mlp"),  # Llama, Mistral, Qwen 2/3, Phi-3
    Family("layers.*", "post_attention_layernorm", "self_attn", "block_sparse_moe"),  # Mixtral, older releases
    Family("h.*", "ln_2", "attn", "mlp"),  # GPT-2, GPT-J-like
    Family("gpt_neox.layers.*", "post_attention_layernorm", "attention", "mlp"),  # GPT-NeoX, Pythia
    Family("layers.*", "post_attention_layernorm", "attention", "mlp"),  # the same, seen from its decoder
    Family("h.*", "post_attention_layernorm", "self_attention", "mlp"),  # Falcon, BLOOM
)
SHORTHANDS: tuple[str, ...] = ("residual", "norm", "attention", "mlp")
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
    return sorted(found, key=lambda site: (order[site.path], site.index))


def _match(model: nn.Module, pattern: str | Site, paths: list[str]) -> list[Site]:
    if isinstance(pattern, Site):
        if pattern.path not in paths:
            raise SiteError(f"no module {pattern.path!r} in {type(model).__name__}; {_near(pattern.path, paths)}")
        return [pattern]
    if pattern in SHORTHANDS:
        return _shorthand(model, pattern, paths)
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
    return [Site(path) for path in matched]


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
            return [Site(f"{prefix}.{part}" if prefix else part) for part in parts]
    raise SiteError(
        f"the shorthand {name!r} is not known for {type(model).__name__}; name the modules by path or glob, "
        f"for example one of {', '.join(map(repr, paths[:6]))}"
    )


def decoder_of(model: nn.Module) -> nn.Module:
    """Return the module that runs the decoder layers: what every language-model head calls exactly once a pass."""
    find = getattr(model, "get_decoder", None)
    decoder = find() if callable(find) else None
    return decoder if isinstance(decoder, nn.Module) else model
