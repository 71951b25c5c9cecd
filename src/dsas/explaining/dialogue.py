"""Dialogue: a conversation with a model, turn by turn over one cache, steered or not.

    dialogue = Dialogue(model, tokenizer, chat=dsas.Chat(system="Answer briefly."))
    dialogue.say("Hello!", steering, 0.5).text

Answers are what the whole conversation would give if it were run from its beginning: it is rendered as a whole each
time, and the cache is reused up to where the tokens differ. With another Steering or strength the cache begins anew,
because its contents were computed under the old ones; it also does so after an interrupted answer.

Limitations: one conversation at a time; recurrent models, whose cache cannot be cut, read everything again.
"""

from collections.abc import Callable
from contextlib import nullcontext
from itertools import takewhile
from typing import Any, NamedTuple, final

import torch
from transformers import GenerationConfig, PreTrainedModel

from dsas.errors import OptionError
from dsas.explaining.token_stream import TokenStream
from dsas.model.chat import AS_IT_IS, Chat
from dsas.model.chat_template import ChatTemplate
from dsas.model.conversation import ASSISTANT, USER, Conversation, Message
from dsas.model.device_map import device_of
from dsas.model.evaluation_mode import evaluation_mode
from dsas.model.foreign import Foreign, Tokenizer
from dsas.model.only_numbers import OnlyNumbers
from dsas.model.rendering import turns
from dsas.model.token_text import pieces
from dsas.model.token_trace import Trace
from dsas.model.tokenizing import adds_special_tokens, encode, pad_token, special_ids, text_tokenizer
from dsas.model.wrappers import unwrapped
from dsas.steering.steering import Steering
from dsas.views.explained import Turn


class Drawn(NamedTuple):
    """Sampling. temperature: >= 0, 0 is greedy. top_p: in (0, 1]. new_tokens: >= 1. seed: draws the first answer."""

    temperature: float = 0.0
    top_p: float = 1.0
    new_tokens: int = 256
    seed: int = 0


GREEDY = Drawn()


class Answer(NamedTuple):
    """An answer: its text, and the trace of the conversation so far (None when nothing was steered).

    prompt: number of tokens before it. reused: how many of them were taken from the cache. ended: False when it was
    interrupted.
    """

    text: str
    trace: Trace | None
    prompt: int
    reused: int
    ended: bool = True


@final
class Dialogue:
    """A conversation: `messages` so far, and the cache of the model that they were read with."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: Tokenizer, *, chat: Chat = AS_IT_IS, drawn: Drawn = GREEDY
    ) -> None:
        """Begin without a message. Raises OptionError without a chat template, and for numbers outside their ranges."""
        if drawn.temperature < 0 or not 0 < drawn.top_p <= 1 or drawn.new_tokens < 1:
            raise OptionError(f"expected temperature >= 0, 0 < top_p <= 1 and new_tokens >= 1, got {drawn}")
        self._model, self._tokenizer, self._drawn = model, text_tokenizer(tokenizer), drawn
        self._given, self._chat, self._template = tokenizer, chat, ChatTemplate(tokenizer, chat)
        self.messages: list[Message] = []
        self._cache: Foreign = None
        self._read: list[int] = []  # the tokens in the cache
        self._under: tuple[str, float] | None = None

    def say(
        self,
        text: str,
        steering: Steering | None = None,
        strength: float | None = None,
        *,
        show: Callable[[str, float | None], object] | None = None,
        new_tokens: int | None = None,
    ) -> Answer:
        """Say something as the user, and return the model's answer, which becomes a message of the conversation.

        strength: the Steering's own unless given. new_tokens: most tokens of the answer; the dialogue's when not given.
        show: called with the text of every token of the answer as it comes (but special ones), and the mean over sites
        of what was applied to it (None where nothing was). An answer that Ctrl-C interrupts is kept as far as it came.
        Raises StrengthError and ModelMismatchError as `Steering.apply` does.
        """
        strength = steering.default_strength if steering is not None and strength is None else strength or 0.0
        applied = steering.apply(self._model, strength) if steering is not None else None
        self._begin_anew_under(None if steering is None else (steering.digest(), strength))
        asked = Conversation((*self.messages, Message(USER, text)), self._chat)
        whole = self._template.whole(asked.asked, generate=True)
        (rendered,) = encode(self._tokenizer, [whole], special_tokens=adds_special_tokens(self._given, whole))
        reused = self._reuse(rendered.ids)
        said: list[int] = []
        stream = _Heard(self._tokenizer, applied, show, len(rendered.ids), said)
        ended = True
        self.messages.append(asked.messages[-1])
        try:
            with applied or nullcontext(), torch.no_grad(), evaluation_mode(self._model), torch.random.fork_rng():
                torch.manual_seed(self._drawn.seed + len(self.messages))
                self._keep(self._generate(rendered.ids, stream, new_tokens or self._drawn.new_tokens))
        except KeyboardInterrupt:
            self.forget()
            ended = False
        except BaseException:
            self.forget()
            self.messages.pop()
            raise
        answer = self._tokenizer.decode(said, skip_special_tokens=True).strip()
        self.messages.append(Message(ASSISTANT, answer))
        trace = None
        if applied is not None and applied.has_trace:
            trace = self._named(applied.trace(), [*rendered.ids, *said], turns(self._given, asked, generate=True))
        return Answer(answer, trace, len(rendered.ids), reused, ended)

    def forget(self) -> None:
        """Free the cache; the messages stay."""
        self._cache, self._read = None, []

    def restart(self) -> None:
        """Forget what was said."""
        self.messages.clear()
        self.forget()

    def _named(self, trace: Trace, ids: list[int], found: list[Turn]) -> Trace:
        """Return a trace with the text of its tokens, and whose turn each belongs to."""
        size = int(trace.real.sum())
        named = (*found[:-1], found[-1]._replace(stop=size))
        return trace._replace(tokens=(tuple(pieces(self._tokenizer, ids[:size])),), turns=(named,))

    def _begin_anew_under(self, under: tuple[str, float] | None) -> None:
        if under != self._under:
            self.forget()
        self._under = under

    def _reuse(self, ids: list[int]) -> int:
        """Cut the cache to what it shares with these tokens, at least one of which is left to be read."""
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self._read, ids[:-1], strict=False)))
        if self._cache is not None and same < len(self._read):
            if not callable(getattr(self._cache, "crop", None)):
                self.forget()
                return 0
            self._cache.crop(same - len(self._read))
            self._read = self._read[:same]
        return same if self._cache is not None else 0

    def _generate(self, ids: list[int], stream: "_Heard", new_tokens: int) -> Any:
        own: Foreign = unwrapped(self._model)
        sampled = self._drawn.temperature > 0
        drawing = {"do_sample": True, "temperature": self._drawn.temperature, "top_p": self._drawn.top_p, "top_k": 0}
        config = GenerationConfig(
            **(drawing if sampled else {"do_sample": False}),
            max_new_tokens=new_tokens,
            pad_token_id=pad_token(self._tokenizer),
            eos_token_id=getattr(own.generation_config, "eos_token_id", None),
            return_dict_in_generate=True,
        )
        tokens = torch.tensor([ids], device=device_of(self._model))
        kept = {} if self._cache is None else {"past_key_values": self._cache}
        return own.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            generation_config=config,
            logits_processor=[OnlyNumbers()],
            streamer=stream,
            **kept,
        )

    def _keep(self, out: Any) -> None:
        cache: Any = getattr(out, "past_key_values", None)
        length: int = cache.get_seq_length() if hasattr(cache, "get_seq_length") else 0
        sequence: list[int] = out.sequences[0].tolist()
        self._cache = cache if 0 < length <= len(sequence) else None
        self._read = sequence[:length] if self._cache is not None else []


class _Heard:
    """Receives tokens from `generate`: those of the answer are kept, and shown as by `TokenStream`."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        applied: Foreign,
        show: Callable[[str, float | None], object] | None,
        prompt: int,
        said: list[int],
    ) -> None:
        self._said, self._left, self._seen = said, prompt, False
        self._show, self._stream, self._special = show, None, special_ids(tokenizer)
        if show is not None:
            self._stream = TokenStream(tokenizer, applied, self._pass_on)

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, or the token that was drawn."""
        if self._seen:
            self._said += value.flatten().tolist()
        self._seen = True
        if self._stream is not None:
            self._stream.put(value)

    def end(self) -> None:
        """Pass on the rest."""
        if self._stream is not None:
            self._stream.end()

    def _pass_on(self, piece: str, value: float | None) -> None:
        self._left -= 1
        is_answer = self._left < 0 and self._said[-self._left - 1] not in self._special
        if is_answer and self._show is not None:
            self._show(piece, value)
