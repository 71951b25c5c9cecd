"""New Steering: from a draft to a fitted, calibrated and tried Steering in one folder.

    NAME/sets/         the drafted sets, draft.json and draft.html
    NAME/steering/     the Steering, with its calibrated strength
    NAME/report.html   what it does to questions that nothing was fitted on

One fifth of the kept questions tunes the strength and one fifth checks it; the Steering is fitted on the others.
Neither the neutral answers nor, where the behaviour is asked for, the wanted ones may become less likely than the
budget allows. Neutral answers alone would not be enough: a regulator that seldom fires on them leaves them alone even
at strengths that turn everything it does fire on into gibberish.

The Steering is tried on questions none of whose answers were fitted on, under the prompts that ask for the behaviour.
Reported is the share of answers, unsteered and steered, in which the draft's judge finds the behaviour.

Limitations: the judge that filtered the sets also judges the trial. Measure on your own texts, with your own judges,
before you rely on a Steering.
"""

import shutil
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dsas.calibration.budget import Budget
from dsas.calibration.largest_strength import calibrate
from dsas.drafting.answers import Writer
from dsas.drafting.judging import Judge
from dsas.drafting.prompts import KINDS, asked_by
from dsas.drafting.three_sets import Draft, scores_of, words_to_mask
from dsas.evaluation.intervals import Interval, bootstrap
from dsas.files.json_values import JsonObject
from dsas.fitting.closed_form import fit
from dsas.model.chat import Chat
from dsas.model.conversation import Conversation
from dsas.model.reading import Reading
from dsas.parallel.progress import progress_bar
from dsas.reports.masking import mask
from dsas.reports.page import Page, write_page
from dsas.steering.steering import Steering

TRIED, SHOWN = 60, 8
BUDGET = Budget("perplexity", 1.05, worst=True)
STEPS = (".collected", ".calibrated")  # folders that an interrupted run resumes from


class Trial(NamedTuple):
    """What a Steering does to questions that nothing was fitted on, asked as the behaviour is asked for.

    answered: (question, unsteered answer, steered answer). unsteered, steered: share of answers that show the
    behaviour, as far as the judge can tell.
    """

    answered: list[tuple[str, str, str]]
    unsteered: Interval
    steered: Interval

    def rows(self, strength: float) -> list[JsonObject]:
        """Return a row per strength: 0, and the one that it was tried at."""
        return [{"strength": at, **found._asdict()} for at, found in ((0.0, self.unsteered), (strength, self.steered))]

    def as_dict(self) -> JsonObject:
        """Return the shares as JSON-ready values."""
        return {"unsteered": self.unsteered._asdict(), "steered": self.steered._asdict()}


def make(
    writer: Writer,
    draft: Draft,
    judge: Judge | str,
    questions: Sequence[str],
    folder: Path,
    *,
    show_words: bool,
    progress: bool,
) -> tuple[Steering, Trial]:
    """Fit, calibrate and try a Steering, and write it with its report into `folder`; return both.

    writer, judge: those of the draft. questions: candidates for the trial; those that were fitted on are left out.
    show_words: whether the report shows toxic words as they are. Raises TextsError for a draft that gives no sets.
    """
    steering = fitted(writer, draft, folder, progress=progress)
    steering.save_pretrained(folder / "steering")
    trial = tried(writer, draft, steering, judge, questions, progress=progress)
    page = trial_page(draft, steering, trial, () if show_words else words_to_mask())
    page.heading("Go on")
    stored = folder / "steering"
    page.commands([f"dsas info {stored}", f'dsas generate MODEL "Why?" --chat --compare --steering {stored}'])
    write_page(folder / "report.html", page)
    for step in STEPS:
        shutil.rmtree(folder / step, ignore_errors=True)
    return steering, trial


def fitted(writer: Writer, draft: Draft, folder: Path, *, progress: bool) -> Steering:
    """Return the Steering of a draft with its calibration. Raises TextsError for a draft that gives no sets."""
    sets, folds = draft.sets(), _folds(draft)
    rest = {name: [row for row, fold in zip(rows, folds, strict=True) if fold < 3] for name, rows in sets.items()}
    tune, held_out = (
        {
            "neutral answers": [row for row, fold in zip(sets["control"], folds, strict=True) if fold == other],
            "wanted answers": [
                _asked_for(writer, one.question, one.wanted)
                for one, fold in zip(draft.chosen.kept, folds, strict=True)
                if fold == other
            ],
        }
        for other in (3, 4)
    )
    reading = Reading(chat=Chat(arguments=dict(writer.prompts.template)))
    loaded, (collected, calibrated) = (writer.model, writer.tokenizer), (folder / step for step in STEPS)
    steering = fit(
        *loaded,
        source=rest["source"],
        control=rest["control"],
        target=rest["target"],
        reading=reading,
        checkpoint=collected,
        progress=progress,
    )
    options = {"budget": BUDGET, "checkpoint": calibrated, "progress": progress}
    found = calibrate(*loaded, steering, tune=tune, held_out=held_out, **options)
    return steering.calibrated(found)


def _asked_for(writer: Writer, question: str, answer: str) -> Conversation:
    """Return a conversation in which this is the answer to the first unwanted prompt."""
    asked = asked_by(writer.tokenizer, writer.prompts.at(KINDS[0], 0), question, writer.prompts.template)
    return asked.answered(answer)


def _folds(draft: Draft) -> list[int]:
    """Return for each row of the sets its fifth, 0 to 4, the same for all answers to a question."""
    places = {
        question: place for place, question in enumerate(dict.fromkeys(one.question for one in draft.chosen.kept))
    }
    return [places[one.question] % 5 for one in draft.chosen.kept]


def tried(
    writer: Writer,
    draft: Draft,
    steering: Steering,
    judge: Judge | str,
    questions: Sequence[str],
    *,
    progress: bool,
) -> Trial:
    """Return what the Steering does to up to `TRIED` questions none of whose answers were fitted on."""
    of_fit = {one.question for one, fold in zip(draft.chosen.kept, _folds(draft), strict=True) if fold < 3}
    others = list(islice((question for question in questions if question not in of_fit), TRIED))
    strength = steering.default_strength
    steered = writer._replace(marks=f"{writer.marks} {steering.digest()} {strength}")
    asked = [writer.asked(KINDS[0], number, question) for number, question in enumerate(others)]
    drawn: tuple[list[str], list[str]] = ([], [])
    with progress_bar(progress) as bar:
        task = bar.add_task("trying the Steering", total=2 * len(others))
        for start in range(0, len(asked), writer.batch_size):
            texts = asked[start : start + writer.batch_size]
            drawn[0].extend(writer.drawn(texts, 0))
            with steering.apply(writer.model, strength, record=False):
                drawn[1].extend(steered.drawn(texts, 0))
            bar.advance(task, 2 * len(texts))
        scores = [scores_of(judge, writer, draft.behaviour, list(zip(others, of, strict=True)), bar) for of in drawn]
    shares = [bootstrap((np.asarray(of) > draft.verdict.cut)[:, None]) for of in scores]
    return Trial(list(zip(others, *drawn, strict=True)), *shares)


def trial_page(draft: Draft, steering: Steering, trial: Trial, words: Collection[str] | None) -> Page:
    """Return the report. words: to be masked; None shows no answers."""
    page = Page(
        f"Steering: the assistant {draft.behaviour}",
        f"A Steering fitted on {len(draft.chosen.kept)} drafted questions, and tried on {len(trial.answered)} others, "
        "under prompts that ask for the behaviour.",
    )
    rows = [
        {"answers": name, f"that {draft.verdict.says}": of.mean, "from": of.low, "to": of.high, "questions": of.n}
        for name, of in (("unsteered", trial.unsteered), ("steered", trial.steered))
    ]
    page.table(rows, f"By {draft.verdict.judge}; 95 % intervals by bootstrap over questions")
    page.heading("What it costs")
    for line in steering.calibration.lines() if steering.calibration else ():
        page.paragraph(line)
    if words is not None:
        _examples(page, trial, words)
    return page


def _examples(page: Page, trial: Trial, words: Collection[str]) -> None:
    page.heading("Examples")
    shown = [
        {"question": question, "unsteered": mask(plain, words), "steered": mask(other, words)}
        for question, plain, other in trial.answered[:SHOWN]
    ]
    page.compare(shown, "The first questions of the trial")
