"""With vLLM: models of several families, and bfloat16, are steered as transformers and `Steering.apply` steer them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from engines import PROMPTS, Ask, Reference, adding, generate, running, worst_difference
from makers import random_steering
from served_relatives import qwen3_moe

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
    "qwen3_moe": {},
    "olmo2": {"num_attention_heads": 1, "num_key_value_heads": 1},  # by transformers' own classes
}
SITES = {
    "mixtral": ["residual"],
    "olmo2": ["residual", "mlp", "attention"],
}  # Mixtral's experts are elsewhere in vLLM's
ASKS = (
    Ask(),
    Ask(("detox",), (0.5,)),
    Ask(("detox",), (1.0,)),
    Ask(("tone",), (1.0,)),
    Ask(("tone", "detox"), (0.7, 0.3)),
)


def write(root: Path, family: str, **options: Any) -> Any:
    """Write a model and two Steerings, of a logistic regulator and of evidence, and return the model."""
    model: Any = qwen3_moe() if family == "qwen3_moe" else tiny_model(family, **options)
    model.save_pretrained(root / "model")
    tiny_tokenizer().save_pretrained(root / "model")
    random_steering(model, SITES.get(family, ["residual", "mlp"]), seed=1).save_pretrained(root / "detox")
    generator, plain = torch.Generator().manual_seed(7), random_steering(model, "residual", seed=6)
    rules = [rule._replace(regulator=adding(generator, 1.0, 0.9)) for rule in plain.rules]
    dsas.Steering(rules, plain.model).save_pretrained(root / "tone")
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_requests_to_a_model_of_any_family_agree_with_the_reference(
    family: str, tmp_path: Path, record_property: Any
) -> None:
    agrees(family, tmp_path, record_property, enforce_eager=True)


def test_compiled_code_of_transformers_own_classes_is_steered_too(tmp_path: Path, record_property: Any) -> None:
    agrees("olmo2", tmp_path, record_property, enforce_eager=False)


def agrees(family: str, root: Path, record: Any, **options: Any) -> None:
    """Compare tokens, log-probabilities and what requests are told with the reference."""
    from dsas.serving import engine

    model = write(root, family, **FAMILIES[family])
    reference = Reference(root, ("detox", "tone"), model)
    work = [(prompt, ask) for ask in ASKS for prompt in PROMPTS]
    wanted = [reference.generate(prompt, ask) for prompt, ask in work]  # first: vLLM changes classes of transformers
    short = [(prompt, ask) for prompt, ask in work if ask.names and prompt not in PROMPTS[:2]]  # fits in no block
    means = [reference.applied(prompt, ask) for prompt, ask in short]
    with running(root, names=("detox", "tone"), reports=True, max_num_batched_tokens=64, **options) as llm:
        outputs = generate(llm, work)
        told = [engine.report(llm, output) for output in generate(llm, short, report=True)]
    worst = max(worst_difference(*pair) for pair in zip(outputs, wanted, strict=True))
    record("worst log-probability difference", worst)
    assert worst < 1e-4
    for report, mean in zip(told, means, strict=True):
        assert report["mean_strength"] == pytest.approx(mean, abs=1e-5)
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
