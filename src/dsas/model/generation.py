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

import torch
from torch import Tensor, nn

from dsas.errors import StateError
from dsas.model.caches import prompt_columns
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
        self.ahead = 0  # tokens that the model itself puts before the prompt, with embeddings of their own
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
        if self.ahead and self._passes == 1 and self.columns is not None and tokens == self.columns + self.ahead:
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
        prepares: Foreign = getattr(owner, "prepare_inputs_for_generation", None)
        call.ahead = prompt_columns(getattr(prepares, "__self__", owner))  # PEFT's wrapper puts its own method there
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
    asked = _setting(owner, given, "guidance_scale")
    guided = asked is not None and asked != 1
    encodes = getattr(getattr(owner, "config", None), "is_encoder_decoder", False)
    if encodes:
        prompt, mask = _decoder_prompt(owner, given), given.get("decoder_attention_mask")
    else:
        prompt, mask = _first(given, "inputs_embeds", "inputs", "input_ids"), given.get("attention_mask")
    mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
    columns = prompt.shape[1] if isinstance(prompt, Tensor) and prompt.ndim >= 2 else None
    generate: Foreign = getattr(type(owner), "generate", None)
    if encodes and getattr(generate, "__module__", "") == "transformers.generation.utils":
        if columns is None:
            columns = 1  # the start token of decoders
        elif _begins_otherwise(owner, given, prompt):
            columns += 1
            mask = None if mask is None else torch.cat([torch.ones_like(mask[:, :1]), mask], 1)
    if columns is not None and mask is not None:
        columns = max(columns, mask.shape[1])  # the mask covers the cached columns, too; ids are only the new ones
    return Generation(owner, columns, mask, guided)


def _setting(owner: nn.Module, given: Options, name: str) -> Foreign:
    """Return an option of `generate`: as given to it, or by the configuration given to it, or by the model's own."""
    found = given.get(name)
    for settings in (given.get("generation_config"), getattr(owner, "generation_config", None)):
        found = getattr(settings, name, None) if found is None else found
    return found


def _decoder_prompt(owner: nn.Module, given: Options) -> Given:
    """Return the decoder's prompt: also `input_ids` where the encoder reads a picture or a sound."""
    beside = getattr(owner, "main_input_name", "input_ids") != "input_ids"
    return _first(given, "decoder_input_ids", *(["input_ids"] if beside else []))


def _begins_otherwise(owner: nn.Module, given: Options, prompt: Foreign) -> bool:
    """Whether `generate` puts the decoder's start token before a prompt, because it begins with another one."""
    config: Foreign = owner.config
    kinds = f"{type(owner).__name__} {getattr(getattr(config, 'encoder', None), 'model_type', '')}"
    if config.model_type == "whisper" or "donut" in kinds.lower():
        return False
    found = (_setting(owner, given, name) for name in ("decoder_start_token_id", "bos_token_id"))
    start = next((one for one in found if one is not None), None)
    return start is not None and bool((prompt[:, 0] != torch.as_tensor(start, device=prompt.device)).all())


def _first(given: Options, *names: str) -> Given:
    return next((given[name] for name in names if given.get(name) is not None), None)
