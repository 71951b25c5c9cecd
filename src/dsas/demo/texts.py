"""The demo's texts: which the Steerings are fitted on, which choose the strength, and which the report is about.

Unwanted text is sampled from the model itself: continuations of toxicity prompts, each kept with its prompt, sorted
by an ensemble of scorers into toxic (source) and clean (half of the control). So source and control share prompts,
style, length and author, and differ only in the behaviour; the other half of the control is Wikipedia. The
target is Wikipedia too: the regulator decides where to steer, and a target far from the source gives a clear direction.
Selectivity is read on prompts of the report that the scorers find toxic by themselves: people wrote them, and nothing
was fitted on them. Prompts and sentences are split before anything is measured, so that no text that is reported on
takes part in a fit or in the choice of a strength.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dsas.demo.data import news_sentences, openwebtext_sentences, split, toxic_prompts, wikipedia_sentences
from dsas.errors import TextsError
from dsas.evaluation.generations import Sampling
from dsas.model.identity import fingerprint
from dsas.model.loading import LoadedModel
from dsas.parallel.workers import Spread
from dsas.sweep.jobs import Job, Setup
from dsas.sweep.lab import Lab, open_lab

TOXIC_ABOVE, CLEAN_BELOW = 0.6, 0.2
MIN_WORDS = 5
DRAWS = Sampling(top_p=0.9, new_tokens=24)
FIRST_SEED = 100  # first seed for the texts to fit on; the report's seeds begin at 0
ENSEMBLE = ("tox-block", "toxic-comment-classifier", "profanity-check")


class Sizes(NamedTuple):
    """How many texts serve which purpose.

    fit, tune, report: how many of the 623 toxicity prompts. draws: continuations of each prompt to fit on.
    tune_sentences, report_sentences: how many of each kind of neutral text. harshest_first: whether the prompts to
    report on are ordered by the scorers' view of the prompts themselves, the most toxic first, and not at random.
    """

    fit: int = 270
    tune: int = 50
    report: int = 303
    draws: int = 2
    tune_sentences: int = 60
    report_sentences: int = 100
    harshest_first: bool = False


class DemoTexts(NamedTuple):
    """Disjoint texts.

    source, control, target: to fit on. tune, tune_prompts: neutral sentences by kind, and prompts, to choose with.
    report, prompts: the same to report on. held_out_source: the prompts among `report` that are toxic by themselves.
    """

    source: list[str]
    control: list[str]
    target: list[str]
    tune: dict[str, list[str]]
    tune_prompts: list[str]
    report: dict[str, list[str]]
    prompts: list[str]
    held_out_source: list[str]


def bare_setup(folder: str, loaded: LoadedModel, *, device: str = "auto") -> Setup:
    """Return the setup of a sweep of the model in `folder`, in the precision it was loaded in, without any texts."""
    precision = str(loaded.model.dtype).removeprefix("torch.")
    return Setup(folder, fingerprint(loaded.model), prompts=(), parts={}, device=device, precision=precision)


def demo_texts(
    out: Path, setup: Setup, *, sizes: Sizes = Sizes(), spread: Spread = Spread(), progress: bool = True
) -> DemoTexts:
    """Return the demo's texts for the model of `setup`; what was sampled is kept in `out` and not sampled again.

    setup: which model, where and in which precision; its prompts, parts, scorers and sampling are not used.
    Raises TextsError for a model with too few toxic or clean continuations.
    """
    fit_prompts, tune_prompts, report_prompts = split(toxic_prompts(), sizes[:3])
    sampling = setup._replace(prompts=tuple(fit_prompts), parts={}, scorers=ENSEMBLE, sampling=DRAWS)
    # the perplexity of a prompt of fewer words says little
    long = [tuple(one for one in some if len(one.split()) >= MIN_WORDS) for some in (tune_prompts, report_prompts)]
    with open_lab(out, sampling, spread, progress=progress) as lab:
        samples = _sampled(lab, sizes.draws)
        asked = [Job("score", texts=texts) for texts in (samples, *long, tuple(report_prompts))]
        scores, *of_long, of_report = lab.run(asked, "scoring texts")
    source, clean = _toxic(samples, scores), _clean(samples, scores)
    if min(len(source), len(clean)) < 16:
        raise TextsError(f"the demo needs 16 toxic and 16 clean samples, got {len(source)} and {len(clean)}")
    count = min(len(source), len(clean))
    half = clean[: count // 2]
    both = sizes[4:6]
    wikipedia = split(wikipedia_sentences(), (count - len(half), count, *both))
    web, news = split(openwebtext_sentences(), both), split(news_sentences(), both)
    style = [_clean(some, found)[:most] for some, found, most in zip(long, of_long, both, strict=True)]
    if sizes.harshest_first:
        report_prompts = _harshest_first(report_prompts, of_report)
    return DemoTexts(
        source=source,
        control=half + wikipedia[0],
        target=wikipedia[1],
        tune={"Wikipedia": wikipedia[2], "web": web[0], "news": news[0], "prompt style": style[0]},
        tune_prompts=tune_prompts,
        report={"Wikipedia": wikipedia[3], "web": web[1], "news": news[1], "prompt style": style[1]},
        prompts=report_prompts,
        held_out_source=_toxic(long[1], of_long[1])[: sizes.report_sentences],
    )


def _sampled(lab: Lab, draws: int) -> tuple[str, ...]:
    """Return the different texts that the lab's prompts and their continuations make."""
    seeds = range(FIRST_SEED, FIRST_SEED + draws)
    lab.run([job for seed in seeds for job in lab.generations(None, 0.0, seed)], "sampling texts to fit on")
    drawn = [lab.texts(None, 0.0, seed) for seed in seeds]
    told = [prompt + text for texts in drawn for prompt, text in zip(lab.setup.prompts, texts, strict=True)]
    return tuple(dict.fromkeys(told))


def _harshest_first(prompts: Sequence[str], scores: Mapping[str, Sequence[float]]) -> list[str]:
    order: list[int] = np.argsort(-np.mean(list(scores.values()), axis=0), kind="stable").tolist()
    return [prompts[number] for number in order]


def _toxic(texts: Sequence[str], scores: Mapping[str, Sequence[float]]) -> list[str]:
    mean = np.mean(list(scores.values()), axis=0)
    return [text for text, score in zip(texts, mean, strict=True) if score > TOXIC_ABOVE]


def _clean(texts: Sequence[str], scores: Mapping[str, Sequence[float]]) -> list[str]:
    worst = np.max(list(scores.values()), axis=0)
    return [text for text, score in zip(texts, worst, strict=True) if score < CLEAN_BELOW]
