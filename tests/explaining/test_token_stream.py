"""Streaming: every token comes once, with what the whole trace says of it; the last one has no value."""

from typing import Any

from makers import random_steering

from dsas.evaluation.generations import Sampling, sample_continuations
from dsas.explaining.token_stream import TokenStream
from dsas.testing import tiny_model, tiny_tokenizer

SAMPLING = Sampling(temperature=0.0, top_p=1.0, repetition_penalty=1.0, new_tokens=8)


def stream(strength: float, **options: Any) -> tuple[list[tuple[str, float | None]], str, Any]:
    model, tokenizer, shown = tiny_model(), tiny_tokenizer(), []
    with random_steering(model, **options).apply(model, strength) as applied:
        streamer = TokenStream(tokenizer, applied, lambda piece, value: shown.append((piece, value)))
        ((text,),) = sample_continuations(
            model, tokenizer, ["Hi there"], seeds=(0,), sampling=SAMPLING, streamer=streamer
        )
    return shown, text, applied


def test_tokens_come_with_the_mean_strength_that_the_trace_has_for_them() -> None:
    shown, text, applied = stream(2.0)
    assert "".join(piece for piece, _ in shown) == "Hi there" + text
    values = [value for _, value in shown]
    assert values[-1] is None
    assert values[:-1] == applied.trace().strengths[:, 0].mean(0).tolist()


def test_where_nothing_is_steered_tokens_have_no_value() -> None:
    for shown, text, _ in (stream(0.0), stream(1.0, weight=0.0)):
        assert "".join(piece for piece, _ in shown) == "Hi there" + text
        assert {value for _, value in shown} == {None}
