"""Dialogue: turns over one cache are those of the whole conversation run anew; other strengths, and interruptions."""

from typing import Any

import pytest
import torch
from makers import random_steering, templated

import dsas
from dsas.errors import OptionError
from dsas.explaining.dialogue import Dialogue, Drawn, _Heard
from dsas.model.chat_template import ChatTemplate
from dsas.model.tokenizing import encode
from dsas.testing import tiny_model
from dsas.testing.models import WIDTH

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DRAWN = Drawn(new_tokens=6)
SAID = ("Hello there", "And then?", "Why is that?")


@pytest.fixture
def parts() -> tuple[Any, Any, dsas.Steering]:
    model = tiny_model(vocab_size=300)
    evidence = dsas.Evidence(torch.linspace(-1, 1, WIDTH), torch.tensor(0.2), torch.tensor(0.1))
    return model, templated(CHATML, specials=("<|im_start|>", "<|im_end|>")), random_steering(model, regulator=evidence)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_three_turns_over_one_cache_are_the_whole_conversation_run_anew(parts: Any, temperature: float) -> None:
    model, tokenizer, steering = parts
    drawn = DRAWN._replace(temperature=temperature)
    kept, anew = Dialogue(model, tokenizer, drawn=drawn), Dialogue(model, tokenizer, drawn=drawn)
    reused = []
    for text in SAID:
        anew.forget()
        one, other = kept.say(text, steering, 0.5), anew.say(text, steering, 0.5)
        assert one.text == other.text
        assert one.trace is not None
        assert other.trace is not None
        assert one.trace.turns == other.trace.turns
        assert "".join(one.trace.tokens[0]).count(text) == 1
        torch.testing.assert_close(one.trace.strengths, other.trace.strengths)
        reused.append((one.reused, other.reused))
    assert [again for _, again in reused] == [0, 0, 0]
    assert reused[0][0] == 0 < 20 < min(first for first, _ in reused[1:])
    assert [message.role for message in kept.messages] == ["user", "assistant"] * 3


def test_what_is_shown_is_the_answer_with_the_strengths_of_the_trace(parts: Any) -> None:
    model, tokenizer, steering = parts
    dialogue, shown = Dialogue(model, tokenizer, drawn=DRAWN), []
    for text in SAID[:2]:
        shown.clear()
        answer = dialogue.say(text, steering, 0.5, show=lambda piece, value: shown.append((piece, value)))
    assert "".join(piece for piece, _ in shown).strip() == answer.text
    values = answer.trace.strengths[:, 0].mean(0).tolist()
    assert [value for _, value in shown][:-1] == pytest.approx(values[-5:], rel=1e-5)
    assert shown[-1][1] is None
    plain = Dialogue(model, tokenizer, drawn=DRAWN).say("Hi", show=lambda piece, value: shown.append((piece, value)))
    assert plain.trace is None


def test_another_strength_begins_the_cache_anew_and_nothing_of_the_old_is_left(parts: Any) -> None:
    model, tokenizer, steering = parts
    changed, fresh = Dialogue(model, tokenizer, drawn=DRAWN), Dialogue(model, tokenizer, drawn=DRAWN)
    changed.say("Hello", steering, 2.0)
    fresh.messages[:] = changed.messages
    second, other = changed.say("And then?", steering, 0.3), fresh.say("And then?", steering, 0.3)
    assert second.reused == 0
    assert second.text == other.text
    assert changed.say("Why?", steering, 0.3).reused > 0
    assert changed.say("Why?").reused == 0


def test_an_interrupted_answer_is_kept_as_far_as_it_came_and_the_model_is_as_it_was(parts: Any) -> None:
    model, tokenizer, steering = parts
    dialogue, heard = Dialogue(model, tokenizer, drawn=DRAWN), []

    def stop(piece: str, value: float | None) -> None:
        heard.append(piece)
        if len(heard) == 3:
            raise KeyboardInterrupt

    answer = dialogue.say("Hello", steering, 0.5, show=stop)
    assert not answer.ended
    assert dialogue.messages[-1].content == answer.text
    assert not any(module._forward_hooks for module in model.modules())
    assert dialogue.say("And then?", steering, 0.5).ended


def test_the_system_message_is_said_first_and_mistakes_leave_the_conversation_as_it_was(parts: Any) -> None:
    model, tokenizer, steering = parts
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _m, _a, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    dialogue = Dialogue(model, tokenizer, chat=dsas.Chat(system="Be brief."), drawn=DRAWN)
    dialogue.say("Hello")
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert seen[0] == len(encode(tokenizer, [text], special_tokens=False)[0].ids)
    with pytest.raises(dsas.DsasError):
        dialogue.say("And?", steering, float("nan"))
    assert len(dialogue.messages) == 2
    with pytest.raises(OptionError, match="temperature >= 0"):
        Dialogue(model, tokenizer, drawn=Drawn(temperature=-1))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OptionError])
def test_what_fails_before_the_answer_begins_leaves_no_message_behind(
    parts: Any, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    model, tokenizer, _ = parts
    dialogue = Dialogue(model, tokenizer, drawn=DRAWN)
    dialogue.say("Hello")
    with monkeypatch.context() as patch:
        patch.setattr(ChatTemplate, "whole", lambda *_, **__: (_ for _ in ()).throw(error("stopped")))
        with pytest.raises(error):
            dialogue.say("And?")
    dialogue.say("And?")
    assert [message.role for message in dialogue.messages] == ["user", "assistant"] * 2


def test_the_end_of_turn_is_kept_and_not_shown(parts: Any) -> None:
    _, tokenizer, _ = parts
    shown, said = [], []
    heard = _Heard(tokenizer, None, lambda piece, _: shown.append(piece), 2, said)
    for ids in ([5, 6], [70], [tokenizer.convert_tokens_to_ids("<|im_end|>")]):
        heard.put(torch.tensor(ids))
    heard.end()
    assert shown == [tokenizer.decode([70])]
    assert len(said) == 2
