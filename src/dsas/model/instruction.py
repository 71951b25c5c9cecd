"""Instruction: a question together with an instruction on how to answer it.

| the instruction | where it goes |
|---|---|
| holds {question} | the user's turn is the instruction with the question in it; small models often follow only this |
| any other | in the system message, after its present text |
| any other, and the template has no place for a system message | before the question, with an empty line between |

Limitations: templates that shorten or rewrite messages are refused.
"""

from collections.abc import Iterator
from dataclasses import replace

from dsas.errors import OptionError, TextsError
from dsas.model.chat_template import ChatTemplate
from dsas.model.conversation import SYSTEM, Conversation, Message
from dsas.model.foreign import Tokenizer

QUESTION = "{question}"  # place of the question in an instruction that is the user's turn


def instructed(tokenizer: Tokenizer, asked: Conversation, instruction: str) -> Conversation:
    """Return a conversation that ends with a question and an instruction on how to answer it.

    Raises OptionError for a tokenizer without a chat template, or with one that drops instruction or question.
    """
    if not getattr(tokenizer, "chat_template", None) and "chat_template" not in asked.chat.arguments:
        raise OptionError(
            "this model's tokenizer has no chat template, so it cannot be instructed: take an "
            "instruction-tuned model, or write the sets by hand"
        )
    template = ChatTemplate(tokenizer, asked.chat)
    for told, said in _ways(asked.asked, instruction):
        try:
            text = template.text(told, generate=True)
        except TextsError:  # raised by templates without a system role
            continue
        if all(one.strip() in text for one in said):
            return replace(asked, messages=told)
    raise OptionError("the chat template of this model's tokenizer drops the system prompt or the question")


def _ways(messages: tuple[Message, ...], instruction: str) -> Iterator[tuple[tuple[Message, ...], list[str]]]:
    """Yield the ways to place the instruction, the best first, each with what the rendering must contain."""
    *before, last = messages
    if QUESTION in instruction:
        content = instruction.replace(QUESTION, last.content)
        yield (*before, replace(last, content=content)), [content]
        return
    if messages[0].role == SYSTEM:
        both = f"{messages[0].content}\n\n{instruction}"
        yield (replace(messages[0], content=both), *messages[1:]), [both, last.content]
    else:
        yield (Message(SYSTEM, instruction), *messages), [instruction, last.content]
    content = f"{instruction}\n\n{last.content}"
    yield (*before, replace(last, content=content)), [content]
