"""Token passes: the current forward pass of a language model, read from the arguments of its decoder's call.

State from earlier passes belongs to the cache that the decoder takes and returns (`dsas.model.caches`); a pass without
a cache has none and begins anew. Only the running pass is kept by thread, so that two threads never share one.

Padding is read by `dsas.model.padding`, several texts in a row by `dsas.model.packed_rows`.
"""

import inspect
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence, Sized
from typing import get_args

from jaxtyping import Int
from torch import Tensor, nn

from dsas.errors import DsasWarning, OptionError, StateError
from dsas.model.caches import NAMES, cache_in, carrier_of, counted, length_of, virtual_columns, watch_of, watch_on
from dsas.model.continuous_batching import UNKNOWN_REQUESTS, ContinuousBatching
from dsas.model.foreign import Arguments, Foreign, Given, Options
from dsas.model.forward_pass import ForwardPass
from dsas.model.generation import Generations
from dsas.model.hooks import Hooks
from dsas.model.layers import decoder_of, encoder_of
from dsas.model.packed_rows import Packing, spans_of
from dsas.model.padding import real_columns
from dsas.model.pipeline_modules import Branch
from dsas.model.sequence import PackedSequences, Sequences
from dsas.model.sites import Site
from dsas.model.told_prompts import prompts_told


class _Here:
    """What is known of the pass that is running in this thread."""

    def __init__(self) -> None:
        self.step: ForwardPass | None = None
        self.shape: tuple[int, ...] = ()  # rows and columns given to the decoder
        self.steered = True
        self.carrier: weakref.ref[Foreign] | None = None  # sequences of the cache given to the decoder
        self.encoded: ForwardPass | None = None
        self.ids: Tensor | None = None  # tokens given to the model, if it passes embeddings to its decoder
        self.problem = ""  # why the pass cannot be read


class TokenPasses:
    """Reads every pass of a language model: `calls` are the modules to hook, with the hooks."""

    always = False
    unseen = "where tokens stand"  # by a compiled graph

    def __init__(
        self,
        model: nn.Module,
        prompt_tokens: Int[Tensor, " row"] | None = None,
        branch: Branch = "conditional",
        by: object = None,
    ) -> None:
        """Read the decoder. prompt_tokens: as in `Sequences`. by: identifies the Steering. Raises OptionError."""
        if branch not in get_args(Branch):
            raise OptionError(f"branch must be one of {get_args(Branch)}, got {branch!r}")
        self.active = False  # whether the Steering is applied, so that no other reader may take over its sequences
        self.exact = True  # whether anything needs the places of tokens
        self._prompt_tokens, self._branch, self._by = prompt_tokens, branch, by
        self._model, self.module = model, decoder_of(model)
        self._generations, self._batching = Generations(model, both=branch == "both"), ContinuousBatching(model)
        self._local, self._told = threading.local(), False
        self._names = tuple(inspect.signature(self.module.forward).parameters)
        self.calls: list[tuple[nn.Module, Callable[[Arguments, Options], object]]] = [(self.module, self.read)]
        config = getattr(model, "config", None)
        if getattr(config, "get_text_config", lambda: config)() is not config:  # a model of texts and pictures
            self.calls.append((model, self._remember))
        encoder = encoder_of(model, self.module)
        if encoder is not None:
            self.calls.append((encoder, self._encode))
        paths = {id(module): path for path, module in model.named_modules()}
        self._inside = paths.get(id(self.module), "")
        self._encoder = paths.get(id(encoder)) if encoder is not None else None
        find: Foreign = getattr(model, "get_output_embeddings", None)
        self._head = paths.get(id(find())) if callable(find) else None

    @property
    def _here(self) -> _Here:
        try:
            here: _Here = self._local.here
        except AttributeError:
            here = self._local.here = _Here()
        return here

    @property
    def unsteered(self) -> Sized:
        """Not empty while passes of an unsteered branch may run in any thread."""
        return self._generations.guided

    def running(self) -> ForwardPass | None:
        """Return the pass that is running in this thread, or None if none can be read."""
        return self._here.step

    def acts(self) -> bool:
        """Whether the pass that is running in this thread belongs to the steered branch."""
        return not self._generations.guided or self._here.steered

    def watch_runs(self, hooks: Hooks, restarted: Callable[[], None]) -> None:
        """Watch every call of `generate`, and every manager of requests."""
        self._generations.watch(hooks, restarted)
        self._batching.watch(hooks)

    def records(self, site: Site) -> bool:
        """Whether a site's tokens are those given to the decoder, and not another part's."""
        inside = not self._inside or f"{site.path}.".startswith(f"{self._inside}.")
        return inside or site.path == self._head

    def read(self, args: Arguments, kwargs: Options) -> ForwardPass | None:
        """Read the pass from the arguments of a decoder call, and keep it for this thread.

        None where nothing can be recorded: a pass of the other branch, or of packed rows that cannot be read.
        Raises OptionError when it was given no tokens.
        """
        here = self._here
        here.step, here.encoded, here.carrier, here.problem, here.steered = None, None, None, "", True
        given = {**dict(zip(self._names, args, strict=False)), **kwargs} if args else kwargs
        ids = given.get("input_ids")
        tokens = ids if ids is not None else given.get("inputs_embeds")
        if not isinstance(tokens, Tensor) and not self.exact:
            return None
        if not isinstance(tokens, Tensor):
            raise OptionError(
                f"the model ran without input_ids or inputs_embeds, one of which steering needs (got {sorted(given)})"
            )
        here.shape = rows, columns = tuple(tokens.shape[:2])
        ids, here.ids = (here.ids if ids is None else ids), None
        ids = ids if ids is not None and ids.shape == (rows, columns) else None
        if given.get("cache") is not None and "cu_seq_lens_q" in given:
            here.step = self._requests(given["cache"], ids, columns)
            return here.step
        cache = next((given[name] for name in NAMES if given.get(name) is not None), None)
        sequences, start = self._sequences(cache, rows, columns, given)
        generation = self._generations.current
        prompt, mask = None, None
        if generation is not None:
            main = generation.takes(sequences, cached=cache is not None)
            here.steered = self._branch == "both" or main == (self._branch == "conditional")
            prompt = generation.prompt(columns, cached=cache is not None, main=main)
            mask = generation.mask if main else None
        sequences.begin(start, columns, ids, generation=generation, prompt=prompt)
        if self.exact:
            sequences.real = real_columns(given.get("attention_mask"), mask, sequences.real, rows, start, columns)
            if generation is None and columns > 1:
                packed = self._packed(given, sequences, ids, start)
                if packed is not None or here.problem:
                    here.step = packed
                    return packed
        here.step = ForwardPass(
            rows, columns, past=start, mask=sequences.real, token_ids=ids, device=tokens.device, history=sequences
        )
        return here.step if here.steered else None

    def at(self, site: Site, t: Tensor, given: Given) -> ForwardPass:
        """Return this thread's pass at a site whose activation is `t`.

        If the decoder was not called, all tokens are real and there is no past. Raises StateError if the pass cannot be
        read.
        """
        here, step, shape = self._here, None, None
        if self._encoder is not None and f"{site.path}.".startswith(f"{self._encoder}."):
            step, shape = here.encoded, None if here.encoded is None else (here.encoded.batch, here.encoded.tokens)
        elif self.records(site):
            if here.problem:
                raise StateError(f"site {site}: {here.problem}")
            step, shape = here.step, here.shape
        if step is None or shape != t.shape[:2]:
            return ForwardPass(*t.shape[:2], device=t.device)
        return step.on(t.device)

    def rows_at(self, site: Site, given: Given) -> int:
        """Return how many rows stand one after another in a site's activation; 1 where it has an axis of rows."""
        return site.rows(given, self._here.shape) if site.layout == "flat" and self.records(site) else 1

    def end(self, module: nn.Module, output: Given) -> bool:
        """Note that a call has ended, and keep its sequences on the returned cache.

        Returns whether it was the decoder's call, and not only its encoder's.
        """
        here = self._here
        if module is not self.module:
            return False
        if here.step is None:
            return True
        for one in here.step.history.each:
            one.end()
        came, before = cache_in(output), here.carrier() if here.carrier is not None else None
        watch = watch_of(before) if before is not None else None
        if watch is not None:
            others = watch.forget()
            if others:
                self._tell(others)
        if came is not None and isinstance(here.step.history, Sequences):
            carrier = carrier_of(came)
            if carrier is not None and carrier is not before:
                watch_on(carrier).keep(self, self._by, here.step.history)
        return True

    def _sequences(self, cache: Given, rows: int, columns: int, given: Options) -> tuple[Sequences, int]:
        """Return the sequences of a cache and its number of columns; new sequences for an unknown cache."""
        carrier = carrier_of(cache)
        if carrier is None:
            return Sequences(rows, prompt_tokens=prompts_told(self._prompt_tokens)), 0
        self._here.carrier = weakref.ref(carrier)
        watch = watch_on(carrier)
        known, length = watch.of(self, self._by), length_of(cache)
        if length is None:  # recurrent states do not count columns
            length = known.length if known is not None else counted(given, columns)
        if length is None:
            self._tell("an unknown number of")
            length = 0
        if known is not None and known.batch == rows and 0 < length <= known.length:
            known.prompt_tokens = self._prompt_tokens
            return known, length
        virtual = virtual_columns(self._model, length)
        if length > virtual:
            self._tell(length - virtual)
        new = Sequences(rows, unseen=length, virtual=virtual, prompt_tokens=self._prompt_tokens)
        watch.keep(self, self._by, new)
        return new, length

    def _tell(self, count: object) -> None:
        """Warn once that a cache was not filled under this Steering."""
        if not self._told:
            self._told = True
            warnings.warn(
                f"the cache already holds {count} tokens for each row that were not filled under this Steering alone, "
                "at this strength: later tokens are steered, but these stay as they are, and regulators that read "
                "whole prompts have not seen them; fill the cache while the same Steering is applied",
                DsasWarning,
                stacklevel=7,
            )

    def _packed(self, given: Options, sequences: Sequences, ids: Tensor | None, start: int) -> ForwardPass | None:
        """Return the pass of rows that hold several texts, or None if they do not or it cannot be read."""
        here, (rows, columns) = self._here, self._here.shape
        real = None if sequences.real is None else sequences.real[:, start:]
        try:
            spans = spans_of(given, rows, columns, real)
        except StateError as error:
            here.problem = str(error)
            return None
        if spans is None:
            return None
        if start > 0:
            here.problem = "packed rows continue from a cache: which text each continues is unknown"
            return None
        each = [Sequences(1) for _ in spans]
        return self._pass_of(Packing(spans, columns), each, ids, prompts=[None] * len(each))

    def _requests(self, cache: Given, ids: Tensor | None, columns: int) -> ForwardPass | None:
        """Return the pass of transformers' continuous batching, whose row holds a part of each request."""
        parts = self._batching.parts(cache)
        if parts is None:
            self._here.problem = UNKNOWN_REQUESTS
            return None
        spans, each, prompts = zip(*((part.span, part.sequences, part.prompt) for part in parts), strict=True)
        numbers = [one.number for one in each]
        packing = Packing(spans, columns, [part.start for part in parts], numbers)
        return self._pass_of(packing, each, ids, generation=cache, prompts=prompts)

    def _pass_of(
        self,
        packing: Packing,
        each: Sequence[Sequences],
        ids: Tensor | None,
        *,
        generation: object = None,
        prompts: Sequence[int | None],
    ) -> ForwardPass:
        """Begin a pass of packed texts."""
        texts = None if ids is None else packing.take(ids)
        for number, (one, (_, _, length), prompt) in enumerate(zip(each, packing.spans, prompts, strict=True)):
            own = None if texts is None else texts[number : number + 1, :length]
            one.begin(packing.starts[number], length, own, generation=generation, prompt=prompt)
            one.current.rows = slice(number, number + 1)
        history = PackedSequences(each, self._prompt_tokens)
        device = "cpu" if texts is None else texts.device
        known = {"mask": packing.real, "token_ids": texts, "history": history}
        made = ForwardPass(len(each), packing.longest, device=device, **known)
        made.packing = packing
        return made

    def _remember(self, args: Arguments, kwargs: Options) -> None:
        """Keep the tokens of a model that turns them, and pictures, into embeddings for its decoder."""
        self._here.ids = args[0] if args else kwargs.get("input_ids")

    def _encode(self, args: Arguments, kwargs: Options) -> None:
        """Read a call of the encoder, which has all its tokens at once."""
        tokens = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        mask = kwargs.get("attention_mask")
        if isinstance(tokens, Tensor) and tokens.ndim >= 2:
            kept = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
            self._here.encoded = ForwardPass(*tokens.shape[:2], mask=kept, device=tokens.device)
