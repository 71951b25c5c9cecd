"""Regulators of positions alone treat each request as a sequence of its own, in any mix and any chunks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from served import First, Second, Served, request, vllm_config
from torch import Tensor

import dsas
from dsas.errors import OptionError
from dsas.model.sequence import Sequences
from dsas.serving.runner import SteeredRunner
from dsas.testing.models import WIDTH, tiny_model

RUNNERS = pytest.mark.parametrize("kind", [First, Second])
MARKS = [["user", [7, 1], False], ["assistant", [7, 2], False], ["thinking", [8], False], ["thinking", [9], True]]


def placed(root: Path, name: str, regulators: list[dsas.Regulator]) -> dsas.Steering:
    """Store a Steering that adds a vector at each layer where its regulator says so."""
    rules = [
        dsas.Rule(dsas.Site(f"model.layers.{number}"), dsas.Addition(torch.randn(WIDTH)), regulator)
        for number, regulator in enumerate(regulators)
    ]
    steering = dsas.Steering(rules, dsas.model.identity.ModelIdentity.of(tiny_model("llama")))
    steering.save_pretrained(root / name)
    return steering


def by_hand(steering: dsas.Steering, t: Tensor, prompt: int, ids: list[int]) -> Tensor:
    """Return one row after layers that do nothing but steer, read at once."""
    history = Sequences(1, prompt_tokens=torch.tensor([prompt]))
    history.begin(0, len(t))
    step = dsas.ForwardPass(1, len(t), token_ids=torch.tensor([ids[: len(t)]]), history=history)
    for number, rule in enumerate(steering.rules):
        step.site = number
        t = t + (rule.regulator(t[None], step) * rule.transform.edit(t[None]))[0]
    return t


@RUNNERS
def test_schedules_of_mixed_requests_in_chunks_are_those_of_each_row_alone(kind: Any, tmp_path: Path) -> None:
    a = placed(tmp_path, "a", [dsas.Schedule("prompt", 1, 4), dsas.Schedule("generated"), dsas.Schedule("all", 2)])
    b = placed(tmp_path, "b", [dsas.Product([dsas.Schedule("prompt"), dsas.Schedule("all", 3)])])
    runner, t = kind(Served()), torch.randn(3, 9, WIDTH)
    SteeredRunner(runner, vllm_config(tmp_path, "a", "b"))
    found: list[list[Tensor]] = [[], [], []]
    for start, end in ((0, 3), (3, 4), (4, 9)):
        work = {"a": request((a.digest(), 1.0)), "b": request((b.digest(), 1.0)), "u": request()}
        if start == 0 or kind is First:
            runner.run(work, [end - start] * 3, [start] * 3, prompts=[5, 6, 4])
        else:  # the second generation tells its state of a request once
            numbers = [2, 1, 0]
            batch = SimpleNamespace(
                idx_mapping_np=numbers,
                num_scheduled_tokens=np.array([end - start] * 3),
                num_computed_tokens_np=np.array([start] * 3),
            )
            runner.model_state.prepare_inputs(batch, None)
        got = runner.model(t[:, start:end].reshape(-1, WIDTH)).split(end - start)
        for own, one in zip(found, got, strict=True):
            own.append(one)
    for own, row, steering, prompt in zip(found, t, (a, b), (5, 6), strict=False):
        torch.testing.assert_close(torch.cat(own), by_hand(steering, row, prompt, [0] * 9))
    assert torch.equal(torch.cat(found[2]), t[2])


def test_turns_are_told_over_blocks_that_the_prefix_cache_gave_and_after_a_request_made_room(tmp_path: Path) -> None:
    roles = dsas.Turns(MARKS, only=["assistant"], leave_out=["thinking"])
    steering = placed(tmp_path, "a", [roles, dsas.Product([roles, dsas.Schedule("all", 6)])])
    ids = [7, 1, 3, 4, 7, 2, 5, 8, 6, 9, 5, 5]
    runner, t = First(Served()), torch.randn(12, WIDTH)
    SteeredRunner(runner, vllm_config(tmp_path, "a"))
    wanted = by_hand(steering, t, 6, ids)
    assert not torch.equal(wanted, t)
    steps = [(6, 9), (9, 10), (0, 8), (8, 12)]  # it finds six tokens read; then it begins again
    asked = request((steering.digest(), 1.0))
    for start, end in steps:
        runner.run({"a": asked}, [end - start], [start], prompts=[6], ids=[ids])
        torch.testing.assert_close(runner.model(t[start:end]), wanted[start:end])


@pytest.mark.parametrize(
    ("kind", "features", "said"),
    [
        (Second, {}, "keeps them on the device"),
        (First, {"scheduler_config": {"async_scheduling": True}}, "start it with --no-async-scheduling"),
        (First, {"model_config": {"enable_prompt_embeds": True}}, "remove --enable-prompt-embeds"),
    ],
)
def test_roles_are_refused_where_the_numbers_of_tokens_are_not_known(
    kind: Any, features: dict[str, Any], said: str, tmp_path: Path
) -> None:
    placed(tmp_path, "plain", [dsas.Schedule("prompt")])
    placed(tmp_path, "a", [dsas.Turns(MARKS, only=["assistant"])])
    for name in ("plain", "a"):
        config = vllm_config(tmp_path, name)
        for part, options in features.items():
            vars(getattr(config, part)).update(options)
        if name == "plain":
            SteeredRunner(kind(Served()), config)
        else:
            with pytest.raises(OptionError, match=f"'a' reads token ids.*{said}"):
                SteeredRunner(kind(Served()), config)


def test_a_steering_with_more_conditions_on_places_than_any_at_the_start_is_not_loaded(tmp_path: Path) -> None:
    from dsas.serving.config import source_of

    placed(tmp_path, "a", [dsas.Schedule("prompt"), dsas.Schedule("prompt")])
    more = placed(tmp_path, "b", [dsas.Schedule("prompt"), dsas.Schedule("generated")])
    steered = SteeredRunner(First(Served()), vllm_config(tmp_path, "a", spare=1))
    with pytest.raises(OptionError, match="'b' has 2 different conditions on places"):
        steered.load("b", source_of(str(tmp_path / "b"), more))
