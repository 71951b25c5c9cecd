"""Running: how a language model is called on a batch of texts, and what is refused before any text runs.

A model gets what its forward takes: `use_cache=False` only where it knows that name. Hidden states and the like, which
a configuration may ask for, are not collected: dsas does not read them, and transformers 4.56 left every layer wrapped,
with all that the wrappers held in memory, when a pass that collects them was ended early. The decoder of a model that
has an encoder of texts beside it reads the same texts as the encoder, token for token, so that sites of both sides have
the tokens of the text. Tokens that a model puts before the text itself (prompt tuning, CPM-Ant) do not count as the
text's.
"""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from jaxtyping import Float
from torch import Tensor, nn

from dsas.errors import ActivationError, OptionError, TextsError
from dsas.model.device_map import stored
from dsas.model.encoded_media import apart, encodes_media
from dsas.model.evaluation_mode import on_device
from dsas.model.foreign import Foreign, Model
from dsas.model.layers import decoder_of, encoder_of
from dsas.model.token_batches import Batch, inputs_of
from dsas.model.told_prompts import told_prompts
from dsas.model.wrappers import unwrapped

_TOKENS = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")


def run_on(model: Model, batch: Mapping[str, Tensor], **options: Foreign) -> Foreign:
    """Return a model's output on `input_ids` and `attention_mask` (batch, token), without a cache.

    Raises OptionError for tokens or padding that the model cannot read, TextsError for more tokens than it has
    positions.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    check_tokens(unwrapped(model), ids.shape[1], int(ids.max()))
    given, own = dict(batch), unwrapped(model)
    if encodes_media(own):
        given = apart(own, given)
    elif getattr(getattr(own, "config", None), "is_encoder_decoder", False):
        given = {"decoder_input_ids": ids, "decoder_attention_mask": mask, **given}
    if not _takes(own, "attention_mask"):
        given.pop("attention_mask", None)
        if not mask.all() and "decoder_attention_mask" not in given:
            raise OptionError(
                f"{type(own).__name__} takes no attention_mask, so shorter rows of a batch cannot be padded: "
                "read with dsas.Reading(batch_size=1)"
            )
    if _takes(own, "use_cache"):
        options = {**options, "use_cache": False}
    options = {**{name: False for name in _collected(own) if _takes(own, name)}, **options}
    return model(**placed_on(model, given), **options)


def placed_on(model: Model, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the inputs that a model accepts, on its device and in its precision."""
    own = unwrapped(model)
    kind = getattr(own, "dtype", None)
    known = {name: value for name, value in given.items() if name in _TOKENS or _takes(own, name)}
    return {
        name: value.to(kind) if value.is_floating_point() and kind is not None and kind.is_floating_point else value
        for name, value in on_device(model, known).items()
    }


def logits_on(
    model: Model, batch: Batch, *, prompts: Sequence[int | None] | None = None, **options: Foreign
) -> Float[Tensor, "batch token vocabulary"]:
    """Return the logits after every token of a batch; options: further options of the model's call. Raises as `run_on`.

    prompts: number of tokens before the answer, per text and not per row of this batch; None if all tokens are the
    prompt.
    """
    told = [None if prompts is None else prompts[row] for row in batch.rows]
    given: AbstractContextManager[None] = nullcontext()
    if any(prompt is not None for prompt in told):
        whole = batch.mask.sum(-1).tolist()
        given = told_prompts([all_ if own is None else own for own, all_ in zip(told, whole, strict=True)])
    with given:
        logits: Tensor = run_on(model, inputs_of(batch), **options).logits
    return logits if "logits_to_keep" in options else own_tokens(logits, batch.mask, "the logits")


def own_tokens(t: Float[Tensor, "row column dim"], mask: Tensor, where: object) -> Float[Tensor, "row token dim"]:
    """Return the activations of the text's own tokens; mask: (row, token) of the batch.

    Raises ActivationError, naming `where`, for activations with other rows, or fewer tokens, than the batch.
    """
    rows, tokens = mask.shape
    if t.shape[0] != rows or t.shape[1] < tokens:
        first = " (time stands first)" if tuple(t.shape[:2]) == (tokens, rows) else ""
        raise ActivationError(
            f"{where}: expected (batch, token, dim) with {rows} rows of {tokens} tokens, got shape {tuple(t.shape)}"
            f"{first}; choose another site, such as a whole layer"
        )
    return t[:, t.shape[1] - tokens :]


def check_reads_texts(model: Model) -> None:
    """Raise OptionError for a model that cannot run on texts, because it is of another kind or has no weights."""
    parameters = inspect.signature(model.forward).parameters
    names = [name for name, one in parameters.items() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    if ((names and "input_ids" not in names) or not parameters) and not encodes_media(model):
        raise OptionError(
            "expected a text model, whose forward takes input_ids or decoder_input_ids, got a "
            f"{type(model).__name__}, which takes {', '.join(names[:4]) or 'nothing'}; steer its modules by a "
            "dsas.Steering of your own rules, with apply(record=False)"
        )
    empty = [name for name, own in model.named_parameters() if own.is_meta and stored(model, name, own).is_meta]
    if empty:
        raise OptionError(
            f"{len(empty)} weights of this {type(model).__name__}, such as {empty[0]!r}, are on the device 'meta' and "
            "hold no values: load the model with from_pretrained, or let accelerate place it (device_map)"
        )


def check_tokens(model: Model, longest: int, largest: int) -> None:
    """Raise TextsError for more tokens in a row than a model has positions, OptionError for an unknown token."""
    places = places_of(model)
    if places is not None and longest > places:
        raise TextsError(
            f"the longest text has {longest} tokens, and {type(model).__name__} {places} positions: shorten it,   "
            f"or cut texts with dsas.Reading(max_tokens={places})"
        )
    find: Foreign = getattr(model, "get_input_embeddings", None)
    try:
        embedding = find() if callable(find) else None
    except (AttributeError, NotImplementedError):  # models without an embedding, or that do not say which it is
        return
    known = getattr(embedding, "num_embeddings", None)
    if isinstance(known, int) and largest >= known:
        raise OptionError(
            f"the tokenizer gives token {largest}, and {type(model).__name__} knows {known} tokens, 0 to {known - 1}: "
            "give the tokenizer of this model"
        )


def places_of(model: nn.Module) -> int | None:
    """Return how many positions a model has embeddings for, None if it does not look positions up."""
    config = getattr(model, "config", None)
    get_text: Foreign = getattr(config, "get_text_config", None)
    said = getattr(get_text() if callable(get_text) else config, "max_position_embeddings", None)
    decoder = decoder_of(model)
    sides = [side for side in (decoder, encoder_of(model, decoder)) if side is not None]
    for name, module in (found for side in sides for found in side.named_modules()):
        own = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and (own == "wpe" or "position" in own) and "token" not in own:
            ahead = getattr(module, "offset", None)
            if not isinstance(ahead, int):
                ahead = 0 if module.padding_idx is None else module.padding_idx + 1
            there = module.num_embeddings - ahead
            return min(there, said) if isinstance(said, int) and said > 1 else there
    return None


def _collected(model: nn.Module) -> list[str]:
    """Return the options of a model's call with which its configuration asks for more than its output."""
    config: Foreign = getattr(model, "config", None)
    get_text: Foreign = getattr(config, "get_text_config", None)
    asked = [config, get_text() if callable(get_text) else None]
    names = ("output_hidden_states", "output_attentions", "output_router_logits")
    return [name for name in names if any(getattr(one, name, False) for one in asked)]


def _takes(model: nn.Module, name: str) -> bool:
    parameters = inspect.signature(model.forward).parameters
    return name in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())
