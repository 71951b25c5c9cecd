"""Choice: how often a model, steered or not, gives the right one of several answers the highest probability.

    score(choice) = sum over its tokens of log p(token | prompt, tokens before) / length(choice)
    margin        = score(answer) - highest score of another choice          correct when margin > 0

The length is in characters (spaces around the choice not counted), as in lm-evaluation-harness' acc_norm, or in tokens,
or 1 (its acc). Prompt and choice are tokenised as one text; a token that straddles the boundary belongs to the choice,
so that a prompt may end in a space.

Every choice of every question is a row of its own (see `likelihood`), so a Steering acts on each as if it were alone.
To measure a steered model, call this while the Steering is applied:

    with steering.apply(model, record=False):
        result = choice_accuracy(model, tokenizer, questions)

Regulators that depend on where the prompt ends take the whole row as the prompt.

Limitations: examples are not put into the prompt (write them into it); a tie counts as wrong.

Source: GPT-3 (2005.14165, section 2.4) for the likelihood of choices by length.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float

from dsas.errors import OptionError, TextsError
from dsas.evaluation.likelihood import log_probabilities, rows_after
from dsas.files.text_files import read_records
from dsas.model.foreign import Model, Tokenizer
from dsas.model.tokenizing import pad_token

Length = Literal["characters", "tokens", "none"]


class Question(NamedTuple):
    """A prompt, at least two ways to go on (with the space that belongs before them), and which of them is right."""

    prompt: str
    choices: tuple[str, ...]
    answer: int


class ChoiceResult(NamedTuple):
    """How the questions were answered, in the order given.

    accuracy: share of correct answers. correct, margins: as defined above, in nats per length. scores: the scores of
    each question's choices. `correct[:, None]` goes straight into `intervals.bootstrap`.
    """

    accuracy: float
    correct: Bool[np.ndarray, " question"]
    margins: Float[np.ndarray, " question"]
    scores: tuple[Float[np.ndarray, " _"], ...]


def read_questions(path: str | Path) -> tuple[Question, ...]:
    """Return the questions of a .jsonl file: {"prompt": text, "choices": [texts], "answer": number from 0} per line.

    Raises TextsError, with file and line, for a file that is missing or lines of another form.
    """
    path, found = Path(path), []
    if path.suffix.lower() != ".jsonl":
        raise TextsError(f"{path}: expected a file ending in .jsonl with one question per line")
    for place, said in read_records(path):
        try:
            question = Question(str(said["prompt"]), tuple(map(str, said["choices"])), int(said["answer"]))
            _check([question])
        except (ValueError, KeyError, TypeError) as error:
            wanted = '{"prompt": text, "choices": [texts], "answer": number from 0}'
            raise TextsError(f"{place}: expected {wanted}: {error!r}") from error
        found.append(question)
    _check(found)
    return tuple(found)


def choice_accuracy(
    model: Model,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    *,
    length: Length = "characters",
    batch_size: int = 32,
    special_tokens: bool = True,
) -> ChoiceResult:
    """Return how often the likeliest choice is the right one.

    length: what a choice's log-probability is divided by. batch_size: rows per call of the model. special_tokens:
    whether the tokenizer adds its own, as for raw text; chat templates bring theirs.
    Raises TextsError for no questions, one whose answer is not among at least two choices, or a choice without a token
    to predict; OptionError for values out of range or a tokenizer that is not a fast one.
    """
    if length not in get_args(Length) or batch_size < 1:
        raise OptionError(f"expected length in {get_args(Length)} and batch_size >= 1, got {length!r}, {batch_size}")
    _check(questions)
    prompts = [question.prompt for question in questions for _ in question.choices]
    choices = [choice for question in questions for choice in question.choices]
    rows = rows_after(tokenizer, prompts, choices, straddling="judged", special_tokens=special_tokens)
    for prompt, choice, row in zip(prompts, choices, rows, strict=True):
        if row.first >= len(row.tokens):
            raise TextsError(f"expected a choice with a token to predict, got {choice!r} after {prompt!r}")
    found = log_probabilities(model, rows, pad=pad_token(tokenizer), batch_size=batch_size)
    both = zip(choices, found, strict=True)
    flat = [logs.double().sum().item() / _length(choice, len(logs), length) for choice, logs in both]
    ends = np.cumsum([len(question.choices) for question in questions])
    scores = tuple(np.split(np.array(flat), ends[:-1]))
    margins = np.array(
        [
            of[question.answer] - np.delete(of, question.answer).max()
            for question, of in zip(questions, scores, strict=True)
        ]
    )
    correct = margins > 0
    return ChoiceResult(float(correct.mean()), correct, margins, scores)


def _length(choice: str, tokens: int, length: Length) -> int:
    return {"characters": max(1, len(choice.strip())), "tokens": tokens, "none": 1}[length]


def _check(questions: Sequence[Question]) -> None:
    if not questions:
        raise TextsError("expected at least one question, got none")
    for number, question in enumerate(questions):
        if len(question.choices) < 2 or not 0 <= question.answer < len(question.choices):
            raise TextsError(
                f"questions[{number}]: expected an answer in [0, choices) among at least 2 choices, "
                f"got {question.answer} of {len(question.choices)}"
            )
