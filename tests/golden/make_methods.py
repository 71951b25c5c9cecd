"""Golden numbers of every method: NumPy in float64, written from the papers' formulas and not from dsas.

    python tests/golden/make_methods.py        rewrites methods.json beside this file

Nothing of dsas or torch is imported. Where the code has a short cut, the long way is taken here: all pairs of samples,
whole matrices, loops over thresholds. Logistic regression itself is scikit-learn's, run until it has converged. All
inputs are multiples of 1/64, so float32 holds them exactly. Neuron 4 is constant in the source, 5 in the target.
"""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from pieces import (
    Array,
    accuracy_of,
    cosine,
    first_direction_of_differences,
    labelled,
    percentile,
    plain_regression,
    probe,
    ridge,
)
from scipy.optimize import brentq
from sklearn.model_selection import StratifiedKFold

FILE = Path(__file__).with_name("methods.json")
WIDTH = 6
# Tokens of two rows: the first row has one token of padding on the left, and prompts of 2 and 3 real tokens.
MASK, PROMPT_TOKENS = [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]], [2, 3]
TURN_IDS = [[2, 1, 5, 2, 7], [9, 2, 6, 1, 2]]  # the first row begins with padding


def inputs() -> dict[str, Array]:
    """Return source (12, 6), control (9, 6), target (12, 6) and tokens (2, 5, 6)."""
    random = np.random.default_rng(2534)
    mix = random.normal(size=(WIDTH, WIDTH)) * np.linspace(0.3, 1.5, WIDTH)
    shift = {"source": 1.5, "control": -0.8, "target": -0.9}
    centre = random.normal(size=WIDTH)
    ways = {name: random.normal(size=WIDTH) * size + centre for name, size in shift.items()}
    sets = {
        name: random.normal(size=(count, WIDTH)) @ mix + ways[name]
        for name, count in (("source", 12), ("control", 9), ("target", 12))
    }
    sets["source"][:, 4], sets["target"][:, 5] = 0.5, -0.25
    rows = np.stack([sets["source"][:5], sets["control"][:5]])
    sets["tokens"] = rows + 0.3 * random.normal(size=rows.shape)
    sets["tokens"][:, ::2, 4] = 0.5
    return {name: np.round(64 * x) / 64 for name, x in sets.items()}


# Transforms: each returns what is fitted, and T(t)


def additions(source: Array, target: Array) -> dict[str, Any]:
    """CAA, its principal variant and ITI: T(t) = t + v."""
    difference = target.mean(0) - source.mean(0)
    first = first_direction_of_differences(target, source)
    x, y = labelled(target, source)
    theta, _ = probe(x, y, WIDTH)
    normal = theta / np.linalg.norm(theta)
    vectors = {
        "caa": difference,
        "caa-pca": np.outer(first, first) @ difference,
        "iti": normal * np.sqrt(np.mean(((x - x.mean(0)) @ normal) ** 2)),
    }
    return {name: ({}, {"vector": v}, lambda t, v=v: t + v) for name, v in vectors.items()}


def transports(source: Array, target: Array) -> dict[str, Any]:
    """Mean-, Gaussian- and Linear-AcT: T(t) = slope t + offset per neuron, inside the percentiles of the source."""
    lines: dict[str, list[tuple[float, float]]] = {"mean-act": [], "gaussian-act": [], "linear-act": []}
    for s, t in zip(source.T, target.T, strict=True):
        lines["mean-act"].append((1.0, t.mean() - s.mean()))
        spreads = np.std(s, ddof=1), np.std(t, ddof=1)
        slope = spreads[1] / spreads[0] if min(spreads) > 1e-4 else None
        lines["gaussian-act"].append((1.0, 0.0) if slope is None else (slope, t.mean() - slope * s.mean()))
        constant = (s == s[0]).all()
        slope, offset = (1.0, t.mean() - s.mean()) if constant else np.polyfit(np.sort(s), np.sort(t), 1)
        lines["linear-act"].append((float(slope), float(offset)))
    cases = {}
    for name, support in product(lines, (None, (0, 100), (20, 80))):
        slope, offset = np.array(lines[name]).T
        fitted = {"slope": slope, "offset": offset}
        inside: Callable[[Array], Array] = lambda t: np.full(t.shape, True)  # noqa: E731
        if support is not None:
            low, high = (np.array([percentile(s, end) for s in source.T]) for end in support)
            fitted |= {"low": low, "high": high}
            inside = lambda t, low=low, high=high: (low <= t) & (t <= high)  # noqa: E731
        options = {"support": support or "everywhere"}
        label = f"{name} {'everywhere' if support is None else '{}-{}'.format(*support)}"
        change = lambda t, a=slope, b=offset, inside=inside: np.where(inside(t), a * t + b, t)  # noqa: E731
        cases[label] = (options, fitted, change)
    return cases


def projections(source: Array, target: Array) -> dict[str, Any]:
    """Ablation, by the projector on what is at right angles; rotation, by a whole matrix."""
    s, t = source.mean(0), target.mean(0)
    u = (s - t) / np.linalg.norm(s - t)
    erase = np.eye(WIDTH) - np.outer(u, u)
    basis, _ = np.linalg.qr(np.column_stack([s, t, np.eye(WIDTH)[:, :4]]))
    basis[:, 0] *= np.sign(basis[:, 0] @ s)
    basis[:, 1] *= np.sign(basis[:, 1] @ t)
    angle = np.arccos(s @ t / np.linalg.norm(s) / np.linalg.norm(t))

    def turned(turns: float) -> Array:
        block, (cosine, sine) = np.eye(WIDTH), (np.cos(turns * angle), np.sin(turns * angle))
        block[:2, :2] = [[cosine, -sine], [sine, cosine]]
        return basis @ block @ basis.T

    cases: dict[str, Any] = {}
    for level in ("zero", "target"):
        left = float(u @ t) if level == "target" else 0.0
        change = lambda x, left=left: x @ erase + left * u  # noqa: E731
        cases[f"ablation {level}"] = ({"level": level}, {"direction": u, "level": left}, change)
    for turns in (1.0, 0.5):
        fitted = {"first": basis[:, 0], "second": basis[:, 1], "angle": turns * angle}
        matrix = turned(turns)
        change = lambda x, matrix=matrix: x @ matrix.T  # noqa: E731
        cases[f"rotation {turns}"] = ({"turns": turns}, fitted, change)
    return cases


def paired(source: Array, target: Array) -> dict[str, Any]:
    """Ridge regression of the pairs' differences, by least squares over rows that stand for the penalty."""
    centre, moved = source.mean(0), target - source
    shift, away = moved.mean(0), source - centre
    cases: dict[str, Any] = {}
    for penalty in (0.01, 2.0):
        rows = np.sqrt(penalty * len(source) * np.mean(away**2)) * np.eye(WIDTH)
        slope = np.linalg.lstsq(np.vstack([away, rows]), np.vstack([moved - shift, 0 * rows]), rcond=None)[0].T
        change = lambda x, slope=slope: x + shift + (x - centre) @ slope.T  # noqa: E731
        cases[f"paired {penalty}"] = ({"penalty": penalty}, {"slope": slope, "centre": centre, "shift": shift}, change)
    return cases


# Regulators: each returns what is fitted, values of the tokens, and the accuracy


def probes(source: Array, control: Array, target: Array, tokens: Array) -> dict[str, Any]:
    """DSAS's logistic regulator and MERA's step, both on five principal components."""
    x, y = labelled(source, control)
    theta, bias = probe(x, y, 5)

    def learn(x: Array, y: Array) -> Callable[[Array], Array]:
        weights, offset = probe(x, y, 5)
        return lambda z: (z @ weights + offset > 0).astype(int)

    accuracy = accuracy_of(x, y, learn)
    odds = tokens @ theta + bias
    cases: dict[str, Any] = {
        "logistic": ({}, {"theta": theta, "bias": bias}, 1 / (1 + np.exp(-odds[..., None])), accuracy)
    }
    reach = theta @ (source.mean(0) - target.mean(0))
    for alpha in (0.5, 0.3):
        beyond = np.log(alpha / (1 - alpha))
        fitted = {"theta": theta / reach, "bias": (bias - beyond) / reach}
        values = np.maximum(0, (odds - beyond) / reach)[..., None]
        cases[f"mera {alpha}"] = ({"alpha": alpha}, fitted, values, accuracy)
    return cases


def located(source: Array, control: Array, tokens: Array) -> dict[str, Any]:
    """Logistic regression on control and the source samples beyond its quantile, which are found anew in each round."""

    def boundary(x: Array, y: Array, rounds: int) -> tuple[Array, float]:
        weights = np.where(y == 1, len(y) / (2 * (y == 1).sum()), len(y) / (2 * (y == 0).sum()))
        theta, bias = plain_regression(x, y, weights)
        for _ in range(rounds):
            scores = x @ theta + bias
            chosen = (y == 0) | (scores > percentile(scores[y == 0], 98))
            theta, bias = plain_regression(x[chosen], y[chosen], np.ones(chosen.sum()))
        return theta, bias

    x, y = labelled(source, control)
    cases = {}
    for rounds in (3, 0):

        def learn(x: Array, y: Array, rounds: int = rounds) -> Callable[[Array], Array]:
            weights, offset = boundary(x, y, rounds)
            return lambda z: (z @ weights + offset > 0).astype(int)

        theta, bias = boundary(x, y, rounds)
        values = 1 / (1 + np.exp(-(tokens @ theta + bias)))[..., None]
        # The mean of recalls over all held-out samples together, and not over folds.
        held = np.zeros(len(x))
        for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(x, y):
            held[test] = learn(x[train], y[train])(x[test])
        accuracy = float(np.mean([(held[y == label] == label).mean() for label in (0, 1)]))
        cases[f"located {rounds}"] = ({"rounds": rounds}, {"theta": theta, "bias": bias}, values, accuracy)
    return cases


def evidences(source: Array, control: Array, tokens: Array) -> dict[str, Any]:
    """A ridge on standardised neurons, cut on held-out pooled scores; of one token, or of the row so far."""
    x, y = labelled(source, control)
    theta, bias = ridge(x, y)
    held = np.zeros(len(x))
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(x, y):
        weights, offset = ridge(x[train], y[train])
        held[test] = x[test] @ weights + offset
    own = held[y == 0] - held[y == 0].mean()
    theta, bias = theta * 2 / own.std(), (bias - held[y == 0].mean()) * 2 / own.std()
    cut = brentq(lambda cut: np.mean(1 / (1 + np.exp(cut - 2 * own / own.std()))) - 0.02, -50, 50, xtol=1e-12)

    def learn(x: Array, y: Array) -> Callable[[Array], Array]:
        weights, offset = ridge(x, y)
        return lambda z: (z @ weights + offset > 0).astype(int)

    accuracy, scores = accuracy_of(x, y, learn), tokens @ theta + bias
    cases = {"probe": ({}, {"theta": theta, "bias": bias - cut}, 1 / (1 + np.exp(cut - scores))[..., None], accuracy)}
    for memory in (1.0, 0.9):
        values = np.zeros((*tokens.shape[:2], 1))
        for row, token in product(range(len(tokens)), range(1, tokens.shape[1])):
            ages = memory ** np.arange(token - 1, -1, -1)
            evidence = ages @ scores[row, 1 : token + 1] / (ages.sum() + 8)
            values[row, token] = 1 / (1 + np.exp(cut - evidence))
        fitted = {"theta": theta, "bias": bias, "cut": cut}
        cases[f"evidence {memory}"] = ({"memory": memory}, fitted, values, accuracy)
    return cases


def halfspaces(source: Array, control: Array, tokens: Array) -> dict[str, Any]:
    """1 beyond the plane at right angles to the difference of the means."""
    x, y = labelled(source, control)
    cases = {}
    for place in ("origin", "midpoint"):

        def plane(x: Array, y: Array, place: str = place) -> tuple[Array, float]:
            first, second = x[y == 1].mean(0), x[y == 0].mean(0)
            u = (first - second) / np.linalg.norm(first - second)
            return u, 0.0 if place == "origin" else float(u @ (first + second) / 2)

        def learn(x: Array, y: Array, plane: Any = plane) -> Callable[[Array], Array]:
            direction, end = plane(x, y)
            return lambda z: (z @ direction > end).astype(int)

        u, offset = plane(x, y)
        values = (tokens @ u > offset).astype(float)[..., None]
        accuracy = accuracy_of(x, y, learn)
        cases[f"halfspace {place}"] = ({"boundary": place}, {"direction": u, "offset": offset}, values, accuracy)
    return cases


def casts(source: Array, control: Array, tokens: Array) -> dict[str, Any]:
    """One decision a row, from the mean of the prompt's tokens so far but the first."""

    def cuts(x: Array, y: Array) -> tuple[Array, list[tuple[float, float, bool]]]:
        """Return the direction, and all thresholds and sides with their accuracy, the best and then lowest first."""
        c = first_direction_of_differences(x[y == 1], x[y == 0])
        values = np.array([cosine(m, c) for m in x])
        ranked = np.sort(values)
        tried = []
        for threshold, above in product((ranked[:-1] + ranked[1:]) / 2, (True, False)):
            said = (values > threshold) == above
            tried.append((np.mean([said[y == 1].mean(), 1 - said[y == 0].mean()]), threshold, above))
        return c, sorted(tried, key=lambda one: (-round(one[0], 9), one[1]))

    def learn(x: Array, y: Array) -> Callable[[Array], Array]:
        c, ((_, threshold, above), *_rest) = cuts(x, y)
        return lambda z: np.array([(cosine(m, c) > threshold) == above for m in z]).astype(int)

    x, y = labelled(source, control)
    c, ((score, threshold, above), (next_best, *_), *_rest) = cuts(x, y)
    assert score > next_best + 1e-9, "two thresholds are equally good: choose another seed"
    values = np.zeros((*tokens.shape[:2], 1))
    for row, token in product(range(len(tokens)), range(1, tokens.shape[1])):
        so_far = tokens[row, 1 : token + 1].mean(0)
        values[row, token] = (cosine(so_far, c) > threshold) == above
    # A direction has no sign of its own: what is compared is its projector.
    fitted = {"projector": np.outer(c, c), "threshold": threshold, "above": float(above)}
    return {"cast": ({}, fitted, values, accuracy_of(x, y, learn))}


def posteriors(source: Array, control: Array, target: Array, tokens: Array) -> dict[str, Any]:
    """1 where the source's Gaussian is the likelier one, for neurons that tell source from control."""
    cases = {}
    for least in (0.75, 0.5):
        values = np.zeros(tokens.shape)
        for j in range(WIDTH):
            wins = [(a > b) + 0.5 * (a == b) for a, b in product(source[:, j], control[:, j])]
            spreads = [np.std(x[:, j], ddof=1) for x in (source, target)]
            if max(np.mean(wins), 1 - np.mean(wins)) < least or min(spreads) <= 1e-4:
                continue
            densities = [
                -((tokens[..., j] - x[:, j].mean()) ** 2) / (2 * sd**2) - np.log(sd)
                for x, sd in zip((source, target), spreads, strict=True)
            ]
            values[..., j] = densities[0] > densities[1]
        cases[f"posterior {least}"] = ({"least_auroc": least}, {}, values, None)
    return cases


def schedules() -> dict[str, Any]:
    """1 at some places of the rows of MASK, counted among real tokens."""
    windows = [("all", 1, 3), ("prompt", 0, None), ("prompt", 1, None), ("generated", 0, None), ("generated", 1, 2)]
    cases = {}
    for part, start, stop in windows:
        values = np.zeros((*np.shape(MASK), 1))
        for row, mask in enumerate(MASK):
            tokens = [number for number, real in enumerate(mask) if real]
            prompt, rest = tokens[: PROMPT_TOKENS[row]], tokens[PROMPT_TOKENS[row] :]
            chosen = {"all": tokens, "prompt": prompt, "generated": rest}[part][start:stop]
            values[row, chosen] = 1.0
        cases[f"schedule {part} {start} {stop}"] = ({"part": part, "start": start, "stop": stop}, {}, values, None)
    return cases


def turns() -> dict[str, Any]:
    """1 from the mark of the assistant, token 2, to that of the user, token 1, among the real tokens of TURN_IDS."""
    values = np.zeros((*np.shape(MASK), 1))
    for row, (mask, ids) in enumerate(zip(MASK, TURN_IDS, strict=True)):
        speaks = False
        for place in (number for number, real in enumerate(mask) if real):
            speaks = {1: False, 2: True}.get(ids[place], speaks)
            values[row, place] = float(speaks)
    options = {"marks": [["user", [1], False], ["assistant", [2], False]], "only": ["assistant"]}
    return {"turns assistant": (options, {}, values, None)}


def make() -> dict[str, Any]:
    """Return all that methods.json holds."""
    sets = inputs()
    source, control, target, tokens = sets.values()
    found = additions(source, target) | transports(source, target)
    found |= projections(source, target) | paired(source, target)
    transforms = {
        label: (options, fitted, change(tokens) - tokens) for label, (options, fitted, change) in found.items()
    }
    regulators = {
        **probes(source, control, target, tokens),
        **located(source, control, tokens),
        **evidences(source, control, tokens),
        **halfspaces(source, control, tokens),
        **casts(source, control, tokens),
        **posteriors(source, control, target, tokens),
        **schedules(),
        **turns(),
        "constant": ({}, {"value": 1.0}, np.ones((*tokens.shape[:2], 1)), None),
    }
    logistic, posterior = regulators["logistic"], regulators["posterior 0.75"]
    regulators["product"] = ({}, {}, logistic[2] * posterior[2], logistic[3])
    return {
        "inputs": {name: x.tolist() for name, x in sets.items()},
        "mask": MASK,
        "prompt_tokens": PROMPT_TOKENS,
        "turn_ids": TURN_IDS,
        "transforms": {
            label: {"options": options, "fitted": _plain(fitted), "edit": _plain(edit)}
            for label, (options, fitted, edit) in transforms.items()
        },
        "regulators": {
            label: {"options": options, "fitted": _plain(fitted), "values": _plain(values), "accuracy": accuracy}
            for label, (options, fitted, values, accuracy) in regulators.items()
        },
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return (np.round(np.asarray(value, dtype=np.float64), 12) + 0.0).tolist()  # and no -0.0


if __name__ == "__main__":
    FILE.write_text(json.dumps(make(), indent=None, separators=(",", ":")).replace('},"', '},\n"') + "\n")
