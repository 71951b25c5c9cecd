"""Features: which features of vLLM steering supports or refuses, and what it needs to know about them."""

from dsas.errors import OptionError
from dsas.model.foreign import Foreign


def refuse_untried(vllm_config: Foreign) -> None:
    """Raise OptionError for features of vLLM that change a token's place in the buffers."""
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
            raise OptionError(f"{what} cannot be combined with steering: remove it")


def refuse_moved_blocks(vllm_config: Foreign, regulator: str = "evidence") -> None:
    """Raise OptionError for features of vLLM that move blocks of the KV cache without their sums."""
    moving = {
        "a KV connector": vllm_config.kv_transfer_config is not None,
        "decode context parallelism": getattr(vllm_config.parallel_config, "decode_context_parallel_size", 1) > 1,
    }
    for what, used in moving.items():
        if used:
            raise OptionError(
                f"{what} cannot be combined with the regulator {regulator!r}, whose sums are not moved with the "
                "blocks of the KV cache: remove it, or fit 'probe'"
            )


def ids_hidden(runner: Foreign, vllm_config: Foreign) -> str:
    """Return why token ids are unknown here before a step, or "" if they are known."""
    if hasattr(runner, "model_state"):
        return "the second generation of vLLM's model runners keeps them on the device"
    if getattr(vllm_config.scheduler_config, "async_scheduling", False):
        return "vLLM schedules steps before they are known: start it with --no-async-scheduling"
    if getattr(vllm_config.model_config, "enable_prompt_embeds", False):
        return "prompts may come as embeddings: remove --enable-prompt-embeds"
    return ""


def most_tokens(vllm_config: Foreign) -> int:
    """Return the largest number of tokens in a step of the engine, including those that graphs of fixed sizes add."""
    graphs = getattr(vllm_config.compilation_config, "max_cudagraph_capture_size", None) or 0
    return max(vllm_config.scheduler_config.max_num_batched_tokens, graphs)
