"""Passes: the results for single rows of a steered model, in all the ways in which a row can reach it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from dsas.model.foreign import Foreign, Model
from dsas.testing.laws import close, require
from dsas.testing.ways import Acting, Way, strengths_of


class Pass(NamedTuple):
    """The result for one row: logits (token, vocabulary) and applied strengths (site, token) of its real tokens."""

    logits: Tensor
    strengths: Tensor


def logits_of(model: Model, ids: Tensor, **inputs: Any) -> Tensor:
    """Return the model's logits (batch, token, vocabulary), without gradients."""
    with torch.no_grad():
        return model(input_ids=ids, **inputs).logits


def padded(ids: list[Tensor], side: str, padding: int) -> dict[str, Tensor]:
    """Return rows of token ids as one batch of model inputs, padded on the left or right."""
    rows = pad_sequence(ids, batch_first=True, padding_value=padding, padding_side=side)
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True, padding_side=side)
    return {"input_ids": rows, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def steered_rows(way: Way, model: nn.Module, inputs: dict[str, Tensor], *, use_cache: bool = False) -> list[Pass]:
    """Steer one pass over a batch, all of it prompt, and return the result for every row."""
    with way.on(model, prompt_tokens=inputs["attention_mask"].sum(-1)) as acting:
        return read_rows(acting, model, inputs, use_cache=use_cache)


def read_rows(acting: Acting, model: nn.Module, inputs: dict[str, Tensor], *, use_cache: bool = False) -> list[Pass]:
    """Run one pass over a steered batch and return the result for every row."""
    logits = logits_of(
        model, inputs["input_ids"], use_cache=use_cache, **{k: v for k, v in inputs.items() if k != "input_ids"}
    )
    real, strengths = inputs["attention_mask"].bool(), strengths_of(acting)
    return [
        Pass(logits[i, keep], strengths[i][:, keep] if strengths else torch.zeros(0)) for i, keep in enumerate(real)
    ]


def one_row(way: Way, model: nn.Module, ids: Tensor, *, chunk: int | None = None) -> Pass:
    """Run one row alone, all of it prompt, at once without a cache or in chunks over one."""
    with way.on(model, prompt_tokens=len(ids)) as acting:
        cache, pieces = None, []
        for piece in ids.split(chunk or len(ids)):
            with torch.no_grad():
                output = model(input_ids=piece[None], past_key_values=cache, use_cache=chunk is not None)
            cache = output.past_key_values if chunk is not None else None
            pieces.append(output.logits[0])
        strengths = strengths_of(acting)
        return Pass(torch.cat(pieces), strengths[0] if strengths else torch.zeros(0))


def require_same(found: list[Pass], alone: list[Pass], how: str) -> None:
    """Require law 2: the results for rows in some way equal those for the rows alone."""
    require(2, len(found) == len(alone), f"rows are missing {how}")
    for row, (one, other) in enumerate(zip(found, alone, strict=True)):
        require(2, close(one.strengths, other.strengths), f"row {row} gets other strengths {how} than alone")
        require(2, close(one.logits, other.logits), f"row {row} has other logits {how} than alone")


def state_of(model: nn.Module) -> list[Foreign]:
    """Return what steering must not change: the modules, their classes, hooks and modes, and the parameters."""
    modules = [
        (name, id(module), type(module), module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    ]
    return [modules, [(name, id(p), p._version, p.requires_grad) for name, p in model.named_parameters()]]
