"""Generation: what a call of transformers' `generate` says about the passes that it runs.

The sizes of passes alone do not say where a prompt ends: a chunk of a prompt may be one token, speculative decoding
runs guesses right after the prompt, and without a cache every pass holds everything. The call itself says it.

Under classifier-free guidance (`guidance_scale`) `generate` runs a second sequence, of the negative prompt, in turn
with the first. The first pass of the call belongs to the prompt; passes that continue from another cache belong to the
negative prompt, and without caches every second pass does.

Source: transformers, generation/utils.py and logits_process.py (UnbatchedClassifierFreeGuidanceLogitsProcessor).
Limitations: in a loop of the user's own, prompts are recognised by the sizes of passes, or given by `prompt_tokens`.
"""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from torch import Tensor, nn

from dsas.errors import StateError
from dsas.model.foreign import Arguments, Foreign, Given, Options
from dsas.model.hooks import Hooks
from dsas.model.sequence import Sequences


class Generation:
    """One call of `generate`.

    owner: the model. columns: columns of the prompt, including those in a given cache; None if the first pass reads the
    prompt. mask: Int (row, column), the prompt's padding, or None. guided: whether there is a negative prompt.
    """

    def __init__(self, owner: nn.Module, columns: int | None, mask: Tensor | None, guided: bool) -> None:
        self.owner, self.columns, self.mask, self.guided = owner, columns, mask, guided
        self._main: weakref.ref[Sequences] | None = None
        self._passes, self._cached = 0, False  # number of passes; whether the first was given a cache

    def takes(self, sequences: Sequences, *, cached: bool) -> bool:
        """Note a pass of these sequences, and return whether it belongs to the prompt and not to the negative one."""
        if self._main is None:
            self._main, self._cached = weakref.ref(sequences), cached
        number, self._passes = self._passes, self._passes + 1
        if not self.guided or self._main() is sequences:
            return True
        return not (self._cached or cached) and number % 2 == 0

    def prompt(self, tokens: int, *, cached: bool, main: bool) -> int | None:
        """Return the number of columns of the prompt; None for all that the first pass reads."""
        if self.columns is None and main and not cached:
            self.columns = tokens
        return self.columns if main else None


class Generations:
    """The calls of `generate` that run in this thread."""

    def __init__(self, model: nn.Module, *, both: bool) -> None:
        """Watch a model in which one branch of guidance is steered, or both."""
        self._local = threading.local()
        self._model, self._both = model, both
        self.guided: list[Generation] = []  # calls, in any thread, that run passes of an unsteered branch

    @property
    def current(self) -> Generation | None:
        """The innermost call in this thread."""
        calls: list[Generation] = getattr(self._local, "calls", None) or []
        return calls[-1] if calls else None

    def watch(self, hooks: Hooks, begun: Callable[[], None]) -> None:
        """Watch every `generate` of the model, and call `begun` when it begins."""

        def run(owner: nn.Module, args: Arguments, kwargs: Options) -> AbstractContextManager[None]:
            begun()
            return self._run(owner, args, kwargs)

        for module in self._model.modules():
            if callable(getattr(type(module), "generate", None)):
                hooks.on_run(module, "generate", partial(run, module))

    @contextmanager
    def _run(self, owner: nn.Module, args: Arguments, kwargs: Options) -> Iterator[None]:
        call = _read(owner, args, kwargs)
        outer = self.current
        if outer is not None and outer.owner is owner and outer.columns is not None and call.columns is not None:
            call.columns = min(outer.columns, call.columns)  # a draft model continues from what was generated
        if call.guided and not self._both:
            self._refuse_compiled()
        calls: list[Generation] = self._local.__dict__.setdefault("calls", [])
        calls.append(call)
        if call.guided and not self._both:
            self.guided.append(call)
        try:
            yield
        finally:
            calls.remove(call)
            if call in self.guided:
                self.guided.remove(call)

    def _refuse_compiled(self) -> None:
        for path, module in self._model.named_modules():
            if getattr(module, "_compiled_call_impl", None) is not None or "_orig_mod" in module._modules:
                raise StateError(
                    f"guidance_scale with {path or 'the model'} inside torch.compile: a compiled graph cannot know "
                    "to which branch a pass belongs; apply with branch='both', or run the model uncompiled"
                )


def _read(owner: nn.Module, args: Arguments, kwargs: Options) -> Generation:
    """Read a call of `owner.generate(*args, **kwargs)`."""
    given = {**dict(zip(("inputs", "generation_config"), args, strict=False)), **kwargs}
    asked = given.get("guidance_scale")
    for settings in (given.get("generation_config"), getattr(owner, "generation_config", None)):
        asked = getattr(settings, "guidance_scale", None) if asked is None else asked
    guided = asked is not None and asked != 1
    encodes = getattr(getattr(owner, "config", None), "is_encoder_decoder", False)
    if encodes:
        prompt, mask = given.get("decoder_input_ids"), given.get("decoder_attention_mask")
    else:
        prompt, mask = _first(given, "inputs_embeds", "inputs", "input_ids"), given.get("attention_mask")
    mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
    columns = prompt.shape[1] if isinstance(prompt, Tensor) and prompt.ndim >= 2 else None
    if encodes:
        generate: Foreign = getattr(type(owner), "generate", None)
        plain = getattr(generate, "__module__", "") == "transformers.generation.utils"
        columns = 1 if plain and prompt is None else None  # the start token of decoders
    if columns is not None and mask is not None:
        columns = max(columns, mask.shape[1])  # the mask covers the cached columns, too; ids are only the new ones
    return Generation(owner, columns, mask, guided)


def _first(given: Options, *names: str) -> Given:
    return next((given[name] for name in names if given.get(name) is not None), None)
