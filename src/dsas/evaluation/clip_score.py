"""CLIP score: how well pictures fit texts, by any CLIP model of the transformers library, by hub id or local folder.

    score = 100 max(0, cos(image embedding, text embedding))

of each picture with its own text: with the prompts, whether the pictures are still what was asked for; with a concept
("a photo of a pear"), whether it is there. Scores of different CLIP models do not compare, and no value means "present"
by itself: compare with the unsteered pictures, and with pictures that are known not to show it. Counts, places and
which colour belongs to which thing it hardly sees. Texts are cut at the model's longest.

Pictures are resized, cropped and normalised by the model's own processor. Needs the extra `diffusion` (pillow).

Left out: other dual encoders (SigLIP). Source: Hessel et al. 2021 (2104.08718), without its factor of 2.5.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import nn

from dsas.errors import MissingExtraError, OptionError
from dsas.model.foreign import Model
from dsas.model.loading import find_device

Pictures = UInt8[np.ndarray, "picture height width 3"] | Float[np.ndarray, "picture height width 3"]


@final
class ClipScore:
    """A CLIP model with its processor, such as "openai/clip-vit-base-patch32".

    device: "auto" takes a GPU when there is one. batch_size: >= 1.
    Raises OptionError when no CLIP model could be loaded or the device is not there, MissingExtraError without pillow.
    """

    def __init__(self, name_or_folder: str | Path, *, device: str = "auto", batch_size: int = 32) -> None:
        if batch_size < 1:
            raise OptionError(f"expected batch_size >= 1, got {batch_size}")
        place = find_device(device)
        try:
            import PIL  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("pillow", "diffusion") from error
        from transformers import AutoConfig, CLIPModel, CLIPProcessor

        self.name = str(name_or_folder)
        try:
            kind = AutoConfig.from_pretrained(name_or_folder).model_type
            if kind != "clip":
                raise OptionError(f"expected a CLIP model, got one of type {kind!r}")
            self._processor: Any = CLIPProcessor.from_pretrained(name_or_folder)
            model = CLIPModel.from_pretrained(name_or_folder)
        except (OSError, ValueError) as error:
            raise OptionError(f"no CLIP model could be loaded from {self.name!r}: {error}") from error
        self._batch_size = batch_size
        self._model: Model = nn.Module.to(model, place).eval()

    @torch.no_grad()
    def __call__(self, pictures: Pictures, texts: Sequence[str]) -> Float[np.ndarray, " picture"]:
        """Return the score of each picture with the text at its place, 0 to 100; uint8, or floats of 0 to 1.

        Raises OptionError unless there is a text for each picture.
        """
        if isinstance(texts, str) or len(texts) != len(pictures):
            given = "one text" if isinstance(texts, str) else f"{len(texts)} texts"
            raise OptionError(f"expected a text for each of {len(pictures)} pictures, got {given}")
        scores = np.zeros(len(pictures))
        for start in range(0, len(pictures), self._batch_size):
            span = slice(start, start + self._batch_size)
            part = pictures[span]
            whole = part if part.dtype == np.uint8 else np.rint(255 * part.clip(0, 1)).astype(np.uint8)
            inputs = self._processor(
                text=list(texts[span]),
                images=list(whole),
                input_data_format="channels_last",
                padding=True,
                truncation=True,
                max_length=self._model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            )
            found = self._model(**inputs.to(self._model.device))
            cosine = nn.functional.cosine_similarity(found.image_embeds.double(), found.text_embeds.double(), dim=-1)
            scores[span] = 100 * cosine.clamp(min=0).cpu().numpy()
        return scores
