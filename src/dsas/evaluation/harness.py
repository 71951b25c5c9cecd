"""Harness: a steered model for lm-evaluation-harness, so that any of its tasks can be run on it.

    import lm_eval
    results = lm_eval.simple_evaluate(model=steered_lm(model, tokenizer, steering, 0.5), tasks=["mmlu"])

It is lm-eval's own model class for transformers, whose three kinds of request (`loglikelihood`,
`loglikelihood_rolling`, `generate_until`) run while the Steering is applied; between them the model is as it was.
Batches, padding and caches are lm-eval's. It pads likelihood requests on the right without an attention mask, which
changes nothing: a token is steered by what came before it. At strength 0 everything is as in the plain class.

`dsas.evaluation.lm_eval_model` puts the class into lm-eval's registry, to be loaded by name.

Limitations: one process.

Source: lm-eval 0.4.9 or later, `lm_eval.models.huggingface.HFLM`; needs the extra `lm-eval`.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dsas.errors import MissingExtraError, OptionError
from dsas.evaluation.named_steering import named_options, named_steering
from dsas.model.evaluation_mode import evaluation_mode
from dsas.model.foreign import Foreign
from dsas.model.only_numbers import OnlyNumbers, check_numbers
from dsas.parallel.foreign_imports import unnoticed
from dsas.steering.composition import Composition
from dsas.steering.steering import Steering


def steered_lm(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    steering: Steering | Composition,
    strength: float | Sequence[float] = 1.0,
    *,
    batch_size: int = 8,
) -> Foreign:
    """Return an `HFLM` of lm-eval that is steered at every request; at a strength as in `apply`.

    The tokenizer is copied, since lm-eval gives it a padding token. The model stays on its device, and in its own mode
    between requests, which are answered in evaluation mode.
    Raises MissingExtraError without lm-eval, StrengthError, OptionError for `batch_size` < 1; ModelMismatchError at the
    first request.
    """
    kind = steered_class()
    if batch_size < 1:
        raise OptionError(f"expected a batch size of at least 1, got {batch_size}")
    with evaluation_mode(model):  # lm-eval asks for it only once
        return kind(model, steering, strength, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)


@cache
def steered_class() -> Callable[..., Foreign]:
    """Return the steered subclass of lm-eval's class for transformers. Raises MissingExtraError without lm-eval."""
    try:
        with unnoticed():
            from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise MissingExtraError("lm_eval", "lm-eval") from error
    base: Any = HFLM  # its decorator hides its type from type checkers

    class SteeredLM(base):
        """The model class of lm-eval, steered at every request."""

        def __init__(
            self, pretrained: Foreign, steering: Foreign = None, strength: Foreign = None, **options: Foreign
        ) -> None:
            """Take lm-eval's model, and Steerings and strengths as `named_steering` does."""
            self._steering, self._strength = named_steering(steering, strength, "steering=FOLDER")
            with named_options(options, inspect.signature(base.__init__).parameters):
                super().__init__(pretrained=pretrained, **options)

        def loglikelihood(self, requests: Foreign, disable_tqdm: bool = False) -> Foreign:
            """Return for each request the log-probability of its continuation, and whether it is the greedy one."""
            with self._steered():
                return _numbers(super().loglikelihood(requests, disable_tqdm), lambda found: found[0])

        def loglikelihood_rolling(self, requests: Foreign, disable_tqdm: bool = False) -> Foreign:
            """Return for each request the log-probability of its whole text."""
            with self._steered():
                return _numbers(super().loglikelihood_rolling(requests, disable_tqdm), lambda found: found)

        def generate_until(self, requests: Foreign, disable_tqdm: bool = False) -> Foreign:
            """Return for each request what the model writes up to a stop sequence."""
            with self._steered():
                return super().generate_until(requests, disable_tqdm)

        def _model_generate(self, *given: Foreign, **options: Foreign) -> Foreign:
            return super()._model_generate(*given, **options, logits_processor=[OnlyNumbers()])

        @contextmanager
        def _steered(self) -> Iterator[None]:
            with evaluation_mode(self.model), self._steering.apply(self.model, self._strength, record=False):
                yield

    return SteeredLM


def _numbers(results: list[Foreign], value: Callable[[Foreign], float]) -> list[Foreign]:
    """Return results as they came. Raises ActivationError where a log-probability is nan: the strength is too large."""
    check_numbers(torch.tensor([value(one) for one in results], dtype=torch.float32))
    return results
