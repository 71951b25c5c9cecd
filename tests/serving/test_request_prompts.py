"""A request's decision follows from the mean of its own prompt so far, in any mix and chunks, and after a restart."""

from pathlib import Path
from typing import Any

import pytest
import torch
from served import First, Second, Served, request, vllm_config
from torch import Tensor

import dsas
from dsas.errors import OptionError, StateError
from dsas.model.sequence import Sequences
from dsas.serving.config import source_of
from dsas.serving.runner import SteeredRunner
from dsas.testing.models import WIDTH, tiny_model


def casting(root: Path, name: str, seed: int) -> dsas.Steering:
    """Store a Steering that decides by the prompt at each layer, about as often one way as the other."""
    generator = torch.Generator().manual_seed(seed)
    rules = []
    for number in range(3):
        condition, vector = torch.randn(2, WIDTH, generator=generator)
        cast = dsas.Cast(condition, torch.tensor(0.12), above=number != 1)
        regulator = dsas.Product([cast, dsas.Constant(0.5)]) if number == 2 else cast
        rules.append(dsas.Rule(dsas.Site(f"model.layers.{number}"), dsas.Addition(0.1 * vector), regulator))
    steering = dsas.Steering(rules, dsas.model.identity.ModelIdentity.of(tiny_model("llama")))
    steering.save_pretrained(root / name)
    return steering


def by_hand(steering: dsas.Steering, t: Tensor, prompt: int) -> Tensor:
    """Return one row after layers that do nothing but steer, read at once."""
    history = Sequences(1, prompt_tokens=torch.tensor([prompt]))
    history.begin(0, len(t))
    step = dsas.ForwardPass(1, len(t), history=history)
    for number, rule in enumerate(steering.rules):
        step.site = number
        t = t + (rule.regulator(t[None], step) * rule.transform.edit(t[None]))[0]
    return t


def run(
    runner: Any, work: dict[str, Any], rows: Tensor, spans: list[tuple[int, int]], prompts: list[int]
) -> list[Tensor]:
    counts = [end - start for start, end in spans]
    runner.run(work, counts, [start for start, _ in spans], prompts=prompts)
    t = torch.cat([row[start:end] for row, (start, end) in zip(rows, spans, strict=True)])
    return list(runner.execute_model(t).split(counts))


@pytest.mark.parametrize("kind", [First, Second])
def test_requests_in_chunks_beside_others_are_decided_on_as_each_row_alone(kind: Any, tmp_path: Path) -> None:
    a, b = casting(tmp_path, "a", 1), casting(tmp_path, "b", 2)
    runner, rows, prompts = kind(Served()), torch.randn(4, 10, WIDTH), [6, 4, 1, 7]
    SteeredRunner(runner, vllm_config(tmp_path, "a", "b"))
    asked = [request((a.digest(), 1.0)), request((b.digest(), 1.0)), request((a.digest(), 1.0)), request()]
    work, found = dict(zip("abcu", asked, strict=True)), [list[Tensor]() for _ in rows]
    for spans in (
        [(0, 3), (0, 4), (0, 1), (0, 7)],
        [(3, 6), (4, 5), (1, 5), (7, 8)],
        [(6, 10), (5, 10), (5, 6), (8, 9)],
    ):
        for own, one in zip(found, run(runner, work, rows, spans, prompts), strict=True):
            own.append(one)
        runner.execute_model(torch.randn(16, WIDTH))  # a step that nobody prepared
    for own, row, steering, prompt in zip(found, rows, (a, b, a), prompts, strict=False):
        wanted = by_hand(steering, row, prompt)
        torch.testing.assert_close(torch.cat(own), wanted[: sum(map(len, own))])
    assert torch.equal(torch.cat(found[3]), rows[3, :9])
    decided = torch.cat([by_hand(one, row, 6) - row for one in (a, b) for row in rows]).norm(dim=-1)
    assert 0 < (decided == 0).float().mean() < 1  # some tokens are steered, and some are not


def test_a_request_that_begins_again_and_numbers_that_are_not_finite_spoil_nothing(tmp_path: Path) -> None:
    steering = casting(tmp_path, "a", 1)
    runner, rows = First(Served()), torch.randn(2, 8, WIDTH)
    SteeredRunner(runner, vllm_config(tmp_path, "a"))
    one = request((steering.digest(), 1.0))
    bad = torch.stack([rows[0], torch.full((8, WIDTH), torch.inf)])
    run(runner, {"a": one, "b": one}, bad, [(0, 5), (0, 5)], [7, 7])
    (got,) = run(runner, {"a": one}, rows[:1], [(0, 8)], [7])
    torch.testing.assert_close(got, by_hand(steering, rows[0], 7))
    for number in range(20):  # rows are given anew
        (got,) = run(runner, {f"r{number}": one}, rows[1:], [(0, 8)], [7])
        torch.testing.assert_close(got, by_hand(steering, rows[1], 7))
    with pytest.raises(StateError, match="nothing is known of the prompt of request a"):
        run(runner, {"a": one}, rows[:1], [(5, 8)], [7])


def test_what_decides_by_prompts_is_loaded_where_some_did_at_the_start_and_refused_elsewhere(tmp_path: Path) -> None:
    casting(tmp_path, "a", 1)
    new, plain = casting(tmp_path, "b", 2), dsas.Steering.from_pretrained(tmp_path / "a")
    rules = [rule._replace(regulator=dsas.Constant()) for rule in plain.rules]
    dsas.Steering(rules, plain.model).save_pretrained(tmp_path / "plain")
    runner, row = First(Served()), torch.randn(1, 6, WIDTH)
    steered = SteeredRunner(runner, vllm_config(tmp_path, "a", spare=1))
    steered.load("b", source_of(str(tmp_path / "b"), new))
    (got,) = run(runner, {"r": request((new.digest(), 1.0))}, row, [(0, 6)], [4])
    torch.testing.assert_close(got, by_hand(new, row[0], 4))
    other = SteeredRunner(First(Served()), vllm_config(tmp_path, "plain", spare=1))
    with pytest.raises(OptionError, match=r"no Steering had when the server started \(prompt\)"):
        other.load("b", source_of(str(tmp_path / "b"), new))
    with pytest.raises(OptionError, match="a KV connector cannot be combined with the regulator 'cast'"):
        SteeredRunner(First(Served()), vllm_config(tmp_path, "a", kv_transfer_config=object()))
