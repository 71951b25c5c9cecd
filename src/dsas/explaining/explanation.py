"""Explain: which tokens of a text were steered, at which sites, and by how much.

A text runs through the steered model once; a prompt is continued twice, steered and unsteered, and what is reported is
what was applied while the steered continuation was made. On request, the next-token distributions p (unsteered) and q
(steered) after every token are compared on the same tokens:

    KL(p || q) = sum over tokens v of p(v) (log p(v) - log q(v))        in nats, >= 0

Continuations are greedy, so their first difference is due to steering and not to chance.

Limitations: no sampling, no beams, one row at a time. The distributions after a continuation come from a second pass
over the finished text, which a regulator that treats prompt and continuation differently would see as one prompt.
"""

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dsas.errors import OptionError, StrengthError
from dsas.files.atomic import replace_files
from dsas.model.conversation import Completion, Content, Conversation, has_answer
from dsas.model.device_map import device_of
from dsas.model.encoded_media import MASK, encodes_media
from dsas.model.evaluation_mode import evaluation_mode
from dsas.model.examples import Given, check_texts
from dsas.model.foreign import Foreign, Model, Tokenizer
from dsas.model.kl_divergence import kl_divergence
from dsas.model.layers import decoder_of
from dsas.model.only_numbers import OnlyNumbers, check_numbers
from dsas.model.rendering import rendered, turns
from dsas.model.running import placed_on, run_on
from dsas.model.subject import subject_of
from dsas.model.token_batches import TokenRow, filled, greedy
from dsas.model.token_text import pieces
from dsas.model.token_trace import Trace, stacked
from dsas.model.tokenizing import pad_token, text_tokenizer, tokenize
from dsas.steering.steering import Steering
from dsas.views.explained import Choice, Comparison, NextTokens, Turn

_TOKENS_AT_ONCE = 256
# Decoders that read tokens again while they generate, or read tokens of their own after them.
_READS_AGAIN = ("CpmAntModel", "XLNetModel")


def explain(
    model: Model,
    tokenizer: Tokenizer,
    steering: Steering,
    text: Given | Sequence[Given] | None = None,
    *,
    prompt: Given | Sequence[Given] | None = None,
    generate: int = 64,
    strength: float | None = None,
    next_tokens: int = 0,
    skip_sinks: bool = False,
    special_tokens: bool = True,
) -> Trace:
    """Return the trace of one or several texts or conversations, each a row; the model is not changed.

    text: what to read; or prompt: what to continue by `generate` >= 1 tokens, steered and unsteered. The trace of a
    conversation has its turns, and the tokens that count as the answer; as a prompt, it is read up to its answer.
    strength: one number other than 0 for all rows, as in `Steering.apply`; when not given, the calibrated strength, or
    1. next_tokens: how many of the likeliest next tokens to keep, before and after steering; 0 does not compare next
    tokens at all. skip_sinks: as in `Steering.apply`. special_tokens: whether the tokenizer adds its own, as for raw
    text; chat templates bring theirs.
    Raises OptionError unless exactly one of text and prompt is given, TextsError, StrengthError, ModelMismatchError,
    ActivationError where activations overflow, as at too large a strength.
    """
    if (text is None) == (prompt is None):
        raise OptionError("expected either text or prompt, got " + ("neither" if text is None else "both"))
    if generate < 1 or next_tokens < 0:
        raise OptionError(f"expected generate >= 1 and next_tokens >= 0, got {generate} and {next_tokens}")
    strength = steering.default_strength if strength is None else strength
    if strength == 0:
        raise StrengthError("expected a strength that is not 0: at 0 no token is steered")
    if not any(rule.weight > 0 for rule in steering.rules):
        raise OptionError("expected a Steering with a site that is steered, got one whose weights are all 0")
    subject = subject_of(model, tokenizer)
    decoder = type(decoder_of(subject.module)).__name__
    if prompt is not None and decoder in _READS_AGAIN:
        raise OptionError(
            f"{decoder} reads other tokens than those that it generates, so what was applied to each is unknown: "
            "generate inside steering.apply(model), and explain the finished text by text="
        )
    subject.examples().pad_token()  # refuses a subject without tokens
    contents = check_texts("text", _listed(text if prompt is None else prompt), minimum=1)
    new_tokens = 0 if prompt is None else generate
    rows = _rows(tokenizer, contents, generate=new_tokens > 0, special_tokens=special_tokens)
    with torch.no_grad(), evaluation_mode(model):
        run = _Run(subject.module, tokenizer, steering, strength, skip_sinks)
        traces = [run.trace(row, new_tokens, next_tokens) for row in rows]
    return stacked(traces)


def write_explanation(path: str | Path, trace: Trace, *, title: str = "What was steered") -> None:
    """Write the page of a trace and its folder; an old page is replaced once the new one is on disk. Raises OSError."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_files({path: trace.to_html(title).encode("utf-8", errors="replace")})


class _Row(NamedTuple):
    """What is read: tokens and, for a conversation, whose turn they are in and which count as the answer."""

    ids: list[int]
    turns: list[Turn]
    counted: list[bool]

    def placed(self, trace: Trace, ahead: int, tokens: int) -> Trace:
        """Return the trace of `tokens` tokens with the turns; `ahead`: tokens before the first."""
        if not self.turns:
            return trace
        starts = [0, *(turn.start + ahead for turn in self.turns[1:]), tokens]
        names = [turn.role for turn in self.turns]
        found = tuple(Turn(name, *ends) for name, ends in zip(names, pairwise(starts), strict=True))
        counted = [*[False] * ahead, *self.counted, *[True] * (tokens - ahead - len(self.ids))]
        return trace._replace(turns=(found,), counted=(tuple(counted),))


def _listed(given: Any) -> Any:
    """Return one example as a list, and several as they are."""
    one = isinstance(given, str | Mapping | Conversation | Completion)
    first: Any = given[0] if isinstance(given, list | tuple) and given else None
    return [given] if one or (isinstance(first, Mapping) and "role" in first) else given


def _rows(tokenizer: Tokenizer, contents: Sequence[Content], *, generate: bool, special_tokens: bool) -> list[_Row]:
    texts = [one for one in contents if isinstance(one, str)]
    plain = iter(tokenize(tokenizer, texts, special_tokens=special_tokens) if texts else [])
    found = []
    for one in contents:
        if isinstance(one, str):
            found.append(_Row(next(plain), [], []))
            continue
        (row,) = rendered(tokenizer, [one], "last-instruction" if generate else "all")
        answer = [] if generate or not has_answer(one) else rendered(tokenizer, [one])[0].counted
        counted = [*answer, *[False] * (len(row.ids) - len(answer))]
        found.append(_Row(row.ids, turns(tokenizer, one, generate=generate), counted))
    return found


class _Seen:
    """A processor of logits that changes nothing and keeps the tokens that the latest came after."""

    ids: list[int]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.ids = input_ids[0].tolist()
        return scores


class _Run:
    """The model, unsteered and steered, for one row of tokens at a time."""

    def __init__(
        self, model: Model, tokenizer: Tokenizer, steering: Steering, strength: float, skip_sinks: bool
    ) -> None:
        self._model, self._tokenizer, self._steering = model, text_tokenizer(tokenizer), steering
        self._strength, self._skip_sinks = strength, skip_sinks
        self._media: dict[str, Tensor] = {}
        self._apart = encodes_media(model)  # its encoder takes a sound or a picture
        self._encodes = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False)) and not self._apart

    def trace(self, read_row: _Row, new_tokens: int, next_tokens: int) -> Trace:
        row = read_row.ids
        self._media = row.media if isinstance(row, TokenRow) else {}
        ids = torch.tensor([row], device=device_of(self._model))
        applied = self._steering.apply(self._model, self._strength, record="doses", skip_sinks=self._skip_sinks)
        with applied:
            if new_tokens:
                row = [*row, *self._continue(ids, new_tokens)]
            else:
                self._read(ids, ids)
        trace = applied.trace()
        read = trace.token_ids
        seen = row if read is None or bool((read < 0).any()) else read[0].tolist()
        ahead = trace.real.shape[1] - len(seen)  # tokens of the model's own, before the text
        begins = self._begins(read_row.ids, seen)
        shown = [
            trace.media.get(token, piece) for token, piece in zip(seen, pieces(self._tokenizer, seen), strict=True)
        ]
        trace = trace._replace(tokens=((*["#"] * ahead, *shown),))
        prompt = (
            1 if self._encodes else begins + len(read_row.ids)
        )  # a decoder beside an encoder has its own first token
        if not self._encodes:
            trace = read_row.placed(trace, ahead + begins, len(trace.tokens[0]))
        if new_tokens:
            trace = trace._replace(comparisons=(self._compare(ids, seen[prompt:], new_tokens, prompt + ahead),))
        if next_tokens:
            read = torch.tensor([seen], device=ids.device)
            trace = trace._replace(next_tokens=(self._next_tokens(ids, read, next_tokens),))
        return trace

    def _begins(self, row: list[int], seen: list[int]) -> int:
        """Return the token at which the row begins: after the start token of a decoder beside an encoder of media."""
        return int(self._apart and seen[: len(row)] != row)

    def _continue(self, ids: Tensor, new_tokens: int) -> list[int]:
        """Return the generated tokens that the model has read: the last one is generated and never read."""
        seen, row = _Seen(), ids[0].tolist()
        media = placed_on(self._model, {name: value for name, value in self._media.items() if name != MASK})
        config = greedy(new_tokens + 1, pad_token(self._tokenizer))
        given: dict[str, Any] = {"inputs": ids, "attention_mask": torch.ones_like(ids)}
        if self._apart:  # what such a model suppresses, for instance, is in its own configuration
            config = copy.deepcopy(self._model.generation_config)
            config.update(do_sample=False, num_beams=1, max_new_tokens=new_tokens + 1, max_length=None)
            given = {"decoder_input_ids": ids}
            if MASK in self._media:
                given["attention_mask"] = self._media[MASK].to(ids.device)
        processors = [OnlyNumbers(), seen]
        self._model.generate(**given, generation_config=config, logits_processor=processors, **media)
        return seen.ids[1 if self._encodes else self._begins(row, seen.ids) + len(row) :]

    def _read(self, ids: Tensor, seen: Tensor) -> Foreign:
        """Run the model on the tokens that its decoder has seen; an encoder reads `ids`."""
        given = {"input_ids": seen, "attention_mask": torch.ones_like(seen)}
        if self._encodes:
            names = {f"decoder_{name}": value for name, value in given.items()}
            given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **names}
        given |= {name: filled(name, value, seen.shape[1]) for name, value in self._media.items()}
        output = run_on(self._model, given)
        check_numbers(output.logits)
        return output

    def _compare(self, ids: Tensor, steered: list[int], new_tokens: int, prompt: int) -> Comparison:
        """Continue without steering, and find where both continuations part; the last, unsteered token is left off."""
        unsteered = self._continue(ids, new_tokens)
        pairs = zip_longest(steered, unsteered)
        first = next((place for place, (one, other) in enumerate(pairs) if one != other), None)
        row = [*ids[0].tolist(), *unsteered]
        texts = pieces(self._tokenizer, row)[ids.shape[1] :]
        return Comparison(prompt, tuple(texts), first)

    def _next_tokens(self, ids: Tensor, seen: Tensor, top: int) -> NextTokens:
        before = self._read(ids, seen).logits[0]
        with self._steering.apply(self._model, self._strength, record=False, skip_sinks=self._skip_sinks):
            after = self._read(ids, seen).logits[0]
        nats: list[float] = []
        choices: tuple[list[tuple[Choice, ...]], ...] = ([], [])
        for one, other in zip(before.split(_TOKENS_AT_ONCE), after.split(_TOKENS_AT_ONCE), strict=True):
            nats += kl_divergence(one, other).clamp(min=0).tolist()
            for kept, logits in zip(choices, (one, other), strict=True):
                kept.extend(self._likeliest(logits.float().log_softmax(-1), top))
        return NextTokens(tuple(nats), *map(tuple, choices))

    def _likeliest(self, logs: Tensor, top: int) -> list[tuple[Choice, ...]]:
        best = logs.topk(min(top, logs.shape[-1]), dim=-1)
        return [
            tuple(Choice(self._tokenizer.decode([token]), p) for token, p in zip(tokens, probabilities, strict=True))
            for tokens, probabilities in zip(best.indices.tolist(), best.values.exp().tolist(), strict=True)
        ]
