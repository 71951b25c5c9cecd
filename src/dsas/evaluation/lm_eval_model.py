"""lm-eval model: the model "dsas" in the registry of lm-evaluation-harness, loaded by name with a Steering.

    dsas lm-eval run --model dsas --model_args pretrained=./model,steering=detox,strength=0.2 --tasks hellaswag

The arguments are those of lm-eval's "hf", and two more: `--model_args '{"pretrained": "./model", "steering": ["detox",
"calm"], "strength": [0.2, 0.5]}'` steers with several. Every request is steered; at strength 0 all is as with "hf".

Source: `lm_eval.api.registry`, lm-eval 0.4.9 or later; needs the extra `lm-eval`.
"""

from collections.abc import Callable

from dsas.evaluation.harness import steered_class
from dsas.model.foreign import Foreign

NAME = "dsas"


def register() -> Callable[..., Foreign]:
    """Put the model "dsas" into lm-eval's registry, once, and return its class. Raises MissingExtraError."""
    kind = steered_class()
    from lm_eval.api.registry import model_registry, register_model

    if NAME not in model_registry.keys():  # noqa: SIM118, it is not a dict
        register_model(NAME)(kind)  # pyright: ignore[reportArgumentType]
    return kind
