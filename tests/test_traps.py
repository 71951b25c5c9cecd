"""The traps that real libraries fell into, one named test each; those of torch.compile are in test_compiled.py."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from makers import PROMPTS, Idle, Position, ids_of, logits_of, random_steering
from torch import Tensor, nn

import dsas
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.testing.models import WIDTH
from dsas.testing.passes import padded

SOURCE = Path(__file__).parents[1] / "src"


@pytest.fixture
def model() -> Any:
    return tiny_model("llama")


@pytest.fixture
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.mark.parametrize(
    "options", [{}, {"use_cache": False}, {"prefill_chunk_size": 3}, {"cache_implementation": "static"}]
)
def test_tokens_are_counted_from_the_start_of_the_row_and_not_of_each_forward_call(
    model: Any, tokenizer: Any, options: dict[str, Any]
) -> None:
    rows = [torch.tensor(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    inputs = padded(rows, "left", 0)
    steering = random_steering(model, regulator=Position())
    with steering.apply(model) as applied:
        model.generate(
            inputs["input_ids"], attention_mask=inputs["attention_mask"],
            max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None, **options,
        )  # fmt: skip
        trace = applied.trace()
    for row, ids in enumerate(rows):
        length = len(ids) + 4  # the token generated last is never run
        counted = trace.strengths[:, row][:, trace.real[row]]
        assert torch.equal(counted, torch.arange(1.0, length + 1).expand_as(counted))


@pytest.mark.parametrize("side", ["left", "right"])
def test_skipping_sinks_spares_the_first_real_token_of_every_row_and_no_first_token_of_a_later_pass(
    model: Any, side: str
) -> None:
    rows = [torch.tensor([5, 6, 7, 8]), torch.tensor([9, 10])]
    inputs = padded(rows, side, 0)
    with random_steering(model, regulator=dsas.Constant()).apply(model, skip_sinks=True) as applied:
        logits_of(model, inputs["input_ids"], attention_mask=inputs["attention_mask"])
        at_once = applied.trace()
        cache = None
        for token in rows[0]:
            cache = model(token.view(1, 1), past_key_values=cache, use_cache=True).past_key_values
        one_by_one = applied.trace()
    for row, ids in enumerate(rows):
        expected = torch.ones(len(ids))
        expected[0] = 0.0
        assert torch.equal(at_once.strengths[0, row][at_once.real[row]], expected)
    assert one_by_one.strengths[0, 0].tolist() == [0.0, 1.0, 1.0, 1.0]


def test_a_regulator_sees_every_row_and_not_the_first_alone(model: Any, tokenizer: Any) -> None:
    steering = random_steering(model)
    ids = torch.cat([ids_of(tokenizer, "abcdef"), ids_of(tokenizer, "uvwxyz")])
    with steering.apply(model) as applied:
        logits_of(model, ids)
        forward = applied.trace().strengths
        logits_of(model, ids.flip(0))
        backward = applied.trace().strengths
    assert not torch.allclose(forward[:, 0], forward[:, 1])
    torch.testing.assert_close(forward, backward.flip(1))


def test_nothing_is_left_over_for_the_next_request_or_the_next_model(model: Any, tokenizer: Any) -> None:
    steering, other = random_steering(model), tiny_model("llama", seed=1)
    other_steering = random_steering(other)
    first, second = (ids_of(tokenizer, text) for text in ("a first request", "another one!!!!"))
    with steering.apply(model) as fresh:
        expected = logits_of(model, second)
        trace = fresh.trace()
    with other_steering.apply(other):
        untouched = logits_of(other, second)
    with steering.apply(model, 3.0, skip_sinks=True):
        logits_of(model, first)
    with steering.apply(model) as applied:
        assert not applied.has_trace
        logits_of(model, first)
        assert torch.equal(logits_of(model, second), expected)
        assert torch.equal(applied.trace().strengths, trace.strengths)
        with other_steering.apply(other):
            assert torch.equal(logits_of(other, second), untouched)


def test_two_threads_that_share_a_steering_and_a_model_do_not_share_a_trace(model: Any, tokenizer: Any) -> None:
    steering = random_steering(model, regulator=Position())
    together, found = Barrier(2), {}

    def run(length: int) -> None:
        for _ in range(5):
            together.wait()
            logits_of(model, torch.zeros(1, length, dtype=torch.long))
        together.wait()
        found[length] = applied.trace().strengths[0, 0].tolist()

    with steering.apply(model) as applied:
        threads = [Thread(target=run, args=(length,)) for length in (3, 7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for thread, length in zip(threads, (3, 7), strict=True):
            assert applied.trace(thread=thread).strengths.shape[-1] == length
    assert found == {length: [float(position) for position in range(1, length + 1)] for length in (3, 7)}


def test_no_output_is_edited_in_place_so_that_autograd_works_through_a_steered_model() -> None:
    """Steering a GPT-2 MLP by a constant vector is adding it to that MLP's last bias: so are all the gradients."""
    model, vector = tiny_model("gpt2"), torch.randn(WIDTH)
    biased = copy.deepcopy(model)
    biased.transformer.h[0].mlp.c_proj.bias.data += vector
    ids = torch.arange(12).view(2, 6)
    steering = random_steering(model, "transformer.h.0.mlp", transform=dsas.Addition(vector), regulator=dsas.Constant())
    with steering.apply(model):
        model(ids, labels=ids).loss.backward()
    biased(ids, labels=ids).loss.backward()
    for (name, given), (_, expected) in zip(model.named_parameters(), biased.named_parameters(), strict=True):
        torch.testing.assert_close(given.grad, expected.grad, msg=name)


def test_editing_an_activation_that_autograd_has_saved_raises_nothing() -> None:
    class Exponential(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.exp()  # autograd keeps the output

    model = Idle()
    model.used = Exponential()
    x = torch.randn(1, 3, WIDTH, requires_grad=True)
    with random_steering(model, "used", regulator=dsas.Constant()).apply(model):
        model(inputs_embeds=x).sum().backward()
    torch.testing.assert_close(x.grad, x.detach().exp())


def test_the_order_of_sites_and_of_a_stored_steering_does_not_follow_the_hash_seed() -> None:
    program = """
import torch, dsas, json
torch.manual_seed(0)
model = torch.nn.Sequential(*[torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()) for _ in range(12)])
sites = dsas.find_sites(model, ["re:1?[0-9]", "*.1", "3.0"])
addition, constant = dsas.Addition(torch.ones(2)), dsas.Constant()
identity = dsas.steering.steering.ModelIdentity.of(model)
steering = dsas.Steering([dsas.Rule(site, addition, constant) for site in sites], identity)
print(steering, json.dumps(steering._artifact().config), list(steering._artifact().tensors))
"""
    printed = set()
    for seed in ("0", "1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(SOURCE)}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        printed.add(done.stdout)
    assert len(printed) == 1


class TwoStreams(nn.Module):
    """Gives (image, text), as a FLUX block does, and ends in a decoder's call."""

    def __init__(self) -> None:
        super().__init__()
        self.block = _Pair()

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.block(input_ids)


class _Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(*x.shape, WIDTH), torch.ones(*x.shape, WIDTH)


def test_a_site_names_which_stream_of_a_block_is_meant_and_the_other_is_left_alone() -> None:
    model = TwoStreams()
    steering = random_steering(model, dsas.Site("block", index=1), regulator=dsas.Constant())
    with steering.apply(model):
        image, text = model(torch.zeros(1, 3, dtype=torch.long))
    assert torch.equal(image, torch.zeros(1, 3, WIDTH))
    torch.testing.assert_close(text, (1 + steering.rules[0].transform.vector).expand(1, 3, -1))


def test_a_larger_strength_moves_further_and_a_higher_threshold_steers_fewer_sites(model: Any, tokenizer: Any) -> None:
    ids = ids_of(tokenizer, PROMPTS[0])
    plain, steering = logits_of(model, ids), random_steering(model, "model.layers.2")
    moved = []
    for strength in (0.0, 0.1, 0.5, 1.0, 2.0):
        with steering.apply(model, strength):
            moved.append(float((logits_of(model, ids) - plain).norm()))
    assert moved == sorted(moved)
    assert moved[0] == 0.0 < moved[1]
    source, control = [[f"{start} {i}" for i in range(8)] for start in ("I hate it", "We like it")]
    steered = []
    for threshold in (0.0, 0.6, 0.9, 1.0):
        fitted = dsas.fit(
            model, tokenizer, source=source, control=control, target=control, selection=dsas.Threshold(threshold),
            sites=["residual", "norm", "mlp"], progress=False,
        )  # fmt: skip
        steered.append(sum(rule.weight > 0 for rule in fitted.rules))
    assert steered == sorted(steered, reverse=True)
    assert steered[0] == 9
