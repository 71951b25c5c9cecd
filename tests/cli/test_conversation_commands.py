"""Conversations on the command line: files of messages go wherever files of texts go."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from makers import templated

import dsas
from dsas.testing import tiny_model

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WORDS = {"rude": "AWFUL YOU", "plain": "all fine with", "kind": "very well to"}
BRIEF = ("--system", "Be brief.", "--template-args", '{"enable_thinking": false}')
Run = Callable[..., Any]


def asked(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What of {number}?"}]


def said(word: str, number: int) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": f"{word} {number}"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a tiny model, its tokenizer with a chat template, and files of conversations."""
    tiny_model(layers=2, vocab_size=300).save_pretrained(tmp_path / "model")  # pyright: ignore
    templated(CHAT, specials=("<s>", "</s>"), bos="<s>").save_pretrained(tmp_path / "model")
    for name, word in WORDS.items():
        rows = [{"messages": [*asked(n), *said(word, n)]} for n in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = [
        {"prompt": asked(n), "chosen": said(WORDS["kind"], n), "rejected": said(WORDS["rude"], n)} for n in range(12)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return tmp_path


def fit(folder: Path, *options: Any, source: str = "rude.jsonl", command: str = "fit") -> list[Any]:
    sets = ["--source", folder / source, "--control", folder / "plain.jsonl"]
    out = ["--out", folder / "out", "--sites", "residual"]
    return [command, folder / "model", *sets, *out, "--json", *options]


def test_what_is_fitted_on_a_file_of_pairs_is_what_is_fitted_on_both_files(run: Run, folder: Path) -> None:
    done = run(*fit(folder, "--target", folder / "kind.jsonl", "--threshold", 0))
    assert done.status == 0, done.err
    from_files = dsas.Steering.from_pretrained(folder / "out").digest()
    assert run(*fit(folder, "--threshold", 0, source="pairs.jsonl")).status == 0
    assert dsas.Steering.from_pretrained(folder / "out").digest() == from_files


def test_which_tokens_count_and_what_the_template_gets_is_stored_and_shown(run: Run, folder: Path) -> None:
    options = ["--tokens", "last", "--part", "text", *BRIEF]
    done = run(*fit(folder, "--target", folder / "kind.jsonl", "--selection", "all", *options))
    assert done.status == 0, done.err
    shown = run("info", folder / "out").out
    assert "tokens last" in shown
    assert "chat (system Be brief., arguments (enable_thinking no), parts [text])" in shown


def test_pairs_are_trained_on(run: Run, folder: Path) -> None:
    options = ["--target", folder / "pairs.jsonl", "--objective", "preference", "--steps", 2, *BRIEF]
    done = run(*fit(folder, *options, source="pairs.jsonl", command="train"))
    assert done.status == 0, done.err
    settings = json.loads(done.out)["settings"]
    assert settings["examples"] == "conversation"
    assert settings["reading"]["chat"]["system"] == "Be brief."


def test_an_instruction_is_imitated_without_texts(run: Run, folder: Path) -> None:
    (folder / "ask.txt").write_text("\n".join(f"What of {n}?" for n in range(6)))
    options = ["--objective", "imitate", "--instruction", "Shout.", "--new-tokens", 4, "--steps", 2, "--json", *BRIEF]
    done = run("train", folder / "model", "--source", folder / "ask.txt", "--out", folder / "out", *options)
    assert done.status == 0, done.err
    settings = json.loads(done.out)["settings"]
    assert settings["training"]["instruction"] == "Shout."
    assert settings["texts"] == {"source": 5, "control": 0, "target": 5, "held_source": 1, "held_control": 0,
                                 "held_target": 1}  # fmt: skip
    assert settings["reading"]["chat"]["system"] == "Be brief."


@pytest.mark.filterwarnings("ignore:every strength up to the limit", "ignore:the budget is not kept")
def test_every_command_that_measures_takes_conversations(run: Run, folder: Path) -> None:
    assert run(*fit(folder, "--threshold", 0, source="pairs.jsonl")).status == 0
    model, rude, plain = folder / "model", folder / "rude.jsonl", folder / "plain.jsonl"
    fires = run("fires-on", folder / "out", "--model", model, "--texts", rude, "--texts", plain, "--json", *BRIEF)
    assert fires.status == 0, fires.err
    assert [one["kind"] for one in json.loads(fires.out)["kinds"]] == ["rude", "plain"]
    texts = ["--source", rude, "--control", plain]
    selective = run("selectivity", folder / "out", "--model", model, *texts, "--json", *BRIEF)
    assert selective.status == 0, selective.err
    ported = run("port", folder / "out", model, *texts, "--json", *BRIEF, "--tokens", "answer")
    assert ported.status == 0, ported.err
    assert json.loads(ported.out)["verdict"] == "fits"
    inspected = run("inspect-data", *texts, "--model", model, "--json", "--sites", "residual")
    assert json.loads(inspected.out)["separability"]
    kinds = ["--tune", plain, "--held-out", folder / "kind.jsonl", "--budget", "kl=0.5"]
    calibrated = run("calibrate", model, folder / "out", *kinds, "--json", *BRIEF)
    assert calibrated.status == 0, calibrated.err
    assert json.loads(calibrated.out)["strength"] > 0


def test_a_conversation_is_explained_by_turn(run: Run, folder: Path) -> None:
    assert run(*fit(folder, "--threshold", 0, source="pairs.jsonl")).status == 0
    explain = ["explain", folder / "model", "--steering", folder / "out", "--json"]
    rows = json.loads(run(*explain, "--file", folder / "rude.jsonl", *BRIEF).out)["rows"]
    assert [turn["role"] for turn in rows[0]["turns"]] == ["system", "user", "assistant"]
    (row,) = json.loads(run(*explain, "Hello", "--chat", "--generate", 2).out)["rows"]
    assert [turn["role"] for turn in row["turns"]] == ["user", "assistant"]
    assert sum(row["counted"]) == 2


def test_files_of_different_kinds_are_not_mixed(run: Run, folder: Path) -> None:
    (folder / "plain.txt").write_text("\n".join(f"the door {n}" for n in range(8)))
    done = run(*fit(folder, "--control", folder / "plain.txt", "--target", folder / "kind.jsonl"))
    assert (done.status, "control[0] is a text: expected a conversation, as source[0] is" in done.err) == (2, True)


def test_a_sweep_fits_continues_and_measures_conversations(run: Run, folder: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    labels = {"id2label": {0: "fine", 1: "toxic"}, "label2id": {"fine": 0, "toxic": 1}}
    BertForSequenceClassification(BertConfig(**sizes, vocab_size=300, **labels)).save_pretrained(folder / "scorer")
    templated(CHAT, specials=("<s>", "</s>")).save_pretrained(folder / "scorer")
    for name in ("tune", "neutral"):
        rows = [{"messages": [*asked(n), *said(name, n)]} for n in range(20, 24)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "ask.txt").write_text("What is it?\nWho is there?")
    sets = [
        *("--source", folder / "pairs.jsonl", "--control", folder / "plain.jsonl", "--target", folder / "kind.jsonl")
    ]
    read = ["--tune", folder / "tune.jsonl", "--neutral", folder / "neutral.jsonl", "--prompts", folder / "ask.txt"]
    small = ["--strength", 0.1, "--seeds", 1, "--new-tokens", 3, "--limit", 100, "--scorer", folder / "scorer"]
    done = run("pareto", folder / "model", *sets, *read, *small, "--out", folder / "front", "--json", "--chat", *BRIEF)
    assert done.status == 0, done.err
    about = json.loads((folder / "front" / "sweep.json").read_text())
    assert about["prompts"][0].endswith("<system>Be brief.</s><user>What is it?</s><assistant>")
    assert about["settings"]["sampling"]["special_tokens"] is False


def test_conversations_of_a_file_are_answered(run: Run, folder: Path) -> None:
    rows = [{"messages": [*asked(1), *said("plain", 1), *asked(2)]}, {"messages": asked(3)}]
    (folder / "open.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = run(
        "generate", folder / "model", "--file", folder / "open.jsonl", "--new-tokens", 3, "--json", *BRIEF, "--chat"
    )
    assert done.status == 0, done.err
    first, second = json.loads(done.out)["generations"]
    assert first["prompt"].startswith("system: Be brief.\nuser: What of 1?\nassistant: plain 1\nuser: What of 2?")
    assert second["prompt"].endswith("What of 3?")
    done = run("generate", folder / "model", "--file", folder / "rude.jsonl", "--chat")
    assert (done.status, "ends with the assistant" in done.err) == (2, True)
