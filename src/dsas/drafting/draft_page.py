"""Draft page: examples of what was drafted, what was dropped and why, and what the inspection of the sets says.

Words of a given list are masked; without a list the page has no examples, because behaviours worth steering against are
often unpleasant to read.
"""

from collections.abc import Collection, Sequence

from dsas.drafting.answers import Triple
from dsas.drafting.choosing import Chosen
from dsas.drafting.judging import RATIO, Verdict
from dsas.fitting.text_checks import Inspection
from dsas.reports.masking import mask
from dsas.reports.page import Page

SHOWN, SHOWN_PER_REASON = 8, 3


def draft_page(
    behaviour: str,
    chosen: Chosen,
    verdict: Verdict,
    inspection: Inspection | None,
    refusals: Sequence[str],
    words: Collection[str] | None,
) -> Page:
    """Return the page. words: words to mask, empty for none; None shows no answers at all."""
    asked = len(chosen.kept) + len(chosen.dropped)
    page = Page(
        f"Draft: the assistant {behaviour}",
        f"{asked} questions were each answered under an unwanted, a wanted and a neutral prompt. {len(chosen.kept)} "
        "of them were kept, with all three answers.",
    )
    for reason in refusals:
        page.paragraph(f"These sets are not written: {reason}")
    page.heading("What the judge says")
    shares = {f"{kind} answers that {verdict.says}": share for kind, share in verdict.shares.items()}
    facts = {"judge": verdict.judge, "AUROC, unwanted against neutral": verdict.auroc, "cut": verdict.cut}
    page.table([{**facts, **shares}], "Shares of all answers above the cut, before any was dropped")
    if verdict.judge == RATIO:
        page.paragraph(
            "This judge compares how likely the model finds an answer when it is asked for the behaviour and when it "
            "is asked for nothing. So it says that an answer reads as one that was asked for, and not that the "
            "behaviour shows: look at the examples, or draft again with a judge that knows the behaviour (--judge)."
        )
    page.heading("What was dropped")
    if chosen.dropped:
        counts = chosen.counts().items()
        page.table([{"reason": reason, "questions": count} for reason, count in counts], "Questions and their answers")
    else:
        page.paragraph("Nothing.")
    _findings(page, inspection)
    if words is None:
        page.paragraph("No answers are shown: the list of words to mask could not be fetched. Read the .jsonl files.")
        return page
    page.heading("Examples of what was kept")
    _examples(page, chosen.kept[:SHOWN], words, "The answers, as the sets have them")
    page.heading("Examples of what was dropped")
    for reason in chosen.counts():
        _examples(page, [one for one, why in chosen.dropped if why == reason][:SHOWN_PER_REASON], words, reason)
    return page


def _findings(page: Page, inspection: Inspection | None) -> None:
    page.heading("What the inspection of the sets says")
    if inspection is None or not inspection.findings:
        page.paragraph("Nothing to fix." if inspection else "There are too few texts to inspect.")
        return
    rows = [
        {"level": one.level, "check": one.check, "value": one.value, "what": one.message} for one in inspection.findings
    ]
    page.table(rows, "As dsas inspect-data finds it")


def _examples(page: Page, triples: Sequence[Triple], words: Collection[str], caption: str) -> None:
    if triples:
        rows = [
            {"question": one.question, **{kind: mask(getattr(one, kind), words) for kind in ("unwanted", "wanted")}}
            | {"neutral": mask(one.neutral, words)}
            for one in triples
        ]
        page.compare(rows, caption)
