"""With vLLM: models of several families, and bfloat16, are steered as transformers and `Steering.apply` steer them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from engines import PROMPTS, Ask, Reference, adding, generate, running, worst_difference
from makers import random_steering

import dsas
from dsas.testing import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.vllm
FAMILIES: dict[str, dict[str, Any]] = {  # with heads that vLLM's attention for CPUs takes
    "qwen2": {"num_attention_heads": 1, "num_key_value_heads": 1},
    "qwen3": {"head_dim": 32},
    "gemma3": {"head_dim": 32},
    "mistral": {"head_dim": 32},
    "phi3": {"num_attention_heads": 1, "num_key_value_heads": 1},
    "mixtral": {"num_attention_heads": 1, "num_key_value_heads": 1},
}
ASKS = (
    Ask(),
    Ask(("detox",), (0.5,)),
    Ask(("detox",), (1.0,)),
    Ask(("tone",), (1.0,)),
    Ask(("tone", "detox"), (0.7, 0.3)),
)


def write(root: Path, family: str, **options: Any) -> Any:
    """Write a model and two Steerings, of a logistic regulator and of evidence, and return the model."""
    model: Any = tiny_model(family, **options)
    model.save_pretrained(root / "model")
    tiny_tokenizer().save_pretrained(root / "model")
    sites = ["residual"] if family == "mixtral" else ["residual", "mlp"]  # whose experts are elsewhere in vLLM's
    random_steering(model, sites, seed=1).save_pretrained(root / "detox")
    generator, plain = torch.Generator().manual_seed(7), random_steering(model, "residual", seed=6)
    rules = [rule._replace(regulator=adding(generator, 1.0, 0.9)) for rule in plain.rules]
    dsas.Steering(rules, plain.model).save_pretrained(root / "tone")
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_requests_to_a_model_of_any_family_agree_with_the_reference(
    family: str, tmp_path: Path, record_property: Any
) -> None:
    model = write(tmp_path, family, **FAMILIES[family])
    reference = Reference(tmp_path, ("detox", "tone"), model)
    work = [(prompt, ask) for ask in ASKS for prompt in PROMPTS]
    wanted = [reference.generate(prompt, ask) for prompt, ask in work]  # first: vLLM changes classes of transformers
    with running(tmp_path, names=("detox", "tone"), max_num_batched_tokens=64) as llm:
        outputs = generate(llm, work)
    worst = max(worst_difference(*pair) for pair in zip(outputs, wanted, strict=True))
    record_property("worst log-probability difference", worst)
    assert worst < 1e-4
    distinct = {tuple(reference.generate(PROMPTS[0], ask).log_probabilities[0, :9].tolist()) for ask in ASKS}
    assert len(distinct) == len(ASKS)


def test_in_bfloat16_a_server_is_as_near_to_float32_as_transformers_in_bfloat16(
    tmp_path: Path, record_property: Any
) -> None:
    """Both round every activation to 8 bits, in other places: their errors are of one size, and neither is a bound."""
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

    model = write(tmp_path, "llama", head_dim=32)
    names = ("detox", "tone")
    exact = Reference(tmp_path, names, model)
    rounded = Reference(tmp_path, names, tiny_model("llama", head_dim=32).bfloat16())
    errors: dict[Ask, tuple[float, float]] = {}
    with running(tmp_path, names=names, dtype="bfloat16", enable_prefix_caching=False) as llm:
        for ask in ASKS:
            params = SamplingParams(max_tokens=1, prompt_logprobs=0, extra_args=ask.extra_args())
            served, theirs = [], []
            for output in llm.generate(list(PROMPTS), params, use_tqdm=False):
                ids = output.prompt_token_ids[1:]
                scores = [at[token].logprob for at, token in zip(output.prompt_logprobs[1:], ids, strict=True)]
                wanted = torch.tensor(exact.scores(output.prompt, ask))
                served.append(torch.tensor(scores) - wanted)
                theirs.append(torch.tensor(rounded.scores(output.prompt, ask)) - wanted)
            errors[ask] = (
                float(torch.cat(served).square().mean().sqrt()),
                float(torch.cat(theirs).square().mean().sqrt()),
            )
    record_property("root mean square errors, served and transformers", str(list(errors.values())))
    for own, other in errors.values():
        assert 0 < own < 1.5 * other
