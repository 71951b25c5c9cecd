"""Inspection: what in source, control and target texts would teach a regulator something other than the behaviour.

| check | what is found | how |
|---|---|---|
| duplicates | texts repeated within a set | equal once case, spaces and punctuation are dropped |
| overlap | near duplicates across sets, held-out texts included | cosine >= 0.8 of tf-idf over 3 to 5 letters |
| length | sets that length in words separates | AUROC of the length alone; 0.5 is chance |
| style | sets that punctuation, capitals, digits and common words separate | held-out balanced accuracy |
| vocabulary | words in a far larger share of one set | z-score of two proportions, 4 or more |
| separability | sites that tell source from control no better than the style does | held-out accuracy per site |

A behaviour has words of its own, so a vocabulary finding is not an error but for a person to judge; matched sets
agree in length and style.

In conversations, and in prompts with completions, the tokens that count are compared: the answers, or the instructions
where the last instruction token is read. Duplicates are compared as a whole.

Limitations: paraphrases that share no letters are not found; languages without spaces between words are not supported.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dsas.errors import OptionError
from dsas.files.json_values import JsonObject
from dsas.fitting.collect import collect
from dsas.model.conversation import answer_text, as_text, instruction_text
from dsas.model.examples import Given, check_kinds, check_texts
from dsas.model.foreign import Foreign, Model, Tokenizer
from dsas.model.reading import Reading, Tokens
from dsas.model.sites import DEFAULT_SITES, SitePatterns
from dsas.model.subject import subject_of
from dsas.regulators.logistic import Logistic

MATCHED = ("source", "control")  # a target may differ: it says how to steer and not when
NEAR = 0.8  # cosine from which two texts are near duplicates
LENGTH_GAP = 0.7  # AUROC of the length alone
STYLE_GAP = 0.7  # held-out balanced accuracy of the style alone
WORD_GAP = 4.0  # standard deviations
SHOWN = 5
_COMMON = """the a an and or but of to in on at for with by from as that this it he she they we you i is are was were be
    been have has had do does did not no will would can could there their his her its my your our who what which
    when""".split()  # noqa: SIM905


class Finding(NamedTuple):
    """One thing worth knowing.

    level: "error" (fix it), "warning" (look at it) or "note". sets: which sets it is about. value: the number that it
    rests on, as the table above says. examples: some of the texts or words.
    """

    level: str
    check: str
    sets: tuple[str, ...]
    value: float
    message: str
    examples: tuple[str, ...] = ()


class SiteAccuracy(NamedTuple):
    """How well one site tells source from control: held-out balanced accuracy, 0.5 is chance."""

    site: str
    accuracy: float


class Inspection(NamedTuple):
    """The findings, errors first; the sizes of the sets; and the curve over sites, empty without a model."""

    sizes: dict[str, int]
    findings: list[Finding]
    separability: list[SiteAccuracy]

    def rows(self) -> list[JsonObject]:
        """Return a row per set with its size, per finding, and per site of the curve."""

        def row(
            check: str, sets: str, value: float, *, level: str = "", site: str = "", message: str = ""
        ) -> JsonObject:
            told = {"level": level or None, "sets": sets, "site": site or None, "value": value}
            return {"check": check, **told, "message": message or None}

        rows = [row("size", name, float(size)) for name, size in self.sizes.items()]
        for one in self.findings:
            rows.append(row(one.check, ", ".join(one.sets), one.value, level=one.level, message=one.message))
        return rows + [row("accuracy", ", ".join(MATCHED), one.accuracy, site=one.site) for one in self.separability]

    def as_dict(self) -> JsonObject:
        """Return the inspection as JSON-ready values."""
        return {
            "sizes": self.sizes,
            "findings": [finding._asdict() for finding in self.findings],
            "separability": [line._asdict() for line in self.separability],
        }


def inspect_texts(
    source: Sequence[Given],
    control: Sequence[Given],
    *,
    target: Sequence[Given] | None = None,
    held_out: Sequence[Given] | None = None,
    tokens: Tokens = "auto",
) -> Inspection:
    """Return the findings that need no model.

    held_out: texts to evaluate on; one that is near a text of another set has leaked. tokens: which tokens will count,
    as in `Reading`. Raises TextsError as `fit` does.
    """
    given = {"source": source, "control": control, "target": target, "held-out": held_out}
    contents = {name: check_texts(name, texts) for name, texts in given.items() if texts is not None}
    check_kinds(contents)
    shown = {"all": as_text, "last-instruction": instruction_text}.get(tokens, answer_text)
    sets = {name: list(map(shown, own)) for name, own in contents.items()}
    checks = (_overlap, _length, _style, _vocabulary)
    findings = list(_duplicates({name: list(map(as_text, own)) for name, own in contents.items()}))
    findings += [finding for check in checks for finding in check(sets)]
    order = ("error", "warning", "note")
    findings.sort(key=lambda finding: order.index(finding.level))
    return Inspection({name: len(texts) for name, texts in sets.items()}, findings, [])


def separability(
    model: Model,
    tokenizer: Tokenizer,
    *,
    source: Sequence[Given],
    control: Sequence[Given],
    sites: SitePatterns = DEFAULT_SITES,
    reading: Reading = Reading(),
    progress: bool = True,
) -> list[SiteAccuracy]:
    """Return, in the order of the model, how well each site tells source from control, as measured by `fit`."""
    subject = subject_of(model, tokenizer)
    contents = {"source": check_texts("source", source), "control": check_texts("control", control)}
    check_kinds(contents)
    texts = [*contents["source"], *contents["control"]]
    found = collect(subject.examples(reading), texts, range(len(texts)), subject.sites(sites), progress=progress)
    lines = []
    for site, value in found.items():
        vectors = value.mean((1, 2))
        unwanted, neutral = vectors[: len(source)], vectors[len(source) :]
        fitted = Logistic.fit(unwanted, neutral, neutral)
        assert fitted.accuracy is not None
        lines.append(SiteAccuracy(str(site), fitted.accuracy))
    return lines


def against_style(curve: Sequence[SiteAccuracy], inspection: Inspection) -> Inspection:
    """Return the inspection with the curve over sites, and with a finding if the style alone does as well.

    Raises OptionError when the curve is empty.
    """
    if not curve:
        raise OptionError("expected the accuracy of at least one site, got none")
    best = max(curve, key=lambda line: line.accuracy)
    findings = list(inspection.findings)
    style = next((f.value for f in findings if f.check == "style"), 0.5)
    if style >= best.accuracy - 0.05:
        message = f"the style alone tells source from control as well ({style:.2f}) as the best site does"
        message += f" ({best.accuracy:.2f} at {best.site}): the regulator may learn the style"
        findings.insert(0, Finding("warning", "separability", MATCHED, best.accuracy, message))
    return Inspection(inspection.sizes, findings, list(curve))


def _duplicates(sets: dict[str, list[str]]) -> Iterator[Finding]:
    for name, texts in sets.items():
        counts = Counter(map(folded, texts))
        again = [text for text in dict.fromkeys(texts) if counts[folded(text)] > 1]
        extra = len(texts) - len(counts)
        if extra:
            message = f"{extra} of {len(texts)} texts in {name} repeat another one"
            yield Finding("warning", "duplicates", (name,), extra / len(texts), message, tuple(again[:SHOWN]))


def letter_vectors(*sets: Sequence[str]) -> list[Foreign]:
    """Return each set's sparse tf-idf vectors over 3 to 5 letters, one per text; products of two are cosines."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)
    vectorizer.fit([folded(text) for texts in sets for text in texts])
    return [vectorizer.transform(list(map(folded, texts))) for texts in sets]


def _overlap(sets: dict[str, list[str]]) -> Iterator[Finding]:
    vectors = dict(zip(sets, letter_vectors(*sets.values()), strict=True))
    for one, other in combinations(sets, 2):
        alike = (vectors[one] @ vectors[other].T).tocoo()
        pairs = [pair for pair in zip(alike.data, alike.row, alike.col, strict=True) if pair[0] >= NEAR]
        close = sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2]))
        if not close:
            continue
        rows = len({row for _, row, _ in close})
        examples = tuple(f"{sets[one][row]!r:.70} ~ {sets[other][column]!r:.70}" for _, row, column in close[:SHOWN])
        said = "have leaked into" if other == "held-out" else "are nearly the same in"
        level = "warning" if {one, other} == {"control", "target"} else "error"
        message = f"{rows} of {len(sets[one])} texts in {one} {said} {other}"
        yield Finding(level, "overlap", (one, other), float(close[0][0]), message, examples)


def _length(sets: dict[str, list[str]]) -> Iterator[Finding]:
    from sklearn.metrics import roc_auc_score

    words = {name: [len(text.split()) for text in sets[name]] for name in MATCHED}
    labels = [name == "source" for name in MATCHED for _ in words[name]]
    area = float(roc_auc_score(labels, words["source"] + words["control"]))
    if max(area, 1 - area) >= LENGTH_GAP:
        longer, shorter = MATCHED if area > 0.5 else MATCHED[::-1]
        medians = np.median(words[longer]), np.median(words[shorter])
        message = f"{longer} is longer than {shorter} (median {medians[0]:g} and {medians[1]:g} words)"
        yield Finding("warning", "length", MATCHED, area, message)


def _style(sets: dict[str, list[str]]) -> Iterator[Finding]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    sizes = [len(sets[name]) for name in MATCHED]
    x = np.array([_habits(text) for name in MATCHED for text in sets[name]])
    y = np.repeat([1, 0], sizes)
    folds = StratifiedKFold(min(5, *sizes), shuffle=True, random_state=0)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", C=0.1, max_iter=1000))
    accuracy = float(cross_val_score(classifier, x, y, cv=folds, scoring="balanced_accuracy").mean())
    if accuracy >= STYLE_GAP:
        message = f"punctuation, capitals, digits and common words alone tell source from control: {accuracy:.2f}"
        yield Finding("warning", "style", MATCHED, accuracy, message)


def _vocabulary(sets: dict[str, list[str]]) -> Iterator[Finding]:
    scores = _apart(*(sets[name] for name in MATCHED))
    apart = sorted((word for word in scores if abs(scores[word]) >= WORD_GAP), key=lambda word: -abs(scores[word]))
    if apart:
        examples = tuple(f"{word}: {'source' if scores[word] > 0 else 'control'}" for word in apart[: 2 * SHOWN])
        message = f"{len(apart)} words are in a far larger share of source or of control; are they the behaviour?"
        yield Finding("note", "vocabulary", MATCHED, abs(scores[apart[0]]), message, examples)


def _apart(one: list[str], other: list[str]) -> dict[str, float]:
    """Return each word's z-score, > 0 where the larger share of `one` has it (two proportions, pooled variance)."""
    holding = [Counter(word for text in texts for word in set(_words(text))) for texts in (one, other)]
    sizes = len(one), len(other)
    scores = {}
    for word in holding[0] + holding[1]:
        shares = [counts[word] / size for counts, size in zip(holding, sizes, strict=True)]
        pooled = (holding[0][word] + holding[1][word]) / sum(sizes)
        spread = math.sqrt(pooled * (1 - pooled) * (1 / sizes[0] + 1 / sizes[1]))
        scores[word] = (shares[0] - shares[1]) / spread if spread else 0.0
    return scores


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())


def folded(text: str) -> str:
    """Return a text without case, punctuation and repeated spaces; the text itself where nothing is left."""
    return " ".join(_words(text)) or text.strip()


def _habits(text: str) -> Float[np.ndarray, " habit"]:
    """Return how a text is written: shares of marks, capitals and digits, of common words, how it begins and ends."""
    words, size = re.findall(r"[^\W\d_]+", text.lower()), max(len(text), 1)
    marks = [text.count(mark) / size for mark in ".,!?;:'\"-()\n"]
    kinds = [sum(map(kind, text)) / size for kind in (str.isupper, str.isdigit, str.isspace)]
    common = [words.count(word) / max(len(words), 1) for word in _COMMON]
    edges = [text[:1].isupper(), text.rstrip()[-1:] in {".", "!", "?"}, len(words) / 20]
    return np.array([*marks, *kinds, *common, *edges], dtype=np.float64)
