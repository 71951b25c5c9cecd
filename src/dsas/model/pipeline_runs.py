"""Pipeline runs: what is known of the current call of a pipeline, separately per thread.

    run        The call of the pipeline's own `__call__` from which a part is called, found on the stack: so neither a
               handwritten loop, nor another pipeline of the same parts, nor a failed run is taken for it.
    images     How many pictures the run prepared, as `prepare_latents` of the pipeline returned them.
    encoding   Whether a text encoder reads the prompts or the negative ones, from the arguments of `encode_prompt`: the
               prompts come first, unless their embeddings were given. If it takes no negative prompt, its second call
               in a run is for the negative ones.
    named      The name that a pipeline gives a pass before it runs the denoiser (`cache_context` of diffusers), or that
               of the guider of a modular pipeline, which prepares one pass after the other.

Limitations: text encoders may not be called outside `encode_prompt`, nor more than once per prompt.
"""

import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from dsas.model.foreign import Arguments, Foreign, Given, Options, Pipeline
from dsas.model.hooks import Hooks


class Place(NamedTuple):
    """A call of a pipeline's `__call__`: its frame, and how far it has run."""

    frame: int
    at: int

    def goes_on(self, before: "Place | None") -> bool:
        """Whether this is later in the same call; another call in the same memory starts at the beginning."""
        return before is not None and before.frame == self.frame and before.at < self.at


class Encoding:
    """One call of `encode_prompt`: which branch each text encoder's call in it belongs to, by the rows read so far."""

    def __init__(self, branches: tuple[str, ...], prompts: int) -> None:
        """branches: in the order in which they are read. prompts: rows per branch."""
        self._branches, self._prompts, self._read = branches, prompts, dict[str, int]()

    def branch(self, encoder: str, rows: int) -> str | None:
        """Return the branch of the next rows of a text encoder, this many, or None if unknown."""
        before = self._read.get(encoder, 0)
        self._read[encoder] = before + rows
        number, left = divmod(before, self._prompts)
        if number >= len(self._branches) or left + rows > self._prompts:
            return None
        return self._branches[number]


class PipelineRun(threading.local):
    """What is known of this thread's run of a pipeline."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._prepared: tuple[Place, int] | None = None
        self._encoded: Place | None = None
        self._prepared_inputs: list[str] = []
        self.encoding: Encoding | None = None
        self.named = ""

    def watch(self, hooks: Hooks, denoisers: list[nn.Module], begun: Callable[[], None]) -> None:
        """Watch runs; `begun` is called when one has prepared its latents."""

        def prepared(latents: Given) -> None:
            self.prepared(latents)
            begun()

        if hasattr(self._pipeline, "prepare_latents"):
            hooks.on_result(self._pipeline, "prepare_latents", prepared)
        if hasattr(self._pipeline, "encode_prompt"):
            hooks.on_run(self._pipeline, "encode_prompt", self._encode)
        for denoiser in denoisers:
            if hasattr(denoiser, "cache_context"):
                hooks.on_run(denoiser, "cache_context", self._name)
        guider = self._pipeline.components.get("guider")
        if guider is not None:
            for name in ("prepare_inputs", "prepare_inputs_from_block_state"):
                hooks.on_result(guider, name, self._inputs)
            hooks.on_result(guider, "prepare_models", lambda _: self._next())

    def now(self) -> Place | None:
        """Return the call of the pipeline from which this is called, or None outside a call."""
        frame = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            if code.co_name == "__call__" and code.co_argcount:
                own = frame.f_locals.get(code.co_varnames[0])
                if own is self._pipeline:
                    return Place(id(frame), frame.f_lasti)
            frame = frame.f_back
        return None

    def prepared(self, latents: Given) -> None:
        """Note the latents that a run has prepared."""
        first = latents[0] if isinstance(latents, (tuple, list)) else latents
        place = self.now()
        self._prepared = None if place is None else (place, len(first))
        self.named = ""

    def images(self, place: Place | None) -> int | None:
        """Return the number of pictures that a run has prepared, or None if that was not seen."""
        if place is None or self._prepared is None or not place.goes_on(self._prepared[0]):
            return None
        return self._prepared[1]

    def take_named(self) -> str:
        """Return the name under which the running pass was announced, or an empty one, and forget it."""
        named, self.named = self.named, ""
        return named

    @contextmanager
    def _name(self, args: Arguments, kwargs: Options) -> Iterator[None]:
        self.named = str(args[0] if args else kwargs.get("name", ""))
        yield

    def _inputs(self, batches: Foreign) -> None:
        key = "__guidance_identifier__"
        self._prepared_inputs = [str(getattr(batch, key, "")) for batch in batches]

    def _next(self) -> None:
        self.named = self._prepared_inputs.pop(0) if self._prepared_inputs else ""

    @contextmanager
    def _encode(self, args: Arguments, kwargs: Options) -> Iterator[None]:
        place, before = self.now(), self.encoding
        again = place is not None and place.goes_on(self._encoded)
        self._encoded = place
        self.encoding = _encoding(self._pipeline.encode_prompt, args, kwargs, again)
        try:
            yield
        finally:
            self.encoding = before


def _encoding(method: Callable[..., Foreign], args: Arguments, kwargs: Options, again: bool) -> Encoding | None:
    """Return what a call of `encode_prompt` reads; again: whether the run has called it before."""
    try:
        given: dict[str, Any] = inspect.signature(method).bind_partial(*args, **kwargs).arguments
        names = inspect.signature(method).parameters
    except TypeError:
        return None
    has_negative = "negative_prompt" in names
    branches = ["conditional"] if given.get("prompt_embeds") is None else []
    if has_negative:
        branches += ["unconditional"]
    elif again:
        branches = ["unconditional"]
    prompt = given.get("prompt")
    texts = prompt if prompt is not None else given.get("prompt_embeds")
    count = len(texts) if isinstance(texts, (list, tuple, Tensor)) else 1
    return Encoding(tuple(branches), max(1, count))
