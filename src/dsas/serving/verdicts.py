"""Verdicts: a request is stopped, or steered more strongly, when the regulator stays high in its answer.

    mean_i  =  mean of weight * h(t) over the last `window` tokens of the answer up to token i and the Steering's sites

As soon as the window is full, every token of the answer that the model has read gives a mean. The first mean above
`dsas_stop_above` stops the request: token i is its last. The first one above `dsas_raise_above` sets the Steering's
strength to `dsas_raise_to` for the rest of the request, from token i + 1. Strengths are not part of the mean, so a
Steering at strength 0 watches and changes nothing. Each of several Steerings is judged by its own mean.

Everything is decided here, in the worker, between a pass and the sampling after it, so it works for streams and every
front end. The sampled token of a stopped request is replaced by one that is in no vocabulary, which vLLM treats as a
stop token; admission removes it again, with `STOPPED` as the reason. A preempted request keeps its verdicts when it is
read again.

Limitations (refused when a request enters): pipeline stages, which see only their own sites; stopping an answer that
has a minimum length or has to follow a grammar. If a request of a step is judged, reading the step's values waits for
the device.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dsas.errors import OptionError, StrengthError, shown
from dsas.files.json_values import Json
from dsas.model.foreign import Foreign
from dsas.serving.tokens import TokenBuffers

STOP_ABOVE, STOP_WINDOW = "dsas_stop_above", "dsas_stop_window"
RAISE_ABOVE, RAISE_TO = "dsas_raise_above", "dsas_raise_to"
VERDICT = "dsas_verdict"  # passed to the worker: the four values, resolved
STOPPED = STOP_ABOVE  # the stop_reason of a request that was stopped
STOP_TOKEN = 2**31 - 2  # in no vocabulary
WINDOW = 16  # tokens, if the request gives none
LONGEST_WINDOW = 4096
MOST = 16384  # most requests whose verdicts are kept; the oldest, long finished, are forgotten first


class Verdict(NamedTuple):
    """By what a request asks to be judged; None means never."""

    stop_above: float | None = None
    raise_above: float | None = None
    raise_to: float | None = None
    window: int = WINDOW


def verdict_of(extra_args: Mapping[str, Json]) -> Verdict | None:
    """Return by what a request asks to be judged, or None. Raises OptionError, StrengthError."""
    keys = (STOP_ABOVE, STOP_WINDOW, RAISE_ABOVE, RAISE_TO)
    if not any(key in extra_args for key in keys):
        return None
    stop, raise_, to = (_number(extra_args, key) for key in (STOP_ABOVE, RAISE_ABOVE, RAISE_TO))
    window = extra_args.get(STOP_WINDOW, WINDOW)
    if isinstance(window, bool) or not isinstance(window, int) or not 1 <= window <= LONGEST_WINDOW:
        raise OptionError(f"{STOP_WINDOW!r} must be a number of tokens from 1 to {LONGEST_WINDOW}, got {shown(window)}")
    if (raise_ is None) != (to is None):
        raise OptionError(f"{RAISE_ABOVE!r} and {RAISE_TO!r} must be given together")
    if stop is None and raise_ is None:
        raise OptionError(f"{STOP_WINDOW!r} is given without {STOP_ABOVE!r} or {RAISE_ABOVE!r}")
    if any(value is not None and value < 0 for value in (stop, raise_)):
        raise OptionError(f"{STOP_ABOVE!r} and {RAISE_ABOVE!r} must be >= 0, as regulators are")
    return Verdict(stop, raise_, to, window)


def _number(extra_args: Mapping[str, Json], key: str) -> float | None:
    value = extra_args.get(key)
    if key not in extra_args:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 1e6:
        raise StrengthError(f"{key!r} must be a number, at most 1e+06, got {shown(value)}")
    return float(value)


class Watched:
    """A request that is judged: what it asks for, and the values of its answer so far.

    sites: number of sites per Steering. values: per Steering, one per token of the answer. raised: per Steering, the
    token of the request from which the strength is raised, or None.
    """

    def __init__(self, request: str, verdict: Verdict, sites: Sequence[int], prompt: int) -> None:
        self.request, self.verdict, self.sites, self.prompt = request, verdict, tuple(sites), prompt
        self.values: list[list[float]] = [[] for _ in sites]
        self.raised: list[int | None] = [None] * len(self.sites)

    def take(self, act: int, values: Sequence[float], first: int) -> bool:
        """Take one Steering's values for the tokens from `first` on; return whether one of them stops the request."""
        known, verdict, stops = self.values[act], self.verdict, False
        for position, value in enumerate(values, first):
            if position - self.prompt != len(known):  # tokens of the prompt, or read again
                continue
            known.append(value)
            if len(known) < verdict.window:
                continue
            mean = sum(known[-verdict.window :]) / verdict.window
            stops = stops or (verdict.stop_above is not None and mean > verdict.stop_above)
            if verdict.raise_above is not None and mean > verdict.raise_above and self.raised[act] is None:
                self.raised[act] = position + 1
        return stops


class Verdicts:
    """The requests that are judged, between the steps of the engine."""

    def __init__(self, tokens: TokenBuffers) -> None:
        self._tokens = tokens
        self._known: dict[str, Watched] = {}
        self._step: list[tuple[Watched, int, int, int]] = []  # first place in the buffers, places, earlier tokens
        self._stopped: set[str] = set()

    def watch(self, request: str, asked: Sequence[Any], sites: Sequence[int], prompt: int) -> Watched:
        """Return a judged request, the known one if it has begun; asked: the fields of `Verdict`."""
        known = self._known.get(request)
        if known is None:
            known = self._known[request] = Watched(request, Verdict(*asked), sites, prompt)
            while len(self._known) > MOST:
                del self._known[next(iter(self._known))]
        return known

    def begin(self, requests: Sequence[Watched | None], counts: Any, computed: Any) -> None:
        """Prepare a step with filled buffers: tokens with a raised strength get it."""
        self._step, self._stopped, start = [], set(), 0
        for request, count, before in zip(requests, counts.tolist(), computed.tolist(), strict=True):
            if request is not None:
                self._step.append((request, start, count, before))
                for act, raised in enumerate(request.raised):
                    strength = request.verdict.raise_to
                    if raised is not None and strength is not None and raised < before + count:
                        first = start + max(0, raised - before)
                        self._tokens.strengths[act, first : start + count] = strength
            start += count

    def settle(self) -> None:
        """Judge the last step, unless it is judged already or no request asks for it."""
        for request, start, count, before in self._step:
            rows = self._tokens.values[: len(request.sites), start : start + count].tolist()
            stops = [
                request.take(act, [value / sites for value in values], before)
                for act, (values, sites) in enumerate(zip(rows, request.sites, strict=True))
            ]
            if any(stops):
                self._stopped.add(request.request)
        self._step = []

    def judged(self, output: Foreign) -> Foreign:
        """Return the sampled tokens of a step, with the stop token in place of those of stopped requests."""
        self.settle()
        stopped = self._stopped
        if not stopped or output is None:
            return output
        if hasattr(output, "get_output"):
            given = output.get_output
            output.get_output = lambda: _stopping(given(), stopped)
            return output
        return _stopping(output, stopped)


def _stopping(output: Foreign, stopped: set[str]) -> Foreign:
    for number, request in enumerate(output.req_ids):
        if request in stopped and number < len(output.sampled_token_ids) and len(output.sampled_token_ids[number]):
            output.sampled_token_ids[number] = [STOP_TOKEN]
    return output


def without_stop_token(output: Foreign) -> None:
    """Remove the stop token from the engine's output for a request, in place, and set why it stopped."""
    if output.stop_reason == STOP_TOKEN:
        output.new_token_ids = [token for token in output.new_token_ids if token != STOP_TOKEN]
        output.stop_reason = STOPPED
        if output.new_logprobs is not None:
            output.new_logprobs = output.new_logprobs.slice_request(0, len(output.new_token_ids))
