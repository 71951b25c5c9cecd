import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dsas.demo import models
from dsas.demo.data import split, wikipedia_sentences
from dsas.demo.models import real_model
from dsas.errors import MissingExtraError, OptionError
from dsas.evaluation.perplexity import perplexity


def test_an_unknown_model_is_answered_with_the_closest_name():
    with pytest.raises(OptionError, match="'smollm2'"):
        real_model("smollm")


def test_without_the_extra_the_error_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(models.importlib.sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"dsas\[demo\]"):
        real_model("smollm2", cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.real
@pytest.mark.parametrize(("name", "parameters"), [("smollm2", 134_515_008), ("gemma3", 268_098_176)])
def test_a_real_model_loads_as_bfloat16_and_reads_english(name, parameters):
    folder = real_model(name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.num_parameters() == parameters
    (texts,) = split(wikipedia_sentences(), [16])
    assert perplexity(model, tokenizer, texts, batch_size=8).mean < 400
