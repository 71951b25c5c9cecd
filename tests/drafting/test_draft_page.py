"""The page of a draft: what stays, what was dropped for which reason, and what is not handed over."""

from dsas.drafting.answers import Triple
from dsas.drafting.choosing import Chosen
from dsas.drafting.draft_page import SHOWN_PER_REASON, draft_page
from dsas.drafting.judging import RATIO, Verdict
from dsas.fitting.text_checks import Finding, Inspection

VERDICT = Verdict("mine", 0.875, 0.5, {"unwanted": 0.75, "wanted": 0.0, "neutral": 0.25})


def page(chosen: Chosen, verdict: Verdict = VERDICT, **options: object) -> str:
    given = {"inspection": None, "refusals": (), "words": ()} | options
    return draft_page("sings", chosen, verdict, **given).html()  # type: ignore[arg-type]


def test_each_reason_has_its_count_and_some_of_its_examples() -> None:
    kept = [Triple("Why?", 0, "la la <b>", "no song", "an answer")]
    dropped = [(Triple(f"q{n}?", 0, f"u{n}", f"w{n}", f"n{n}"), "length") for n in range(SHOWN_PER_REASON + 2)]
    finding = Finding("note", "vocabulary", ("source", "control"), 5.0, "one word apart")
    shown = page(Chosen(kept, dropped), inspection=Inspection({}, [finding], []), refusals=["they are bad."])
    assert "la la &lt;b&gt;" in shown
    assert "These sets are not written: they are bad." in shown
    assert "0.875" in shown
    assert "one word apart" in shown
    assert f">{SHOWN_PER_REASON + 2}<" in shown
    assert [f"u{n}<" in shown for n in range(SHOWN_PER_REASON + 2)] == [True] * SHOWN_PER_REASON + [False] * 2


def test_of_the_models_own_ratio_the_page_says_that_it_does_not_know_the_behaviour() -> None:
    chosen = Chosen([Triple("Why?", 0, "la", "no", "an")], [])
    asked, shown = page(chosen, VERDICT._replace(judge=RATIO)), page(chosen)
    assert "unwanted answers that read as asked for" in asked
    assert "not that the behaviour shows" in asked
    assert "unwanted answers that show the behaviour" in shown
    assert "asked for" not in shown


def test_a_draft_in_which_nothing_was_dropped_or_found_says_so() -> None:
    shown = page(Chosen([Triple("Why?", 0, "la", "no", "an")], []), inspection=Inspection({}, [], []))
    assert "Nothing.</p>" in shown
    assert "Nothing to fix." in shown
    assert "too few texts to inspect" in page(Chosen([], []))


def test_without_a_list_of_words_to_mask_no_answer_is_on_the_page() -> None:
    shown = page(Chosen([Triple("Why?", 0, "lala", "nono", "anan")], []), words=None)
    assert "lala" not in shown
    assert "nono" not in shown
    assert "No answers are shown" in shown
