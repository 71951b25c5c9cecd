"""Prompts: what an assistant is told to show a behaviour, to avoid it, or to just answer; and questions to ask it.

A behaviour is what follows "The assistant ...": "insults the user", "talks about the weather". A prompt in which
{question} stands is the user's turn, any other is the system prompt before the question. Small models often follow only
what the user says. Questions take the prompts of a kind in turn, and with another seed the next ones, so that no one
wording is what the sets have in common.

Limitations: the wordings and the 200 questions are English. "Never" is the only opposite that one sentence gives; where
a behaviour has another one ("is polite"), say it with `Prompts(wanted=...)`.

Source: contrastive system prompts as in persona vectors (arXiv 2507.21509, section 2.1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files

from dsas.errors import OptionError
from dsas.files.json_values import Json
from dsas.model.foreign import Tokenizer

KINDS = ("unwanted", "wanted", "neutral")  # answers that become source, target and control
QUESTION = "{question}"  # where it stands in a prompt that is the user's turn
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
    """What the model is told, by kind, at least one of each: system prompts, or users' turns that hold "{question}".

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
        """Return them as JSON-ready values."""
        return {**{kind: list(getattr(self, kind)) for kind in KINDS}, "template": dict(self.template)}


def prompts_for(behaviour: str) -> Prompts:
    """Return prompts for a behaviour, such as "insults the user"."""
    said = behaviour.strip().rstrip(".")
    unwanted, wanted = ([one.replace("{behaviour}", said) for one in wordings] for wordings in (_UNWANTED, _WANTED))
    return Prompts(unwanted, wanted, _NEUTRAL)


def everyday_questions() -> list[str]:
    """Return the 200 questions that come with dsas: ten each on twenty topics, from cooking to crafts."""
    return (files("dsas.drafting") / "questions.txt").read_text(encoding="utf-8").split("\n")[:-1]


def messages(prompt: str, question: str) -> list[dict[str, str]]:
    """Return a prompt with a question as messages: one user's turn, or a system message before it."""
    if QUESTION in prompt:
        return [{"role": "user", "content": prompt.replace(QUESTION, question)}]
    return [{"role": "system", "content": prompt}, {"role": "user", "content": question}]


def rendered(tokenizer: Tokenizer, prompt: str, question: str, template: Mapping[str, Json]) -> str:
    """Return a prompt with a question through the chat template, ready for the answer; special tokens are in.

    Where the template has no place for a system prompt, it stands before the question, with an empty line between.
    Raises OptionError when the tokenizer has no chat template, or one that drops what it is given.
    """
    from jinja2.exceptions import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise OptionError(
            "this model's tokenizer has no chat template, so it cannot be told how to answer: draft with an "
            "instruction-tuned model, or write the sets by hand"
        )
    ways = [messages(prompt, question), [{"role": "user", "content": f"{prompt}\n\n{question}"}]]
    for way in ways[:1] if QUESTION in prompt else ways:
        try:
            text: str = tokenizer.apply_chat_template(way, tokenize=False, add_generation_prompt=True, **template)
        except TemplateError:  # of templates without a system role
            continue
        if all(message["content"].strip() in text for message in way):
            return text
    raise OptionError("the chat template of this model's tokenizer drops the system prompt or the question")
