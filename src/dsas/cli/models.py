"""Models: loaded without the progress bars of transformers."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsas.model.loading import LoadedModel


def loaded_model(name: str, device: str, precision: str) -> "LoadedModel":
    """Load a language model and its tokenizer; raises as `dsas.load_model`."""
    import dsas

    hide_foreign_bars()
    return dsas.load_model(name, device=device, precision=precision)


def hide_foreign_bars() -> None:
    """Keep the progress bars that transformers draws while it loads weights away from those of dsas."""
    from transformers.utils import logging

    logging.disable_progress_bar()
