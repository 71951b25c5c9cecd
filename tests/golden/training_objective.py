"""Print the objective of training in float64 NumPy, written from the formulas alone, for tests/training.

    python tests/golden/training_objective.py

The transport term with unequal sizes is taken from its definition, W2^2 = integral over u of (F^-1(u) - G^-1(u))^2 of
two piecewise constant quantile functions, on the common refinement of both partitions; nothing of dsas is used.
"""

import numpy as np


def transport(source: np.ndarray, target: np.ndarray) -> float:
    """Return the mean over neurons of n W2^2(source, target), n the number of source samples."""
    n, m = len(source), len(target)
    cuts = np.unique(np.concatenate([np.arange(n + 1) / n, np.arange(m + 1) / m]).round(12))
    middle, width = (cuts[1:] + cuts[:-1]) / 2, np.diff(cuts)
    s, t = np.sort(source, axis=0), np.sort(target, axis=0)
    apart = s[(middle * n).astype(int)] - t[(middle * m).astype(int)]
    return float(n * (width[:, None] * apart**2).sum(0).mean())


def drift(steered: np.ndarray, unsteered: np.ndarray) -> float:
    """Return the mean over tokens of the Euclidean distance."""
    return float(np.sqrt(((steered - unsteered) ** 2).sum(-1)).mean())


def numbers() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return source (6, 3), equal target (6, 3) and unequal target (4, 3)."""
    grid = np.arange(18, dtype=np.float64).reshape(6, 3)
    return np.sin(grid), 2 * np.cos(3 * grid) + 1, np.sin(7 * grid[:4]) - 0.5


if __name__ == "__main__":
    source, equal, unequal = numbers()
    print("transport, equal sizes  ", repr(transport(source, equal)))
    print("transport, 6 against 4  ", repr(transport(source, unequal)))
    print("drift                   ", repr(drift(source, equal)))
