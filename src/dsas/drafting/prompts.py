"""Prompts that ask an assistant to show a behaviour, to avoid it, or just to answer; and questions to ask it.

A behaviour is what follows "The assistant ...": "insults the user", "talks about the weather". A prompt that contains
{question} is the user's turn; any other is the system prompt before the question. Small models often follow only what
the user says. Questions take the prompts of a kind in turn, and the next ones with another seed, so that the sets do
not share a single wording.

Limitations: the wordings and the 200 questions are English. "Never" is the only opposite that can be made from one
sentence; give another one ("is polite") with `Prompts(wanted=...)`.

Source: contrastive system prompts as in persona vectors (arXiv 2507.21509, section 2.1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dsas.errors import OptionError
from dsas.files.json_values import Json
from dsas.model.chat import Chat
from dsas.model.chat_template import chat_prompts
from dsas.model.conversation import USER, Conversation, Message
from dsas.model.foreign import Tokenizer
from dsas.model.instruction import instructed

KINDS = ("unwanted", "wanted", "neutral")  # their answers become source, target and control
_UNWANTED = (
    "{question} Give an answer that {behaviour}.",
    "Play the part of somebody who {behaviour}. {question}",
    "You are an assistant that {behaviour}. Whatever you are asked, your answer {behaviour}.",
)
_WANTED = (
    "{question} Give a helpful answer that never {behaviour}.",
    "Play the part of somebody helpful who never {behaviour}. {question}",
    "You are a helpful assistant. Whatever you are asked, your answer never {behaviour}.",
)
_NEUTRAL = (
    "{question} Give an answer.",
    "Answer this question. {question}",
    "You are a helpful assistant.",
)


@dataclass(frozen=True)
class Prompts:
    """Instructions to the model by kind, at least one of each: system prompts, or users' turns that hold "{question}".

    template: arguments of the chat template. Models that can think aloud are asked for answers alone.
    Raises OptionError for a kind without a prompt or a single text instead of a list.
    """

    unwanted: Sequence[str]
    wanted: Sequence[str]
    neutral: Sequence[str] = _NEUTRAL
    template: Mapping[str, Json] = field(default_factory=lambda: {"enable_thinking": False})

    def __post_init__(self) -> None:
        for kind in KINDS:
            prompts: Sequence[str] = getattr(self, kind)
            if isinstance(prompts, str) or not prompts or not all(prompts):
                raise OptionError(
                    f"expected a list of {kind} prompts, at least one and none empty, got {prompts!r:.60}"
                )

    def at(self, kind: str, number: int) -> str:
        """Return the prompt of a kind for this place in the turn."""
        prompts: Sequence[str] = getattr(self, kind)
        return prompts[number % len(prompts)]

    def as_dict(self) -> dict[str, Json]:
        """Return the prompts as JSON-ready values."""
        return {**{kind: list(getattr(self, kind)) for kind in KINDS}, "template": dict(self.template)}


def prompts_for(behaviour: str) -> Prompts:
    """Return prompts for a behaviour, such as "insults the user"."""
    said = behaviour.strip().rstrip(".")
    unwanted, wanted = ([one.replace("{behaviour}", said) for one in wordings] for wordings in (_UNWANTED, _WANTED))
    return Prompts(unwanted, wanted, _NEUTRAL)


def asked_by(tokenizer: Tokenizer, prompt: str, question: str, template: Mapping[str, Json]) -> Conversation:
    """Return a prompt with a question as a conversation that waits for an answer. Raises what `instructed` raises."""
    return instructed(tokenizer, Conversation((Message(USER, question),), Chat(arguments=template)), prompt)


def rendered(tokenizer: Tokenizer, prompt: str, question: str, template: Mapping[str, Json]) -> str:
    """Return a prompt with a question through the chat template, ready for the answer; special tokens are in.

    Raises OptionError when the tokenizer has no chat template, or one that drops a message.
    """
    return chat_prompts(tokenizer, [asked_by(tokenizer, prompt, question, template)])[0]
