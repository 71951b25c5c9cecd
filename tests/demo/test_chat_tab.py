"""The playground's conversations: pieces as they come, the map under each answer, stopping, mistakes, many visitors."""

from types import SimpleNamespace
from typing import Any

import pytest
from makers import random_steering, templated

from dsas.demo.chat_tab import KEPT, Visitors
from dsas.explaining.dialogue import Dialogue
from dsas.testing import tiny_model

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def parts() -> tuple[Any, Any, Any, Visitors]:
    model, tokenizer = tiny_model(vocab_size=300), templated(CHAT, specials=("<s>", "</s>"))
    steering = random_steering(model)
    gradio = SimpleNamespace(Error=RuntimeError, HTML=lambda page: ("html", page), skip=lambda: "same")
    return model, tokenizer, steering, Visitors(model, tokenizer, {"calm": steering}, gradio)


def test_an_answer_is_written_as_it_comes_and_its_map_stands_under_it(parts: Any) -> None:
    model, tokenizer, steering, visitors = parts
    states = [[dict(one) for one in shown] for _, shown, _ in visitors.talk("Hello", "a", "calm", 0.5, 6)]
    written = [shown[1]["content"] for shown in states]
    assert written[0] == ""
    assert len(set(written)) > 3
    expected = Dialogue(model, tokenizer).say("Hello", steering, 0.5, new_tokens=6)
    assert written[-1] == expected.text
    assert states[-1][2]["content"][0] == "html"
    assert states[-1][2]["content"][1].count("<span title=") == expected.trace.strengths.shape[2] - expected.prompt == 5
    *_, (_, shown, page) = visitors.talk("Again", "a", "calm", 0.5, 6)
    assert "<iframe" in page
    *_, (_, shown, page) = visitors.talk("And then?", "a", "calm", 0.0, 6)
    assert page == ""
    assert [one["role"] for one in shown] == ["user", "assistant", "assistant"] * 2 + ["user", "assistant"]


def test_an_answer_that_is_stopped_or_left_alone_ends_and_the_model_is_as_it_was(parts: Any) -> None:
    model, _, _, visitors = parts
    talk = visitors.talk("Hello", "a", "calm", 0.5, 200)
    next(talk), next(talk)
    visitors.stop("a")
    *_, (_, shown, _) = talk
    assert len(shown[1]["content"]) < 100
    talk = visitors.talk("Again", "a", "calm", 0.5, 200)
    next(talk), next(talk)
    talk.close()
    assert not any(module._forward_hooks for module in model.modules())


def test_mistakes_are_said_and_visitors_are_kept_apart(parts: Any) -> None:
    *_, visitors = parts
    with pytest.raises(RuntimeError, match="type a message"):
        list(visitors.talk("  ", "a", "calm", 0.5, 4))
    said = []
    with pytest.raises(RuntimeError, match="strength must be finite"):
        said.extend(visitors.talk("Hello", "a", "calm", float("nan"), 4))
    assert visitors.of("a").shown == []
    for number in range(KEPT + 1):
        list(visitors.talk("Hello", str(number), "calm", 0.5, 2))
    assert visitors.of("0").shown == []
    assert len(visitors.of(str(KEPT)).shown) == 3
    assert visitors.clear(str(KEPT)) == ([], "")
    assert visitors.of(str(KEPT)).shown == []
