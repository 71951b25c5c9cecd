"""Print the terms and the objectives of training in float64 NumPy, written from the formulas alone, for tests/training.

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


# Of a model that is a table, a site and a head: x = table[token], logits = head x' with x' the steered x.
TEXTS = {
    "source": ((0, 1, 2, 3), (0, 4, 5), (6, 1, 1)),
    "target": ((0, 1, 5, 5), (0, 4, 2, 6), (6, 3, 0)),
    "control": ((2, 2, 6), (5, 0, 1, 3)),
}
ANSWERS = (((6,), (5, 0, 2), (1, 2, 3)), ((0,), (4,), (4, 5)))  # what stands before: untold, told; and the answer
GRID = np.arange(21, dtype=np.float64).reshape(7, 3)
TABLE, HEAD = np.sin(GRID), np.cos(GRID)
PLACES = np.arange(3, dtype=np.float64)


def steered(x: np.ndarray, *, gated: bool) -> np.ndarray:
    """Return t + h (T(t) - t), with h = sigmoid(theta . t + b) or 1."""
    gate = 1 / (1 + np.exp(-(x @ np.cos(2 * PLACES) + 0.1))) if gated else np.ones(len(x))
    return x + gate[:, None] * ((1 + 0.3 * np.sin(PLACES)) * x + 0.2 * np.cos(PLACES) - x)


def logs(text: tuple[int, ...], *, gated: bool | None) -> np.ndarray:
    """Return log-probabilities (token, vocabulary); gated None is the unsteered model."""
    x = TABLE[list(text)]
    logits = (x if gated is None else steered(x, gated=gated)) @ HEAD.T
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def matching(*, gated: bool, control_weight: float) -> float:
    """Return transport + control_weight * control, in units of the site."""
    pooled = np.stack([steered(TABLE[list(text)], gated=gated).mean(0) for text in TEXTS["source"]])
    goal = np.stack([TABLE[list(text)].mean(0) for text in TEXTS["target"]])
    unit = np.sqrt((goal**2).mean())
    plain = np.concatenate([TABLE[list(text)] for text in TEXTS["control"]])
    return transport(pooled, goal) / unit**2 + control_weight * drift(steered(plain, gated=gated), plain) / unit


def preference(*, beta: float, control_weight: float) -> float:
    """Return the loss of DPO over pairs + control_weight * KL(unsteered || steered) over control tokens."""

    def moved(text: tuple[int, ...]) -> float:
        places, told = np.arange(len(text) - 1), list(text[1:])
        return float((logs(text, gated=True) - logs(text, gated=None))[places, told].sum())

    pairs = zip(TEXTS["source"], TEXTS["target"], strict=True)
    term = np.mean([np.log1p(np.exp(-beta * (moved(better) - moved(worse)))) for worse, better in pairs])
    both = [(logs(text, gated=None), logs(text, gated=True)) for text in TEXTS["control"]]
    return float(term + control_weight * np.concatenate([(np.exp(p) * (p - q)).sum(-1) for p, q in both]).mean())


def imitation(*, control_weight: float) -> float:
    """Return the divergence of answers from the told model + control_weight * KL(unsteered || steered) of control."""
    terms = []
    for before, told, answer in ANSWERS:
        p = logs((*told, *answer), gated=None)[len(told) - 1 : -1]
        q = logs((*before, *answer), gated=True)[len(before) - 1 : -1]
        terms.append((np.exp(p) * (p - q)).sum(-1))
    both = [(logs(text, gated=None), logs(text, gated=True)) for text in TEXTS["control"]]
    kept = np.concatenate([(np.exp(p) * (p - q)).sum(-1) for p, q in both]).mean()
    return float(np.concatenate(terms).mean() + control_weight * kept)


if __name__ == "__main__":
    source, equal, unequal = numbers()
    print("transport, equal sizes  ", repr(transport(source, equal)))
    print("transport, 6 against 4  ", repr(transport(source, unequal)))
    print("drift                   ", repr(drift(source, equal)))
    print("lineas                  ", repr(float(matching(gated=False, control_weight=0.0))))
    print("e2e-dsas                ", repr(float(matching(gated=True, control_weight=0.3))))
    print("preference              ", repr(preference(beta=0.1, control_weight=3.0)))
    print("imitate                 ", repr(imitation(control_weight=1.0)))
