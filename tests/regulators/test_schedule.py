"""Schedule against the golden numbers, and in generation over a cache, beside padding, with and without a length."""

from typing import Any

import pytest
import torch
from makers import check_golden_regulator, golden, random_steering, unchecked

import dsas
from dsas.errors import OptionError
from dsas.model.forward_pass import ForwardPass
from dsas.model.sequence import Sequences
from dsas.model.strength import read_prompt_tokens
from dsas.testing import tiny_model
from dsas.testing.passes import padded

ROWS = [torch.arange(5, 12), torch.arange(90, 93), torch.arange(30, 35)]
NEW = 5


@pytest.mark.parametrize("window", ["all 1 3", "prompt 0 None", "prompt 1 None", "generated 0 None", "generated 1 2"])
def test_the_tokens_steered_are_those_of_the_reference(window: str) -> None:
    mask, lengths = (torch.tensor(golden()[name]) for name in ("mask", "prompt_tokens"))
    forward_pass = ForwardPass(2, 5, mask=mask, history=Sequences(2, prompt_tokens=lengths))
    check_golden_regulator(dsas.Schedule, f"schedule {window}", forward_pass)


def generated(model: Any, schedule: dsas.Schedule, prompt_tokens: Any, **options: Any) -> list[list[float]]:
    """Generate and return what each row's real tokens were steered with, but the last, which is never run."""
    inputs = padded(ROWS, "left", 0)
    steering = random_steering(model, regulator=schedule)
    with steering.apply(model, prompt_tokens=prompt_tokens) as applied:
        model.generate(
            inputs["input_ids"], attention_mask=inputs["attention_mask"],
            max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=None, **options,
        )  # fmt: skip
        trace = applied.trace()
    assert not trace.strengths[:, ~trace.real].any()
    return [trace.strengths[0, row][trace.real[row]].tolist() for row in range(len(trace.real))]


WINDOWS = {
    "prompt": (dsas.Schedule("prompt"), lambda n: [1] * n + [0] * 4),
    "generated": (dsas.Schedule(), lambda n: [0] * n + [1] * 4),
    "prompt but the first": (dsas.Schedule("prompt", 1), lambda n: [0] + [1] * (n - 1) + [0] * 4),
    "second and third generated": (dsas.Schedule("generated", 1, 3), lambda n: [0] * n + [0, 1, 1, 0]),
    "places 2 to 8": (dsas.Schedule("all", 2, 9), lambda n: ([0, 0] + [1] * 7 + [0] * 9)[: n + 4]),
}


@pytest.mark.parametrize(
    ("prompt_tokens", "options"),
    [
        (None, {}),
        ([7, 3, 5], {}),
        ([7, 3, 5], {"use_cache": False}),
        (None, {"cache_implementation": "static"}),
        (None, {"prefill_chunk_size": 4}),
        ([7, 3, 5], {"prefill_chunk_size": 3}),
    ],
    ids=["found out", "given", "given, no cache", "found out, static", "found out, chunks", "given, chunks"],
)
@pytest.mark.parametrize("window", WINDOWS)
def test_windows_are_counted_in_each_rows_own_tokens(window: str, prompt_tokens: Any, options: dict[str, Any]) -> None:
    schedule, expected = WINDOWS[window]
    found = generated(tiny_model(layers=1), schedule, prompt_tokens, **options)
    assert found == [[float(value) for value in expected(len(ids))] for ids in ROWS]


def test_beams_and_samples_of_a_row_share_the_length_of_its_prompt() -> None:
    found = generated(tiny_model(layers=1), dsas.Schedule(), [7, 3, 5], num_beams=2)
    assert found == [[0.0] * len(ids) + [1.0] * 4 for ids in ROWS for _ in range(2)]


def test_prompt_and_generated_steering_together_are_all_of_it() -> None:
    forward_pass = ForwardPass(
        2, 6, mask=torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6]), history=Sequences(2, prompt_tokens=torch.tensor([2, 3]))
    )
    t = torch.randn(2, 6, 4)
    parts = {part: dsas.Schedule(part)(t, forward_pass) for part in ("prompt", "generated", "all")}
    assert torch.equal(parts["prompt"] + parts["generated"], parts["all"])
    assert torch.equal(parts["all"].squeeze(-1), forward_pass.real.float())


def test_a_steered_prompt_changes_what_follows_and_steering_from_the_end_on_changes_nothing_before() -> None:
    model: Any = tiny_model()
    ids = torch.arange(5, 12)[None]
    logits = {}
    for part in ("prompt", "generated"):
        with random_steering(model, regulator=dsas.Schedule(part)).apply(model, prompt_tokens=4), torch.no_grad():
            logits[part] = model(ids).logits[0]
    with torch.no_grad():
        plain = model(ids).logits[0]
    torch.testing.assert_close(logits["generated"][:4], plain[:4])
    assert not torch.allclose(logits["generated"][4:], plain[4:])
    assert not torch.allclose(logits["prompt"][:4], plain[:4])


@pytest.mark.parametrize(("prompt_tokens", "error"), [([4, 5], "2 prompt lengths were given but the batch has 3 rows")])
def test_lengths_that_do_not_divide_the_batch_are_refused_when_the_model_runs(prompt_tokens: Any, error: str) -> None:
    with pytest.raises(OptionError, match=error):
        generated(tiny_model(layers=1), dsas.Schedule(), prompt_tokens)


@pytest.mark.parametrize("prompt_tokens", [0, -1, [3, 0], [], 10**30])
def test_a_prompt_length_that_is_no_number_of_tokens_is_refused(prompt_tokens: Any) -> None:
    model = tiny_model(layers=1)
    with pytest.raises(OptionError, match="prompt_tokens must be a number of tokens >= 1, or one per row, got"):
        unchecked(dsas.Steering.apply)(random_steering(model), model, prompt_tokens=prompt_tokens)


@pytest.mark.parametrize("prompt_tokens", ["seven", [1, None], [[1], [2, 3]]])
def test_a_prompt_length_that_is_no_number_at_all_is_refused_in_the_same_words(prompt_tokens: Any) -> None:
    with pytest.raises(OptionError, match="prompt_tokens must be a number of tokens >= 1, or one per row, got"):
        unchecked(read_prompt_tokens)(prompt_tokens)


@pytest.mark.parametrize(
    "arguments",
    [("middle", 0, None), ("all", -1, None), ("all", 3, 3), ("prompt", 4, 2), ("all", "1", None), ("all", 0, 2.5)],
)
def test_a_window_that_is_none_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(
        OptionError, match="part 'all', 'prompt', 'generated' or 'denoising' and whole numbers 0 <= start < stop, got"
    ):
        unchecked(dsas.Schedule.__init__)(dsas.Schedule.__new__(dsas.Schedule), *arguments)
