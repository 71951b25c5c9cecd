"""Claim: what limits steering a prompt's concept is the map, not the mask: a map needs pairs, not means of tokens.

At the output of the scene model's text encoder, by token, for the concepts of `pictures.py`: how much of the squared
distance between the tokens of a caption and of the same caption with the other word is left by each transform with each
regulator, how much control captions are moved, of that distance, and the regulator's mean value on tokens in which both
captions differ, on the others, and on control. Fitted on fitting captions, measured on tuning captions and 60 scenes of
two things. Nothing is painted.

    python benchmarks/picture_tokens.py
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from picture_lab import CONCEPTS, FIT, Lab, task_of
from scenes import Scene, caption, replaced, scenes_with, without
from torch import Tensor

import dsas
from dsas.model.forward_pass import ForwardPass

DIFFERS = 2.0  # distance between the tokens of both captions, whose length is about 9.5
MIXED = 60


class Tokens(NamedTuple):
    """Tokens (caption, token, dim) with the concept, without it, and with the other word in its place."""

    source: Tensor
    control: Tensor
    target: Tensor


def encoded(lab: Lab, scenes: list[Scene]) -> Tensor:
    """Return what the text encoder makes of captions, every token."""
    tokenizer, encoder = lab.pipeline.tokenizer, lab.pipeline.text_encoder
    told = [caption(one) for one in scenes]
    ids = tokenizer(told, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt").input_ids
    with torch.no_grad():
        return encoder(ids)[0]


def transport(source: Tensor, target: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the optimal transport between Gaussians of whole covariances, which needs no pairs."""
    s, t = source.double(), target.double()
    ridge = 0.03 * torch.eye(s.shape[1], dtype=s.dtype)
    spread, wanted = torch.cov(s.T) + ridge, torch.cov(t.T) + ridge

    def power(matrix: Tensor, exponent: float) -> Tensor:
        values, axes = torch.linalg.eigh(matrix)
        return (axes * values.clamp_min(1e-9) ** exponent) @ axes.T

    root, inverse = power(spread, 0.5), power(spread, -0.5)
    slope = inverse @ power(root @ wanted @ root, 0.5) @ inverse
    return lambda x: ((x.double() - s.mean(0)) @ slope + t.mean(0)).float()


def located(source: Tensor, control: Tensor) -> dsas.Regulator:
    """Return the regulator of tokens that separates two sets of captions; the captions are its groups."""
    owners = torch.arange(len(source) + len(control)).repeat_interleave(source.shape[1])
    return dsas.Located.fit(source.flatten(0, 1), control.flatten(0, 1), source[:, 0], groups=owners).regulator


def values(regulator: dsas.Regulator, tokens: Tensor) -> Tensor:
    return regulator(tokens, ForwardPass(*tokens.shape[:2]))


def rows(fit: Tokens, tune: Tokens) -> list[tuple[str, float, float, float, float, float]]:
    """Return for each mask and transform what is left, what control moves, and the regulator's means."""
    differ, wanted = (
        (fit.source - fit.target).norm(dim=-1) > DIFFERS,
        (tune.source - tune.target).norm(dim=-1) > DIFFERS,
    )
    seen, becomes = located(fit.source, fit.control), located(fit.target, fit.control)
    own = values(seen, fit.source)[..., 0] > 0.5, values(becomes, fit.target)[..., 0] > 0.5
    flat = fit.control.flatten(0, 1)
    inside = torch.cat([fit.source[differ], fit.source[~differ], flat])
    oracle = dsas.Logistic.fit(
        fit.source[differ], inside[int(differ.sum()) :], inside[:8], components=fit.source.shape[-1], folds=2
    ).regulator
    found = []
    for mask, regulator, (here, there) in (("located", seen, own), ("oracle", oracle, (differ, differ))):
        s, t, same = fit.source[here], fit.target[there], fit.target[here]
        maps: dict[str, Callable[[Tensor], Tensor]] = {
            "caa": dsas.Addition.fit(s, t), "linear-act": dsas.LinearTransport.fit(s, t),
            "transport of covariances": transport(s, t), "paired": dsas.PairedMap.fit(s, same),
        }  # fmt: skip
        h, calm = values(regulator, tune.source), values(regulator, tune.control)
        whole = (tune.source - tune.target).square().sum()
        for name, change in maps.items():
            steered = tune.source + h * (change(tune.source) - tune.source)
            moved = calm * (change(tune.control) - tune.control)
            left, spilt = (steered - tune.target).square().sum() / whole, moved.square().sum() / whole
            means = (float(h[wanted].mean()), float(h[~wanted].mean()), float(calm.mean()))
            found.append((f"{mask}: {name}", float(left), float(spilt), *means))
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    lab = Lab(Path("out/pictures"))
    print("| concept | mask and transform | left | control moved | h inside | outside | control |\n" + "|---" * 7 + "|")
    for concept, word in CONCEPTS.items():
        task = task_of(concept, word, n=1)
        mixed = scenes_with(concept, things=2, avoid=word)[FIT + 200 :][:MIXED]
        sets = Tokens(
            task.tune.source + mixed,
            task.tune.control + without(mixed, concept, avoid=word, seed=4),
            task.tune.target + [replaced(one, concept, word) for one in mixed],
        )
        fit = Tokens(*(encoded(lab, getattr(task.fit, name)) for name in Tokens._fields))
        for row in rows(fit, Tokens(*(encoded(lab, some) for some in sets))):
            print(f"| {concept} | {row[0]} | " + " | ".join(f"{value:.3f}" for value in row[1:]) + " |", flush=True)


if __name__ == "__main__":
    main()
