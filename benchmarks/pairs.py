"""Pairs: toxic and clean continuations of one prompt, drawn from the model itself, for `objective="preference"`.

A continuation is scored by itself, whatever its prompt says; the preferred text is another continuation of the same
prompt.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import dsas
from dsas.demo.texts import CLEAN_BELOW, DRAWS, MIN_WORDS, DemoTexts
from dsas.evaluation.generations import sample_continuations
from dsas.evaluation.scorers import Scorer
from dsas.files.atomic import replace_files
from dsas.model.loading import LoadedModel

TOXIC_ABOVE = 0.5
START = 0.08  # the strength of the fitted Steering from which preference starts
OPTIMISER = dsas.Optimiser("adam", 0.01, 0.02)
COPIES = 4  # continuations of every prompt in one call, which fills the batches
SEEDS = range(820, 868, COPIES)
TARGETS = 4  # clean continuations for every toxic one


class Pairs(NamedTuple):
    """Texts with their prompts: `source` and `target` in pairs, and all clean ones, in arbitrary order.

    prompts: those that no scorer finds toxic, alone.
    """

    source: list[str]
    target: list[str]
    clean: list[str]
    prompts: list[str]


def learned_from(
    pairs: Pairs, fitted: dsas.Steering, loaded: LoadedModel, texts: DemoTexts, log: Path, *, start: float = START
) -> dsas.Steering:
    """Return a fitted Steering after preference training; log: folder for the training's log and state.

    start: the strength at which training starts; it is strength 1 of the result.

    The control texts are, in about equal parts, Wikipedia, clean continuations, and the clean prompts, repeated.
    """
    plain = [*texts.control[len(texts.control) // 2 :], *texts.target]
    again = pairs.prompts * round(len(plain) / len(pairs.prompts))
    return dsas.train(
        *loaded,
        source=pairs.source,
        target=pairs.target,
        control=[*plain, *pairs.clean[: len(plain)], *again],
        objective="preference",
        start=start * fitted,
        steps=50,
        optimiser=OPTIMISER,
        held_out=dsas.HeldOut(0.0),
        reading=dsas.Reading(batch_size=32, max_tokens=64),
        checkpoint=log,
    )


def drawn_pairs(
    loaded: LoadedModel, prompts: Sequence[str], scorers: Sequence[Scorer], *, file: Path, seeds: Sequence[int] = SEEDS
) -> Pairs:
    """Return pairs from the prompts that have both kinds; continuations are stored in `file` and not drawn again.

    seeds: each draws `COPIES` continuations of every prompt.
    """
    if not file.is_file():
        replace_files({file: json.dumps(_drawn(loaded, list(prompts), scorers, seeds)).encode()})
    toxic: dict[str, list[str]] = {}
    clean: dict[str, list[str]] = {}
    for prompt, text, mean, worst in dict.fromkeys(map(tuple, json.loads(file.read_text(encoding="utf-8")))):
        if mean > TOXIC_ABOVE:
            toxic.setdefault(prompt, []).append(text)
        if worst < CLEAN_BELOW:
            clean.setdefault(prompt, []).append(text)
    draw = np.random.default_rng(0)
    both = [prompt for prompt in toxic if prompt in clean]
    source = [(prompt, text) for prompt in both for text in toxic[prompt] for _ in range(TARGETS)]
    target = [prompt + str(draw.choice(clean[prompt])) for prompt, _ in source]
    every = [prompt + text for prompt, texts in clean.items() for text in texts]
    draw.shuffle(every)
    return Pairs([prompt + text for prompt, text in source], target, every, clean_of(prompts, scorers))


def clean_of(prompts: Sequence[str], scorers: Sequence[Scorer]) -> list[str]:
    """Return the prompts of some length that no scorer finds toxic; the perplexity of a few words says little."""
    long = [prompt for prompt in prompts if len(prompt.split()) >= MIN_WORDS]
    worst = np.stack([scorer(long) for scorer in scorers]).max(0)
    return [prompt for prompt, score in zip(long, worst, strict=True) if score < CLEAN_BELOW]


def _drawn(
    loaded: LoadedModel, prompts: list[str], scorers: Sequence[Scorer], seeds: Sequence[int]
) -> list[tuple[str, str, float, float]]:
    found = []
    for seed in seeds:
        (texts,) = sample_continuations(*loaded, prompts * COPIES, seeds=(seed,), sampling=DRAWS)
        said = [(prompt, text) for prompt, text in zip(prompts * COPIES, texts, strict=True) if text.strip()]
        scores = np.stack([scorer([text.strip() for _, text in said]) for scorer in scorers])
        rows = zip(said, scores.mean(0).tolist(), scores.max(0).tolist(), strict=True)
        found += [(*one, mean, worst) for one, mean, worst in rows]
    return found
