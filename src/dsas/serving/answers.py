"""Answers: what the front end's process adds to replies: reports, why requests stopped, and metrics.

A report comes with the end of an answer, in the one field of vLLM's replies that other systems may use:
`kv_transfer_params`. A server that keeps reports also counts their contents on vLLM's Prometheus endpoint:

    dsas_mean_strength{steering}        histogram over requests of the mean applied strength
    dsas_tokens_above_half{steering}    histogram over requests of the number of tokens with a regulator above 1/2
    dsas_stopped_total{steering}        answers that a verdict has stopped

The reports of requests that did not ask for one are read in batches, with one call to the workers at a time.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, NamedTuple

from dsas.errors import DsasError
from dsas.files.json_values import Json, JsonObject
from dsas.model.foreign import Foreign, Given
from dsas.serving.config import ServingConfig
from dsas.serving.reports import combined
from dsas.serving.requests import REPORT, RESOLVED, named, wants_report, with_default
from dsas.serving.verdicts import STOPPED, without_stop_token

STRENGTHS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
TOKENS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Meters(NamedTuple):
    """The metrics of Steerings on vLLM's Prometheus endpoint."""

    strengths: Any
    tokens: Any
    stopped: Any

    @classmethod
    def new(cls) -> "Meters":
        """Make them, once per process."""
        from prometheus_client import Counter, Histogram  # pyright: ignore[reportMissingImports]

        labels = ["steering"]
        return cls(
            Histogram("dsas_mean_strength", "Mean applied strength of a request", labels, buckets=STRENGTHS),
            Histogram("dsas_tokens_above_half", "Tokens with a regulator above 1/2", labels, buckets=TOKENS),
            Counter("dsas_stopped", "Answers that were stopped because of the regulator's values", labels),
        )

    def observe(self, report: JsonObject) -> None:
        """Count the contents of a report."""
        for name, strength in report["mean_strength"].items():
            self.strengths.labels(name).observe(abs(strength))
        for name, tokens in report.get("above_half", {}).items():
            self.tokens.labels(name).observe(tokens)


class Waiting:
    """Ended requests that did not ask for their reports, which are read in batches."""

    def __init__(self, meters: Meters) -> None:
        self.meters = meters
        self._ended: list[tuple[str, list[str]]] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, client: Foreign, request: str, names: list[str]) -> None:
        """Add a request that has ended; its report is read after those before it."""
        self._ended.append((request, names))
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._read(client))

    async def _read(self, client: Any) -> None:
        while self._ended:
            ended, self._ended = self._ended, []
            workers = await every_worker(client, "dsas_reports", [request for request, _ in ended])
            for number, (_, names) in enumerate(ended):
                found = [reports[number] for reports in workers if reports is not None]
                if any(report is not None for report in found):
                    self.meters.observe(combined(found, names))


class _Asked(NamedTuple):
    """A request: its id, the Steerings that it names, and whether it wants its report."""

    request: str
    names: list[str]
    report: bool


def follow_answers() -> None:
    """Add what is known of requests to the replies of this process."""
    from vllm.v1.engine.async_llm import AsyncLLM  # pyright: ignore[reportMissingImports]
    from vllm.v1.engine.output_processor import OutputProcessor  # pyright: ignore[reportMissingImports]

    waiting = Waiting(Meters.new())
    generate, process, add = AsyncLLM.generate, OutputProcessor.process_outputs, OutputProcessor.add_request

    def telling(
        self: Any, prompt: Any, sampling_params: Foreign, request_id: str, *args: Given, **kw: Given
    ) -> Foreign:
        outputs = generate(self, prompt, sampling_params, request_id, *args, **kw)
        config = ServingConfig.of(self.vllm_config.additional_config)
        if config is None or not config.reports or not hasattr(sampling_params, "extra_args"):
            return outputs
        try:
            given = with_default(sampling_params.extra_args, config.default, config.entries())
        except DsasError:
            return outputs  # admission refuses it, in the way of vLLM's own errors
        if not wants_report(given) and not named(given):
            return outputs
        return _reported(self, outputs, _Asked(request_id, named(given), wants_report(given)), waiting)

    def process_outputs(self: Any, outputs: Any, *args: Given, **kwargs: Given) -> Foreign:
        for output in outputs:
            without_stop_token(output)
        return process(self, outputs, *args, **kwargs)

    def add_request(self: Any, request: Foreign, *args: Given, **kwargs: Given) -> None:
        extra_args = getattr(request.sampling_params, "extra_args", None) or {}
        if RESOLVED in extra_args:
            if not hasattr(self, "dsas_digests"):
                self.dsas_digests = {}
            self.dsas_digests[request.request_id] = [digest for digest, _ in extra_args[RESOLVED]]
        add(self, request, *args, **kwargs)

    AsyncLLM.generate = telling
    OutputProcessor.process_outputs, OutputProcessor.add_request = process_outputs, add_request


async def _reported(client: Foreign, outputs: Any, asked: _Asked, waiting: Waiting) -> AsyncIterator[Foreign]:
    meters = waiting.meters
    async with aclosing(outputs):
        async for output in outputs:
            for one in output.outputs:
                if one.stop_reason == STOPPED and one.finish_reason is not None:
                    for name in asked.names:
                        meters.stopped.labels(name).inc()
            if output.finished and not asked.report:
                waiting.add(client, asked.request, asked.names)
            elif output.finished:
                reports = await every_worker(client, "dsas_report", asked.request)
                report = combined(reports, asked.names)
                if report["tokens"]:
                    meters.observe(report)
                output.kv_transfer_params = {**(output.kv_transfer_params or {}), REPORT: report}
            yield output


async def every_worker(client: Any, method: str, *args: Json) -> list[Any]:
    """Return what every worker of every engine of a server answers; vLLM's own call asks the first engine alone."""
    answers = await client.engine_core.call_utility_all_async("collective_rpc", method, None, args, None)
    return [answer for workers in answers for answer in workers]


def digests_in_use(output_processor: Foreign) -> list[str]:
    """Return the digests of the Steerings that unfinished requests of this process may still use."""
    known: dict[str, list[str]] = getattr(output_processor, "dsas_digests", {})
    for request in [request for request in known if request not in output_processor.request_states]:
        del known[request]
    return sorted({digest for digests in known.values() for digest in digests})
