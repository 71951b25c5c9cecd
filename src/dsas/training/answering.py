"""Answering: answers that an objective samples from the unsteered model before training, instead of given texts.

Answers are sampled at temperature 0.7 and top-p 0.9. Those to a batch of questions are sampled together and stored in
the checkpoint folder at once, so an interruption loses at most one batch.

Limitations: the rows of a batch share their random numbers, so another batch size gives other answers. If a template
lets a model think aloud, its thoughts are part of the answer; use `Chat(arguments={"enable_thinking": False})` if the
template has such an argument.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dsas.errors import TextsError
from dsas.files.results import Results
from dsas.model.chat import Chat
from dsas.model.chat_template import chat_prompts
from dsas.model.conversation import USER, Content, Conversation, Message, before_answer
from dsas.model.foreign import Model, Tokenizer
from dsas.parallel.progress import progress_bar

TEMPERATURE, TOP_P = 0.7, 0.9


class Answering(NamedTuple):
    """A model that answers. marks: what identifies it. chat: options for conversations that have none.

    folder: where answers are stored; None stores none. batch_size: questions per call.
    """

    model: Model
    tokenizer: Tokenizer
    marks: str
    chat: Chat
    folder: Path | None
    batch_size: int
    progress: bool

    def question(self, content: Content, where: str) -> Conversation:
        """Return a text as the user's turn, or a conversation up to its answer. Raises TextsError for anything else."""
        found = Conversation((Message(USER, content),)) if isinstance(content, str) else before_answer(content)
        if not isinstance(found, Conversation) or not found.messages:
            raise TextsError(f"{where}: expected a question, as a text or a conversation that ends with one")
        return found.under(self.chat)

    def answers(self, asked: Sequence[Conversation], *, new_tokens: int, seed: int) -> list[str]:
        """Return the model's answers, each of at most `new_tokens` tokens; one may be empty."""
        from dsas.evaluation.generations import Sampling, sample_continuations  # loads transformers

        texts = chat_prompts(self.tokenizer, asked)
        sampling = Sampling(TEMPERATURE, TOP_P, 1.0, new_tokens, self.batch_size, special_tokens=False)
        results, found = Results(self.folder) if self.folder is not None else None, list[str]()
        with progress_bar(self.progress) as bar:
            task = bar.add_task("drawing answers", total=len(texts))
            for start in range(0, len(texts), self.batch_size):
                some, seeds = texts[start : start + self.batch_size], (seed * 1_000_003 + start,)
                draw = partial(sample_continuations, self.model, self.tokenizer, some, seeds=seeds, sampling=sampling)
                depends = [self.marks, some, list(seeds), list(sampling)]
                found += (results.remember("answers", depends, draw) if results else draw())[0]
                bar.advance(task, len(some))
        return found
