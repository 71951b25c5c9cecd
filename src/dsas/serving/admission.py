"""Admission: every request is checked where it enters vLLM, in the process of the front end, before any engine sees it.

Where a request asks how strongly it was steered, the answer comes with the last of its output, in the one field of
vLLM's answers that is free for other systems' words: `kv_transfer_params`.

`activate` wraps `InputProcessor.process_inputs`, which every way in goes through: the HTTP server, `LLM`, n > 1. A
request that names what is not there is refused as vLLM refuses its own bad parameters, with HTTP 400, and the server
lives on; what passes is resolved to digests and its prefix cache is salted, and
counted on vLLM's Prometheus endpoint (`dsas_requests_total`). vLLM loads general plugins (the entry point
`dsas`) in all its processes, so nobody has to call this.

vLLM offers a hook for the check alone, `LogitsProcessor.validate_params`; it is a class method that is told nothing of
the configuration, and it cannot salt, so one place does both.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from dsas.errors import DsasError
from dsas.model.foreign import Foreign, Given
from dsas.serving.config import ServingConfig
from dsas.serving.reports import combined
from dsas.serving.requests import REPORT, REPORTED, RESOLVED, acting, named, resolve, salt, wants_report


def activate() -> None:
    """Check the requests of this process from now on; doing so twice is harmless."""
    from prometheus_client import Counter  # pyright: ignore[reportMissingImports]
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
    from vllm.exceptions import VLLMValidationError  # pyright: ignore[reportMissingImports]
    from vllm.v1.engine.async_llm import AsyncLLM  # pyright: ignore[reportMissingImports]
    from vllm.v1.engine.input_processor import InputProcessor  # pyright: ignore[reportMissingImports]

    original = InputProcessor.process_inputs
    if original.__module__ == __name__:
        return
    counter = Counter("dsas_requests", "Requests that were let in, by the Steering that they name", ["steering"])

    def process_inputs(
        self: Any, request_id: str, prompt: Any, params: Foreign, *args: Given, **kwargs: Given
    ) -> Foreign:
        config = ServingConfig.of(self.vllm_config.additional_config)
        if config is None or not isinstance(params, SamplingParams):
            return original(self, request_id, prompt, params, *args, **kwargs)
        try:
            asked = resolve(params.extra_args, config.entries(), config.together, reports=config.reports)
        except DsasError as error:
            raise VLLMValidationError(str(error)) from error
        for name in named(params.extra_args):
            counter.labels(name).inc()
        request = original(self, request_id, prompt, params, *args, **kwargs)
        if params.extra_args:
            own = request.sampling_params
            own.extra_args = {**own.extra_args, RESOLVED: [tuple(one) for one in asked]}
            if wants_report(params.extra_args):
                own.extra_args[REPORTED] = [request_id, *acting(params.extra_args, config.entries())]
            request.cache_salt = salt(asked, request.cache_salt)
        return request

    InputProcessor.process_inputs = process_inputs
    generate = AsyncLLM.generate

    def reporting(
        self: Any, prompt: Any, sampling_params: Foreign, request_id: str, *args: Given, **kwargs: Given
    ) -> Foreign:
        outputs = generate(self, prompt, sampling_params, request_id, *args, **kwargs)
        if not wants_report(getattr(sampling_params, "extra_args", None)):
            return outputs
        return _with_report(self, outputs, request_id, named(sampling_params.extra_args))

    AsyncLLM.generate = reporting


async def _with_report(client: Foreign, outputs: Any, request_id: str, names: list[str]) -> AsyncIterator[Foreign]:
    async with aclosing(outputs):
        async for output in outputs:
            if output.finished:
                reports = await client.collective_rpc("dsas_report", args=(request_id,))
                report = {REPORT: combined(reports, names)}
                output.kv_transfer_params = {**(output.kv_transfer_params or {}), **report}
            yield output
