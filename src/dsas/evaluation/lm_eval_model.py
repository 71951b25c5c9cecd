"""lm-eval model: the model "dsas" in the registry of lm-evaluation-harness, loaded by name with a Steering.

    dsas lm-eval run --model dsas --model_args pretrained=./model,steering=detox,strength=0.2 --tasks hellaswag

The arguments are those of lm-eval's "hf", and two more. Every request is steered; at strength 0 all is as with "hf".

Source: `lm_eval.api.registry`, `lm_eval.models.huggingface.HFLM`, lm-eval 0.4.9 or later; needs the extra `lm-eval`.
"""

from typing import Any

from dsas.errors import MissingExtraError
from dsas.model.foreign import Foreign
from dsas.steering.steering import Steering

NAME = "dsas"


def register() -> type:
    """Put the model "dsas" into lm-eval's registry, once, and return its class. Raises MissingExtraError."""
    try:
        from lm_eval.api.registry import get_model, model_registry, register_model
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise MissingExtraError("lm_eval", "lm-eval") from error
    if NAME in model_registry.keys():  # noqa: SIM118, it is no dict
        return get_model(NAME)
    base: Any = HFLM  # its decorator hides from type checkers what it is

    class SteeredByName(base):
        """lm-eval's model class for transformers, steered at every request."""

        def __init__(
            self, pretrained: str, steering: str, strength: float | str | None = None, **options: Foreign
        ) -> None:
            """Load the model and the Steering. strength: the calibrated one, or 1, when not given."""
            chosen = Steering.from_pretrained(steering)
            super().__init__(pretrained=pretrained, **options)
            self._steering = chosen
            self._strength = None if strength is None else float(strength)

        def loglikelihood(self, requests: Foreign, disable_tqdm: bool = False) -> Foreign:
            """Return for each request the log-probability of its continuation, and whether it is the greedy one."""
            with self._steering.apply(self.model, self._strength, record=False):
                return super().loglikelihood(requests, disable_tqdm)

        def loglikelihood_rolling(self, requests: Foreign, disable_tqdm: bool = False) -> Foreign:
            """Return for each request the log-probability of its whole text."""
            with self._steering.apply(self.model, self._strength, record=False):
                return super().loglikelihood_rolling(requests, disable_tqdm)

        def generate_until(self, requests: Foreign, disable_tqdm: bool = False) -> Foreign:
            """Return for each request what the model writes up to a stop sequence."""
            with self._steering.apply(self.model, self._strength, record=False):
                return super().generate_until(requests, disable_tqdm)

    register_model(NAME)(SteeredByName)
    return SteeredByName
