"""Scope: which threads and asyncio tasks a Steering steers, and whose passes its trace holds."""

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread
from typing import Any, NamedTuple

import pytest
import torch
from makers import Position, hooks_on, logits_of, random_steering, unchecked
from torch import Tensor
from transformers import DynamicCache, TextIteratorStreamer

import dsas
from dsas.errors import OptionError, StateError
from dsas.model.identity import ModelIdentity
from dsas.runtime.scope import Entered
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.testing.models import WIDTH

IDS = torch.tensor([[1, 2, 3, 4]])
THREADS, REQUESTS = 8, 200


@pytest.fixture
def model() -> Any:
    return tiny_model("llama", layers=2)


@pytest.fixture
def plus(model: Any) -> dsas.Steering:
    return constant(model, 1.0)


@pytest.fixture
def minus(model: Any) -> dsas.Steering:
    return constant(model, -1.0)


def constant(model: Any, sign: float) -> dsas.Steering:
    """Return a Steering that adds `sign` to every activation of the first layer."""
    rule = dsas.Rule(dsas.find_sites(model)[0], dsas.Addition(sign * torch.ones(WIDTH)), dsas.Constant())
    return dsas.Steering([rule], ModelIdentity.of(model))


def steered(model: Any, *steerings: dsas.Steering) -> Tensor:
    """Return what the model gives under these Steerings in this thread."""
    if not steerings:
        return logits_of(model, IDS)
    with steerings[0].apply(model):
        return steered(model, *steerings[1:])


def elsewhere(function: Callable[[], Any]) -> Any:
    """Return what a function gives in another thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


class Request(NamedTuple):
    """One request: which Steering, how strong, what is read at once and what one by one thereafter."""

    steering: int
    strength: float
    prompt: Tensor
    steps: tuple[int, ...]

    @classmethod
    def drawn(cls, draw: random.Random) -> "Request":
        prompt = torch.tensor([[draw.randrange(256) for _ in range(draw.randint(1, 12))]])
        steps = tuple(draw.randrange(256) for _ in range(draw.choice((0, 0, 1, 3))))
        return cls(draw.randrange(4), draw.uniform(0.1, 2.0), prompt, steps)

    def run(self, model: Any, steerings: list[dsas.Steering], **options: Any) -> tuple[Tensor, dsas.Trace]:
        """Return the logits of all passes and the trace."""
        cache = DynamicCache(config=model.config)
        with steerings[self.steering].apply(model, self.strength, **options) as applied:
            logits = [logits_of(model, self.prompt, past_key_values=cache, use_cache=True)]
            for token in self.steps:
                logits.append(logits_of(model, torch.tensor([[token]]), past_key_values=cache, use_cache=True))
            return torch.cat(logits, dim=1), applied.trace()


def test_of_eight_threads_that_steer_one_model_differently_no_value_of_one_is_in_another() -> None:
    model = tiny_model("llama", layers=1)
    kinds = (None, Position(), dsas.Schedule("generated"), dsas.Cast(torch.ones(WIDTH), torch.tensor(0.0)))
    steerings = [random_steering(model, seed=seed, regulator=kind) for seed, kind in enumerate(kinds)]
    draw = random.Random(0)
    requests = [Request.drawn(draw) for _ in range(REQUESTS)]
    alone = [request.run(model, steerings) for request in requests]
    assert len({float(logits.sum()) for logits, _ in alone}) == REQUESTS

    def serve(seed: int) -> list[tuple[int, tuple[Tensor, dsas.Trace]]]:
        order = random.Random(seed).sample(range(REQUESTS), REQUESTS)
        return [(number, requests[number].run(model, steerings, scope="context")) for number in order]

    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(serve, range(THREADS)))
    for number, (logits, trace) in (found for ours in together for found in ours):
        expected, expected_trace = alone[number]
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
        assert torch.equal(trace.token_ids, expected_trace.token_ids)
        torch.testing.assert_close(trace.strengths, expected_trace.strengths, rtol=0, atol=1e-6)
    assert hooks_on(model) == 0


def test_in_its_context_a_steering_leaves_other_threads_alone(model: Any, plus: dsas.Steering) -> None:
    plain = logits_of(model, IDS)
    with plus.apply(model, scope="context") as applied:
        assert torch.equal(elsewhere(lambda: logits_of(model, IDS)), plain)
        assert not applied.has_trace
        ours = logits_of(model, IDS)
    assert torch.equal(ours, steered(model, plus))
    assert applied.trace().token_ids.tolist() == IDS.tolist()
    assert hooks_on(model) == 0


def test_by_default_a_steering_steers_every_thread_and_adds_up_with_those_of_the_thread(
    model: Any, plus: dsas.Steering, minus: dsas.Steering
) -> None:
    """Both at once shift a layer by 1 - 1 = 0."""

    def other() -> list[Tensor]:
        found = [logits_of(model, IDS)]
        with minus.apply(model, scope="context"):
            found.append(logits_of(model, IDS))
            go.set()
            done.wait(10)
        return found

    go, done = Event(), Event()
    with plus.apply(model), ThreadPoolExecutor(1) as pool:
        running = pool.submit(other)
        assert go.wait(10)
        ours = logits_of(model, IDS)
        done.set()
        shared, both = running.result()
    assert torch.equal(ours, steered(model, plus))
    assert torch.equal(shared, ours)
    torch.testing.assert_close(both, logits_of(model, IDS))


@pytest.mark.parametrize("scope", ["process", "context"])
def test_asyncio_requests_that_overlap_get_their_own_steering_only_in_their_own_context(
    model: Any, plus: dsas.Steering, minus: dsas.Steering, scope: str
) -> None:
    async def request(steering: dsas.Steering, mine: asyncio.Event, other: asyncio.Event) -> Tensor:
        with steering.apply(model, scope=scope):
            mine.set()
            await other.wait()
            found = logits_of(model, IDS)
            await asyncio.sleep(0)
            return found

    async def both() -> list[Tensor]:
        one, other = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(request(plus, one, other), request(minus, other, one))

    found = asyncio.run(both())
    if scope == "context":
        assert torch.equal(found[0], steered(model, plus))
        assert torch.equal(found[1], steered(model, minus))
    else:
        both_at_once = steered(model, plus, minus)  # each is steered by both, in the order of install
        torch.testing.assert_close(found[0], both_at_once)
    assert hooks_on(model) == 0


def test_a_task_inherits_the_context_of_the_task_that_made_it_and_a_new_thread_does_not(
    model: Any, plus: dsas.Steering
) -> None:
    async def run() -> Tensor:
        await asyncio.sleep(0)
        return logits_of(model, IDS)

    async def parent() -> list[Tensor]:
        before = asyncio.create_task(late(inside))
        with plus.apply(model, scope="context") as applied:
            child, new = asyncio.create_task(run()), elsewhere(lambda: logits_of(model, IDS))
            lent, outlives = asyncio.to_thread(logits_of, model, IDS), asyncio.create_task(late(after))
            inside.set()
            found = [await child, await lent, new, await before]
            assert applied.trace().token_ids.tolist() == IDS.tolist()
        after.set()
        return [*found, await outlives]

    async def late(event: asyncio.Event) -> Tensor:
        await event.wait()
        return logits_of(model, IDS)

    inside, after = asyncio.Event(), asyncio.Event()
    child, lent, new, before, outlives = asyncio.run(parent())
    ours, plain = steered(model, plus), logits_of(model, IDS)
    assert torch.equal(child, ours)
    assert torch.equal(lent, ours)  # asyncio.to_thread takes the context along
    assert [torch.equal(other, plain) for other in (new, before, outlives)] == [True] * 3


def streamed(model: Any, ids: Tensor) -> Thread:
    """Generate four tokens in a thread while this one reads them, as a server does; return the thread, which ended."""
    streamer = TextIteratorStreamer(tiny_tokenizer(), timeout=60)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "streamer": streamer}
    thread = Thread(target=model.generate, kwargs={"input_ids": ids, "attention_mask": torch.ones_like(ids), **options})
    thread.start()
    "".join(streamer)
    thread.join()
    return thread


def test_what_a_streaming_thread_was_given_is_told_by_the_thread_that_applied_the_steering(model: Any) -> None:
    with random_steering(model, regulator=Position()).apply(model, 0.5) as applied:
        streamed(model, IDS)
        reading = applied.trace()
    assert reading.strengths[0, 0].tolist() == [0.5 * position for position in range(1, 8)]
    assert applied.trace().token_ids[0, :4].tolist() == IDS[0].tolist()
    assert [line.mean_strength for line in applied.report()] == pytest.approx([0.5 * 4.0] * 2)


def test_a_thread_that_runs_the_model_itself_tells_its_own_trace_and_names_that_of_another(model: Any) -> None:
    with random_steering(model, regulator=dsas.Constant()).apply(model) as applied:
        logits_of(model, IDS[:, :2])
        one, other = streamed(model, IDS), streamed(model, IDS + 10)
        assert applied.trace().token_ids.tolist() == IDS[:, :2].tolist()
        assert applied.trace(thread=one).token_ids[0, :4].tolist() == IDS[0].tolist()
        assert applied.trace(thread=other).token_ids[0, :4].tolist() == (IDS[0] + 10).tolist()
        with pytest.raises(StateError):
            applied.trace(thread=Thread(target=print))


def test_a_scope_that_does_not_exist_is_refused_by_the_names_of_those_that_do() -> None:
    with pytest.raises(OptionError, match=r"(?s)process.*context|context.*process"):
        unchecked(Entered.__init__)(Entered.__new__(Entered), "thread")


def test_passes_that_run_while_a_steering_comes_and_goes_leave_no_hook_and_no_strength(
    model: Any, plus: dsas.Steering
) -> None:
    plain, counting = logits_of(model, IDS), random_steering(model, regulator=Position())
    over, passes, raised = Event(), [], []

    def run() -> None:
        try:
            while not over.is_set():
                passes.append(logits_of(model, IDS))
        except BaseException as error:
            raised.append(error)

    thread = Thread(target=run)
    thread.start()
    try:
        for number in range(300):
            applied = (counting if number % 2 else plus).apply(model, skip_sinks=number % 3 == 0).install()
            seen = len(passes)
            while number % 10 == 0 and len(passes) < seen + 2 and not raised:
                over.wait(0.0005)
            applied.remove()
    finally:
        over.set()
        thread.join()
    assert not raised, raised
    assert hooks_on(model) == 0
    assert len(passes) > 10
    assert torch.equal(logits_of(model, IDS), plain)
    assert torch.equal(elsewhere(lambda: logits_of(model, IDS)), plain)


@pytest.mark.compile
@pytest.mark.parametrize("first", ["ours", "theirs"])
@pytest.mark.parametrize("record", [True, False])
def test_compiled_code_never_carries_the_steering_of_a_context_into_another_thread(first: str, record: bool) -> None:
    model = tiny_model("llama", layers=2)
    plus, plain = constant(model, 1.0), logits_of(model, IDS)
    expected = steered(model, plus)
    torch.compiler.reset()
    compiled: Any = torch.compile(model, backend="eager")

    def run() -> Tensor | None:
        try:
            return logits_of(compiled, IDS)
        except StateError:
            return None

    turns = {"ours": run, "theirs": lambda: elsewhere(run)}
    with plus.apply(model, record=record, scope="context"):
        for which in (first, *turns, *turns):
            found, right = turns[which](), expected if which == "ours" else plain
            if found is not None:
                torch.testing.assert_close(found, right)
    for run_in in turns.values():
        torch.testing.assert_close(run_in(), plain)
    torch.compiler.reset()
