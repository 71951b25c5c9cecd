"""A merged model is loaded by plain transformers and steers, in every family whose config can say so."""

from pathlib import Path
from typing import Any

import pytest
import torch
from makers import logits_of, random_steering
from runtime.test_fuse import FOLDING, IDS, constant_steering, model_of
from transformers import AutoModelForCausalLM

import dsas
from dsas.errors import OptionError

KEPT = [
    *((family, "residual", False) for family in ("llama", "gpt2")),
    *((family, "attention", multiplied) for family in ("llama", "qwen3") for multiplied in (False, True)),
    *(("llama", "norm", multiplied) for multiplied in (False, True)),
]
REFUSED = [
    *((family, "residual", "down_proj") for family in FOLDING if family not in ("llama", "gpt2")),
    ("mistral", "attention", "o_proj"),
    ("qwen3", "norm", "gate_proj"),
]


@pytest.mark.parametrize(("family", "sites", "multiplied"), KEPT)
def test_a_merged_model_gives_the_steered_logits_when_plain_transformers_loads_it(
    tmp_path: Path, family: str, sites: str, multiplied: bool
) -> None:
    model = model_of(family, torch.float32)
    steering, plain = constant_steering(model, sites, multiplied=multiplied), logits_of(model, IDS)
    flags = {name: value for name, value in vars(model.config).items() if "bias" in name}
    with steering.apply(model, 0.6):
        steered = logits_of(model, IDS)
    with steering.fuse(model, 0.6) as fused:
        fused.save_pretrained(tmp_path)  # and no warning
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(loaded, IDS), steered, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(steered, plain, atol=1e-3)
    assert {name: value for name, value in vars(model.config).items() if "bias" in name} == flags
    assert torch.equal(logits_of(model, IDS), plain)


@pytest.mark.parametrize(("family", "sites", "layer"), REFUSED)
def test_a_bias_that_no_config_knows_is_refused_by_its_layer(
    tmp_path: Path, family: str, sites: str, layer: str
) -> None:
    model = model_of(family, torch.float32)
    with (
        constant_steering(model, sites, multiplied=False).fuse(model) as fused,
        pytest.raises(OptionError, match=rf"such as model\.layers\.0\.\w+\.{layer}, would need a bias"),
    ):
        fused.save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())


def test_what_is_in_no_weights_is_refused_by_site_and_reason(tmp_path: Path) -> None:
    model = model_of("llama", torch.float32)
    with (
        random_steering(model, "residual").fuse(model) as fused,
        pytest.raises(OptionError, match=r"model\.layers\.0 and 1 more cannot be merged: its regulator looks at the"),
    ):
        fused.save_pretrained(tmp_path)
    bare: Any = torch.nn.Sequential(torch.nn.Linear(32, 32))
    rules = [dsas.Rule(dsas.Site("0"), dsas.Addition(torch.ones(32)), dsas.Constant())]
    with (
        dsas.Steering(rules, dsas.model.identity.ModelIdentity.of(bare)).fuse(bare) as fused,
        pytest.raises(OptionError, match="only transformers models can be saved, got Sequential"),
    ):
        fused.save_pretrained(tmp_path)
