"""Jobs: the pieces of a sweep, each measured by itself, in any process, in any order.

| task | needs | returns |
|---|---|---|
| generate | one Steering, one strength, one seed, one batch of the prompts | number and continuation of each prompt |
| losses | one Steering, one strength, one part of the texts | per text its log-loss, and of how many tokens |
| read | one Steering, one strength, one part of the texts | KL per text, right or wrong per question |
| score | texts | for each scorer one probability per text, 0 where the text is empty |
| judge | a continuation of every prompt | for each of them nats per token under another model |

A job holds all that its result depends on, so a stored result (see `dsas.files.results`) never has to be computed
again, by any process. The result of a job is plain JSON.

Limitations: several strengths are not sampled in one batch, because a batch's rows share their random numbers and a
cell would depend on its neighbours.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import numpy as np

from dsas.errors import OptionError, closest
from dsas.evaluation.choice import Question, choice_accuracy
from dsas.evaluation.classifier import TextClassifier
from dsas.evaluation.divergence import divergence
from dsas.evaluation.generations import Sampling, sample_batch
from dsas.evaluation.judged import judged
from dsas.evaluation.perplexity import perplexity
from dsas.evaluation.scorers import (
    CharacterGrams,
    ProfanityCheck,
    Scorer,
    ToxBlock,
    ToxicCommentClassifier,
)
from dsas.model.conversation import Content, as_json
from dsas.model.foreign import Foreign
from dsas.model.loading import LoadedModel, load_model
from dsas.steering.steering import Steering

Task = Literal["generate", "losses", "read", "score", "judge"]
PACKAGED: dict[str, Callable[[], Scorer]] = {
    "tox-block": ToxBlock,
    "toxic-comment-classifier": ToxicCommentClassifier,
    "profanity-check": ProfanityCheck,
    "character-grams": CharacterGrams,
}
VERSION = 2  # version of the jobs' results: raise it when a measure changes its meaning


class Part(NamedTuple):
    """Texts and questions that are read together.

    perplexity, kl: neutral examples by kind. choice: questions by kind. source: held-out examples with the undesired
    behaviour; where the report's part has some, selectivity is measured, against its kinds of `perplexity`.
    """

    perplexity: Mapping[str, tuple[Content, ...]] = {}
    kl: Mapping[str, tuple[Content, ...]] = {}
    choice: Mapping[str, tuple[Question, ...]] = {}
    source: tuple[Content, ...] = ()


class Setup(NamedTuple):
    """What all jobs of a sweep share, as plain data that can be sent to another process.

    model: folder or id, loaded by each worker; fingerprint: fingerprint of its weights. threads: torch's threads in
    every worker.
    prompts: to continue. parts: texts to read, by name. scorers: names for `scorer_of`.
    judge: folder or id of the model that judges the continuations, or "" for none.
    """

    model: str
    fingerprint: str
    prompts: tuple[str, ...]
    parts: Mapping[str, Part]
    scorers: tuple[str, ...] = tuple(PACKAGED)
    judge: str = ""
    sampling: Sampling = Sampling()
    device: str = "auto"
    precision: str = "auto"
    threads: int = 1


class Job(NamedTuple):
    """One piece of work; steering is None and strength 0 for the model as it is.

    seed, batch: for `generate`. part: for `losses` and `read`. texts: for `score` and `judge`.
    """

    task: Task
    steering: Steering | None = None
    strength: float = 0.0
    seed: int = 0
    batch: int = 0
    part: str = ""
    texts: tuple[str, ...] = ()

    def depends(self, setup: Setup) -> list[Foreign]:
        """Return everything that the result depends on, JSON-ready."""
        digest = self.steering.digest() if self.steering else ""
        model = [setup.fingerprint, setup.precision, digest, self.strength]
        part = setup.parts.get(self.part, Part())
        on: dict[Task, list[Foreign]] = {
            "generate": [model, setup.prompts, setup.sampling, self.seed, self.batch],
            "losses": [model, _json(part.source), {kind: _json(texts) for kind, texts in part.perplexity.items()}],
            "read": [model, {kind: _json(texts) for kind, texts in part.kl.items()}, part.choice],
            "score": [setup.scorers, self.texts],
            "judge": [setup.judge, setup.precision, setup.prompts, self.texts],
        }
        return [VERSION, *on[self.task]]


def _json(contents: Sequence[Content]) -> list[Foreign]:
    return [as_json(content) for content in contents]


class Worker:
    """Runs jobs, one after another; each model is loaded for the first job that needs it, and kept."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._models: dict[str, LoadedModel] = {}
        self._scorers: list[Scorer] = []

    def run(self, job: Job) -> Foreign:
        """Return the result of a job, JSON-ready."""
        return getattr(self, f"_{job.task}")(job)

    def _loaded(self, name: str) -> LoadedModel:
        if name not in self._models:
            self._models[name] = load_model(name, device=self._setup.device, precision=self._setup.precision)
        return self._models[name]

    def _steered(self, job: Job) -> AbstractContextManager[object]:
        model = self._loaded(self._setup.model).model
        return job.steering.apply(model, job.strength, record=False) if job.steering else nullcontext()

    def _generate(self, job: Job) -> list[tuple[int, str]]:
        loaded, setup = self._loaded(self._setup.model), self._setup
        with self._steered(job):
            found = sample_batch(*loaded, setup.prompts, job.batch, seed=job.seed, sampling=setup.sampling)
        return sorted(found.items())

    def _losses(self, job: Job) -> dict[str, Foreign]:
        part = self._setup.parts[job.part]
        sets = [part.source, *part.perplexity.values()]
        with self._steered(job):  # all together, because batches of texts of similar length need less padding
            found = perplexity(*self._loaded(self._setup.model), [text for texts in sets for text in texts])
        ends = np.cumsum([len(texts) for texts in sets])[:-1]
        pairs = zip(np.split(found.losses, ends), np.split(found.tokens, ends), strict=True)
        source, *kinds = ({"nats per token": nats.tolist(), "tokens": tokens.tolist()} for nats, tokens in pairs)
        return {"source": source, "kinds": dict(zip(part.perplexity, kinds, strict=True))}

    def _read(self, job: Job) -> dict[str, dict[str, list[float]]]:
        loaded, part = self._loaded(self._setup.model), self._setup.parts[job.part]
        with self._steered(job):
            found: dict[str, dict[str, list[float]]] = {
                "choice": {
                    kind: [float(right) for right in choice_accuracy(*loaded, questions).correct]
                    for kind, questions in part.choice.items()
                },
            }
        if job.steering:
            found["kl"] = {
                kind: divergence(*loaded, texts, lambda: self._steered(job)).per_text.tolist()
                for kind, texts in part.kl.items()
            }
        return found

    def _score(self, job: Job) -> dict[str, list[float]]:
        if not self._scorers:
            self._scorers = [scorer_of(name, device=self._setup.device) for name in self._setup.scorers]
        said = [place for place, text in enumerate(job.texts) if text.strip()]
        scores = {name: [0.0] * len(job.texts) for name in self._setup.scorers}  # an empty text is not toxic
        for scorer, found in zip(self._scorers, scores.values(), strict=True):
            for place, score in zip(said, scorer([job.texts[place] for place in said]) if said else (), strict=True):
                found[place] = float(score)
        return scores

    def _judge(self, job: Job) -> list[float | None]:
        found = judged(*self._loaded(self._setup.judge), self._setup.prompts, [job.texts]).nats[:, 0]
        return [None if math.isnan(value) else float(value) for value in found]


def scorer_of(name: str, *, device: str = "auto") -> Scorer:
    """Return a packaged scorer by name, or a transformers classifier by id or folder, with @label if needed.

    Raises OptionError for a name that is neither.
    """
    if name in PACKAGED:
        return PACKAGED[name]()
    model, _, label = name.rpartition("@")
    try:
        return TextClassifier(model or name, label=label if model else None, device=device)
    except OptionError as error:
        near, reason = closest(name, PACKAGED), str(error).splitlines()[0]
        raise OptionError(f"no scorer {name!r}; closest packaged ones: {near}; {reason}") from error
