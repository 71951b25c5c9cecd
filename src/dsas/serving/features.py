"""Features: what of vLLM's configuration steering lives with, what it refuses, and what it has to know of it."""

from dsas.errors import OptionError
from dsas.model.foreign import Foreign


def refuse_untried(vllm_config: Foreign) -> None:
    """Raise OptionError for features of vLLM under which a token's place in the buffers would be another."""
    parallel, cache = vllm_config.parallel_config, vllm_config.cache_config
    untried = {
        "speculative decoding": vllm_config.speculative_config is not None,
        "overlap of parts of a batch": getattr(parallel, "use_ubatching", False),
        "prefill context parallelism": getattr(parallel, "prefill_context_parallel_size", 1) > 1,
        "sequence parallelism": getattr(parallel, "enable_hc_sp", False),
        "KV-sharing fast prefill": getattr(cache, "kv_sharing_fast_prefill", False),
    }
    for what, used in untried.items():
        if used:
            raise OptionError(f"{what} cannot be combined with steering: leave it out")


def refuse_backend(model: Foreign) -> None:
    """Raise OptionError for a model that vLLM serves by transformers' own classes, whose layers it changes.

    Measured on OLMo 2: steered requests get other tokens than in transformers, unsteered ones the same.
    """
    kind = type(model).__name__
    if kind.startswith("Transformers"):
        raise OptionError(
            f"vLLM serves this model by transformers' own classes ({kind}), where steering was found to differ from "
            "the reference: serve a model that vLLM has classes of its own for"
        )


def refuse_moved_blocks(vllm_config: Foreign, regulator: str = "evidence") -> None:
    """Raise OptionError for features of vLLM under which blocks of the KV cache come without their sums."""
    moving = {
        "a KV connector": vllm_config.kv_transfer_config is not None,
        "decode context parallelism": getattr(vllm_config.parallel_config, "decode_context_parallel_size", 1) > 1,
    }
    for what, used in moving.items():
        if used:
            raise OptionError(
                f"{what} cannot be combined with the regulator {regulator!r}, whose sums stay where the blocks of the "
                "KV cache were read: leave it out, or fit 'probe'"
            )


def ids_hidden(runner: Foreign, vllm_config: Foreign) -> str:
    """Return why the numbers of tokens are not known here before a step, empty where they are."""
    if hasattr(runner, "model_state"):
        return "the second generation of vLLM's model runners keeps those on the device"
    if getattr(vllm_config.scheduler_config, "async_scheduling", False):
        return "vLLM schedules steps before those are known: start it with --no-async-scheduling"
    if getattr(vllm_config.model_config, "enable_prompt_embeds", False):
        return "prompts may come as embeddings: leave --enable-prompt-embeds out"
    return ""


def most_tokens(vllm_config: Foreign) -> int:
    """Return how many tokens a step of the engine may have, those that graphs of fixed sizes read too included."""
    graphs = getattr(vllm_config.compilation_config, "max_cudagraph_capture_size", None) or 0
    return max(vllm_config.scheduler_config.max_num_batched_tokens, graphs)
