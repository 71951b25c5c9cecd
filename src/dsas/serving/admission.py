"""Admission: every request is checked where it enters vLLM, in the front end's process, before any engine sees it.

`activate` wraps `InputProcessor.process_inputs`, through which all requests pass: from the HTTP server, `LLM`, n > 1. A
request for an unknown Steering is refused like bad parameters of vLLM itself, with HTTP 400, and the server continues.
Names in an accepted request are resolved to digests, its prefix cache is salted, and it is counted on vLLM's Prometheus
endpoint (`dsas_requests_total`). vLLM loads general plugins (the entry point `dsas`) in all its processes, so nothing
else has to call this. Replies are handled in `answers`.

Two kinds of request would silently not be steered, and are refused at once: dsas keys next to `vllm_xargs` instead of
inside it, and beam search, which makes requests of its own without these keys.

vLLM's own hook for checks, `LogitsProcessor.validate_params`, is a class method that does not get the configuration and
cannot salt, so this module does both.
"""

from typing import Any

from dsas.errors import DsasError, OptionError, shown
from dsas.model.foreign import Foreign, Given
from dsas.serving.answers import follow_answers
from dsas.serving.config import ServingConfig
from dsas.serving.requests import PREFIX, REPORTED, RESOLVED, acting, named, resolve, salt, with_default
from dsas.serving.verdicts import STOP_TOKEN, VERDICT, Verdict, verdict_of


def activate() -> None:
    """Check the requests of this process from now on; calling it twice is harmless."""
    from prometheus_client import Counter  # pyright: ignore[reportMissingImports]
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
    from vllm.exceptions import VLLMValidationError  # pyright: ignore[reportMissingImports]
    from vllm.v1.engine.input_processor import InputProcessor  # pyright: ignore[reportMissingImports]

    original = InputProcessor.process_inputs
    if original.__module__ == __name__:
        return
    counter = Counter("dsas_requests", "Accepted requests, by the Steering that they name", ["steering"])

    def process_inputs(
        self: Any, request_id: str, prompt: Any, params: Foreign, *args: Given, **kwargs: Given
    ) -> Foreign:
        config = ServingConfig.of(self.vllm_config.additional_config)
        if config is None or not isinstance(params, SamplingParams):
            return original(self, request_id, prompt, params, *args, **kwargs)
        entries = config.entries()
        try:
            given = with_default(params.extra_args, config.default, entries)
            asked = resolve(given, entries, config.together, reports=config.reports)
            verdict = verdict_of(given)
            if verdict is not None:
                refuse_undecidable(verdict, params, self.vllm_config)
        except DsasError as error:
            raise VLLMValidationError(str(error)) from error
        request = original(self, request_id, prompt, params, *args, **kwargs)
        for name in named(given):
            counter.labels(name).inc()
        if given:
            own = request.sampling_params
            own.extra_args = {**(own.extra_args or {}), RESOLVED: [tuple(one) for one in asked]}
            whole = {source.digest for source in config.sources.values() if source.reads_prompts}
            if any(one.digest in whole for one in asked):
                own.skip_reading_prefix_cache = True
            names = acting(given, entries)
            if config.reports and names:
                own.extra_args[REPORTED] = [request_id, *names]
            if verdict is not None:
                own.extra_args[VERDICT] = list(verdict)
                if verdict.stop_above is not None:
                    own.stop_token_ids = [*(own.stop_token_ids or ()), STOP_TOKEN]
            raised = verdict is not None and verdict.raise_to is not None
            request.cache_salt = salt(asked, request.cache_salt, alone=request_id if raised else "")
        return request

    InputProcessor.process_inputs = process_inputs
    follow_answers()
    _refuse_unsteered(VLLMValidationError)


def refuse_undecidable(verdict: Verdict, params: Foreign, vllm_config: Foreign) -> None:
    """Raise OptionError for a request that cannot be judged or stopped as it asks."""
    if getattr(vllm_config.parallel_config, "pipeline_parallel_size", 1) > 1:
        raise OptionError("a pipeline stage sees only its own sites: stop or raise without --pipeline-parallel-size")
    if verdict.stop_above is None:
        return
    if params.min_tokens:
        raise OptionError("'dsas_stop_above' and min_tokens contradict each other: give one of them")
    if params.structured_outputs is not None:
        raise OptionError(
            "'dsas_stop_above' would cut an answer that must follow a grammar or schema: remove one of them"
        )


def _refuse_unsteered(error: type[Exception]) -> None:
    """Refuse requests over HTTP that would silently not be steered."""
    from vllm.entrypoints.openai.chat_completion.protocol import (  # pyright: ignore[reportMissingImports]
        ChatCompletionRequest,
    )
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest  # pyright: ignore[reportMissingImports]
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest  # pyright: ignore[reportMissingImports]

    for kind in (ChatCompletionRequest, CompletionRequest, ResponsesRequest):
        _check_before(kind, "to_sampling_params", misplaced, error)
        if hasattr(kind, "to_beam_search_params"):
            _check_before(kind, "to_beam_search_params", misplaced, error)
            _check_before(kind, "to_beam_search_params", refuse_beams, error)


def _check_before(kind: Any, name: str, check: Any, error: type[Exception]) -> None:
    original = getattr(kind, name)

    def checked(self: Any, *args: Given, **kwargs: Given) -> Foreign:
        try:
            check(self)
        except DsasError as problem:
            raise error(str(problem)) from problem
        return original(self, *args, **kwargs)

    setattr(kind, name, checked)


def misplaced(request: Foreign) -> None:
    """Raise OptionError for dsas keys next to `vllm_xargs`, which vLLM would ignore."""
    found = [key for key in (request.model_extra or {}) if key.startswith(PREFIX)]
    if found:
        raise OptionError(f"{shown(found[0])} is next to vllm_xargs: write it inside, {{'vllm_xargs': {{...}}}}")


def refuse_beams(request: Foreign) -> None:
    """Raise OptionError for a beam search that asks for steering."""
    if any(key.startswith(PREFIX) for key in request.vllm_xargs or {}):
        raise OptionError(
            "beam search cannot be steered: vLLM makes requests of its own for the beams; sample, or take n greedy "
            "answers at different strengths"
        )
