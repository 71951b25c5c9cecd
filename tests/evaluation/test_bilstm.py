import numpy as np
import pytest
import torch

from dsas.evaluation.bilstm import BiLstmWeights, LstmWeights, bilstm, encode


def random_weights(words: int, dim: int, hidden: int) -> BiLstmWeights:
    torch.manual_seed(0)

    def direction() -> LstmWeights:
        return LstmWeights(torch.randn(dim, 4 * hidden), torch.randn(hidden, 4 * hidden), torch.randn(4 * hidden))

    ends = (torch.randn(2 * hidden, 5), torch.randn(5)), (torch.randn(5, 6), torch.randn(6))
    return BiLstmWeights(torch.randn(words, dim), direction(), direction(), *ends)


def by_hand(tokens: np.ndarray, weights: BiLstmWeights, hard: bool) -> np.ndarray:
    """Work out one text, one gate and one time at a time, in float64."""

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    def gate(x: np.ndarray) -> np.ndarray:
        return np.minimum(1, np.maximum(0, 0.2 * x + 0.5)) if hard else sigmoid(x)

    def peak(inputs: np.ndarray, direction: LstmWeights) -> np.ndarray:
        kernel, recurrent, bias = (part.double().numpy() for part in direction)
        n = recurrent.shape[0]
        h, c, states = np.zeros(n), np.zeros(n), []
        for x in inputs:
            z = x @ kernel + h @ recurrent + bias
            c = gate(z[n : 2 * n]) * c + gate(z[:n]) * np.tanh(z[2 * n : 3 * n])
            h = gate(z[3 * n :]) * np.tanh(c)
            states.append(h)
        return np.max(states, axis=0)

    inputs = weights.embedding.double().numpy()[tokens]
    both = np.concatenate([peak(inputs, weights.forwards), peak(inputs[::-1], weights.backwards)])
    (d, d0), (e, e0) = (tuple(part.double().numpy() for part in layer) for layer in (weights.hidden, weights.output))
    return sigmoid(np.maximum(0, both @ d + d0) @ e + e0)


@pytest.mark.parametrize("hard", [False, True])
def test_the_network_equals_the_formula_written_out_in_float64(hard):
    weights = random_weights(words=20, dim=3, hidden=4)
    tokens = torch.randint(0, 20, (5, 7))
    found = bilstm(tokens, weights, hard_gates=hard).numpy()
    expected = np.stack([by_hand(row, weights, hard) for row in tokens.numpy()])
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_words_are_lowered_freed_of_marks_padded_in_front_and_cut_in_front():
    words = {"a": 1, "b": 2, "don't": 3}
    assert encode(["A,b! zzz don't", "", "a b a b a b"], words, length=4).tolist() == [
        [0, 1, 2, 3],
        [0, 0, 0, 0],
        [1, 2, 1, 2],
    ]
