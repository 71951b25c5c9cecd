"""`dsas adopt` and `dsas export`, driven as a user drives them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import logits_of, random_steering
from transformers import AutoModelForCausalLM, AutoTokenizer

import dsas
from dsas.testing import tiny_model, tiny_tokenizer

SOURCE = [f"SHUT UP, {word} FOOLS!" for word in ("YOU", "ALL", "TWO", "MY", "OLD", "BAD")]
CONTROL = [f"the {word} is there" for word in ("door", "cat", "rain", "tree", "sun", "cup")]


@pytest.mark.filterwarnings(
    "ignore:every strength up to the limit", "ignore:the tuning texts cannot tell", "ignore:.*mean gains"
)
def test_the_commands_adopt_a_vector_and_write_one(run: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    tiny_model("llama", layers=3).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    for name, texts in (("rude", SOURCE), ("plain", CONTROL), ("other", [f"{text} again" for text in CONTROL])):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts))
    torch.save({1: torch.randn(32)}, tmp_path / "v.pt")
    asked = ["adopt", tmp_path / "v.pt", "--model", tmp_path / "model", "--out", tmp_path / "calm", "--json"]
    sets = ["--source", tmp_path / "rude.txt", "--control", tmp_path / "plain.txt"]
    status, out, _ = run(*asked, *sets, "--tune", tmp_path / "plain.txt", "--held-out", tmp_path / "other.txt")
    assert status == 0
    told = json.loads(out)
    assert told["settings"]["adopted"]["file"] == "v.pt"
    steering = dsas.Steering.from_pretrained(tmp_path / "calm")
    assert told["strength"] == told["damage"]["strength"] == steering.strength
    held_out = steering.calibration.budgets[0].held_out["mean"]
    assert told["damage"]["gated"][0] == pytest.approx(held_out)
    status, _, error = run("export", tmp_path / "calm", "--gguf", tmp_path / "v.gguf")
    assert (status, error.count("Evidence looks at the token")) == (2, 1)
    with_texts = ["--mean-gain", tmp_path / "plain.txt", "--model", tmp_path / "model"]
    assert run("export", tmp_path / "calm", "--gguf", tmp_path / "v.gguf", *with_texts)[0] == 0
    assert list(dsas.read_vectors(tmp_path / "v.gguf").edits) == [1]
    assert run(*asked)[0] == 2


def test_export_writes_a_model_with_the_steering_in_its_weights(run: Callable[..., Any], tmp_path: Path) -> None:
    model = tiny_model("llama", layers=3)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    random_steering(model, [0, 1], regulator=dsas.Constant(0.5)).save_pretrained(tmp_path / "calm")
    random_steering(model, [0, 1]).save_pretrained(tmp_path / "gated")
    asked = ["--merged", tmp_path / "merged", "--model", tmp_path / "model", "--strength", "0.4"]
    status, _, error = run("export", tmp_path / "gated", *asked)
    assert (status, error.count("its regulator looks at the token")) == (2, 1)
    status, _, error = run("export", tmp_path / "calm", *asked[:-1], "3e38")
    assert (status, error.count("steer at a smaller strength")) == (2, 1)
    assert not (tmp_path / "merged").exists()
    assert run("export", tmp_path / "calm", *asked)[0] == 0
    ids = torch.arange(12).reshape(2, 6) + 60
    with dsas.Steering.from_pretrained(tmp_path / "calm").apply(model, 0.4):
        expected = logits_of(model, ids)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits_of(loaded, ids), expected, rtol=1e-4, atol=1e-4)
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "merged")("hello")["input_ids"] == tiny_tokenizer()("hello").input_ids
    )
