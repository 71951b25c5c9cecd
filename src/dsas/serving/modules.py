"""Modules: where a site of a transformers model is in the served one, and how its module adds the edit.

A server's decoder layers return (hidden, residual); their sum is the residual stream at the layer's site. It is read in
float32, and the edit is added to hidden. Fused norms return (normed, residual), and the site of a norm is the first.
Every other module returns one tensor.

The module's class is replaced by a subclass, made once per class, whose forward runs the original one and then the
`SiteStep` that the module carries. So torch.compile traces it like any other forward, and no hook is needed, which
compiled code would not see. A module that vLLM has given a forward of its own, as it does where it serves by
transformers' classes, keeps that one as the original, because vLLM would never call the forward of the class.
"""

from collections.abc import Callable
from functools import cache
from types import MethodType
from typing import Any

from torch import Tensor, nn

from dsas.errors import ActivationError, ModelMismatchError, OptionError, closest
from dsas.model.foreign import Foreign, Given
from dsas.serving.tables import ReadPrompts, SiteTable, SoFar
from dsas.serving.tokens import TokenBuffers

CHILD = "dsas_site"
ELSEWHERE = "PPMissingLayer"


class SiteStep(nn.Module):
    """The edit at one site: the table, and the buffers that say which row each token takes."""

    added: Tensor
    read: Tensor

    def __init__(
        self, path: str, table: SiteTable, tokens: TokenBuffers, *, sums: bool, place: int = 0, prompt: int = 0
    ) -> None:
        """Steer the output of the module at `path`. sums: whether its activation is the sum of its two outputs.

        place: index of this site's sums among all sites that accumulate evidence. prompt: the same among sites that
        decide by the prompt.
        """
        super().__init__()
        self.path, self.sums = path, sums
        self.table, self.tokens = table, tokens
        self.together = len(tokens.slots)
        if table.parts.evidence:  # a view of its own: compiled code copies a whole buffer to write to it
            self.register_buffer("added", tokens.sums[place], persistent=False)
        if table.parts.prompt:
            self.register_buffer("read", tokens.prompt_sums[prompt], persistent=False)

    def forward(self, output: Given) -> Foreign:
        """Return the output with the edits of all tokens added, several edits of one token in order."""
        whole = isinstance(output, Tensor)
        hidden = output if whole else output[0]
        t = hidden.float()
        if self.sums and not whole:
            if len(output) != 2:
                raise ActivationError(f"{self.path} gives {len(output)} values, expected (hidden, residual)")
            t = t + output[1].float()
        count = hidden.shape[-2]
        change = self._edit(0, t, count)
        for number in range(1, self.together):
            change = change + self._edit(number, t + change, count)
        steered = (hidden.float() + change).to(hidden.dtype)
        return steered if whole else (steered, *output[1:])

    def _edit(self, number: int, t: Tensor, count: int) -> Tensor:
        slots, strengths = self.tokens.slots[number, :count], self.tokens.strengths[number, :count]
        so_far = None
        if self.table.parts.evidence:
            tokens = self.tokens
            places = tokens.positions[:count], tokens.held_positions[:count]
            so_far = SoFar(tokens.ancestors[:count], *places, self.added[number, :count])
        places = None
        if self.table.parts.places:  # one by one: compiled code would treat the length of a slice as a constant
            buffer = self.tokens.places
            places = [buffer[number, place, :count] for place in range(buffer.shape[1])]
        prompts = None
        if self.table.parts.prompt:
            known = self.tokens
            rows, counted, counts = known.prompt_rows[:count], known.prompt_counted[:count], known.prompt_counts[:count]
            prompts = ReadPrompts(rows, counted, counts, known.prompt_last, self.read[number])
        change, value = self.table(t, slots, strengths, so_far, places, prompts)
        if self.tokens.reports:
            self.tokens.values[number, :count] += value.reshape(-1)  # some models keep a batch of one
        return change


def served_module(model: nn.Module, path: str) -> nn.Module | None:
    """Return the module at a path, or None when it is on another pipeline stage.

    Raises ModelMismatchError, with the closest paths, when there is none.
    """
    module = model
    for name in path.split("."):
        if type(module).__name__ == ELSEWHERE:
            return None
        child = module._modules.get(name)
        if child is None:
            known = [known for known, _ in model.named_modules()]
            raise ModelMismatchError(f"the served model has no module {path!r}; closest: {closest(path, known)}")
        module = child
    return None if type(module).__name__ == ELSEWHERE else module


def served_path(model: nn.Module, path: str, decoder: str, depth: int) -> str:
    """Return where a site of a transformers model is in the served one, which may keep the decoder elsewhere.

    decoder: its path in the model on which the Steering was fitted. A path that exists unchanged is kept, and so is one
    that is not found at all: `served_module` raises for it.
    """
    try:
        served_module(model, path)
    except ModelMismatchError:
        inside = path.removeprefix(f"{decoder}.") if decoder else path
        owners = [name for name, module in model.named_modules() if _has_layers(module, depth)]
        named = [name for name in owners if "language_model" in name.split(".")] or owners
        if len(named) == 1 and (inside != path or not decoder):
            return f"{named[0]}.{inside}"
    return path


def _has_layers(module: nn.Module, depth: int) -> bool:
    return any(isinstance(child, nn.ModuleList) and len(child) == depth for child in module.children())


def steer_module(
    model: nn.Module, path: str, table: SiteTable, tokens: TokenBuffers, *, place: int = 0, prompt: int = 0
) -> bool:
    """Give the module at a path its table and a forward that adds the edit; False when it is on another stage.

    place, prompt: as `SiteStep` has them. Raises OptionError for what adds up at a module that is in the model more
    than once, whose sums would be those of all its runs together, and for a module whose forward is not its own.
    """
    module = served_module(model, path)
    if module is None:
        return False
    paths = [other for other, one in model.named_modules(remove_duplicate=False) if one is module]
    parts = table.parts
    if (parts.evidence or parts.prompt) and len(paths) > 1:
        kind = "evidence" if parts.evidence else "cast"
        raise OptionError(
            f"the regulator {kind!r} at {path} cannot be served: the served model runs this module more than once "
            f"per pass ({', '.join(paths)}); fit 'probe', which looks at single tokens"
        )
    parent, _, name = path.rpartition(".")
    sums = name.isdigit() and isinstance(served_module(model, parent), nn.ModuleList)
    step = SiteStep(path, table.to(tokens.slots.device), tokens, sums=sums, place=place, prompt=prompt)
    forward = _forward_of(module, path)
    module.add_module(CHILD, step)
    vars(module).pop("forward", None)
    module.__class__ = _steered(type(module), forward)
    return True


def table_of(model: nn.Module, path: str) -> SiteTable | None:
    """Return the table at a path; None when the module is on another pipeline stage or not steered."""
    step = getattr(served_module(model, path), CHILD, None)
    return step.table if isinstance(step, SiteStep) else None


def _forward_of(module: nn.Module, path: str) -> Callable[..., Foreign]:
    """Return what a module runs, as a function of itself: its class's forward, or one that it was given on its own."""
    own = vars(module).get("forward")
    if own is None:
        return type(module).forward
    if isinstance(own, MethodType) and own.__self__ is module:
        return own.__func__
    raise OptionError(
        f"site {path} cannot be served: the forward of its module was replaced by {own!r}, and steering would be left "
        "out; fit at another site of this layer"
    )


@cache
def _steered(kind: type[nn.Module], original: Callable[..., Foreign]) -> type[nn.Module]:

    def forward(self: Any, *args: Given, **kwargs: Given) -> Foreign:
        return getattr(self, CHILD)(original(self, *args, **kwargs))

    return type(f"Steered{kind.__name__}", (kind,), {"forward": forward, "__module__": kind.__module__})
