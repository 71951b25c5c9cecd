"""With vLLM and a real model: greedy texts of differently steered requests in one batch are those of transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from engines import Ask, Wanted, generate, running, worst_difference

import dsas
from dsas.demo.models import real_model
from dsas.errors import MissingExtraError
from dsas.model.identity import ModelIdentity
from dsas.model.loading import load_model

pytestmark = pytest.mark.vllm
PROMPTS = ("The people who came to the meeting on Tuesday said that", "My favourite food is")
STRENGTHS = (0.0, 0.5, 1.0, 2.0)
NEW_TOKENS = 16


def test_every_strength_gives_the_text_of_transformers(tmp_path: Path, record_property: Any) -> None:
    try:
        folder = real_model("smollm2")
    except MissingExtraError as error:
        pytest.skip(f"SmolLM2 is not there and cannot be converted here: {error}")
    (tmp_path / "model").symlink_to(folder)
    model, tokenizer = load_model(str(folder), precision="float32")
    generator, rules = torch.Generator().manual_seed(0), []
    for site in dsas.find_sites(model, "residual"):
        vector, theta = (torch.randn(model.config.hidden_size, generator=generator) for _ in range(2))
        rules.append(dsas.Rule(site, dsas.Addition(0.3 * vector), dsas.Logistic(0.02 * theta, torch.tensor(0.0))))
    steering = dsas.Steering(rules, ModelIdentity.of(model))
    steering.save_pretrained(tmp_path / "detox")
    wanted = []
    for prompt in PROMPTS:
        ids: Any = tokenizer(prompt, return_tensors="pt").input_ids
        for strength in STRENGTHS:
            with steering.apply(model, strength, record=False), torch.no_grad():
                every = model.generate(ids, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)
                logits = model(every).logits[0, ids.shape[1] - 1 : -1]
            wanted.append(Wanted(every[0, ids.shape[1] :].tolist(), torch.log_softmax(logits, -1)))
    with running(tmp_path, names=("detox",), kv_cache_memory_bytes=512 << 20) as llm:
        work = [(prompt, Ask(("detox",), (strength,))) for prompt in PROMPTS for strength in STRENGTHS]
        outputs = generate(llm, work, new_tokens=NEW_TOKENS)
    worst = max(worst_difference(*pair) for pair in zip(outputs, wanted, strict=True))
    record_property("worst log-probability difference", worst)
    assert worst < 1e-3
    assert len({tuple(one.tokens) for one in wanted}) == len(wanted)
