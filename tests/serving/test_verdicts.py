"""Requests are stopped, or steered more, exactly where an offline replay of the regulator on their answers says so."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from served import First, Second, Served, request, store, vllm_config

import dsas
from dsas.serving.runner import SteeredRunner
from dsas.serving.verdicts import STOP_TOKEN, Verdict, Watched
from dsas.testing.models import WIDTH, tiny_model


class Sampled:
    """What a worker has sampled for its requests, as it comes later."""

    def __init__(self, *requests: str) -> None:
        self.req_ids, self.sampled_token_ids = list(requests), [[5] for _ in requests]


def watching(root: Path) -> dsas.Steering:
    """Store a Steering of one site whose regulator is the first number of a token, and which moves it by 1."""
    theta, vector = torch.zeros(2, WIDTH)
    theta[0] = vector[0] = 1.0
    rule = dsas.Rule(dsas.Site("model.layers.0"), dsas.Addition(vector), dsas.Rectified(theta, torch.tensor(0.0)), 0.5)
    steering = dsas.Steering([rule], dsas.model.identity.ModelIdentity.of(tiny_model("llama")))
    steering.save_pretrained(root / "detox")
    return steering


def tokens_of(*values: float) -> torch.Tensor:
    t = torch.zeros(len(values), WIDTH)
    t[:, 0] = torch.tensor(values)
    return t


def test_the_first_full_window_above_the_threshold_decides_and_tokens_read_again_do_not() -> None:
    watched = Watched("a", Verdict(stop_above=0.5, raise_above=0.3, raise_to=2.0, window=2), [1], prompt=3)
    assert not watched.take(0, [9.0, 9.0, 9.0, 0.4], 0)  # the prompt, and a window that is not full
    assert not watched.take(0, [0.4], 4)  # 0.4 is above what raises, and not above what stops
    assert watched.raised == [5]
    assert not watched.take(0, [9.0, 9.0, 9.0, 9.0, 9.0], 0)  # it begins again
    assert watched.take(0, [0.7], 5)
    assert watched.raised == [5]
    assert watched.values == [[0.4, 0.4, 0.7]]


@pytest.mark.parametrize("kind", [First, Second])
@pytest.mark.parametrize("later", [False, True], ids=["at-once", "later"])
def test_a_request_is_stopped_by_its_own_answer_alone_at_any_strength(kind: Any, later: bool, tmp_path: Path) -> None:
    digest = watching(tmp_path).digest()
    runner = kind(Served())
    steered = SteeredRunner(runner, vllm_config(tmp_path, "detox", reports=True))
    stop = {"dsas_verdict": [0.4, None, None, 2]}
    work = {"a": request((digest, 0.0), **stop), "b": request((digest, 1.0), **stop), "c": request((digest, 0.0))}
    values = {"a": [9, 9, 0.5, 1.0, 0.8, 2.0], "b": [9, 9, 0.5, 0.8, 0.4, 0.0], "c": [9] * 6}
    found: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    for start, end in ((0, 2), (2, 3), (3, 4), (4, 5), (5, 6)):
        names = list(work)[::-1] if kind is Second else list(work)
        runner.run(work, [end - start] * 3, [start] * 3, prompts=[2] * 3)
        order = list(work)  # both take the tokens in the order in which the requests are given
        runner.execute_model(torch.cat([tokens_of(*values[name][start:end]) for name in order]))
        output = Sampled(*names)
        if later:
            given = steered.verdicts.judged(SimpleNamespace(get_output=lambda output=output: output)).get_output()
        else:
            given = steered.verdicts.judged(output)
        for name, (token,) in zip(given.req_ids, given.sampled_token_ids, strict=True):
            found[name].append(token)
    # a: means of half the values are 0.375, 0.45: the third token of the answer is the last. b: 0.325, 0.3, 0.1.
    assert found == {"a": [5, 5, 5, STOP_TOKEN, STOP_TOKEN], "b": [5] * 5, "c": [5] * 5}


def test_from_the_verdict_on_a_request_is_steered_more_in_whatever_steps_it_is_read(tmp_path: Path) -> None:
    digest = watching(tmp_path).digest()
    runner = First(Served())
    SteeredRunner(runner, vllm_config(tmp_path, "detox", reports=True))
    work = {"a": request((digest, 0.0), dsas_verdict=[None, 0.4, 2.0, 1])}
    t = tokens_of(9, 9, 0.5, 1.0, 0.5, 0.25)
    got = []
    for start, end in ((0, 2), (2, 3), (3, 4), (4, 5), (5, 6)):
        runner.run(work, [end - start], [start], prompts=[2])
        got.append(runner.execute_model(t[start:end]))
    wanted = t.clone()
    wanted[4:, 0] += 2.0 * 0.5 * t[4:, 0]  # the second token of the answer is above: from the third on
    torch.testing.assert_close(torch.cat(got), wanted)
    runner.run(work, [6], [0], prompts=[2])  # it was preempted, and is read again
    torch.testing.assert_close(runner.execute_model(t), wanted)


def test_without_verdicts_what_is_sampled_is_handed_on_as_it_is(tmp_path: Path) -> None:
    store(tmp_path, "detox")
    steered = SteeredRunner(First(Served()), vllm_config(tmp_path, "detox"))
    output = Sampled("a")
    assert steered.verdicts.judged(output) is output
    assert output.sampled_token_ids == [[5]]
    assert steered.verdicts.judged(None) is None
