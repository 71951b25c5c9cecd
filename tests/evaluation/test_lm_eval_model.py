"""lm-eval loads a steered model by name."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import random_steering

import dsas
from dsas.errors import MissingExtraError, OptionError
from dsas.evaluation.harness import steered_class, steered_lm
from dsas.evaluation.lm_eval_model import register
from dsas.testing import tiny_model, tiny_tokenizer


def test_without_lm_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    steered_class.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(MissingExtraError, match=r"dsas\[lm-eval\]"):
        register()


def test_the_model_by_name_gives_what_the_steered_model_gives_and_is_plain_between_requests(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    model: Any = tiny_model("llama", layers=2)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    steering = random_steering(model)
    steering.save_pretrained(tmp_path / "detox")
    register()
    kind = get_model("dsas")
    assert register() is kind
    arguments = f"pretrained={tmp_path / 'model'},steering={tmp_path / 'detox'},strength=0.3"
    named = kind.create_from_arg_string(arguments, {"batch_size": 2, "device": "cpu"})
    asked = [Instance("loglikelihood", {}, ("Which is it,", f" {word}"), n) for n, word in enumerate(("no", "yes"))]
    found = named.loglikelihood(asked, disable_tqdm=True)
    expected = steered_lm(model, tiny_tokenizer(), steering, 0.3).loglikelihood(asked, disable_tqdm=True)
    plain = steered_lm(model, tiny_tokenizer(), steering, 0.0).loglikelihood(asked, disable_tqdm=True)
    torch.testing.assert_close([pair[0] for pair in found], [pair[0] for pair in expected])
    assert [pair[0] for pair in found] != [pair[0] for pair in plain]
    assert dsas.installed(named.model) == []


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated", "ignore::dsas.DsasWarning")
def test_arguments_of_lm_eval_and_lists_of_steerings_are_taken_and_mistakes_named(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    peft = pytest.importorskip("peft")
    from lm_eval.api.instance import Instance

    model: Any = tiny_model("llama", layers=2)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    for name, seed in (("detox", 1), ("calm", 2)):
        random_steering(model, seed=seed).save_pretrained(tmp_path / name)
    lora = peft.get_peft_model(tiny_model("llama", layers=2), peft.LoraConfig(init_lora_weights=False, r=2))
    lora.save_pretrained(tmp_path / "lora")
    kind: Any = register()
    asked = [Instance("loglikelihood", {}, ("Which is it,", " yes"), 0)]

    def found(**others: Any) -> float:
        given = {"pretrained": str(tmp_path / "model"), "steering": str(tmp_path / "detox"), "device": "cpu"} | others
        return kind.create_from_arg_obj(given).loglikelihood(asked, disable_tqdm=True)[0][0]

    both = {"steering": [str(tmp_path / name) for name in ("detox", "calm")]}
    assert found(**both, strength=[0.3, 0]) == pytest.approx(found(strength="0.3"), abs=1e-4)
    assert found(**both, strength=0.3) != pytest.approx(found(strength=0.3), abs=1e-4)
    assert found(strength=0.3, dtype="bfloat16", batch_size="auto") == pytest.approx(found(strength=0.3), rel=0.02)
    with_lora = {"peft": str(tmp_path / "lora")}
    plain = steered_lm(lora.get_base_model(), tiny_tokenizer(), random_steering(model, seed=1), 0.0).loglikelihood(
        asked, True
    )[0][0]
    assert found(**with_lora, strength=0) == pytest.approx(plain, abs=1e-4)
    assert found(**with_lora, strength=0.3) != pytest.approx(plain, abs=1e-4)
    for wrong, message in (
        (("steering", None), "expected steering=FOLDER"),
        (("strength", "high"), "got 'high'"),
        (("strengh", 0.2), "no argument 'strengh'; closest: 'strength'"),
    ):
        with pytest.raises(OptionError, match=message):
            found(**dict([wrong]))
