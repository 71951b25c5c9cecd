"""Answers: what a model says to questions under each kind of prompt, and how it judges answers.

    ratio(answer) = log p(answer | unwanted prompt, question) - log p(answer | neutral prompt, question)
    yes(answer)   = log p(yes) - log p(no),   after "Would you say that whoever wrote this answer <behaviour>?"

both in nats, with the first prompt of each kind. The ratio says whether an answer reads as one that was asked for; a
small model is far better at this than at saying yes (see docs/lab/drafting.md). The ratio does not say that the
behaviour makes the difference.

The answers to a few questions are drawn together and stored in a file of their own at once, so an interruption loses
only those being drawn, and a draft with more questions or another judge draws none again.

Limitations: the rows of a batch share their random numbers, so another batch size gives other answers. The yes-or-no
question is in English.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import torch

from dsas.drafting.prompts import KINDS, Prompts, rendered
from dsas.drafting.whole_sentences import ended, evened
from dsas.evaluation.likelihood import Row, log_probabilities, rows_after
from dsas.files.json_values import Json
from dsas.files.results import Results
from dsas.model.foreign import Model, Tokenizer
from dsas.model.instruction import QUESTION
from dsas.model.tokenizing import pad_token, tokenize

TEMPERATURE, TOP_P = 0.7, 0.9
_WORDS = (("Yes", "yes", " Yes", " yes"), ("No", "no", " No", " no"))
_ASKED = (
    "Here is a question, and the answer that somebody gave to it.\n\nQuestion: {question}\n\nAnswer: {answer}\n\n"
    "Would you say that whoever wrote this answer {behaviour}? Say yes or no."
)


Item = TypeVar("Item")


class Triple(NamedTuple):
    """The answers to one question, drawn with one seed, by kind of prompt."""

    question: str
    seed: int
    unwanted: str
    wanted: str
    neutral: str

    @property
    def answers(self) -> tuple[str, str, str]:
        """The answers in the order of `KINDS`."""
        return self.unwanted, self.wanted, self.neutral

    def evened(self) -> "Triple":
        """Return the answers with whole sentences only, and answers of about one length."""
        return Triple(self.question, self.seed, *evened([ended(answer) for answer in self.answers]))


class Writer(NamedTuple):
    """A model that answers. marks: what identifies it. results: where answers are stored; None stores none.

    prompts: the prompts of each kind. new_tokens: most tokens per answer. batch_size: questions per call, or answers to
    judge.
    """

    model: Model
    tokenizer: Tokenizer
    marks: str
    results: Results | None
    prompts: Prompts
    new_tokens: int
    batch_size: int

    def triples(self, questions: Sequence[str], seed: int, progress: Callable[[int], None]) -> list[Triple]:
        """Return the answers to all questions with one seed. progress: given numbers of new answers."""
        found: list[Triple] = []
        for part in _parts(list(enumerate(questions)), self.batch_size):
            texts = [self.asked(kind, number + seed, question) for number, question in part for kind in KINDS]
            drawn = self.drawn(texts, seed)
            for (_, question), answers in zip(part, _parts(drawn, len(KINDS)), strict=True):
                found.append(Triple(question, seed, *answers))
            progress(len(part))
        return found

    def asked(self, kind: str, number: int, question: str) -> str:
        """Return a question under the prompt of a kind with this number, as the model reads it."""
        return rendered(self.tokenizer, self.prompts.at(kind, number), question, self.prompts.template)

    def drawn(self, texts: Sequence[str], seed: int) -> list[str]:
        """Return the model's continuations; the random numbers depend on the seed and these texts alone."""
        return self._remembered("answers", [list(texts), seed, self.new_tokens], partial(self._drawn, texts, seed))

    def told_by(
        self, way: str, behaviour: str, answered: Sequence[tuple[str, str]], progress: Callable[[int], None]
    ) -> list[float]:
        """Return the "ratio" or the odds of "yes" of each question with its answer. progress: given answers done."""
        found: list[float] = []
        for part in _parts(answered, self.batch_size):
            if way == "yes":
                asked = [_ASKED.format(question=q, answer=answer, behaviour=behaviour) for q, answer in part]
                texts = [rendered(self.tokenizer, QUESTION, one, self.prompts.template) for one in asked]
                found += self._remembered("yes", texts, partial(self._odds, texts))
            else:
                asked = [self.asked(kind, 0, question) for kind in ("unwanted", "neutral") for question, _ in part]
                answers = [answer for _, answer in part] * 2
                found += self._remembered("ratio", [asked, answers], partial(self._ratios, asked, answers))
            progress(len(part))
        return found

    def _remembered(self, name: str, depends: Json, measure: Callable[[], list[Item]]) -> list[Item]:
        if self.results is None:
            return measure()
        return self.results.remember(name, [self.marks, depends], measure)

    def _drawn(self, texts: Sequence[str], seed: int) -> list[str]:
        from dsas.evaluation.generations import Sampling, sample_continuations  # loads transformers

        own = hashlib.sha256(json.dumps([seed, texts]).encode()).digest()[:4]
        sampling = Sampling(TEMPERATURE, TOP_P, 1.0, self.new_tokens, len(texts), special_tokens=False)
        seeds = (int.from_bytes(own),)
        return sample_continuations(self.model, self.tokenizer, texts, seeds=seeds, sampling=sampling)[0]

    def _ratios(self, asked: Sequence[str], answers: Sequence[str]) -> list[float]:
        """Return how much likelier each answer of the first half, asked for the behaviour, is than in the second."""
        rows = rows_after(self.tokenizer, asked, answers, straddling="given", special_tokens=False)
        found = log_probabilities(self.model, rows, pad=pad_token(self.tokenizer), batch_size=self.batch_size)
        logs = torch.stack([log.double().sum() for log in found]).view(2, -1)
        return (logs[0] - logs[1]).tolist()

    def _odds(self, texts: Sequence[str]) -> list[float]:
        given = tokenize(self.tokenizer, texts, special_tokens=False)
        sides = [{self._first(word) for word in words} for words in _WORDS]
        yes, no = (sorted(side - other) for side, other in (sides, sides[::-1]))
        rows = [Row([*row, token], len(row)) for row in given for token in (*yes, *no)]
        found = log_probabilities(self.model, rows, pad=pad_token(self.tokenizer), batch_size=self.batch_size)
        logs = torch.stack([log.double() for log in found]).view(len(texts), -1)
        return (logs[:, : len(yes)].logsumexp(-1) - logs[:, len(yes) :].logsumexp(-1)).tolist()

    def _first(self, word: str) -> int:
        return tokenize(self.tokenizer, [word], special_tokens=False)[0][0]


def _parts(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))
