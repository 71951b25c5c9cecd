"""Generations: continuations sampled from a model, steered or not, several for every prompt.

The repetition penalty is that of CTRL (arXiv 1909.05858): the score of a token that the row has seen is divided by the
penalty, or multiplied by it when negative. Padding does not count as seen, as it would in transformers; otherwise a
prompt's text would depend on the longer prompts in its batch (where padding is the end-of-text token).

Limitations: no beams.

Source: sampling as in arXiv 2503.10679.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from dsas.errors import OptionError
from dsas.model.device_map import device_of
from dsas.model.evaluation_mode import evaluation_mode
from dsas.model.foreign import Foreign, Model
from dsas.model.only_numbers import OnlyNumbers
from dsas.model.token_batches import Batch, batches, greedy
from dsas.model.tokenizing import pad_token, tokenize
from dsas.model.wrappers import unwrapped


class Sampling(NamedTuple):
    """How to sample: everything that decides, besides the seed, which tokens are drawn.

    temperature: >= 0, where 0 is greedy. top_p: in (0, 1], the smallest set of tokens with that probability is drawn
    from; there is no top-k.
    repetition_penalty: > 0, 1 is none. new_tokens: >= 1, fewer where the model ends its text.
    batch_size: rows per call of the model; it belongs here since the rows of a batch share their random numbers.
    special_tokens: whether the tokenizer adds its own, as for raw text; chat templates bring theirs.
    """

    temperature: float = 1.0
    top_p: float = 0.3
    repetition_penalty: float = 1.2
    new_tokens: int = 32
    batch_size: int = 64
    special_tokens: bool = True


PUBLISHED = Sampling()
FIRST_SORTED = 128
ROWS_SUMMED = 8


def sample_continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    sampling: Sampling = PUBLISHED,
    progress: Callable[[int], None] | None = None,
    streamer: Foreign = None,
) -> list[list[str]]:
    """Return, for every seed, the continuations of `prompts` in their order, without the prompts.

    The same call gives the same texts; the random numbers of the process are left as they were.
    progress: called after each batch with the number of texts done so far, of len(seeds) * len(prompts).
    streamer: receives the tokens as transformers' generate() draws them, such as
    `dsas.explaining.token_stream.TokenStream`.
    Raises TextsError for no prompts or a prompt without tokens, OptionError for values out of range, ActivationError
    where the model's scores are not numbers, as at too large a strength.
    """
    _check(sampling, seeds)
    rows, fill = tokenize(tokenizer, prompts, special_tokens=sampling.special_tokens), pad_token(tokenizer)
    texts = [[""] * len(rows) for _ in seeds]
    done = 0
    with torch.no_grad(), evaluation_mode(model), torch.random.fork_rng(_cuda_devices()):
        for place, seed in enumerate(seeds):
            for number, batch in enumerate(batches(rows, sampling.batch_size, pad=fill, side="left")):
                torch.manual_seed(_seed_of(seed, number))
                drawn = _draw(model, batch, sampling, fill, streamer, check=True)
                for row, text in zip(batch.rows, tokenizer.batch_decode(drawn, skip_special_tokens=True), strict=True):
                    texts[place][row] = text
                done += len(batch.rows)
                if progress is not None:
                    progress(done)
    return texts


def sample_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    number: int,
    *,
    seed: int,
    sampling: Sampling = PUBLISHED,
) -> dict[int, str]:
    """Return the continuations of one batch of the prompts, keyed by the number of the prompt.

    They are those that `sample_continuations` gives for that seed, so several processes may share its work.
    number: which batch, below `batch_count`. Raises what `sample_continuations` raises.
    """
    _check(sampling, (seed,))
    rows, fill = tokenize(tokenizer, prompts, special_tokens=sampling.special_tokens), pad_token(tokenizer)
    batch = list(batches(rows, sampling.batch_size, pad=fill, side="left"))[number]
    with torch.no_grad(), evaluation_mode(model), torch.random.fork_rng(_cuda_devices()):
        torch.manual_seed(_seed_of(seed, number))
        drawn = _draw(model, batch, sampling, fill, None, check=False)  # sweeps measure such texts, too
    return dict(zip(batch.rows, tokenizer.batch_decode(drawn, skip_special_tokens=True), strict=True))


def batch_count(prompts: Sequence[str], sampling: Sampling) -> int:
    """Return how many batches the prompts make."""
    return math.ceil(len(prompts) / sampling.batch_size)


def _seed_of(seed: int, batch: int) -> int:
    return 1_000_003 * seed + batch


class _Draw(LogitsProcessor):
    """Repetition penalty, temperature, top-p and the draw in one step; the result is likely at one token only.

    It sorts the likeliest tokens, not the vocabulary, and draws among those: drawing from a large vocabulary, nearly
    all of it at probability 0, would take as long as the model itself. For the same reason it changes the scores in
    place and sums a few rows at a time: fresh memory for all of them is slow to touch.
    """

    def __init__(self, sampling: Sampling, prompt: Bool[Tensor, "batch token"]) -> None:
        self._sampling, self._prompt = sampling, prompt

    def __call__(self, input_ids: Int[Tensor, "batch seen"], scores: Float[Tensor, "batch vocabulary"]) -> Tensor:
        scores = self._penalised(input_ids, scores.float())
        if self._sampling.temperature == 0:
            return scores
        if self._sampling.temperature < 1:
            scores = scores - scores.amax(-1, keepdim=True)  # the largest is 0 then, which overflows at no temperature
        if self._sampling.temperature != 1:
            scores = scores / max(self._sampling.temperature, 1e-30)  # float32 holds that
        likeliest, shares = self._nucleus(scores)
        drawn = likeliest.gather(1, torch.multinomial(shares, 1))
        return scores.fill_(-torch.inf).scatter_(1, drawn, 0.0)

    def _nucleus(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return the likeliest tokens, enough to reach top_p in every row, and their shares, 0 outside top_p."""
        if self._sampling.top_p == 1:
            return torch.arange(scores.shape[1], device=scores.device).expand_as(scores), scores.softmax(-1)
        total = torch.cat([rows.logsumexp(-1, keepdim=True) for rows in scores.split(ROWS_SUMMED)])
        likeliest = FIRST_SORTED
        while True:
            top = scores.topk(min(likeliest, scores.shape[1]), dim=-1)
            share = (top.values - total).exp()
            reached = share.cumsum(-1)
            if likeliest >= scores.shape[1] or bool((reached[:, -1] >= self._sampling.top_p).all()):
                return top.indices, share.masked_fill(reached - share >= self._sampling.top_p, 0.0)
            likeliest *= 8

    def _penalised(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        penalty = self._sampling.repetition_penalty
        if penalty == 1:
            return scores
        real = pad(self._prompt, (0, input_ids.shape[1] - self._prompt.shape[1]), value=True)
        ids = torch.where(real, input_ids, input_ids[:, -1:])  # the last token is real in every row
        seen = scores.gather(1, ids)
        return scores.scatter_(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))


def _draw(
    model: Model, batch: Batch, sampling: Sampling, fill: int, streamer: Foreign, *, check: bool
) -> list[list[int]]:
    """Return the new tokens of each row up to its end of text; check: whether to check that scores are numbers."""
    model, mask = unwrapped(model), batch.mask.to(device_of(model))
    output = model.generate(
        batch.tokens.to(mask.device),
        attention_mask=mask.long(),
        generation_config=greedy(sampling.new_tokens, fill),  # the one token that `_Draw` left is the likeliest
        logits_processor=LogitsProcessorList([*[OnlyNumbers()] * check, _Draw(sampling, mask)]),
        streamer=streamer,
    )
    ends = model.generation_config.eos_token_id
    stops = ends if isinstance(ends, list) else [ends]
    rows = output[:, batch.tokens.shape[1] :].tolist()
    return [row[: next((i for i, token in enumerate(row) if token in stops), len(row))] for row in rows]


def _cuda_devices() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []


def _check(sampling: Sampling, seeds: Sequence[int]) -> None:
    if not seeds:
        raise OptionError("expected at least one seed, got none")
    bounds = {
        "temperature >= 0": sampling.temperature >= 0,
        "0 < top_p <= 1": 0 < sampling.top_p <= 1,
        "repetition_penalty > 0": sampling.repetition_penalty > 0,
        "new_tokens >= 1": sampling.new_tokens >= 1,
        "batch_size >= 1": sampling.batch_size >= 1,
        "seeds of at most 2**40": max(map(abs, seeds)) <= 2**40,  # those of batches are multiples, in 64 bits
    }
    broken = [bound for bound, holds in bounds.items() if not holds]
    if broken:
        raise OptionError(f"expected {', '.join(broken)}, got {sampling}")
