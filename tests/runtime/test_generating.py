"""Generation by transformers under steering: sampling, beams, samples per row, and the text-generation pipeline."""

import warnings
from typing import Any

import pytest
import torch
from makers import PROMPTS, random_steering
from torch import Tensor
from transformers import pipeline

import dsas
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.testing.passes import padded

OPTIONS = {"max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None}
BEAMS = {"num_beams": 3, "num_return_sequences": 2, "do_sample": False}
SAMPLES = {"do_sample": True, "top_k": 5, "num_return_sequences": 2}
STRENGTHS = [0.0, 1.0, 4.0]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    tokenizer = tiny_tokenizer()
    rows = padded([torch.tensor(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS], "left", 0)
    return {name: rows[name] for name in ("input_ids", "attention_mask")}


def generate(model: Any, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    torch.manual_seed(0)
    return model.generate(**inputs, **OPTIONS, **options)[:, -OPTIONS["max_new_tokens"] :]


@pytest.mark.parametrize("options", [BEAMS, {"do_sample": False}], ids=["beams", "greedy"])
def test_every_row_of_a_batch_is_generated_with_its_own_strength(
    model: Any, inputs: dict[str, Tensor], options: dict[str, Any]
) -> None:
    steering = random_steering(model)
    with steering.apply(model, STRENGTHS):
        together = generate(model, inputs, **options).split(options.get("num_return_sequences", 1))
    alone = []
    for row, strength in enumerate(STRENGTHS):
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        with steering.apply(model, strength):
            alone.append(generate(model, one, **options))
    assert [torch.equal(*pair) for pair in zip(together, alone, strict=True)] == [True] * 3
    plain = generate(model, inputs, **options).split(options.get("num_return_sequences", 1))
    assert [torch.equal(*pair) for pair in zip(together, plain, strict=True)] == [True, False, False]


def test_several_samples_of_a_row_have_the_strength_of_that_row(model: Any, inputs: dict[str, Tensor]) -> None:
    with random_steering(model, regulator=dsas.Constant()).apply(model, STRENGTHS) as applied:
        generate(model, inputs, **SAMPLES)
    trace = applied.trace()
    per_row = [trace.strengths[0, row][trace.real[row]].unique().tolist() for row in range(6)]
    assert per_row == [[0.0], [0.0], [1.0], [1.0], [4.0], [4.0]]


def test_sampling_repeats_under_the_same_seed_and_at_strength_0_is_that_of_the_model(
    model: Any, inputs: dict[str, Tensor]
) -> None:
    steering, plain = random_steering(model), generate(model, inputs, **SAMPLES)
    with steering.apply(model):
        once, twice = (generate(model, inputs, **SAMPLES) for _ in range(2))
    with steering.apply(model, 0.0):
        nothing = generate(model, inputs, **SAMPLES)
    assert torch.equal(once, twice)
    assert torch.equal(nothing, plain)
    assert not torch.equal(once, plain)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_pipeline_gives_the_text_that_generate_gives(
    model: Any, inputs: dict[str, Tensor], batch_size: int
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="transformers")
        write = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
        with random_steering(model).apply(model):
            expected = generate(model, inputs, do_sample=False)
            written = write(
                list(PROMPTS), batch_size=batch_size, max_new_tokens=6, do_sample=False, return_full_text=False
            )
    assert [line[0]["generated_text"] for line in written] == tokenizer.batch_decode(expected)
