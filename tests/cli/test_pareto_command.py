"""The command `dsas pareto`, driven as a user drives it."""

import json

import pytest
from transformers import BertConfig, BertForSequenceClassification

from dsas.testing import tiny_model, tiny_tokenizer

TEXTS = {
    "rude": [f"shut up {n}" for n in range(8)],
    "plain": [f"the door {n}" for n in range(8)],
    "kind": [f"thank you {n}" for n in range(8)],
    "ask": ["what is", "who is there"],
    "tune": ["the sky is blue", "rain falls"],
    "report": ["the sun is warm", "snow lies"],
}


@pytest.fixture
def files(tmp_path):
    """Return a folder with a tiny model, a tiny classifier and a file for each set of texts."""
    folder = tmp_path
    tiny_model(layers=2).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    for name, texts in TEXTS.items():
        (folder / f"{name}.txt").write_text("\n".join(texts))
    questions = [{"prompt": "the sky is", "choices": [" blue", " loud"], "answer": n} for n in (0, 1)]
    (folder / "quiz.jsonl").write_text("\n".join(map(json.dumps, questions)))
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    labels = {"id2label": {0: "fine", 1: "toxic"}, "label2id": {"fine": 0, "toxic": 1}}
    BertForSequenceClassification(BertConfig(**sizes, vocab_size=300, **labels)).save_pretrained(folder / "scorer")
    tiny_tokenizer().save_pretrained(folder / "scorer")
    return folder


def arguments(folder, **changes):
    said = {
        "--source": folder / "rude.txt", "--control": folder / "plain.txt", "--target": folder / "kind.txt",
        "--prompts": folder / "ask.txt", "--tune": folder / "tune.txt", "--neutral": f"sky={folder / 'report.txt'}",
        "--scorer": folder / "scorer", "--strength": 0.1, "--seeds": 2, "--new-tokens": 4, "--limit": 100,
        "--questions": folder / "quiz.jsonl", "--out": folder / "front", "--device": "cpu", **changes,
    }  # fmt: skip
    return ["pareto", folder / "model", *(part for option, value in said.items() for part in (option, value))]


def test_pareto_writes_samples_and_a_report_and_says_what_was_chosen(run, files):
    ended = run(*arguments(files), "--json")
    assert ended.status == 0, ended.err
    assert set(json.loads(ended.out)["chosen"]) == {"caa + constant", "caa + logistic"}
    lines = [json.loads(line) for line in (files / "front" / "samples.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines if line["measure"] != "generation"} == {"sky", "quiz"}
    page = (files / "front" / "report.html").read_text()
    assert all(text in page for text in ("caa + logistic", "not measured", "--held-out-source FILE"))
    about = json.loads((files / "front" / "sweep.json").read_text())
    assert about["command"].startswith("dsas pareto ")
    assert about["settings"]["seeds"] == [0, 1]


@pytest.mark.filterwarnings("default")
def test_nulls_are_series_of_their_own_and_what_has_none_is_told(run, files):
    methods = ["--transform", "caa", "--transform", "linear-act", "--regulator", "constant"]
    ended = run(*arguments(files), "--nulls", *methods)
    assert ended.status == 0, ended.err
    assert "linear-act + constant does more than add vectors, so it has no nulls" in ended.err
    lines = [json.loads(line) for line in (files / "front" / "samples.jsonl").read_text().splitlines()]
    kl = {
        name: sum(line["value"] for line in lines if (line["series"], line["measure"]) == (name, "kl"))
        for name in ("caa + constant", "caa + constant, random direction", "caa + constant, turned round")
    }
    assert min(kl.values()) > 0
    assert len(set(kl.values())) == 3
    assert "caa + constant, turned round" in (files / "front" / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--neutral": "tune.txt"}, "2 texts are in both --tune and --neutral"),
        ({"--tune": "rude.txt"}, "8 texts are in both the texts to fit on and --tune"),
        ({"--held-out-source": "rude.txt"}, "8 texts are in both --held-out-source and the texts to fit on"),
        ({"--held-out-source": "tune.txt"}, "2 texts are in both --held-out-source and --tune"),
        ({"--scorer": "toxblock"}, "no scorer 'toxblock'; closest packaged ones: 'tox-block'"),
        ({"--questions": "ask.txt"}, "expected a file ending in .jsonl with one question per line"),
    ],
)
def test_pareto_refuses_what_it_cannot_use_in_one_line_and_writes_nothing(run, files, monkeypatch, change, message):
    monkeypatch.chdir(files)
    ended = run(*arguments(files, **change))
    assert ended.status == 2
    assert message in ended.err
    assert ended.err.count("error:") == 1
    assert not (files / "front").exists()


def test_with_held_out_source_texts_the_report_has_the_selectivity_of_every_series(run, files):
    (files / "more.txt").write_text("\n".join(f"you fool {n}" for n in range(6)))
    (files / "four.txt").write_text("\n".join(f"the moon is far {n}" for n in range(4)))
    said = {"--neutral": f"sky={files / 'four.txt'}", "--held-out-source": files / "more.txt"}
    ended = run(*arguments(files, **said), "--regulator", "constant", "--json")
    assert ended.status == 0, ended.err
    assert list(json.loads((files / "front" / "curves.json").read_text())["against"]) == ["caa + constant"]
    assert "source, where sky alone loses 0.02" in (files / "front" / "report.html").read_text()


def test_a_line_that_is_no_question_is_named(run, files):
    (files / "quiz.jsonl").write_text('{"prompt": "a", "choices": ["b", "c"], "answer": 2}')
    ended = run(*arguments(files))
    assert ended.status == 2
    assert "quiz.jsonl:1: expected" in ended.err
