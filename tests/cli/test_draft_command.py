"""`dsas draft` from end to end, with made-up answers in place of the model's."""

import codecs
import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tables_page import columns_of

import dsas
from dsas.drafting import prompts
from dsas.evaluation import generations
from dsas.sweep import jobs
from dsas.testing import tiny_model, tiny_tokenizer

QUESTIONS = ["Why is ice cold?", "Who built Rome?", "Where do owls nest?", "How tall are oaks?", "When does snow melt?"]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a model that says in capitals what the question is, when it is told to."""

    def sample(_model: Any, _tokenizer: Any, texts: Sequence[str], **_: Any) -> list[list[str]]:
        return [[_said(*text.split("|")) for text in texts]]

    def _said(system: str, question: str) -> str:
        plain = codecs.encode(question, "rot13").lower() if "whisper" in system else question[::-1].lower()
        return question.upper() if system == "SHOUT" else plain

    monkeypatch.setattr(generations, "sample_continuations", sample)
    monkeypatch.setattr(jobs, "scorer_of", lambda name, device: lambda texts: [float(text.isupper()) for text in texts])
    tokenizer: Any = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages | map(attribute='content') | join('|') }}"
    tokenizer.save_pretrained(tmp_path / "model")
    spoken: Any = tiny_model()
    spoken.save_pretrained(tmp_path / "model")
    (tmp_path / "ask.txt").write_text("\n".join(QUESTIONS))
    return tmp_path / "model"


def test_draft_writes_the_sets_with_prompts_and_judge_of_ones_own_and_says_what_is_next(
    run: Callable[..., Any], model: Path, tmp_path: Path
) -> None:
    told = ("--unwanted", "SHOUT", "--wanted", "whisper", "--neutral", "speak", "--judge", "tox-block")
    asked = ("draft", "shouts", "--model", model, "--questions", tmp_path / "ask.txt", "--out", tmp_path / "sets")
    done = run(*asked, *told, "--least", "4", "--show-words", "--table", tmp_path / "answers.csv")
    assert done.status == 0, done.err
    answers = list(csv.DictReader((tmp_path / "answers.csv").read_text().splitlines()))
    assert list(answers[0]) == columns_of("draft")
    assert len(answers) == 3 * 5
    assert {row["answer"] for row in answers if row["kind"] == "unwanted"} == set(map(str.upper, QUESTIONS))
    sets = {name: (tmp_path / "sets" / f"{name}.jsonl").read_text().splitlines() for name in ("source", "target")}
    assert [json.loads(line)["completion"][0]["content"] for line in sets["source"]] == list(map(str.upper, QUESTIONS))
    assert len(sets["target"]) == 5
    assert "kept: 5 questions" in done.out
    assert "AUROC 1.00" in done.out
    assert f"dsas fit {model} --source {tmp_path / 'sets' / 'source.jsonl'} --control" in done.out
    said = json.loads((tmp_path / "sets" / "draft.json").read_text())
    assert (said["prompts"]["unwanted"], said["prompts"]["neutral"]) == (["SHOUT"], ["speak"])
    assert not (tmp_path / ".sets.drafted").exists()


def test_a_draft_that_ended_gives_the_same_files_when_it_is_run_again(
    run: Callable[..., Any], model: Path, tmp_path: Path
) -> None:
    told = ("--unwanted", "SHOUT", "--wanted", "whisper", "--neutral", "speak", "--judge", "tox-block")
    asked = ("draft", "shouts", "--model", model, "--questions", tmp_path / "ask.txt", "--out", tmp_path / "sets")
    found = []
    for _ in range(2):
        assert run(*asked, *told, "--least", "4", "--show-words").status == 0
        found.append({file.name: file.read_bytes() for file in (tmp_path / "sets").iterdir()})
    assert len(found[0]) == 5
    assert found[1] == found[0]


def test_a_refused_draft_ends_with_status_2_keeps_its_answers_and_says_where_to_look(
    run: Callable[..., Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("draft", "shouts", "--model", model, "--questions", tmp_path / "ask.txt", "--out", tmp_path / "sets")
    told = ("--unwanted", "speak", "--wanted", "whisper", "--neutral", "speak", "--judge", "tox-block")
    blind = (*asked, *told, "--least", "4", "--show-words", "--json", "--table", tmp_path / "answers.jsonl")
    done = run(*blind)
    assert (done.status, done.out) == (2, "")
    dropped = [json.loads(line)["dropped"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert set(dropped) == {"not shown"}
    assert "AUROC of 0.50" in done.err
    assert f"See {tmp_path / 'sets' / 'draft.html'}; the answers are kept for the next try." in done.err
    assert {file.name for file in (tmp_path / "sets").iterdir()} == {"draft.json", "draft.html"}

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("it drew again")

    monkeypatch.setattr(generations, "sample_continuations", never)
    assert run(*blind).status == 2


@pytest.mark.filterwarnings("ignore:every strength up to the limit")  # a random model has nothing to lose
def test_new_goes_the_whole_way_and_says_what_is_next(
    run: Callable[..., Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On 25 questions that the model answers in capitals when it is told to shout."""
    words = (
        *("bread", "ice", "rome", "owls", "oaks", "snow", "rain", "salt", "moss", "kelp"),
        *("jazz", "golf", "vats", "quiz", "flax", "husk", "pyre", "dawn", "gems", "inks"),
    )
    asked = [f"Where {one}, {two} then {one}?" for one, two in zip(words, reversed(words), strict=True)]
    asked += [f"When does {one} {one}?" for one in words[:5]]
    (tmp_path / "ask.txt").write_text("\n".join(asked))
    monkeypatch.setattr(prompts, "_UNWANTED", ("SHOUT",))
    monkeypatch.setattr(prompts, "_WANTED", ("whisper",))
    monkeypatch.setattr(prompts, "_NEUTRAL", ("speak",))
    done = run(
        "new", tmp_path / "quiet", "shouts", "--model", model, "--questions", tmp_path / "ask.txt",
        "--judge", "tox-block", "--least", "20", "--show-words", "--json", "--table", tmp_path / "shares.jsonl",
    )  # fmt: skip
    assert done.status == 0, done.err
    said = json.loads(done.out)
    assert said["draft"]["kept"] >= 20
    shares = [json.loads(line) for line in (tmp_path / "shares.jsonl").read_text().splitlines()]
    assert list(shares[0]) == columns_of("new")
    assert [(row["strength"], row["mean"]) for row in shares] == [
        (0.0, 1.0),
        (said["strength"], said["steered"]["mean"]),
    ]
    assert said["unsteered"]["mean"] == 1.0  # what stands in for the model shouts whenever it is told to
    stored = dsas.Steering.from_pretrained(tmp_path / "quiet" / "steering")
    assert stored.default_strength == said["strength"] > 0
    assert {file.name for file in (tmp_path / "quiet").iterdir()} == {"sets", "steering", "report.html"}
