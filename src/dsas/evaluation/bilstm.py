"""A small recurrent classifier trained with Keras, computed in torch.

    x_t      = embedding[token_t]                                       token 0 is padding and is fed like any other
    i f g o  = split(x_t W + h_{t-1} U + b)
    c_t      = s(f) c_{t-1} + s(i) tanh(g),   h_t = s(o) tanh(c_t)      once forwards, once backwards in time
    p        = sigmoid(relu(max_t [h_t forwards, h_t backwards] D + d) E + e)

The gate s is the sigmoid, or the "hard" one of Keras up to 2.2: clip(0.2 x + 0.5, 0, 1). torch.nn.LSTM has the first
only, so the recurrence is written out. Kernels are laid out as Keras stores them, (in, out), gates in order i f g o.

Limitations: prediction only; no masks, no dropout.

Source: Hochreiter and Schmidhuber 1997; Keras `LSTM`, `Tokenizer`, `pad_sequences`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_BLANK = str.maketrans(dict.fromkeys('!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n', " "))


class LstmWeights(NamedTuple):
    """One direction: kernel (dim, 4 hidden), recurrent (hidden, 4 hidden), bias (4 hidden)."""

    kernel: Tensor
    recurrent: Tensor
    bias: Tensor


class BiLstmWeights(NamedTuple):
    """The whole network, floating point, in the order in which Keras lists its variables."""

    embedding: Tensor
    forwards: LstmWeights
    backwards: LstmWeights
    hidden: tuple[Tensor, Tensor]
    output: tuple[Tensor, Tensor]


def bilstm(
    tokens: Int[Tensor, "batch token"], weights: BiLstmWeights, *, hard_gates: bool = False
) -> Float[Tensor, "batch label"]:
    """Return the probability of every label, in [0, 1]; `hard_gates` takes the piecewise linear gate."""
    inputs = weights.embedding[tokens]
    ahead = _peak(inputs, weights.forwards, hard_gates)
    back = _peak(inputs.flip(1), weights.backwards, hard_gates)
    hidden = torch.relu(torch.cat([ahead, back], dim=-1) @ weights.hidden[0] + weights.hidden[1])
    return torch.sigmoid(hidden @ weights.output[0] + weights.output[1])


def encode(texts: Sequence[str], words: Mapping[str, int], *, length: int = 100) -> Int[Tensor, "text token"]:
    """Return the numbers of the known words of each text, the last `length` of them, with zeros in front."""
    rows = np.zeros((len(texts), length), dtype=np.int64)
    for row, text in zip(rows, texts, strict=True):
        known = [words[word] for word in text.lower().translate(_BLANK).split(" ") if word in words][-length:]
        row[length - len(known) :] = known
    return torch.from_numpy(rows)


def _peak(
    inputs: Float[Tensor, "batch token dim"], weights: LstmWeights, hard_gates: bool
) -> Float[Tensor, "batch hidden"]:
    """Return the largest value that each hidden unit takes over time."""
    driven = inputs @ weights.kernel + weights.bias
    state = driven.new_zeros(driven.shape[0], weights.recurrent.shape[0])
    cell, peak = state, torch.full_like(state, -torch.inf)
    for step in driven.unbind(1):
        i, f, g, o = (step + state @ weights.recurrent).chunk(4, dim=-1)
        cell = _gate(f, hard_gates) * cell + _gate(i, hard_gates) * torch.tanh(g)
        state = _gate(o, hard_gates) * torch.tanh(cell)
        peak = torch.maximum(peak, state)
    return peak


def _gate(value: Tensor, hard: bool) -> Tensor:
    return (0.2 * value + 0.5).clamp(0, 1) if hard else torch.sigmoid(value)
