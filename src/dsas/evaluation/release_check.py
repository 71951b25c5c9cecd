"""Release check: what a Steering does to refusals, jailbreaks, fluency, JSON and ordinary answers, against limits.

Every request is answered greedily, with and without steering, through the model's chat template where it has one. The
unsteered model's answers to everyday questions are read again, steered, for KL divergence and perplexity. What each
measure is, and its limit, is in `dsas.evaluation.release_limits`.

Limitations: refusals are recognised by the phrase list alone; requests and judges are English; one greedy answer per
request.
"""

import math
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
from dsas.evaluation.release_cost import Asked, ReleaseMinutes, batch_times, release_minutes
from dsas.evaluation.release_limits import RELEASE_LIMITS
from dsas.evaluation.valid_json import is_json, json_requests
from dsas.files.json_values import JsonObject
from dsas.files.results import Results
from dsas.model.chat_template import chat_prompts
from dsas.model.conversation import Completion, Conversation, Message
from dsas.model.foreign import Model, Tokenizer
from dsas.model.identity import fingerprint
from dsas.model.tokenizing import tokenize
from dsas.steering.steering import Steering

BATCH = 25


class Checked(NamedTuple):
    """One measure against its limit. found: mean and 95 % interval over requests; the mean decides."""

    name: str
    limit: float
    found: Interval

    @property
    def kept(self) -> bool:
        """Whether the limit is kept; NaN keeps no limit."""
        mean = self.found.mean
        return bool(mean >= self.limit if RELEASE_LIMITS[self.name].least else mean <= self.limit)

    def as_dict(self) -> JsonObject:
        """Return the result as JSON-ready values."""
        return {"name": self.name, "limit": self.limit, **self.found._asdict(), "kept": self.kept}

    def row(self, strength: float) -> JsonObject:
        """Return the result at a strength as a row of a table; side: whether the limit is a minimum or a maximum."""
        side = "at least" if RELEASE_LIMITS[self.name].least else "at most"
        said = {"strength": strength, "measure": self.name, "side": side, "limit": self.limit}
        return {**said, **self.found._asdict(), "kept": self.kept}

    def line(self) -> str:
        """Return the result as a readable line."""
        most = "at least" if RELEASE_LIMITS[self.name].least else "at most"
        verdict = "kept" if self.kept else "BROKEN"
        mean, low, high, n = self.found
        return f"{mean:.3g} [{low:.3g}, {high:.3g}] of n = {n}, {most} {self.limit:g}: {verdict}"


class Requests(NamedTuple):
    """The requests, at most `n` of each kind; harmful ones must be given, because dsas contains none."""

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
        """Keep the arguments. strength: the calibrated one, or 1, when not given. Raises OptionError out of range."""
        if new_tokens < 1 or requests.n < 2:
            raise OptionError(f"expected new_tokens >= 1 and n >= 2, got {new_tokens} and {requests.n}")
        self.strength = steering.default_strength if strength is None else strength
        self._model, self._tokenizer, self._steering, self._requests = model, tokenizer, steering, requests
        self._sampling = Sampling(0.0, 1.0, 1.0, new_tokens, BATCH, special_tokens=not _has_template(tokenizer))
        self._results = Results(checkpoint) if checkpoint is not None else None
        self._marks = [fingerprint(model), str(getattr(model, "dtype", ""))]
        self._drawn: dict[tuple[str, bool], list[str]] = {}

    def run(self, limits: Mapping[str, float], progress: Callable[[str], None] = lambda _: None) -> list[Checked]:
        """Return the measure for each limit. progress: called with the name of each measure before it is taken."""
        found = []
        for name, limit in limits.items():
            progress(name)
            found.append(Checked(name, limit, self._measure(name)))
        return found

    def minutes(self, limits: Mapping[str, float]) -> ReleaseMinutes:
        """Return about how many minutes the measures take here, each alone and all together, by a few tokens drawn."""
        timed = self._requests.of("everyday")[:BATCH]
        few = self._rendered(timed)
        times = {
            steered: batch_times(lambda new, steered=steered: self._sample(timed, steered, new), self._tokens(few))
            for steered in (False, True)
        }
        asked = {}
        for kind in {RELEASE_LIMITS[name].asks for name in limits}:
            prompts = self._rendered(self._requests.of(kind))
            longest = len(prompts) * self._sampling.new_tokens
            asked[kind] = Asked(math.ceil(len(prompts) / BATCH), self._tokens(prompts), longest)
        return release_minutes(limits, asked, times, self._sampling.new_tokens)

    def _tokens(self, prompts: Sequence[str]) -> int:
        return sum(map(len, tokenize(self._tokenizer, prompts, special_tokens=self._sampling.special_tokens)))

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
        """Return, for each request, the value counted for its answer."""
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

    def _sample(self, requests: Sequence[str], steered: bool, new_tokens: int | None = None) -> list[str]:
        prompts, sampling = self._rendered(requests), self._sampling
        sampling = sampling if new_tokens is None else sampling._replace(new_tokens=new_tokens)
        with self._steering.apply(self._model, self.strength, record=False) if steered else nullcontext():
            return sample_continuations(self._model, self._tokenizer, prompts, seeds=(0,), sampling=sampling)[0]

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
