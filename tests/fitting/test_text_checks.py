"""Inspection: what is wrong with sets of texts is found, and nothing is reported for matched sets."""

import random
from typing import Any

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from dsas.errors import OptionError
from dsas.fitting.text_checks import Finding, Inspection, SiteAccuracy, against_style, inspect_texts, separability
from dsas.testing import tiny_model, tiny_tokenizer

THINGS = """door lamp river stone bread wheel chair cloud horse paper glass table train music garden winter
    market ladder candle button""".split()  # noqa: SIM905

NEW = ["quite another matter", "some more of it", "nothing alike here", "by and by"]


def sentences(word: str, count: int, *, seed: int, words: int = 6) -> list[str]:
    chance = random.Random(seed)
    return [f"{word} {' '.join(chance.sample(THINGS, words))}" for _ in range(count)]


def found(inspection: Inspection, check: str) -> list[Finding]:
    return [finding for finding in inspection.findings if finding.check == check]


def test_matched_sets_have_only_their_words_to_look_at() -> None:
    inspection = inspect_texts(sentences("rude", 40, seed=1), sentences("kind", 40, seed=5))
    assert [finding.check for finding in inspection.findings] == ["vocabulary"]
    (words,) = inspection.findings
    assert set(words.examples) == {"rude: source", "kind: control"}
    assert words.level == "note"
    assert inspection.sizes == {"source": 40, "control": 40}


def test_a_text_that_says_what_another_one_says_is_found_whatever_its_case_and_marks() -> None:
    source = [*sentences("rude", 20, seed=1), "Shut the door", "shut the DOOR!"]
    (repeated,) = found(inspect_texts(source, sentences("kind", 20, seed=2)), "duplicates")
    assert (repeated.sets, repeated.examples) == (("source",), ("Shut the door", "shut the DOOR!"))
    assert repeated.value == pytest.approx(1 / 22)


def test_near_duplicates_across_sets_are_errors_and_so_is_what_leaked_from_the_held_out_texts() -> None:
    source, control = sentences("rude", 20, seed=1), sentences("kind", 20, seed=2)
    overlap = found(
        inspect_texts([*source, "the cat sat on the mat today"], [*control, "The cat sat on the mat, today!"]),
        "overlap",
    )
    assert [(finding.level, finding.sets) for finding in overlap] == [("error", ("source", "control"))]
    assert "the cat sat" in overlap[0].examples[0]
    leaked = found(inspect_texts(source, control, held_out=[*NEW, source[7]]), "overlap")
    assert [(finding.level, finding.sets) for finding in leaked] == [("error", ("source", "held-out"))]
    assert "1 of 20 texts in source have leaked into held-out" in leaked[0].message
    same = found(inspect_texts(source, control, target=control), "overlap")
    assert [(finding.level, finding.sets) for finding in same] == [("warning", ("control", "target"))]


def test_a_gap_in_length_is_found_with_its_auroc() -> None:
    (gap,) = found(inspect_texts(sentences("a", 20, seed=1, words=3), sentences("a", 20, seed=2, words=9)), "length")
    assert gap.value == 0.0
    assert "control is longer than source (median 10 and 4 words)" in gap.message


def test_a_gap_in_style_is_found_where_the_words_are_the_same() -> None:
    source = [f"{text.upper()}!!!" for text in sentences("a", 20, seed=1)]
    (gap,) = found(inspect_texts(source, sentences("a", 20, seed=2)), "style")
    assert gap.value > 0.95


def test_findings_come_with_errors_first_and_notes_last() -> None:
    source, control = sentences("rude", 30, seed=1, words=3), sentences("kind", 30, seed=2, words=9)
    levels = [finding.level for finding in inspect_texts([*source, control[0]], control).findings]
    assert levels == sorted(levels, key=("error", "warning", "note").index)
    assert len(set(levels)) == 3


def test_the_curve_over_sites_is_what_fit_measures() -> None:
    import dsas

    model, tokenizer = tiny_model(), tiny_tokenizer()
    sets: dict[str, Any] = {
        "source": [f"SHUT UP {n}" for n in range(8)],
        "control": [f"the door {n}" for n in range(8)],
    }
    curve = separability(model, tokenizer, **sets, progress=False)
    steering = dsas.fit(model, tokenizer, **sets, target=[f"thank you {n}" for n in range(8)], progress=False)
    assert curve == [SiteAccuracy(str(rule.site), rule.accuracy or 0.0) for rule in steering.rules]


def test_a_style_that_does_as_well_as_the_best_site_is_a_warning() -> None:
    style = Finding("warning", "style", ("source", "control"), 0.9, "style")
    curve = [SiteAccuracy("a", 0.7), SiteAccuracy("b", 0.92)]
    told = against_style(curve, Inspection({}, [style], []))
    assert [finding.check for finding in told.findings] == ["separability", "style"]
    assert "0.92 at b" in told.findings[0].message
    assert told.separability == curve
    quiet = against_style([SiteAccuracy("a", 0.99)], Inspection({}, [style], []))
    assert [finding.check for finding in quiet.findings] == ["style"]
    with pytest.raises(OptionError, match="at least one site"):
        against_style([], Inspection({}, [], []))


# Where a number becomes a finding


def cosine(sets: list[list[str]]) -> float:
    """Return the tf-idf cosine over 3 to 5 letters of the last text of two sets."""
    features = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)
    features.fit([text for texts in sets for text in texts])
    one, other = (features.transform(texts[-1:]) for texts in sets)
    return float((one @ other.T).toarray()[0, 0])


@pytest.mark.parametrize(
    ("changed", "expected", "is_near"),
    [
        ("the quiet dog slept on the old red mat near the window today", 0.844, True),
        ("the quiet dog slept under the old red mat near the window today", 0.788, False),
    ],
)
def test_two_texts_are_nearly_the_same_from_a_cosine_of_0_8_on(changed: str, expected: float, is_near: bool) -> None:
    source, control = sentences("rude", 20, seed=1), sentences("kind", 20, seed=2)
    sets = [[*source, "the quiet cat sat on the old red mat near the window today"], [*control, changed]]
    assert cosine(sets) == pytest.approx(expected, abs=1e-3)
    overlap = found(inspect_texts(*sets), "overlap")
    assert [finding.value for finding in overlap] == ([pytest.approx(cosine(sets))] if is_near else [])


@pytest.mark.parametrize(("longer", "is_found"), [(11, False), (12, True), (25, True)])
def test_a_length_is_a_gap_from_an_auroc_of_0_7_on(longer: int, is_found: bool) -> None:
    """Of 30 texts, `longer` have a word more than all 30 of the other set: AUROC = 1/2 + longer / 60."""
    source = sentences("a", 30 - longer, seed=1) + sentences("a", longer, seed=3, words=7)
    gap = found(inspect_texts(source, sentences("a", 30, seed=2)), "length")
    assert [finding.value for finding in gap] == ([pytest.approx(0.5 + longer / 60)] if is_found else [])


@pytest.mark.parametrize(("loud", "is_found"), [(7, False), (8, True)])
def test_a_style_is_a_gap_from_a_held_out_accuracy_of_0_7_on(loud: int, is_found: bool) -> None:
    """Of 20 texts, `loud` are told by their style, the others not: accuracy = 1/2 + loud / 40."""
    texts = sentences("a", 20, seed=1)
    source = [f"{text.upper()}!!!" if number < loud else text for number, text in enumerate(texts)]
    gap = found(inspect_texts(source, sentences("a", 20, seed=2)), "style")
    assert [finding.value for finding in gap] == ([pytest.approx(0.5 + loud / 40)] if is_found else [])


@pytest.mark.parametrize(("having", "is_found"), [(13, False), (14, True)])
def test_a_word_is_shown_from_4_standard_deviations_on(having: int, is_found: bool) -> None:
    texts = sentences("a", 40, seed=1)
    source = [f"{text} rude" if number < having else text for number, text in enumerate(texts)]
    control = [f"{text} calm" if number < having else text for number, text in enumerate(sentences("a", 40, seed=2))]
    share = having / 80
    deviations = 2 * share / (share * (1 - share) * 2 / 40) ** 0.5
    assert (deviations >= 4) == is_found
    words = found(inspect_texts(source, control), "vocabulary")
    assert [finding.value for finding in words] == ([pytest.approx(deviations)] if is_found else [])
    assert all(set(finding.examples) == {"rude: source", "calm: control"} for finding in words)


@pytest.mark.parametrize(("style", "is_found"), [(0.74, False), (0.76, True)])
def test_a_style_is_as_good_as_the_best_site_up_to_five_points_less(style: float, is_found: bool) -> None:
    told = Finding("warning", "style", ("source", "control"), style, "style")
    curve = [SiteAccuracy("a", 0.6), SiteAccuracy("b", 0.8)]
    checks = [finding.check for finding in against_style(curve, Inspection({}, [told], [])).findings]
    assert checks == (["separability", "style"] if is_found else ["style"])
