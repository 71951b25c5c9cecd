"""Admission: every request is checked where it enters vLLM, in the process of the front end, before any engine sees it.

`activate` wraps `InputProcessor.process_inputs`, which every way in goes through: the HTTP server, `LLM`, n > 1. A
request that names what is not there is refused as vLLM refuses its own bad parameters, with HTTP 400, and the server
lives on; what passes is resolved to digests and its prefix cache is salted, and counted on vLLM's Prometheus endpoint
(`dsas_requests_total`). vLLM loads general plugins (the entry point `dsas`) in all its processes, so nobody has to call
this. What comes back is in `answers`.

Two ways in would leave steering out without a word, and are refused where they begin: keys of ours beside `vllm_xargs`
instead of in it, and beam search, which makes requests of its own that do not carry them.

vLLM offers a hook for the check alone, `LogitsProcessor.validate_params`; it is a class method that is told nothing of
the configuration, and it cannot salt, so one place does both.
"""

from typing import Any

from dsas.errors import DsasError, OptionError, shown
from dsas.model.foreign import Foreign, Given
from dsas.serving.answers import follow_answers
from dsas.serving.config import ServingConfig
from dsas.serving.requests import PREFIX, REPORTED, RESOLVED, acting, named, resolve, salt, with_default
from dsas.serving.verdicts import STOP_TOKEN, VERDICT, Verdict, verdict_of


def activate() -> None:
    """Check the requests of this process from now on; doing so twice is harmless."""
    from prometheus_client import Counter  # pyright: ignore[reportMissingImports]
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
    from vllm.exceptions import VLLMValidationError  # pyright: ignore[reportMissingImports]
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
        entries = config.entries()
        try:
            given = with_default(params.extra_args, config.default, entries)
            asked = resolve(given, entries, config.together, reports=config.reports)
            verdict = verdict_of(given)
            if verdict is not None:
                refuse_undecidable(verdict, params, self.vllm_config)
        except DsasError as error:
            raise VLLMValidationError(str(error)) from error
        for name in named(given):
            counter.labels(name).inc()
        request = original(self, request_id, prompt, params, *args, **kwargs)
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
    """Raise OptionError for what cannot be judged, or not be stopped, as a request asks."""
    if getattr(vllm_config.parallel_config, "pipeline_parallel_size", 1) > 1:
        raise OptionError("a pipeline stage sees its own sites alone: stop or raise without --pipeline-parallel-size")
    if verdict.stop_above is None:
        return
    if params.min_tokens:
        raise OptionError("'dsas_stop_above' and min_tokens contradict each other: give one of them")
    if params.structured_outputs is not None:
        raise OptionError("'dsas_stop_above' would cut an answer that has to follow a grammar or schema: leave one out")


def _refuse_unsteered(error: type[Exception]) -> None:
    """Refuse requests over HTTP whose steering would be left out without a word."""
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
    """Raise OptionError for keys of ours beside `vllm_xargs`, which vLLM would pass over."""
    found = [key for key in (request.model_extra or {}) if key.startswith(PREFIX)]
    if found:
        raise OptionError(f"{shown(found[0])} stands beside vllm_xargs: write it inside, {{'vllm_xargs': {{...}}}}")


def refuse_beams(request: Foreign) -> None:
    """Raise OptionError for a beam search that asks to be steered."""
    if any(key.startswith(PREFIX) for key in request.vllm_xargs or {}):
        raise OptionError(
            "beam search cannot be steered as asked: vLLM makes requests of its own for the beams; sample, or take n "
            "greedy answers at different strengths"
        )
