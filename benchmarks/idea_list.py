"""The ideas that `ideas.py` tries: each says what it changes in CAA with the logistic regulator."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, final

import numpy as np
import torch
from evidence import kept
from pairs import drawn_pairs, learned_from
from torch import Tensor

import dsas
from dsas.demo.texts import DemoTexts
from dsas.evaluation.scorers import Scorer
from dsas.methods.base import Facts
from dsas.methods.linear_boundary import Labelled, held_out_accuracy, separate
from dsas.model.forward_pass import ForwardPass
from dsas.model.loading import LoadedModel
from dsas.regulators.base import FittedRegulator, Regulator

Change = Callable[["Material"], dict[str, Any]]  # gives options of `dsas.fit`
Learn = Callable[["Material"], dsas.Steering]
USUAL = 85


class Material(NamedTuple):
    """The material for ideas: the pool of texts to fit on, the prompts that they continue, the model and scorers.

    folder: where slow results are stored.
    """

    loaded: LoadedModel
    texts: DemoTexts
    prompts: list[str]
    clean_prompts: list[str]
    scorers: tuple[Scorer, ...]
    folder: Path

    @property
    def own(self) -> list[str]:
        """Clean continuations of the prompts."""
        return self.texts.control[: len(self.texts.control) // 2]

    @property
    def other(self) -> list[str]:
        """Wikipedia."""
        return self.texts.control[len(self.texts.control) // 2 :]

    def sets(self, count: int = USUAL) -> dict[str, list[str]]:
        """Return the usual sets: half of the control clean continuations, half Wikipedia, the target Wikipedia."""
        half = count // 2
        control = self.own[:half] + self.other[: count - half]
        return {"source": self.texts.source[:count], "control": control, "target": self.texts.target[:count]}

    def ends(self, text: str) -> int:
        """Return where the prompt of a text ends."""
        return max((len(prompt) for prompt in self.prompts if text.startswith(prompt)), default=0)

    def toxic_words(self, text: str) -> list[tuple[int, int]]:
        """Return the words whose removal makes the text a quarter less toxic to the scorers, or the whole text."""
        words = text.split(" ")
        left_out = [" ".join(words[:place] + words[place + 1 :]) or "." for place in range(len(words))]
        scores = np.mean([scorer([text, *left_out]) for scorer in self.scorers], axis=0)
        starts = np.cumsum([0, *(len(word) + 1 for word in words)])
        found = [
            (int(start), int(start) + len(word))
            for word, start, score in zip(words, starts, scores[1:], strict=False)
            if word and score < 0.75 * scores[0]
        ]
        return found or [(min(self.ends(text), len(text) - 1), len(text))]


def reshaped(*args: Tensor, sharpness: float = 1.0, shift: float = 0.0, **options: Any) -> FittedRegulator:
    """Fit the logistic regulator and make its log-odds steeper or move its boundary."""
    found = dsas.Logistic.fit(*args, **options)
    assert isinstance(found.regulator, dsas.Logistic)
    theta, bias = sharpness * found.regulator.theta, sharpness * found.regulator.bias + shift
    return FittedRegulator(dsas.Logistic(theta, bias), found.accuracy)


@final
class Running(Regulator):
    """sigmoid(theta . m + b), m = mean of the row's tokens so far without the first, an attention sink."""

    name: ClassVar[str] = "running"
    facts: ClassVar[Facts] = Facts("sigmoid(theta . m + b)", "-", "-", "3 d")
    reads_forward_pass = True
    theta: Tensor
    bias: Tensor
    decay: float

    def __init__(self, theta: Tensor, bias: Tensor, decay: float = 1.0) -> None:
        super().__init__()
        self.keep(theta=theta, bias=bias, decay=decay)

    @classmethod
    def fit(cls, source: Tensor, control: Tensor, target: Tensor, *, decay: float = 1.0) -> FittedRegulator:
        found = dsas.Logistic.fit(source, control, target)
        assert isinstance(found.regulator, dsas.Logistic)
        return FittedRegulator(cls(found.regulator.theta, found.regulator.bias, decay), found.accuracy)

    def forward(self, t: Tensor, forward_pass: ForwardPass) -> Tensor:
        odds = t.to(self.theta.dtype) @ self.theta + self.bias
        counted = (forward_pass.real & (forward_pass.positions > 0)).to(odds.dtype)
        before = forward_pass.carried("evidence")
        total, weight = (odds.new_zeros(len(odds)),) * 2 if before is None else before.unbind(-1)
        means, states = [], []
        for place in range(odds.shape[1]):
            fade = torch.where(counted[:, place] > 0, self.decay, 1.0)
            total = fade * total + counted[:, place] * odds[:, place]
            weight = fade * weight + counted[:, place]
            means.append(torch.where(weight > 0, torch.sigmoid(total / weight.clamp(min=1e-6)), 0.0))
            states.append(torch.stack([total, weight], dim=-1))
        forward_pass.carry("evidence", torch.stack(states, dim=1))
        return torch.stack(means, dim=1).unsqueeze(-1)


@final
class Guarded(Regulator):
    """The minimum of two logistic regulators, source against each half of the control."""

    name: ClassVar[str] = "guarded"
    facts: ClassVar[Facts] = Facts("min(h1(t), h2(t))", "-", "-", "4 d")
    first: Regulator
    second: Regulator

    def __init__(self, first: Regulator, second: Regulator) -> None:
        super().__init__()
        self.keep(first=first, second=second)

    @classmethod
    def fit(cls, source: Tensor, control: Tensor, target: Tensor) -> FittedRegulator:
        half = len(control) // 2
        fitted = [dsas.Logistic.fit(source, part, target) for part in (control[:half], control[half:])]
        accuracies = [one.accuracy for one in fitted if one.accuracy is not None]
        return FittedRegulator(cls(fitted[0].regulator, fitted[1].regulator), min(accuracies))

    def forward(self, t: Tensor, forward_pass: ForwardPass) -> Tensor:
        return torch.minimum(self.first(t, forward_pass), self.second(t, forward_pass))


def whole_space(
    source: Tensor, control: Tensor, target: Tensor, *, inverse_penalty: float = 1.0, groups: Any = None
) -> FittedRegulator:
    """Fit the logistic regulator without a PCA."""
    data = Labelled.of(source, control)
    draw = partial(separate, components=10**9, inverse_penalty=inverse_penalty)
    boundary = draw(data)
    theta = torch.from_numpy(boundary.theta).float()
    accuracy = held_out_accuracy(data, draw, groups=None if groups is None else groups.numpy())
    return FittedRegulator(dsas.Logistic(theta, torch.tensor(boundary.bias).float()), accuracy)


def logistic(**options: Any) -> Change:
    """Fit the logistic regulator with other options."""
    return lambda _: {"regulator": partial(dsas.Logistic.fit, **options)}


def given(**options: Any) -> Change:
    """Give `dsas.fit` these options."""
    return lambda _: options


def spread_over(*parts: str) -> Change:
    """Take the control in equal shares from parts of the material."""

    def change(material: Material) -> dict[str, Any]:
        pools = [getattr(material, part)[: -(-USUAL // len(parts))] for part in parts]
        return {"control": [text for pool in pools for text in pool]}

    return change


def layers(low: float, high: float) -> Change:
    """Steer the residual stream in a part of the model's depth."""

    def change(material: Material) -> dict[str, Any]:
        depth = material.loaded.model.config.num_hidden_layers
        return {"sites": [f"model.layers.{number}" for number in range(int(low * depth), int(high * depth))]}

    return change


def combined(*changes: Change) -> Change:
    """Make several changes at once."""
    return lambda material: {key: value for change in changes for key, value in change(material).items()}


def _spans(of: Callable[[Material, str], list[tuple[int, int]]]) -> Change:
    return lambda material: {"spans": [of(material, text) for text in material.sets()["source"]]}


def _after_prompt(material: Material, text: str) -> list[tuple[int, int]]:
    return [(min(material.ends(text), len(text) - 1), len(text))]


def preferring(material: Material) -> dsas.Steering:
    """Learn from pairs of continuations, starting from CAA towards clean continuations."""
    loaded, texts, folder = material.loaded, material.texts, material.folder
    pairs = drawn_pairs(loaded, material.prompts, material.scorers, file=folder / "pairs.json")
    sets = {**material.sets(), "target": material.own[:USUAL]}
    fitted = dsas.fit(*loaded, **sets, regulator="logistic", checkpoint=folder / "collected", progress=False)
    return kept(folder / "preference", lambda log: learned_from(pairs, fitted, loaded, texts, log))


IDEAS: dict[str, Change | Learn] = {
    "CAA + logistic": given(),
    "without a regulator": given(regulator="constant"),
    # texts
    "control: Wikipedia alone": spread_over("other"),
    "control: clean continuations alone": spread_over("own"),
    "control: and clean prompts": spread_over("own", "other", "clean_prompts"),
    "target: clean continuations": lambda material: {"target": material.own[:USUAL]},
    "target: half clean continuations": lambda material: {"target": material.own[:42] + material.other[:43]},
    "170 texts per set": lambda material: material.sets(170),
    "all texts": lambda material: material.sets(len(material.texts.source)),
    # labels
    "tokens: after the prompt": _spans(_after_prompt),
    "tokens: words that scorers need": _spans(Material.toxic_words),
    # regulator
    "1 component": logistic(components=1),
    "2 components": logistic(components=2),
    "20 components": logistic(components=20),
    "50 components": logistic(components=50),
    "no PCA": given(regulator=whole_space),
    "C = 0.01": logistic(inverse_penalty=0.01),
    "C = 100": logistic(inverse_penalty=100.0),
    "log-odds x 2": given(regulator=partial(reshaped, sharpness=2.0)),
    "log-odds x 4": given(regulator=partial(reshaped, sharpness=4.0)),
    "log-odds x 1/2": given(regulator=partial(reshaped, sharpness=0.5)),
    "log-odds - 2": given(regulator=partial(reshaped, shift=-2.0)),
    "log-odds + 1": given(regulator=partial(reshaped, shift=1.0)),
    "logistic x posterior": given(regulator="logistic*posterior"),
    "logistic x CAST": given(regulator="logistic*cast"),
    "MERA": given(regulator="mera"),
    "rectified": given(regulator="rectified"),
    "mean of the row so far": given(regulator=Running.fit),
    "fading mean, 0.8 a token": given(regulator=partial(Running.fit, decay=0.8)),
    "least of two, one a half of the control": given(regulator=Guarded.fit),
    # sites
    "smooth weights": given(selection="smooth"),
    "threshold 0.85": given(selection=dsas.Threshold(0.85)),
    "10 best sites": given(selection=dsas.Top(10)),
    "first third of the layers": layers(0, 1 / 3),
    "second third": layers(1 / 3, 2 / 3),
    "last third": layers(2 / 3, 1),
    "first two thirds": layers(0, 2 / 3),
    "last two thirds": layers(1 / 3, 1),
    # transform
    "ITI": given(transform="iti"),
    "along the first direction": given(transform="caa-pca"),
    "Linear-AcT": given(transform="linear-act"),
    "rotation": given(transform="rotation"),
    # ideas that helped, combined
    "smooth weights, no PCA": combined(given(selection="smooth"), given(regulator=whole_space)),
    "smooth weights, no PCA, all texts": combined(
        given(selection="smooth"),
        given(regulator=whole_space),
        lambda material: material.sets(len(material.texts.source)),
    ),
    # learned end to end from next tokens
    "preference, from CAA": preferring,
}
