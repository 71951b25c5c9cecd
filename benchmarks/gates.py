"""The gates that `selectivity.py` compares: which regulators stand at which sites of CAA, and how they are fitted."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, final

import numpy as np
import torch
from idea_list import whole_space
from torch import Tensor

import dsas
from dsas.methods.base import Facts
from dsas.model.activations import token_activations
from dsas.model.forward_pass import ForwardPass
from dsas.model.identity import ModelIdentity
from dsas.model.loading import LoadedModel
from dsas.model.sites import Site
from dsas.model.token_batches import batches, inputs_of, pad_token, tokenize
from dsas.regulators.base import FittedRegulator, Regulator

Samples = Literal["means", "tokens", "running"]
PENALTIES = {"means": 1e-3, "tokens": 1e-2, "running": 1e-2}  # sklearn's C, on standardised activations


class Shared:
    """What the sites of one pass have in common: the sum of their log-odds so far, and of how many sites."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0

    def mean_with(self, odds: Tensor, *, first: bool) -> Tensor:
        """Return the mean log-odds of all sites up to this one."""
        if first:
            self.total, self.count = 0.0, 0
        self.total, self.count = self.total + odds, self.count + 1
        return self.total / self.count


@final
class Gate(Regulator):
    """A function of log-odds that are averaged over the tokens of the row so far, over the sites so far, or neither.

    The first token of a row is left out of the average, and is not steered where `sink` is False. form: "sigmoid", or
    "ratio", which is exp of the log-odds up to e^3.
    """

    name: ClassVar[str] = "gate"
    facts: ClassVar[Facts] = Facts("f(mean of theta . t + b)", "-", "-", "2 d")
    reads_forward_pass = True
    theta: Tensor
    bias: Tensor

    def __init__(
        self,
        theta: Tensor,
        bias: Tensor,
        *,
        over_tokens: bool = False,
        over_sites: bool = False,
        sharpness: float = 1.0,
        shift: float = 0.0,
        form: str = "sigmoid",
        sink: bool = False,
        decay: float = 1.0,
    ) -> None:
        super().__init__()
        self.keep(theta=theta, bias=bias, over_tokens=over_tokens, over_sites=over_sites, sharpness=sharpness)
        self.keep(shift=shift, form=form, sink=sink, decay=decay)
        self.shared, self.first = Shared(), True

    @classmethod
    def fit(cls, source: Tensor, control: Tensor, target: Tensor) -> FittedRegulator:
        raise NotImplementedError

    def forward(self, t: Tensor, forward_pass: ForwardPass) -> Tensor:
        odds = t.float() @ self.theta + self.bias
        counted = (forward_pass.real & (forward_pass.positions > 0)).float()
        if self.over_tokens:
            odds = self._so_far(odds, counted, forward_pass)
        if self.over_sites:
            odds = self.shared.mean_with(odds, first=self.first)
        odds = self.sharpness * odds + self.shift
        value = odds.sigmoid() if self.form == "sigmoid" else odds.clamp(max=3.0).exp()
        return (value if self.sink else value * counted).unsqueeze(-1)

    def _so_far(self, odds: Tensor, counted: Tensor, forward_pass: ForwardPass) -> Tensor:
        before = forward_pass.carried("evidence")
        total, weight = (odds.new_zeros(len(odds)),) * 2 if before is None else before.unbind(-1)
        if self.decay == 1.0:
            totals = total.unsqueeze(-1) + (odds * counted).cumsum(-1)
            weights = weight.unsqueeze(-1) + counted.cumsum(-1)
        else:
            pairs = []
            for place in range(odds.shape[1]):
                fade = torch.where(counted[:, place] > 0, self.decay, 1.0)
                total = fade * total + counted[:, place] * odds[:, place]
                weight = fade * weight + counted[:, place]
                pairs.append((total, weight))
            totals, weights = (torch.stack(each, dim=-1) for each in zip(*pairs, strict=True))
        forward_pass.carry("evidence", torch.stack([totals, weights], dim=-1))
        return totals / weights.clamp(min=1e-6)


class Tokens(NamedTuple):
    """The tokens of one set of texts but the first of each: for each site (token, dim), and each token's text."""

    vectors: dict[Site, Tensor]
    texts: np.ndarray

    @classmethod
    def read(cls, loaded: LoadedModel, texts: Sequence[str], sites: Sequence[Site], *, max_tokens: int) -> "Tokens":
        """Read the unsteered model."""
        rows = [row[:max_tokens] for row in tokenize(loaded.tokenizer, texts)]
        chosen, owners = [], []
        for batch in batches(rows, 16, pad=pad_token(loaded.tokenizer), side="right"):
            mask = batch.mask.clone()
            mask[:, 0] = False
            chosen.append((inputs_of(batch), mask))
            owners += [row for row in batch.rows for _ in rows[row][1:]]
        found: dict[Site, list[Tensor]] = {site: [] for site in sites}
        for vectors in token_activations(loaded.model, chosen, sites):
            for site, value in vectors.items():
                found[site].append(value)
        return cls({site: torch.cat(pieces) for site, pieces in found.items()}, np.array(owners))

    def samples(self, site: Site, kind: Samples, keep: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return samples of the first `keep` texts, the weight of each (1 in all per text), and its text."""
        x, texts = self.vectors[site].numpy().astype(np.float64), self.texts
        x, texts = x[texts < keep], texts[texts < keep]
        counts = np.bincount(texts, minlength=keep)
        if kind == "tokens":
            return x, 1 / counts[texts], texts
        order = np.argsort(texts, kind="stable")
        x, texts = x[order], texts[order]
        starts = np.concatenate([[0], counts.cumsum()[:-1]])
        if kind == "means":
            return np.add.reduceat(x, starts) / counts[:, None], np.ones(keep), np.arange(keep)
        sums = x.cumsum(0)
        before = np.concatenate([np.zeros((1, x.shape[1])), sums])[starts]
        place = np.arange(len(x)) - starts[texts] + 1
        return (sums - before[texts]) / place[:, None], 1 / counts[texts], texts


class Material(NamedTuple):
    """What gates are fitted on: the sets by name ("toxic", "clean", "web"), read token by token."""

    loaded: LoadedModel
    texts: dict[str, list[str]]
    tokens: dict[str, Tokens]
    sites: list[Site]
    folder: Any

    @property
    def size(self) -> int:
        """Texts of each set."""
        return len(self.texts["toxic"])

    def control(self, mixed: bool) -> list[tuple[str, int]]:
        """Return the control set: which sets, and how many texts of each."""
        half = self.size // 2
        return [("clean", half), ("web", self.size - half)] if mixed else [("clean", self.size)]


def ridge(
    material: Material, site: Site, samples: Samples, mixed: bool, penalty: float
) -> tuple[Tensor, Tensor, float]:
    """Return theta, bias and held-out accuracy of a penalised logistic regression on standardised activations.

    Both sets weigh the same, and so does every text of a set. penalty: sklearn's C, for a weight of 1 per text.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold

    parts = [("toxic", material.size, 1.0), *((name, keep, 0.0) for name, keep in material.control(mixed))]
    found = [material.tokens[name].samples(site, samples, keep) for name, keep, _ in parts]
    x = np.concatenate([part[0] for part in found])
    y = np.concatenate([np.full(len(part[0]), label) for part, (_, _, label) in zip(found, parts, strict=True)])
    weight = np.concatenate([part[1] for part in found])
    weight = np.where(y == 1, weight / weight[y == 1].sum(), weight / weight[y == 0].sum()) * material.size
    group = np.concatenate([1000 * number + part[2] for number, part in enumerate(found)])
    mean = np.average(x, axis=0, weights=weight)
    scale = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weight)) + 1e-9
    z = (x - mean) / scale
    folds = list(StratifiedGroupKFold(4, shuffle=True, random_state=0).split(z, y, group))
    folds = folds if samples == "means" else folds[:1]
    right = []
    for train, test in folds:
        one = LogisticRegression(C=penalty, max_iter=200).fit(z[train], y[train], weight[train])
        right.append(np.average(one.predict(z[test]) == y[test], weights=weight[test]))
    fitted = LogisticRegression(C=penalty, max_iter=200).fit(z, y, weight)
    theta = fitted.coef_[0] / scale
    bias = float(fitted.intercept_[0] - theta @ mean)
    return torch.from_numpy(theta).float(), torch.tensor(bias).float(), float(np.mean(right))


def library(*, mixed: bool = False, **options: Any) -> Callable[[Material], dsas.Steering]:
    """Return what fits with `dsas.fit`, with options of it."""

    def make(material: Material) -> dsas.Steering:
        control = [text for name, keep in material.control(mixed) for text in material.texts[name][:keep]]
        sets = {"source": material.texts["toxic"], "control": control, "target": material.texts["clean"]}
        return dsas.fit(*material.loaded, **sets, checkpoint=material.folder / "collected", progress=False, **options)

    return make


def gates(
    samples: Samples = "means",
    *,
    mixed: bool = True,
    every: int = 1,
    least: float = 0.0,
    penalty: float | None = None,
    **form: Any,
) -> Callable[[Material], dsas.Steering]:
    """Return what makes CAA with `Gate` at every nth site whose held-out accuracy is at least `least`."""

    def make(material: Material) -> dsas.Steering:
        rules, shared = [], Shared()
        for site in material.sites[::every]:
            theta, bias, accuracy = _fitted(material, site, samples, mixed, penalty or PENALTIES[samples])
            gate = Gate(theta, bias, **form)
            gate.shared = shared
            source, target = (
                torch.from_numpy(material.tokens[name].samples(site, "means", material.size)[0]).float()
                for name in ("toxic", "clean")
            )
            rules.append(dsas.Rule(site, dsas.Addition.fit(source, target), gate, float(accuracy >= least), accuracy))
        for number, rule in enumerate([rule for rule in rules if rule.weight > 0]):
            rule.regulator.first = number == 0
        return dsas.Steering(rules, ModelIdentity.of(material.loaded.model))

    return make


_KEPT: dict[Any, tuple[Tensor, Tensor, float]] = {}


def _fitted(
    material: Material, site: Site, samples: Samples, mixed: bool, penalty: float
) -> tuple[Tensor, Tensor, float]:
    key = (str(site), samples, mixed, penalty)
    if key not in _KEPT:
        _KEPT[key] = ridge(material, site, samples, mixed, penalty)
    return _KEPT[key]


def logistic(components: int) -> Any:
    """Return the fit of the library's logistic regulator with so many components."""
    return partial(dsas.Logistic.fit, components=components)


EVIDENCE = {"every": 2, "over_tokens": True, "over_sites": True}
SHARP = {"sharpness": 2.0, "shift": -2.0}

GATES: dict[str, Callable[[Material], dsas.Steering]] = {
    "constant": library(regulator="constant"),
    "logistic (the library's), clean": library(),
    "logistic, clean and web": library(mixed=True),
    "running mean, over sites, x 2 - 2": gates("running", **EVIDENCE, **SHARP),
    "running mean, x 2 - 2": gates("running", every=2, over_tokens=True, **SHARP),
    "running mean, over sites": gates("running", **EVIDENCE),
    "tokens, x 2 - 2": gates("tokens", every=2, **SHARP),
    "means, x 2 - 2": gates("means", every=2, **SHARP),
    "means, over sites, x 2 - 2": gates("means", every=2, over_sites=True, **SHARP),
    "means": gates("means", every=2),
    "running mean": gates("running", every=2, over_tokens=True),
    "tokens": gates("tokens", every=2),
    "logistic 50, clean": library(regulator=logistic(50)),
    "logistic 50, clean and web": library(mixed=True, regulator=logistic(50)),
    "logistic 250, clean": library(regulator=logistic(250)),
    "logistic 250, clean and web": library(mixed=True, regulator=logistic(250)),
    "no PCA, clean": library(regulator=whole_space),
    "no PCA, clean and web": library(mixed=True, regulator=whole_space),
    "means, first token steered": gates("means", every=2, sink=True),
    "means, every site": gates("means"),
    "means, clean": gates("means", mixed=False, every=2),
    "means, over sites": gates("means", every=2, over_sites=True),
    "tokens, over sites, x 2 - 2": gates("tokens", every=2, over_sites=True, **SHARP),
    "tokens, read as running mean, over sites, x 2 - 2": gates("tokens", **EVIDENCE, **SHARP),
    "running mean, over sites, x 4 - 4": gates("running", **EVIDENCE, sharpness=4.0, shift=-4.0),
    "running mean, over sites, likelihood ratio": gates("running", **EVIDENCE, form="ratio"),
    "running mean, over sites, x 2 - 2, clean": gates("running", mixed=False, **EVIDENCE, **SHARP),
    "running mean, over sites, x 2 - 2, every site": gates("running", **{**EVIDENCE, "every": 1}, **SHARP),
    "fading mean (0.8), over sites, x 2 - 2": gates("running", **EVIDENCE, **SHARP, decay=0.8),
    "constant, every second site": library(
        regulator="constant", sites=[f"model.layers.{number}" for number in range(0, 30, 2)]
    ),
}
