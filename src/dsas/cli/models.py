"""Models: language models and pipelines, loaded without the progress bars of transformers."""

from typing import TYPE_CHECKING

from dsas.model.foreign import Pipeline

if TYPE_CHECKING:
    from dsas.model.loading import LoadedModel


def loaded_model(name: str, device: str, precision: str) -> "LoadedModel":
    """Load a language model and its tokenizer; raises as `dsas.load_model`."""
    import dsas

    hide_foreign_bars()
    return dsas.load_model(name, device=device, precision=precision)


def loaded_pipeline(name: str, device: str, precision: str) -> tuple[Pipeline]:
    """Load a diffusers pipeline, alone, as `dsas.fit` takes it in place of a model and its tokenizer."""
    from dsas.model.loading import load_pipeline

    hide_foreign_bars()
    return (load_pipeline(name, device=device, precision=precision),)


def hide_foreign_bars() -> None:
    """Keep the progress bars that transformers draws while it loads weights away from those of dsas."""
    from transformers.utils import logging

    logging.disable_progress_bar()
