"""Chat tab: a conversation in the playground, streamed, with each answer coloured by where it was steered.

Every visitor has a conversation of their own, and the last few are kept; the model answers one visitor at a time.
Limitations: earlier messages cannot be edited.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from html import escape
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any
from uuid import uuid4

from dsas.errors import DsasError
from dsas.explaining.dialogue import Answer, Dialogue
from dsas.model.foreign import Foreign, Model, Tokenizer
from dsas.steering.steering import Steering
from dsas.views.explanation import framed

KEPT = 8  # conversations


class Visitor:
    """One conversation, what is shown of it, and whether its answer is to stop."""

    def __init__(self, model: Model, tokenizer: Tokenizer) -> None:
        self.dialogue = Dialogue(model, tokenizer)
        self.shown: list[dict[str, Any]] = []
        self.stop = Event()

    def ask(
        self, said: str, steering: Steering | None, strength: float, new_tokens: int
    ) -> Iterator[str | Answer | DsasError]:
        """Yield the pieces of an answer as they come, and then the answer, or the error that it ended in."""
        heard: SimpleQueue[str | Answer | BaseException] = SimpleQueue()
        self.stop.clear()

        def hear(piece: str, _value: float | None) -> None:
            if self.stop.is_set():
                raise KeyboardInterrupt
            heard.put(piece)

        def answer() -> None:
            try:
                heard.put(self.dialogue.say(said, steering, strength, show=hear, new_tokens=new_tokens))
            except BaseException as error:  # whatever it is, whoever waits must be told
                heard.put(error)

        thread = Thread(target=answer, daemon=True)
        thread.start()
        try:
            while isinstance(found := heard.get(), str):
                yield found
        finally:  # nobody may be listening any more
            self.stop.set()
            thread.join()
        if isinstance(found, BaseException) and not isinstance(found, DsasError):
            raise found
        yield found


class Visitors:
    """The conversations of the last visitors."""

    def __init__(self, model: Model, tokenizer: Tokenizer, steerings: Mapping[str, Steering], gradio: Foreign) -> None:
        self._new: Callable[[], Visitor] = lambda: Visitor(model, tokenizer)
        self._steerings, self._gradio = steerings, gradio
        self._kept: OrderedDict[str, Visitor] = OrderedDict()

    def of(self, session: str) -> Visitor:
        """Return a visitor's conversation, a new one where there is none."""
        visitor = self._kept.pop(session, None) or self._new()
        self._kept[session] = visitor
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return visitor

    def talk(self, said: str, session: str, name: str, strength: float, tokens: int) -> Iterator[tuple[Any, ...]]:
        """Yield what the box, the chat and the page below show while the model answers."""
        if not said.strip():
            raise self._gradio.Error("Please type a message.")
        visitor = self.of(session)
        steering = self._steerings[name] if strength else None
        visitor.shown += [{"role": "user", "content": said}, {"role": "assistant", "content": ""}]
        yield "", visitor.shown, self._gradio.skip()
        for found in visitor.ask(said, steering, strength, int(tokens)):
            if isinstance(found, str):
                visitor.shown[-1]["content"] += found
            elif isinstance(found, DsasError):
                del visitor.shown[-2:]
                yield said, visitor.shown, self._gradio.skip()
                raise self._gradio.Error(str(found))
            else:
                visitor.shown[-1]["content"] = found.text
                if found.trace is not None:
                    visitor.shown.append({"role": "assistant", "content": self._gradio.HTML(coloured(found))})
            yield "", visitor.shown, self._whole(found)

    def stop(self, session: str) -> None:
        """End the answer that is being written."""
        self.of(session).stop.set()

    def clear(self, session: str) -> tuple[list[Any], str]:
        """Forget a visitor's conversation."""
        self._kept.pop(session, None)
        return [], ""

    def _whole(self, found: str | Answer) -> Foreign:
        """Return the page of all that was steered, once the answer is there; until then leave what is shown."""
        if isinstance(found, str):
            return self._gradio.skip()
        return "" if found.trace is None else framed(found.trace.to_html())


def coloured(answer: Answer) -> str:
    """Return the tokens of an answer, each on a background as strong as it was steered, as HTML.

    The last token has none: the model never read it.
    """
    assert answer.trace is not None
    row = answer.trace.row(0)
    values = row.values["strength"].nanmean(0).tolist()[answer.prompt :]
    peak = abs(row.strength or 0.0) or 1.0
    tokens = []
    for token, value in zip(row.tokens[answer.prompt :], values, strict=True):
        colour = f"background:rgba(255,140,0,{min(value / peak, 1.0):.2f})"
        tokens.append(f'<span title="{value:.3g}" style="{colour}">{escape(token)}</span>')
    mean = sum(values) / len(values) if values else 0.0
    return f'<div class="steered"><small>steered by {mean:.3g} on average</small><br>{"".join(tokens)}</div>'


def chat_tab(gradio: Foreign, visitors: Visitors, choices: list[Foreign]) -> None:
    """Put the tab's elements into the page that is being built; choices: Steering, strength, and number of tokens."""
    session = gradio.State(lambda: uuid4().hex)
    chat = gradio.Chatbot(elem_id="chat", label="Conversation", height=520)
    with gradio.Row():
        box = gradio.Textbox(label="Message", elem_id="say", lines=1, scale=4)
        send = gradio.Button("Send", variant="primary", elem_id="send", scale=1)
    with gradio.Row():
        stop = gradio.Button("Stop", elem_id="stop")
        clear = gradio.Button("New conversation", elem_id="clear")
    whole = gradio.HTML(elem_id="chat-heat")
    for event in (box.submit, send.click):
        event(
            visitors.talk, [box, session, *choices], [box, chat, whole], api_name=False, concurrency_id="model",
            concurrency_limit=1,
        )  # fmt: skip
    stop.click(visitors.stop, session, None, api_name=False)
    clear.click(visitors.clear, session, [chat, whole], api_name=False)
