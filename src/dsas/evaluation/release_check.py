"""Release check: what a Steering does to refusals, jailbreaks, fluency, JSON and ordinary answers, against limits.

Every request is answered greedily, with and without steering, through the model's chat template where it has one. The
unsteered model's answers to everyday questions are read again, steered, for KL divergence and perplexity. What each
measure is, and its limit, is in `dsas.evaluation.release_limits`.

Limitations: refusals are told by the phrase list alone; requests and judges are English; one greedy answer per request.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dsas.errors import OptionError, TextsError
from dsas.evaluation.alarming_list import alarming_questions
from dsas.evaluation.coherence import incoherent
from dsas.evaluation.divergence import divergence
from dsas.evaluation.fluency import repetition
from dsas.evaluation.generations import Sampling, sample_continuations
from dsas.evaluation.intervals import Interval, bootstrap, bootstrap_ratio
from dsas.evaluation.jailbreaks import WRAPPERS
from dsas.evaluation.judged import judged
from dsas.evaluation.perplexity import perplexity
from dsas.evaluation.question_list import everyday_questions
from dsas.evaluation.refusal import refuses
from dsas.evaluation.release_limits import RELEASE_LIMITS
from dsas.evaluation.valid_json import is_json, json_requests
from dsas.files.json_values import JsonObject
from dsas.files.results import Results
from dsas.model.chat_template import chat_prompts
from dsas.model.conversation import Completion, Conversation, Message
from dsas.model.foreign import Model, Tokenizer
from dsas.model.identity import fingerprint
from dsas.steering.steering import Steering

BATCH = 25
TIMED = 8  # answers, to say what a measure will cost


class Checked(NamedTuple):
    """One measure against its limit. found: with its 95 % interval over requests; the verdict goes by the mean."""

    name: str
    limit: float
    found: Interval

    @property
    def kept(self) -> bool:
        """Whether the limit is kept; a value that is no number keeps none."""
        mean = self.found.mean
        return bool(mean >= self.limit if RELEASE_LIMITS[self.name].least else mean <= self.limit)

    def as_dict(self) -> JsonObject:
        """Return it JSON-ready."""
        return {"name": self.name, "limit": self.limit, **self.found._asdict(), "kept": self.kept}

    def row(self, strength: float) -> JsonObject:
        """Return it as a row of a table, measured at a strength; side: whether the limit is a least or a most."""
        side = "at least" if RELEASE_LIMITS[self.name].least else "at most"
        said = {"strength": strength, "measure": self.name, "side": side, "limit": self.limit}
        return {**said, **self.found._asdict(), "kept": self.kept}

    def line(self) -> str:
        """Return it as a line for people."""
        most = "at least" if RELEASE_LIMITS[self.name].least else "at most"
        verdict = "kept" if self.kept else "BROKEN"
        mean, low, high, n = self.found
        return f"{mean:.3g} [{low:.3g}, {high:.3g}] of n = {n}, {most} {self.limit:g}: {verdict}"


class Requests(NamedTuple):
    """What is asked, `n` of each kind at most; the harmful ones are given, since dsas holds none."""

    harmful: Sequence[str]
    n: int = 50

    def of(self, kind: str) -> list[str]:
        """Return the requests of a kind. Raises TextsError where there are none."""
        if kind == "json":
            return [request.text for request in json_requests()][: self.n]
        if kind in ("everyday", "alarming"):
            texts = everyday_questions() if kind == "everyday" else alarming_questions()
            step = max(1, len(texts) // self.n)  # over all topics
            return texts[::step][: self.n]
        harmful = list(self.harmful)[: self.n]
        if not harmful:
            raise TextsError("expected harmful requests, got none: give some, or switch off the limits that need them")
        wrapped = [WRAPPERS[number % len(WRAPPERS)].around(text) for number, text in enumerate(harmful)]
        return wrapped if kind == "wrapped" else harmful


class ReleaseCheck:
    """The measures of one Steering at one strength on one model; each answer is drawn once, and kept in a folder."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        steering: Steering,
        requests: Requests,
        *,
        strength: float | None = None,
        new_tokens: int = 32,
        checkpoint: str | Path | None = None,
    ) -> None:
        """Keep what is given. strength: the calibrated one, or 1, when not given. Raises OptionError out of range."""
        if new_tokens < 1 or requests.n < 2:
            raise OptionError(f"expected new_tokens >= 1 and n >= 2, got {new_tokens} and {requests.n}")
        self.strength = steering.default_strength if strength is None else strength
        self._model, self._tokenizer, self._steering, self._requests = model, tokenizer, steering, requests
        self._sampling = Sampling(0.0, 1.0, 1.0, new_tokens, BATCH, special_tokens=not _has_template(tokenizer))
        self._results = Results(checkpoint) if checkpoint is not None else None
        self._marks = [fingerprint(model), str(getattr(model, "dtype", ""))]
        self._drawn: dict[tuple[str, bool], list[str]] = {}

    def run(self, limits: Mapping[str, float], progress: Callable[[str], None] = lambda _: None) -> list[Checked]:
        """Return what each limit is on, measured. progress: told the name of each measure before it is taken."""
        found = []
        for name, limit in limits.items():
            progress(name)
            found.append(Checked(name, limit, self._measure(name)))
        return found

    def minutes(self, limits: Mapping[str, float]) -> dict[str, float]:
        """Return about how many minutes each measure takes alone, by the time that a few answers take here."""
        few = self._requests.of("everyday")[:TIMED]
        begun = time.monotonic()
        self._sample(few, steered=True)
        each = (time.monotonic() - begun) / len(few)
        return {name: 2 * len(self._requests.of(RELEASE_LIMITS[name].asks)) * each / 60 for name in limits}

    def _measure(self, name: str) -> Interval:
        kind = RELEASE_LIMITS[name].asks
        if name in ("kl", "perplexity"):
            return self._cost(name)
        before, after = (self._values(name, kind, steered) for steered in (False, True))
        if name == "refused":
            return bootstrap(after[:, None])
        worse = before - after if name in ("lost-refusals", "json") else after - before
        return bootstrap(worse[:, None])

    def _values(self, name: str, kind: str, steered: bool) -> np.ndarray:
        """Return for each request what is counted of its answer."""
        answers = self.answers(kind, steered)
        if name == "json":
            asked = json_requests()[: len(answers)]
            return np.array([is_json(a, one.keys) for a, one in zip(answers, asked, strict=True)], dtype=float)
        if name == "repetition":
            return np.array([repetition(answer) or 0.0 for answer in answers])
        odd = self._incoherent(kind, answers)
        refused = np.array([refuses(answer) for answer in answers]) & ~odd
        return np.array({"incoherent": odd, "attack": ~refused & ~odd}.get(name, refused), dtype=float)

    def _incoherent(self, kind: str, answers: Sequence[str]) -> np.ndarray:
        prompts = self._rendered(self._requests.of(kind))
        special = self._sampling.special_tokens
        nats = judged(self._model, self._tokenizer, prompts, [answers], special_tokens=special).nats[:, 0]
        return np.array([incoherent(answer, of) for answer, of in zip(answers, nats, strict=True)])

    def _cost(self, name: str) -> Interval:
        asked = zip(self._requests.of("everyday"), self.answers("everyday", steered=False), strict=True)
        texts = [self._answered(request, answer) for request, answer in asked if answer.strip()]
        if not texts:
            raise TextsError(
                "the unsteered model answers no everyday question, so kl and perplexity cannot be measured"
            )
        steered = lambda: self._steering.apply(self._model, self.strength, record=False)  # noqa: E731
        if name == "kl":
            return bootstrap(divergence(self._model, self._tokenizer, texts, steered).per_text[:, None])
        before = perplexity(self._model, self._tokenizer, texts)
        with steered():
            after = perplexity(self._model, self._tokenizer, texts)
        lost = bootstrap_ratio(((after.losses - before.losses) * before.tokens)[:, None], before.tokens[:, None] * 1.0)
        mean, low, high = np.exp(lost[:3]).tolist()
        return Interval(mean, low, high, lost.n)

    def answers(self, kind: str, steered: bool) -> list[str]:
        """Return the answers to the requests of a kind."""
        if (kind, steered) not in self._drawn:
            requests = self._requests.of(kind)
            marks = [*self._marks, requests, list(self._sampling)]
            marks += [self._steering.digest(), self.strength] if steered else []
            sample = lambda: self._sample(requests, steered)  # noqa: E731
            self._drawn[kind, steered] = self._results.remember("answers", marks, sample) if self._results else sample()
        return self._drawn[kind, steered]

    def _sample(self, requests: Sequence[str], steered: bool) -> list[str]:
        prompts = self._rendered(requests)
        with self._steering.apply(self._model, self.strength, record=False) if steered else nullcontext():
            return sample_continuations(self._model, self._tokenizer, prompts, seeds=(0,), sampling=self._sampling)[0]

    def _rendered(self, requests: Sequence[str]) -> list[str]:
        return chat_prompts(self._tokenizer, requests) if _has_template(self._tokenizer) else list(requests)

    def _answered(self, request: str, answer: str) -> Conversation | Completion:
        if not _has_template(self._tokenizer):
            return Completion(request, answer)
        return Conversation((Message("user", request), Message("assistant", answer)))


def with_check(steering: Steering, strength: float, checked: Sequence[Checked]) -> Steering:
    """Return the same Steering with the results among its settings, which its card and `dsas info` show."""
    said = {"strength": f"{strength:g}", **{one.name: one.line() for one in checked}}
    settings = {**steering.settings, "release check": said}
    return Steering(steering.rules, steering.model, settings, steering.calibration)


def _has_template(tokenizer: Tokenizer) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))
