"""Encoded media: models whose encoder takes a sound or a picture, and whose decoder takes text (Whisper, TrOCR).

Their processors render no conversation. An example is a conversation of the sound and what is said of it,

    [{"role": "user", "content": [{"type": "audio", "audio": sound}]}, {"role": "assistant", "content": text}]

of which the encoder takes the sound, and the decoder the text as the tokenizer gives it, special tokens included. At a
site of the encoder the positions of the sound count, without the silence that pads it; at one of the decoder, tokens
count as in `dsas.model.rendering`. A sound without a text is read with the start tokens of the decoder.

Limitations: one sound or picture per example, and no text beside it; no incremental fit, no training.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from dsas.errors import ActivationError, TextsError
from dsas.model.conversation import ASSISTANT, USER, Conversation
from dsas.model.foreign import Foreign, Model, Tokenizer
from dsas.model.layers import decoder_of, encoder_of
from dsas.model.media import Medium, sound_of
from dsas.model.sites import Site
from dsas.model.token_batches import TokenRow
from dsas.model.tokenizing import Encoded, encode, processor_of, template_of, text_tokenizer
from dsas.model.wrappers import core_of

MASK = "encoder_attention_mask"  # of the encoder's input, among what a row holds besides tokens
_READERS = {"audio": "feature_extractor", "image": "image_processor"}


def encodes_media(model: Model) -> bool:
    """Whether a model has an encoder that takes no tokens, and a decoder that does."""
    names = inspect.signature(core_of(model).forward).parameters
    return "decoder_input_ids" in names and "input_ids" not in names


def reads_apart(tokenizer: Tokenizer) -> bool:
    """Whether a processor is one of such a model: it has no template that would put both into one text."""
    processor = processor_of(tokenizer)
    readers = [getattr(processor, name, None) for name in _READERS.values()]
    return processor is not None and any(one is not None for one in readers) and template_of(tokenizer) is None


def medium_and_text(content: Conversation) -> tuple[Medium, str]:
    """Return the sound or picture of a conversation and its transcript, "" if there is none. Raises TextsError."""
    first, *answers = content.messages
    media, words = first.media, first.content.strip()
    if first.role != USER or len(media) != 1 or words or len(answers) > 1 or any(one.media for one in answers):
        raise TextsError(
            "a model whose encoder takes sounds or pictures reads one of them and its text: expected "
            '[{"role": "user", "content": [{"type": "audio", "audio": ...}]}, {"role": "assistant", "content": ...}], '
            f"got {' / '.join(map(str, content.messages))!r:.80}"
        )
    if any(one.role != ASSISTANT for one in answers) or content.chat.system is not None:
        raise TextsError("a model whose encoder takes sounds or pictures knows only the roles user and assistant")
    return media[0], answers[0].content if answers else ""


def encoded_apart(tokenizer: Tokenizer, medium: Medium, text: str) -> Encoded:
    """Return the decoder's tokens, with the encoder's input; where there is no text, without the end token."""
    own = text_tokenizer(tokenizer)
    (found,) = encode(own, [text], offsets=True)
    assert found.offsets is not None
    ended = not text and len(found.ids) > 1 and found.ids[-1] == own.eos_token_id
    ids = found.ids[:-1] if ended else found.ids
    return Encoded(TokenRow(ids, _taken(tokenizer, medium), 0), found.offsets[: len(ids)])


def _taken(tokenizer: Tokenizer, medium: Medium) -> dict[str, Tensor]:
    """Return what an encoder takes of a sound or picture, for one row, and as `MASK` which of it is not padding.

    Raises TextsError where the processor has no part for it, or with its own reason where it refuses it.
    """
    processor = processor_of(tokenizer)
    reader: Any = getattr(processor, _READERS.get(medium.kind, ""), None)
    if reader is None:
        raise TextsError(f"{type(processor).__name__} reads no {medium.kind}s")
    try:
        if medium.kind == "audio":
            rate = int(reader.sampling_rate)
            options = {"sampling_rate": rate, "return_attention_mask": True}
            found = reader([sound_of(medium, rate)], return_tensors="pt", **options)
        else:
            found = reader([medium.value], return_tensors="pt")
    except Exception as error:  # a processor may raise anything
        raise TextsError(f"{type(processor).__name__} refuses one of the {medium.kind}s: {error}") from error
    held = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    mask = held.pop("attention_mask", None)
    return held if mask is None else {**held, MASK: mask}


def apart(model: nn.Module, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch as such a model takes it: its tokens are the decoder's, with the decoder's start token.

    Raises TextsError for texts without a sound or picture.
    """
    found = dict(given)
    ids, mask, frames = found.pop("input_ids"), found.pop("attention_mask"), found.pop(MASK, None)
    if not found:
        raise TextsError(
            f"the encoder of {type(model).__name__} takes {model.main_input_name}, which texts do not give: pass "
            'conversations, [{"role": "user", "content": [{"type": "audio", "audio": ...}]}, {"role": "assistant", '
            '"content": ...}], and the model\'s processor as tokenizer'
        )
    config: Any = model.config
    starts = (getattr(part, "decoder_start_token_id", None) for part in (config, getattr(config, "decoder", None)))
    start = next((one for one in starts if isinstance(one, int)), None)
    if start is not None and not bool((ids[:, 0] == start).all()):
        ids, mask = torch.cat([ids.new_full((len(ids), 1), start), ids], 1), torch.cat([mask[:, :1], mask], 1)
    found |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    return found if frames is None else {**found, "attention_mask": frames}


class Frames:
    """Which places of its encoder's sites count, for a model that encodes media."""

    def __init__(self, model: Model) -> None:
        self._model, self._encoder = model, None
        if encodes_media(model):
            encoder = encoder_of(core_of(model), decoder_of(core_of(model)))
            self._encoder = next((path for path, module in model.named_modules() if module is encoder), None)

    def of(self, site: Site, batch: Mapping[str, Tensor], count: int) -> Bool[Tensor, "row place"] | None:
        """Return which of a site's `count` places count; None at a site of the decoder, which has the text's tokens.

        Raises ActivationError where this is unknown.
        """
        if not self.has(site):
            return None
        mask = batch.get(MASK)
        if mask is None:
            return torch.ones(len(batch["input_ids"]), count, dtype=torch.bool)
        if mask.shape[1] == count:
            return mask.bool()
        tell: Foreign = next((one for one in map(_lengths, self._model.modules()) if one is not None), None)
        if tell is None or int(tell(mask.shape[1])) != count:
            raise ActivationError(
                f"site {site} has {count} positions for {mask.shape[1]} of the encoder's input, so it is unknown "
                "which of them are padding: choose a layer of the encoder"
            )
        lengths = torch.tensor([int(tell(int(one.sum()))) for one in mask])
        return torch.arange(count)[None] < lengths[:, None]

    def has(self, site: Site) -> bool:
        """Whether a site is in the encoder."""
        return self._encoder is not None and f"{site.path}.".startswith(f"{self._encoder}.")

    def any(self, sites: Sequence[Site]) -> bool:
        """Whether one of these sites is in the encoder."""
        return any(map(self.has, sites))


def _lengths(module: nn.Module) -> Foreign:
    return getattr(module, "_get_feat_extract_output_lengths", None)
