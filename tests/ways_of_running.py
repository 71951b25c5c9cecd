"""Ways of running a steered model: each yields the rows that it made, to be compared with the row run alone at once.

`WAYS` holds them by name. A way is given `use`: `use(model)` is the steering under test, applied to that model.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from inspect import signature
from itertools import chain
from typing import Any, NamedTuple

import pytest
import torch
from reference import Spans
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList
from transformers.generation.configuration_utils import ContinuousBatchingConfig

import dsas
from dsas.testing import tiny_model

NEW = 7  # tokens that are generated
STRENGTH = 0.8
LENGTHS = (9, 4, 6)


class Row(NamedTuple):
    """One text, what was recorded of it, and what the model answered.

    ids: (token,), real tokens only, the one generated last included. prompts: the columns of each turn's prompt.
    logits: (place, vocabulary), after the tokens at `first` and following. trace: None where nothing is to be recorded;
    of it, the row `number` (None: the one with these tokens) covers at least the tokens from `start` to before `stop`.
    """

    ids: Tensor
    prompts: Spans
    logits: Tensor
    first: int
    trace: dsas.Trace | None
    start: int = 0
    stop: int = 0
    number: int | None = 0
    strength: float = STRENGTH


Rows = Iterator[Row]
Use = Callable[..., Any]
WAYS: dict[str, Callable[[Use], Rows]] = {}


def way(function: Callable[..., Rows]) -> Callable[..., Rows]:
    WAYS[function.__name__] = function
    return function


@cache
def model_of(family: str, **options: Any) -> Any:
    """Return a tiny model in float64: of a family of dsas.testing, or one that is recurrent, in whole or in part."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if family in dsas.testing.FAMILIES:
        return tiny_model(family, eos_token_id=None, **options).double()
    narrow = {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 3, "eos_token_id": None}
    wide = {"initializer_range": 0.2, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4}
    attention = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
    state = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 4}
    sizes = {
        "rwkv": {"context_length": 64},
        "falcon_h1": {**attention, **state, "mamba_d_ssm": 64, "initializer_range": 0.2},
        "bamba": {**attention, **state, "attn_layer_indices": [1], "initializer_range": 0.2},
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **narrow, **sizes.get(family, wide))
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()


# How ContinuousBatchingConfig calls the tokens of a block; transformers 5.6 has the other name.
PAGE = "page_size" if "page_size" in signature(ContinuousBatchingConfig).parameters else "block_size"


def words(seed: int, count: int) -> list[int]:
    """Return so many token ids, drawn with this seed."""
    return torch.randint(1, 256, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def generated(model: Any, ids: list[int], **options: Any) -> Any:
    return generated_batch(model, [ids], **options)


def generated_batch(model: Any, texts: Sequence[list[int]], **options: Any) -> Any:
    """Continue texts, padded on the left, and return what generate() says of itself."""
    longest = max(map(len, texts))
    ids = torch.tensor([[0] * (longest - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
    settings = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    answers = {"return_dict_in_generate": True, "output_logits": True}
    return model.generate(ids, attention_mask=mask, **settings, **answers, **options)


def rows_of(output: Any, trace: dsas.Trace, lengths: Sequence[int], prompts: Spans = ()) -> Rows:
    """Return the rows of a generate() over a left-padded batch; prompts: where the row is not one turn."""
    logits = torch.stack(output.logits, 1)
    for number, length in enumerate(lengths):
        ids = output.sequences[number, max(lengths) - length :]
        spans = prompts or [(0, length)]
        yield Row(ids, spans, logits[number], length - 1, trace, 0, len(ids) - 1, number)


@torch.no_grad()
def run(model: Any, tokens: list[int], cache: Any) -> Tensor:
    """Run tokens of one row in one pass over a cache and return the logits (token, vocabulary)."""
    return model(input_ids=torch.tensor([tokens]), past_key_values=cache, use_cache=True).logits[0]


def steps(model: Any, tokens: list[int], cache: Any) -> Tensor:
    return torch.cat([run(model, [token], cache) for token in tokens])


def by_hand(ids: list[int], prompts: Spans, logits: Tensor, trace: dsas.Trace, number: int = 0) -> Row:
    """Return the row of a loop by hand: all its tokens ran, and `logits` are those of the last of them."""
    return Row(torch.tensor(ids), prompts, logits, len(ids) - len(logits), trace, 0, len(ids), number)


def in_batch(family: str, use: Use, sizes: dict[str, Any] | None = None, **options: Any) -> Rows:
    """Continue a batch of texts of different lengths, with these options of generate()."""
    model = model_of(family, **sizes or {})
    with use(model) as applied:
        output = generated_batch(model, [words(20 + length, length) for length in LENGTHS], **options)
        yield from rows_of(output, applied.trace(), LENGTHS)


def alone(family: str, use: Use, ids: Sequence[int] = (), sizes: dict[str, Any] | None = None, **options: Any) -> Rows:
    """Continue one text, with these options of generate()."""
    model, ids = model_of(family, **sizes or {}), list(ids) or words(137, 9)
    with use(model) as applied:
        yield from rows_of(generated(model, ids, **options), applied.trace(), [len(ids)])


_WINDOW = {"sliding_window": 6}
WAYS |= {
    "plain": partial(in_batch, "llama"),
    "without_cache": partial(in_batch, "llama", use_cache=False),
    "chunked_prefill": partial(alone, "llama", prefill_chunk_size=4),  # the last chunk has one token
    "static_cache": partial(alone, "llama", cache_implementation="static"),
    "static_cache_with_padding": partial(in_batch, "llama", cache_implementation="static"),
    "sliding_window": partial(alone, "mistral", sizes=_WINDOW),
    "sliding_window_with_padding": partial(in_batch, "mistral", sizes=_WINDOW),
    "sliding_and_full_layers_with_padding": partial(in_batch, "gemma3", sizes={**_WINDOW, "sliding_window_pattern": 2}),
    "mamba": partial(in_batch, "mamba"),
    "mamba2": partial(in_batch, "mamba2"),
    "rwkv": partial(alone, "rwkv"),
    "hybrid_in_every_layer": partial(in_batch, "falcon_h1"),
    "hybrid_of_layers": partial(in_batch, "bamba"),
}


def _continued(model: Any, prefix: list[int], cache: Any, applied: Any) -> Rows:
    for seed, count in ((5, 6), (231, 2)):
        full = prefix + words(seed, count)
        output = generated(model, full, past_key_values=copy.deepcopy(cache))
        yield from rows_of(output, applied.trace(), [len(full)])


@way
def cached_prefix(use: Use) -> Rows:
    model, prefix, cache = model_of("llama"), words(4, 7), DynamicCache()
    with use(model) as applied:
        run(model, prefix, cache)
        yield from _continued(model, prefix, cache, applied)


@way
def cached_prefix_of_an_earlier_apply(use: Use) -> Rows:
    model, prefix, cache = model_of("llama"), words(4, 7), DynamicCache()
    with use(model):
        run(model, prefix, cache)
    with use(model) as applied:
        for row in _continued(model, prefix, cache, applied):
            yield row._replace(start=len(prefix))  # what the earlier apply recorded may be left to it


@way
def turns(use: Use) -> Rows:
    """The token generated last is not in the cache yet: the next turn's prompt begins with it."""
    model, cache, ids, prompts = model_of("llama"), DynamicCache(), [], []
    with use(model) as applied:
        for seed, count in ((7, 8), (8, 5), (9, 3)):
            prompts.append((max(0, len(ids) - 1), len(ids) + count))
            output = generated(model, ids + words(seed, count), past_key_values=cache)
            yield from rows_of(output, applied.trace(), [len(ids) + count], list(prompts))
            ids = output.sequences[0].tolist()


@way
def turns_by_hand(use: Use) -> Rows:
    model, cache, ids, prompts, logits = model_of("llama"), DynamicCache(), [], [], []
    with use(model) as applied:
        for seed, count in ((10, 6), (11, 4), (12, 3)):
            prompts.append((len(ids), len(ids) + count))
            ids += words(seed, count + 5)
            logits += [run(model, ids[-count - 5 : -5], cache), steps(model, ids[-5:], cache)]
            yield by_hand(list(ids), list(prompts), torch.cat(logits), applied.trace())


def _in_turn(use: Use, model: Any, name: str) -> Rows:
    """Step two sequences in turn, each over a state of its own, which the model takes and gives under this name."""
    texts, prompts = [words(13, 14), words(14, 9)], (8, 3)
    states, logits = [None, None], ([], [])
    with use(model) as applied, torch.no_grad():
        for place in range(7):
            for one, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
                tokens = text[prompt + place - 1 : prompt + place] if place else text[:prompt]
                output = model(input_ids=torch.tensor([tokens]), use_cache=True, **{name: states[one]})
                states[one] = getattr(output, name)
                logits[one].append(output.logits[0])
                yield by_hand(text[: prompt + place], [(0, prompt)], torch.cat(logits[one]), applied.trace())


@way
def two_caches_in_turn(use: Use) -> Rows:
    yield from _in_turn(use, model_of("llama"), "past_key_values")


@way
def two_states_of_mamba_in_turn(use: Use) -> Rows:
    yield from _in_turn(use, model_of("mamba"), "cache_params")


@way
def two_states_of_rwkv_in_turn(use: Use) -> Rows:
    yield from _in_turn(use, model_of("rwkv"), "state")


def _cropped(use: Use, kept: int, following: list[int], single: list[int], prompts: Spans) -> Rows:
    """Read a prompt of 8 and 4 tokens more, go back to `kept` tokens, and go on with others."""
    model, cache, ids = model_of("llama"), DynamicCache(), words(15, 12)
    with use(model) as applied:
        run(model, ids[:8], cache)
        steps(model, ids[8:], cache)
        cache.crop(kept - 12)
        logits = [run(model, following, cache)] if following else []
        logits.append(steps(model, single, cache))
        yield by_hand(ids[:kept] + following + single, prompts, torch.cat(logits), applied.trace())


@way
def crop_to_the_end_of_the_prompt(use: Use) -> Rows:
    yield from _cropped(use, 8, [], words(73, 6), [(0, 8)])


@way
def crop_to_the_end_of_the_prompt_and_lengthen_it(use: Use) -> Rows:
    yield from _cropped(use, 8, words(17, 3), words(73, 6), [(0, 11)])


@way
def crop_into_the_prompt(use: Use) -> Rows:
    yield from _cropped(use, 5, words(17, 4), words(73, 6), [(0, 9)])


@way
def crop_among_generated_tokens(use: Use) -> Rows:
    yield from _cropped(use, 10, [], words(73, 6), [(0, 8)])


@way
def crop_among_generated_tokens_to_a_new_turn(use: Use) -> Rows:
    yield from _cropped(use, 10, words(17, 4), words(73, 6), [(0, 8), (10, 14)])


@way
def beams(use: Use) -> Rows:
    """Read before the last token is chosen: after it, generate() reorders the cache once more, by scores that tie."""
    model, ids, traces, places = model_of("llama"), words(18, 9), [], torch.arange(NEW)

    def keep(_ids: Tensor, scores: Tensor) -> Tensor:
        traces.append(applied.trace())
        return scores

    options = {"num_beams": 3, "num_return_sequences": 3, "logits_processor": LogitsProcessorList([keep])}
    with use(model) as applied:
        output = generated(model, ids, **options)
    every = torch.stack(output.logits, 1)
    for row, origin in zip(output.sequences, output.beam_indices, strict=True):
        yield Row(row, [(0, 9)], every[origin, places], 8, traces[-1], 0, len(row) - 1, int(origin[-1]))


@way
def batch_by_hand(use: Use) -> Rows:
    """Three rows are made of one, one of them is dropped, and the others change places."""
    model, cache, prompt = model_of("llama"), DynamicCache(), words(19, 8)
    texts = [prompt + words(seed, 6) for seed in (20, 21, 22)]
    with use(model) as applied, torch.no_grad():
        run(model, prompt, cache)
        cache.batch_repeat_interleave(3)
        for place in range(8, 11):
            model(torch.tensor([text[place : place + 1] for text in texts]), past_key_values=cache, use_cache=True)
        cache.batch_select_indices(torch.tensor([2, 0]))
        texts, logits = [texts[2], texts[0]], []
        for place in range(11, 14):
            now = torch.tensor([text[place : place + 1] for text in texts])
            logits.append(model(now, past_key_values=cache, use_cache=True).logits)
        for number, text in enumerate(texts):
            yield by_hand(text, [(0, 8)], torch.cat(logits, 1)[number], applied.trace(), number)


_DRAFT = {"num_assistant_tokens": 4, "num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}


@way
def assisted(use: Use) -> Rows:
    """The assistant is the unsteered model, so that some of its tokens are taken."""
    assistant = copy.deepcopy(model_of("llama"))
    assistant.generation_config.update(**_DRAFT)
    yield from alone("llama", use, assistant_model=assistant)


@way
def assisted_by_another_model(use: Use) -> Rows:
    assistant = model_of("llama", seed=5)
    assistant.generation_config.update(**_DRAFT)
    yield from alone("llama", use, assistant_model=assistant)


@way
def early_exit(use: Use) -> Rows:
    model_of("llama", layers=4).generation_config.update(**_DRAFT)
    yield from alone("llama", use, sizes={"layers": 4}, assistant_early_exit=3)


@way
def prompt_lookup(use: Use) -> Rows:
    """Only tokens of the prompt may be generated, so that nearly every pass has a draft."""
    ids, options = words(57, 6) * 2, {"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 1}
    never = {"eos_token_id": -1}  # transformers 5.6 cannot do without one here
    yield from alone("llama", use, ids, suppress_tokens=[*{*range(257)} - {*ids}], **never, **options)


def _batched(use: Use, texts: Sequence[list[int]], shared: int = 0, **options: Any) -> Rows:
    """Continue texts by continuous batching; the trace has the requests of the last pass only, in any order.

    shared: how many tokens at the beginning of all of them are run for the first one alone.
    """
    model, last = model_of("llama", seed=0), []  # one of its own, as generate_batch() changes its attention meanwhile
    settings = {"num_blocks": 64, "max_batch_tokens": 128, "use_cuda_graph": False, PAGE: 8, **options}
    unknown = settings.keys() - signature(ContinuousBatchingConfig).parameters
    if unknown:
        pytest.skip(f"this transformers has no {', '.join(unknown)}")
    greedy = GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=-1)
    paged = ContinuousBatchingConfig(**settings)
    with use(model) as applied:
        look = model.model.register_forward_pre_hook(
            lambda _m, _a, given: last.append((given["position_ids"][0], given["input_ids"][0])), with_kwargs=True
        )
        found = model.generate_batch([*texts], generation_config=greedy, continuous_batching_config=paged)
        look.remove()
        in_last = list(zip(*(value.tolist() for value in last[-1]), strict=True))
        for text, request in zip(texts, found.values(), strict=True):
            ids = torch.tensor(text + request.generated_tokens)
            ran, tokens_only = len(ids) - 1, torch.full((NEW, 257), float("nan"))
            trace = applied.trace() if (ran - 1, int(ids[-2])) in in_last else None
            yield Row(ids, [(0, len(text))], tokens_only, len(text) - 1, trace, shared, ran, None)


@way
def continuous_batching(use: Use) -> Rows:
    yield from _batched(use, [words(66, 9), words(67, 2), words(68, 5)])


@way
def continuous_batching_in_small_passes(use: Use) -> Rows:
    """No pass takes more than 6 tokens, so that prompts come in pieces beside the tokens of other requests."""
    yield from _batched(use, [words(66, 3), words(67, 8), words(68, 4)], max_batch_tokens=6)


@way
def continuous_batching_over_a_shared_prefix(use: Use, **options: Any) -> Rows:
    """One request comes after another, and the pages of their common beginning are filled once."""
    texts = [words(33, 8) + words(seed, count) for seed, count in ((31, 3), (32, 2), (33, 5))]
    yield from _batched(use, texts, 8, **{PAGE: 4}, max_requests_per_batch=1, **options)


def _packed(use: Use, rows: Sequence[Sequence[int]], named: Callable[..., Any], **options: Any) -> Rows:
    """Run texts of these lengths, several side by side in every row, in one pass without an attention mask."""
    model, texts = model_of("llama"), [[words(87 + length, length) for length in lengths] for lengths in rows]
    ids = torch.tensor([[*chain.from_iterable(row)] for row in texts])
    with use(model, **options) as applied, torch.no_grad():
        logits = model(input_ids=ids, use_cache=False, **named(texts, ids)).logits
    prompts, strengths = options["prompt_tokens"], options.get("strength")
    number = 0
    for row, found in zip(texts, logits, strict=True):
        for text, part in zip(row, found.split([len(text) for text in row]), strict=True):
            prompt = prompts if isinstance(prompts, int) else prompts[number]
            one = by_hand(text, [(0, min(prompt, len(text)))], part, applied.trace(), number)
            yield one if strengths is None else one._replace(strength=strengths[number])
            number += 1


def _anew(texts: Any, _ids: Tensor) -> dict[str, Any]:
    return {"position_ids": torch.tensor([[i for text in row for i in range(len(text))] for row in texts])}


def _bounds(texts: Any, ids: Tensor) -> dict[str, Any]:
    ends = torch.tensor([0, *(len(text) for text in texts[0])]).cumsum(0).int()
    number = torch.bucketize(torch.arange(ids.shape[1]), ends[1:], right=True)
    mask = (number[:, None] == number) & torch.ones(len(number), len(number), dtype=torch.bool).tril()
    return {"attention_mask": mask[None, None], "cu_seq_lens_q": ends, "cu_seq_lens_k": ends}


@way
def packed(use: Use) -> Rows:
    yield from _packed(use, [(9, 4, 1, 6)], _anew, prompt_tokens=4)


@way
def packed_rows_in_a_batch(use: Use) -> Rows:
    options = {"prompt_tokens": [5, 3, 2, 4, 6], "strength": [0.8, 0.4, 0.6, 0.5, 0.7]}
    yield from _packed(use, [(9, 4), (3, 2, 8)], _anew, **options)


@way
def packed_rows_told_by_cu_seq_lens(use: Use) -> Rows:
    yield from _packed(use, [(9, 4, 1, 6)], _bounds, prompt_tokens=4)


def _guided(use: Use, branch: str) -> Rows:
    """Scores are 1.5 (c - u) + u of both branches' log-probabilities, so that u can be had from them and c."""
    model, ids, negative = model_of("llama"), words(26, 8), words(27, 5)
    with use(model, branch=branch) as applied:
        output = generated(
            model, ids, guidance_scale=1.5, negative_prompt_ids=torch.tensor([negative]), output_scores=True
        )
        trace = applied.trace()
    c = torch.stack(output.logits, 1)[0].double().log_softmax(-1)
    u = (1.5 * c - torch.stack(output.scores, 1)[0]) / 0.5
    conditional = output.sequences[0]
    unconditional = torch.cat([torch.tensor(negative), conditional[8:]])
    of_c, of_u = (trace if branch == "conditional" else None), (None if branch == "conditional" else trace)
    on_c, on_u = (0.0 if branch == "unconditional" else STRENGTH), (0.0 if branch == "conditional" else STRENGTH)
    yield Row(conditional, [(0, 8)], c, 7, of_c, 0, len(conditional) - 1, strength=on_c)
    yield Row(unconditional, [(0, 5)], u, 4, of_u, 0, len(unconditional) - 1, strength=on_u)


@way
def guidance_of_the_conditional_branch(use: Use) -> Rows:
    yield from _guided(use, "conditional")


@way
def guidance_of_the_unconditional_branch(use: Use) -> Rows:
    yield from _guided(use, "unconditional")


@way
def guidance_of_both_branches(use: Use) -> Rows:
    """The last pass is the unconditional one, so that the trace is of it."""
    yield from _guided(use, "both")
