"""Classifier: any sequence classifier of the transformers library as a scorer, by hub id or local folder.

    p(label | text) = softmax(logits)[label],   or sigmoid(logits[label]) where labels do not exclude each other

Sigmoid is for models whose config says "multi_label_classification", and for those with a single label. Texts longer
than `max_tokens`, or than the model can read, are cut: the rest is not read.

| model id | label | notes |
|---|---|---|
| s-nlp/roberta_toxicity_classifier | toxic | the one used in the papers |
| unitary/toxic-bert, unitary/unbiased-toxic-roberta | toxic, toxicity | several labels at once |

Limitations: no regression models (they give no probability), no text pairs. The ids in the table were not tried here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dsas.errors import OptionError, TextsError, closest
from dsas.model.foreign import Model
from dsas.model.loading import find_device

_MEANT = ("toxic", "toxicity")


@final
class TextClassifier:
    """A scorer (see `scorers.Scorer`) made of a sequence classifier.

    label: name of the class whose probability is the score, as the model's config spells it. None takes the only label,
    or the only one named "toxic" or "toxicity" in any case.
    device: "auto" takes a GPU when there is one. max_tokens: >= 1, special tokens included.
    Raises OptionError when no model could be loaded, it is a regression, a label is unknown or ambiguous, or the device
    does not exist.
    """

    def __init__(
        self,
        name_or_folder: str | Path,
        *,
        label: str | None = None,
        device: str = "auto",
        batch_size: int = 32,
        max_tokens: int = 512,
    ) -> None:
        if batch_size < 1 or max_tokens < 1:
            raise OptionError(f"expected batch_size >= 1 and max_tokens >= 1, got {batch_size} and {max_tokens}")
        place = find_device(device)
        self.name = str(name_or_folder)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(name_or_folder)
            model = AutoModelForSequenceClassification.from_pretrained(name_or_folder)
        except (OSError, ValueError) as error:
            raise OptionError(f"no text classifier could be loaded from {self.name!r}: {error}") from error
        config: Any = model.config
        if config.problem_type == "regression":
            raise OptionError(f"{self.name} is a regression model, which gives no probability")
        self._label = _label_number(self.name, config.id2label, label)
        self._independent = config.problem_type == "multi_label_classification" or config.num_labels == 1
        self._max_tokens = min(max_tokens, self._tokenizer.model_max_length, _longest(model))
        # A decoder reads its answer at the last token that is not padding, so both must mean the same token.
        paddable = self._tokenizer.pad_token_id is not None and self._tokenizer.pad_token_id == config.pad_token_id
        self._batch_size = batch_size if paddable else 1
        self._model: Model = nn.Module.to(model, place).eval()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        """Return the probability of the label for each text.

        Raises TextsError for one text instead of a list, or a text that the tokenizer turns into no token.
        """
        if isinstance(texts, str):
            raise TextsError(f"expected a list of texts, got one text: {texts[:40]!r}")
        scores = np.zeros(len(texts))
        order = sorted(range(len(texts)), key=lambda text: len(texts[text]))
        for start in range(0, len(order), self._batch_size):
            part = order[start : start + self._batch_size]
            batch = self._tokenizer(
                [texts[text] for text in part],
                padding=len(part) > 1,
                truncation=True,
                max_length=self._max_tokens,
                return_tensors="pt",
            )
            if not batch["attention_mask"].any(dim=1).all():
                raise TextsError(
                    f"{self.name} makes no token from one of these texts: {[texts[text] for text in part]}"
                )
            logits = self._model(**batch.to(self._model.device)).logits.float()
            chance = logits.sigmoid() if self._independent else logits.softmax(-1)
            scores[part] = chance[:, self._label].cpu().numpy()
        return scores


def _label_number(name: str, labels: dict[int, str], wanted: str | None) -> int:
    if wanted is not None:
        found = [number for number, label in labels.items() if label == wanted]
        if not found:
            near = closest(wanted, labels.values())
            raise OptionError(f"{name} has no label {wanted!r}; closest: {near}; all: {list(labels.values())}")
        return found[0]
    meant = list(labels) if len(labels) == 1 else [n for n, label in labels.items() if label.lower() in _MEANT]
    if len(meant) != 1:
        raise OptionError(f"which label of {name} is the score? Say label=, one of {list(labels.values())}")
    return meant[0]


def _longest(model: nn.Module) -> int:
    """Return how many tokens the position embeddings reach; those of RoBERTa begin after the padding token's number."""
    for path, module in model.named_modules():
        if path.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return getattr(model.config, "max_position_embeddings", None) or torch.iinfo(torch.int).max
