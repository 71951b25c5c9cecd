"""The demo's texts: which the Steerings are fitted on, which choose the strength, and which the report is about.

What is unwanted is sampled from the model itself: continuations of toxicity prompts, each kept with its prompt, sorted
by an ensemble of scorers into toxic (source) and clean (half of the control). So source and control share prompts,
style, length and author, and what tells them apart is the behaviour; the other half of the control is Wikipedia. The
target is Wikipedia too: where to steer is the regulator's matter, and a target far from the source gives a clear
direction. No text serves two purposes: prompts and sentences are split before anything is measured.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dsas.demo.data import news_sentences, openwebtext_sentences, split, toxic_prompts, wikipedia_sentences
from dsas.errors import TextsError
from dsas.evaluation.generations import Sampling, sample_continuations
from dsas.evaluation.scorers import Scorer
from dsas.files.atomic import replace_files

TOXIC_ABOVE, CLEAN_BELOW = 0.6, 0.2
MIN_WORDS = 5
DRAWS = Sampling(top_p=0.9, new_tokens=24)


class Sizes(NamedTuple):
    """How many texts serve what.

    fit, tune, report: of the 623 toxicity prompts. draws: continuations of each prompt to fit on.
    tune_sentences, report_sentences: of each kind of neutral text.
    """

    fit: int = 270
    tune: int = 50
    report: int = 303
    draws: int = 2
    tune_sentences: int = 60
    report_sentences: int = 100


class DemoTexts(NamedTuple):
    """Disjoint texts.

    source, control, target: to fit on. tune, tune_prompts: neutral sentences by kind, and prompts, to choose with.
    report, prompts: the same to report on.
    """

    source: list[str]
    control: list[str]
    target: list[str]
    tune: dict[str, list[str]]
    tune_prompts: list[str]
    report: dict[str, list[str]]
    prompts: list[str]


def demo_texts(
    model: Any,
    tokenizer: Any,
    scorers: Sequence[Scorer],
    *,
    file: Path,
    progress: Callable[[int], None],
    sizes: Sizes = Sizes(),
) -> DemoTexts:
    """Return the demo's texts for this model; what was sampled is kept in `file` and not sampled again."""
    fit_prompts, tune_prompts, report_prompts = split(toxic_prompts(), sizes[:3])
    if not file.is_file():
        seeds = range(100, 100 + sizes.draws)
        drawn = sample_continuations(model, tokenizer, fit_prompts, seeds=seeds, sampling=DRAWS, progress=progress)
        texts = [prompt + text for texts in drawn for prompt, text in zip(fit_prompts, texts, strict=True)]
        replace_files({file: json.dumps(list(dict.fromkeys(texts))).encode()})
    samples = json.loads(file.read_text(encoding="utf-8"))
    scores = np.stack([scorer(samples) for scorer in scorers])
    source = [text for text, mean in zip(samples, scores.mean(0), strict=True) if mean > TOXIC_ABOVE]
    clean = [text for text, worst in zip(samples, scores.max(0), strict=True) if worst < CLEAN_BELOW]
    if min(len(source), len(clean)) < 16:
        raise TextsError(f"the demo needs 16 toxic and 16 clean samples, got {len(source)} and {len(clean)}")
    count = min(len(source), len(clean))
    half = clean[: count // 2]
    both = sizes[4:]
    wikipedia = split(wikipedia_sentences(), (count - len(half), count, *both))
    web, news = split(openwebtext_sentences(), both), split(news_sentences(), both)
    prompts = zip((tune_prompts, report_prompts), both, strict=True)
    style = [clean_of(some, scorers)[:number] for some, number in prompts]
    return DemoTexts(
        source=source,
        control=half + wikipedia[0],
        target=wikipedia[1],
        tune={"Wikipedia": wikipedia[2], "web": web[0], "news": news[0], "prompt style": style[0]},
        tune_prompts=tune_prompts,
        report={"Wikipedia": wikipedia[3], "web": web[1], "news": news[1], "prompt style": style[1]},
        prompts=report_prompts,
    )


def clean_of(prompts: list[str], scorers: Sequence[Scorer]) -> list[str]:
    """Return the prompts of some length that no scorer finds toxic; a few words have no perplexity to speak of."""
    long = [prompt for prompt in prompts if len(prompt.split()) >= MIN_WORDS]
    worst = np.stack([scorer(long) for scorer in scorers]).max(0)
    return [prompt for prompt, score in zip(long, worst, strict=True) if score < CLEAN_BELOW]
