"""Evidence adds up over each request alone: in batches, in chunks, over shared blocks and after preemption."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from makers import random_steering
from served import (
    BLOCK,
    First,
    Second,
    Served,
    kv_cache,
    request,
    steered_by_hand,
    store,
    vllm_config,
)
from torch import Tensor

import dsas
from dsas.errors import OptionError
from dsas.methods.affine_edit import AffineEdit
from dsas.methods.served_form import Adding, Projection
from dsas.serving.carried import ancestors_of
from dsas.serving.config import source_of
from dsas.serving.parts import Parts
from dsas.serving.rule_rows import Row
from dsas.serving.runner import SteeredRunner
from dsas.serving.tables import SiteTable, SoFar
from dsas.serving.tokens import TokenBuffers
from dsas.testing.models import WIDTH, tiny_model

GRAPHS = SimpleNamespace(max_cudagraph_capture_size=64)
RUNNERS = pytest.mark.parametrize("kind", [First, Second])


def adding(
    root: Path, name: str, seed: int, sites: Any = "residual", *, held: bool = False, **options: Any
) -> dsas.Steering:
    """Store a Steering whose evidence differs from layer to layer."""
    generator = torch.Generator().manual_seed(seed)
    plain = random_steering(tiny_model("llama"), sites, seed=seed)
    rules = []
    for rule in plain.rules:
        theta, (bias, cut) = 0.5 * torch.randn(WIDTH, generator=generator), torch.randn(2, generator=generator)
        when = dsas.Evidence(theta, bias, cut, **options)
        rules.append(rule._replace(regulator=dsas.Held(when) if held else when, weight=0.7))
    steering = dsas.Steering(rules, plain.model)
    steering.save_pretrained(root / name)
    return steering


class Part(NamedTuple):
    """Tokens `start` to `end` of a request's row, which a step reads."""

    name: str
    start: int
    end: int


class Engine:
    """A runner that steers, and requests: what each asks, its row of tokens and its blocks."""

    def __init__(self, kind: Any, root: Path, *names: str, **options: Any) -> None:
        self.runner = kind(Served())
        self.steered = SteeredRunner(self.runner, vllm_config(root, *names, **options))
        self.runner.initialize_kv_cache(kv_cache())
        self.requests: dict[str, tuple[Any, Tensor, Sequence[int]]] = {}
        self.prompts: dict[str, int] = {}

    def step(self, *parts: Part) -> list[Tensor]:
        """Run these parts of requests in one batch, and return what each becomes."""
        asked, rows, blocks = zip(*(self.requests[part.name] for part in parts), strict=True)
        counts = [part.end - part.start for part in parts]
        names = {part.name: one for part, one in zip(parts, asked, strict=True)}
        prompts = [self.prompts.get(part.name, 0) for part in parts]
        self.runner.run(names, counts, [part.start for part in parts], blocks, prompts=prompts)
        t = torch.cat([row[part.start : part.end] for part, row in zip(parts, rows, strict=True)])
        return list(self.runner.execute_model(t).split(counts))


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)


@RUNNERS
def test_evidence_in_chunks_beside_others_is_that_of_each_row_alone(kind: Any, tmp_path: Path) -> None:
    a, b = adding(tmp_path, "a", 1, memory=1.0), adding(tmp_path, "b", 2, prior=0.0, memory=0.8)
    plain = store(tmp_path, "plain")["plain"]
    engine = Engine(kind, tmp_path, "a", "b", "plain")
    rows = torch.randn(4, 14, WIDTH)
    asked = [request((one.digest(), s)) for one, s in ((a, 0.5), (b, 1.5), (plain, 1.0))] + [request()]
    for number, (name, one) in enumerate(zip("abpu", asked, strict=True)):
        engine.requests[name] = one, rows[number], [1 + number, 5 + number, 9 + number, 13 + number]
    steps = [
        [Part("a", 0, 5), Part("b", 0, 4), Part("p", 0, 2)],
        [Part("u", 0, 2), Part("b", 4, 5), Part("a", 5, 12), Part("p", 2, 3)],
        [Part("b", 5, 6), Part("a", 12, 13)],
        [Part("p", 3, 6), Part("u", 2, 3), Part("b", 6, 14)],
        [Part("a", 13, 14), Part("p", 6, 14), Part("u", 3, 10)],
    ]
    found: dict[str, list[Tensor]] = {name: [] for name in "abpu"}
    for parts in steps:
        for part, got in zip(parts, engine.step(*parts), strict=True):
            found[part.name].append(got)
        engine.runner.execute_model(torch.randn(16, WIDTH))  # a step that nobody prepared
    for name, steering, row, strength in zip("abp", (a, b, plain), rows, (0.5, 1.5, 1.0), strict=False):
        close(torch.cat(found[name]), steered_by_hand(steering, row, strength))
    assert torch.equal(torch.cat(found["u"]), rows[3, :10])


@RUNNERS
def test_evidence_that_is_held_is_that_of_the_prompt_for_the_whole_answer(kind: Any, tmp_path: Path) -> None:
    a, b = adding(tmp_path, "a", 1, held=True, memory=0.8), adding(tmp_path, "b", 2, memory=0.9)
    c = adding(tmp_path, "c", 3, held=True, memory=1.0, prior=0.0)
    engine, rows = Engine(kind, tmp_path, "a", "b", "c"), torch.randn(4, 14, WIDTH)
    steerings, engine.prompts = {"a": a, "b": b, "c": c, "d": a}, {"a": 6, "b": 3, "c": 5, "d": 1}
    for number, (name, steering) in enumerate(steerings.items()):
        blocks = [4 * number + place for place in range(1, 5)]
        engine.requests[name] = request((steering.digest(), 1.0)), rows[number], blocks
    steps = [
        [Part("a", 0, 4), Part("b", 0, 6), Part("c", 0, 5), Part("d", 0, 1)],
        [Part("d", 1, 2), Part("a", 4, 9), Part("c", 5, 6)],  # what follows the prompt in the same step, as drafts do
        [Part("c", 6, 7), Part("d", 2, 3), Part("a", 9, 10), Part("b", 6, 14)],
        [Part("a", 10, 14), Part("c", 7, 14)],
        [Part("d", 3, 14)],
    ]
    found: dict[str, list[Tensor]] = {name: [] for name in steerings}
    for parts in steps:
        for part, got in zip(parts, engine.step(*parts), strict=True):
            found[part.name].append(got)
    for number, (name, steering) in enumerate(steerings.items()):
        close(torch.cat(found[name]), steered_by_hand(steering, rows[number], 1.0, engine.prompts[name]))
    assert torch.equal(torch.cat(found["d"]), rows[3])  # a prompt of one token, which never counts


@RUNNERS
def test_a_request_that_begins_again_and_one_that_finds_its_blocks_get_the_same(kind: Any, tmp_path: Path) -> None:
    steering = adding(tmp_path, "a", 1)
    engine, row = Engine(kind, tmp_path, "a"), torch.randn(11, WIDTH)
    other = torch.cat([row[: 2 * BLOCK], torch.randn(3, WIDTH)])
    one, wanted = request((steering.digest(), 1.0)), steered_by_hand(steering, row, 1.0)
    engine.requests = {"a": (one, row, [4, 2, 7]), "b": (one, other, [4, 2, 9]), "c": (one, row, [1, 3, 5])}
    (first,) = engine.step(Part("a", 0, 11))
    found, again = engine.step(Part("b", 2 * BLOCK, 11), Part("c", 0, 6))
    close(found, steered_by_hand(steering, other, 1.0)[2 * BLOCK :])
    engine.requests["c"] = (
        one,
        row,
        [4, 2, 6],
    )  # preempted, it comes back to blocks of which two are there
    (last,) = engine.step(Part("c", 2 * BLOCK, 11))
    for got, part in ((first, wanted), (again, wanted[:6]), (last, wanted[2 * BLOCK :])):
        close(got, part)
    assert not torch.allclose(found, first[2 * BLOCK :])


@RUNNERS
def test_requests_go_on_from_blocks_that_others_fill_in_the_same_step(kind: Any, tmp_path: Path) -> None:
    """What a step schedules is in the prefix cache before it is read: b goes on from a, c from b, d from a as well."""
    steering = adding(tmp_path, "a", 1, memory=0.9)
    engine, one = Engine(kind, tmp_path, "a", compilation_config=GRAPHS), request((steering.digest(), 1.0))
    a = torch.randn(9, WIDTH)
    b, d = (torch.cat([a[:BLOCK], torch.randn(5, WIDTH)]) for _ in range(2))
    c = torch.cat([b[: 2 * BLOCK], torch.randn(2, WIDTH)])
    engine.requests = {
        "c": (one, c, [1, 4, 6]), "a": (one, a, [1, 2, 3]), "d": (one, d, [1, 7, 8]), "b": (one, b, [1, 4, 5])
    }  # fmt: skip
    starts = {"c": 2 * BLOCK, "a": 0, "d": BLOCK, "b": BLOCK}
    found = engine.step(*(Part(name, start, len(engine.requests[name][1])) for name, start in starts.items()))
    for (name, start), got in zip(starts.items(), found, strict=True):
        close(got, steered_by_hand(steering, engine.requests[name][1], 1.0)[start:])


def test_each_level_of_ancestors_goes_reach_times_as_far_over_whatever_request_they_are_of() -> None:
    """The first four tokens are a request's, then two go on from the second, and three from the first of these."""
    before = np.array([0, 1, 2, 3, 2, 5, 5, 7, 8])
    found = ancestors_of(before, 2, 3)
    assert found.transpose(1, 2, 0).tolist() == [
        [[1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 1, 2, 3, 2, 5, 5, 7, 8], [0, 0, 1, 2, 1, 2, 2, 5, 7]],
        [[1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 0, 0, 1, 0, 1, 1, 2, 5], [0, 0, 0, 0, 0, 0, 0, 0, 0]],
    ]


def test_sums_of_a_long_step_are_those_of_each_request_read_token_by_token() -> None:
    """In float64 by the recursion: two requests that begin, three that go on, one after the 50th token of another."""
    memories, starts, left, each = [0.5, 0.999, 0.9, 1.0, 0.0, 0.999], [0, 0, 700, 700, 700, 50], [0, 0, 2, 2, 2, 0], 80
    projections = [
        Projection(torch.ones(1), torch.tensor(0.0), adding=Adding(n, 0.1, m)) for n, m in enumerate(memories)
    ]
    rows = [Row(AffineEdit(torch.zeros(1)), projections=(projection,)) for projection in projections]
    table, count = SiteTable(len(rows), 1, Parts.of(rows)), len(rows) * each
    for slot, row in enumerate(rows, 1):
        table.put(slot, row)
    before, firsts = np.arange(count), each * np.arange(len(rows))
    before[firsts] = [0, 0, 0, 0, 0, each + 50]
    tokens = TokenBuffers(1, count, adding=1)
    ancestors = torch.from_numpy(ancestors_of(before, *tokens.ancestors.shape[1:]))
    positions = np.concatenate([np.arange(start, start + each) for start in starts])
    sums, scores = torch.zeros(count), torch.randn(count)
    sums[firsts] = torch.tensor(left).float()
    totals, values = np.zeros(count + 1), np.zeros(count)
    for token, (position, score) in enumerate(zip(positions.tolist(), scores.tolist(), strict=True)):
        request = token // each
        memory, past = memories[request], totals[before[token]] + (left[request] if token in firsts else 0)
        totals[token + 1] = (score if position else 0) + memory * past
        weight = sum(memory**age for age in range(position)) + request
        values[token] = 1 / (1 + np.exp(0.1 - totals[token + 1] / weight)) if position else 0
    places = torch.from_numpy(positions).float()
    so_far = SoFar(ancestors, places, places, sums)
    slots = torch.arange(1, len(rows) + 1).repeat_interleave(each)
    _, applied = table(scores.unsqueeze(1), slots, torch.ones(count), so_far)
    torch.testing.assert_close(sums.double(), torch.from_numpy(totals[1:]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(applied.double(), torch.from_numpy(values), rtol=0, atol=1e-6)


def test_a_graph_that_is_longer_than_its_step_changes_nothing(tmp_path: Path) -> None:
    steering = adding(tmp_path, "a", 1)
    engine, row = Engine(First, tmp_path, "a"), torch.randn(14, WIDTH)
    one = request((steering.digest(), 1.0))
    engine.requests["a"] = one, row, [1, 2, 3, 4]
    engine.step(Part("a", 0, 12))
    engine.runner.run({"a": one}, [1], [12], [[1, 2, 3, 4]])
    got = engine.runner.execute_model(torch.cat([row[12:13], torch.randn(3, WIDTH)]))[:1]
    wanted = steered_by_hand(steering, row, 1.0)[12:]
    close(torch.cat([got, *engine.step(Part("a", 13, 14))]), wanted)


@RUNNERS
def test_of_several_steerings_each_adds_up_its_own(kind: Any, tmp_path: Path) -> None:
    a, b = (adding(tmp_path, name, n, "layers.0", memory=m) for name, n, m in (("a", 1, 0.9), ("b", 2, 0.5)))
    engine, row = Engine(kind, tmp_path, "a", "b", together=2), torch.randn(9, WIDTH)
    engine.requests["r"] = request((b.digest(), 0.5), (a.digest(), 1.0)), row, [1, 2, 3]
    got = torch.cat([*engine.step(Part("r", 0, 6)), *engine.step(Part("r", 6, 9))])
    close(got, steered_by_hand(a, steered_by_hand(b, row, 0.5), 1.0))


@RUNNERS
def test_a_request_whose_numbers_are_not_finite_spoils_no_other_nor_who_gets_its_blocks(
    kind: Any, tmp_path: Path
) -> None:
    steering = adding(tmp_path, "a", 1)
    engine, row = Engine(kind, tmp_path, "a"), torch.randn(8, WIDTH)
    one = request((steering.digest(), 1.0))
    engine.requests = {"bad": (one, torch.full((8, WIDTH), torch.inf), [1, 2]), "good": (one, row, [3, 4])}
    _, early = engine.step(Part("bad", 0, 6), Part("good", 0, 5))
    engine.requests["late"] = one, row, [1, 2]
    late, rest = engine.step(Part("late", 0, 5), Part("good", 5, 8))
    wanted = steered_by_hand(steering, row, 1.0)
    for got, part in ((early, wanted[:5]), (late, wanted[:5]), (rest, wanted[5:])):
        close(got, part)


def test_large_scores_of_another_request_round_no_request_s_sums(tmp_path: Path) -> None:
    """Float32 numbers of the size of the first request's sums, 1e8, lie 8 apart: what is added to them is lost."""
    steering = adding(tmp_path, "a", 1, "layers.0")
    engine, row = Engine(First, tmp_path, "a"), torch.randn(8, WIDTH)
    one, wanted = request((steering.digest(), 1.0)), steered_by_hand(steering, row, 1.0)
    loud = torch.tensor([1e8] * 2 + [1.0] * 6).unsqueeze(1) * torch.randn(8, WIDTH)
    engine.requests = {"loud": (one, loud, [1, 2]), "a": (one, row, [3, 4])}
    _, got = engine.step(Part("loud", 0, 8), Part("a", 0, 8))
    close(got, wanted)


def test_a_request_is_told_what_evidence_applied(tmp_path: Path) -> None:
    steering = adding(tmp_path, "a", 1, "layers.0")
    engine, row = Engine(First, tmp_path, "a", reports=True), torch.randn(7, WIDTH)
    engine.requests["r"] = request((steering.digest(), 0.5), dsas_reported=["r1", "a"]), row, [1, 2]
    engine.step(Part("r", 0, 4))
    engine.step(Part("r", 4, 7))
    values = steering.rules[0].regulator(row[None], dsas.ForwardPass(1, 7))
    report = engine.steered.reports.read("r1")
    assert report["tokens"] == 7
    assert report["mean_strength"] == {"a": pytest.approx(0.5 * 0.7 * float(values.mean()))}
    assert report["above_half"] == {"a": int((0.7 * values > 0.5).sum())}


def test_evidence_is_loaded_where_some_was_when_the_server_started_and_refused_elsewhere(tmp_path: Path) -> None:
    store(tmp_path, "plain")
    adding(tmp_path, "a", 1, "layers.0")
    new = adding(tmp_path, "b", 2, "layers.0", memory=0.5)
    engine, row = Engine(First, tmp_path, "a", spare=1), torch.randn(6, WIDTH)
    engine.steered.load("a", source_of(str(tmp_path / "b"), new))
    engine.requests["r"] = request((new.digest(), 1.0)), row, [1, 2]
    close(torch.cat(engine.step(Part("r", 0, 6))), steered_by_hand(new, row, 1.0))
    plain = Engine(First, tmp_path, "plain", spare=1)
    with pytest.raises(OptionError, match=r"no Steering had when the server started \(evidence\)"):
        plain.steered.load("b", source_of(str(tmp_path / "b"), new))
    assert plain.steered.carried is None
    assert not {"ancestors", "positions", "sums"} & dict(plain.steered.tokens.named_buffers()).keys()


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ({"kv_transfer_config": object()}, "a KV connector"),
        ({"parallel_config": SimpleNamespace(decode_context_parallel_size=2)}, "decode context parallelism"),
    ],
)
def test_what_brings_blocks_without_their_sums_is_refused_for_evidence_alone(
    features: dict[str, Any], said: str, tmp_path: Path
) -> None:
    adding(tmp_path, "a", 1)
    store(tmp_path, "plain")
    SteeredRunner(First(Served()), vllm_config(tmp_path, "plain", **features))
    with pytest.raises(OptionError, match=f"{said} cannot be combined with the regulator 'evidence'"):
        SteeredRunner(First(Served()), vllm_config(tmp_path, "a", **features))


def test_evidence_that_begins_anew_is_refused_by_name(tmp_path: Path) -> None:
    adding(tmp_path, "a", 1, "layers.0", by_turn=True)
    said = r"'a' cannot be served: the regulator 'evidence' at model\.layers\.0.* fit it with by_turn=False"
    with pytest.raises(OptionError, match=said):
        SteeredRunner(First(Served()), vllm_config(tmp_path, "a"))
