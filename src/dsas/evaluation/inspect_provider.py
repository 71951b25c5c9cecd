"""Inspect provider: a steered model in Inspect's evaluations, found by name once dsas is installed beside it.

    inspect eval task.py --model dsas/MODEL -M steering=detox -M strength=0.2

It is Inspect's own provider for transformers ("hf"), with its arguments (`-M model_path=./folder -M batch_size=8`) and
two more: steering is a folder or hub id, or several with commas between, and must be given; strength is one number or
one for each, the Steering's default unless given. Chat templates, tools, batches, stop sequences and log-probabilities
are those of "hf": the Steering is on the model from the moment it is loaded until it is closed, and nothing else
differs. At strength 0 all is as with "hf".

Limitations: those of "hf": no pictures or sounds, log-probabilities of the likeliest tokens and not of the sampled
ones, tools for the families whose calls Inspect can read. It tokenises what the chat template rendered; where both add
a BOS, give `-M tokenizer_call_args='{"add_special_tokens": false}'`.

Source: `inspect_ai.model.modelapi`, Inspect 0.3.285 (extra `inspect`). Only Inspect imports this module, through the
entry point "inspect_ai".
"""

from typing import Any

from inspect_ai.model import ModelAPI, modelapi  # pyright: ignore[reportMissingImports]

from dsas.evaluation.named_steering import named_options, named_steering


@modelapi(name="dsas")
def dsas_provider() -> type[ModelAPI]:
    """Return the class that Inspect makes a model with; its dependencies are imported when a model is asked for."""
    from inspect_ai.model._providers.hf import HuggingFaceAPI  # pyright: ignore[reportMissingImports]

    class SteeredAPI(HuggingFaceAPI):
        """Inspect's model class for transformers, steered while it is open."""

        def __init__(self, *given: Any, steering: Any = None, strength: Any = None, **options: Any) -> None:
            """Load the model as "hf" does and steer it.

            Raises OptionError without a steering or for a strength that is not a number, ArtifactError, StrengthError,
            ModelMismatchError.
            """
            chosen, strength = named_steering(steering, strength, "-M steering=FOLDER")  # before the model: it is slow
            with named_options(options, ("model_path", "tokenizer_path", "batch_size", "device", "enable_thinking")):
                super().__init__(*given, **options)
            self._applied = chosen.apply(self.model, strength, record=False).install()

        def close(self) -> None:
            """Take the Steering off, and let the model go."""
            self._applied.remove()
            super().close()

    return SteeredAPI
