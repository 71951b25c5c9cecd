"""Conversations with pictures and sounds: read as the model's processor reads them, tokens and values alike."""

from typing import Any

import pytest
import torch
from makers import random_steering
from multimodal import FAMILIES, Multimodal, built, medium, talk
from torch import Tensor

import dsas
from dsas.errors import OptionError, TextsError
from dsas.evaluation.loss_curve import Yardstick
from dsas.evaluation.perplexity import perplexity
from dsas.model.conversation import content_of
from dsas.model.rendering import covered

USER = {"role": "user", "content": "What?"}
ANSWERS = {"source": "bad {}", "control": "It is so {}", "target": "good!! {}"}


@pytest.fixture(params=sorted(FAMILIES))
def family(request: Any) -> Multimodal:
    try:
        return built(request.param)
    except ImportError as error:  # in older transformers, some processors need torchvision
        pytest.skip(str(error).strip().splitlines()[0])


def sets(kind: str) -> dict[str, list[Any]]:
    return {name: [talk(kind, words.format(seed), seed) for seed in range(4)] for name, words in ANSWERS.items()}


def by_processor(processor: Any, conversation: Any) -> dict[str, Tensor]:
    """Return what the processor's own `apply_chat_template` gives for a conversation."""
    given = processor.apply_chat_template(conversation, tokenize=True, return_dict=True, return_tensors="pt")
    return {name: value for name, value in given.items() if name != "labels"}


def answer_mean(family: Multimodal, conversation: Any) -> Tensor:
    """Return the mean after the first layer over the answer's bytes, without dsas."""
    kept: list[Tensor] = []
    layer: Any = dsas.find_sites(family.model)[0].path
    handle = family.model.get_submodule(layer).register_forward_hook(
        lambda _module, _args, output: kept.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        family.model(**by_processor(family.processor, conversation))
    handle.remove()
    said = len(conversation[-1]["content"][0]["text"].encode())
    return kept[0][0, -said - family.end : -family.end].mean(0)


def test_a_fit_reads_each_answer_after_its_picture_as_the_processor_gives_it(family: Multimodal) -> None:
    given = sets(family.kind)
    steering = dsas.fit(
        family.model, family.processor, **given, sites=[0], reading=dsas.Reading(skip_sinks=False, batch_size=3),
        selection="all", progress=False,
    )  # fmt: skip
    means = {name: torch.stack([answer_mean(family, one) for one in own]).mean(0) for name, own in given.items()}
    torch.testing.assert_close(
        steering.rules[0].transform.vector, means["target"] - means["source"], rtol=1e-4, atol=1e-5
    )


def steering_of(family: Multimodal) -> dsas.Steering:
    return random_steering(family.model, [0])


def test_explain_reads_a_conversation_with_its_picture_and_shows_where_it_stands(family: Multimodal) -> None:
    conversation, steering = talk(family.kind, "It is so", 1), steering_of(family)
    given = by_processor(family.processor, conversation)
    trace: Any = dsas.explain(family.model, family.processor, steering, conversation, strength=0.5, next_tokens=2)
    with steering.apply(family.model, 0.5) as applied, torch.no_grad():
        family.model(**given)
    assert torch.equal(trace.token_ids, given["input_ids"])
    torch.testing.assert_close(trace.strengths, applied.trace().strengths, rtol=1e-4, atol=1e-5)
    assert trace.tokens[0].count(f"[{family.kind}]") > 1
    assert [turn.role for turn in trace.turns[0]] == ["user", "assistant"]
    assert (
        "".join(piece for piece, counts in zip(trace.tokens[0], trace.counted[0], strict=True) if counts) == "It is so"
    )


def test_a_prompt_with_a_picture_is_continued_as_generate_continues_it(family: Multimodal) -> None:
    prompt, steering = talk(family.kind, "", 1)[:1], steering_of(family)
    processor: Any = family.processor
    given = processor.apply_chat_template(
        prompt, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    given.pop("labels", None)
    model: Any = family.model
    with steering.apply(model, 0.5):
        expected = model.generate(**given, max_new_tokens=5, do_sample=False)
    trace: Any = dsas.explain(model, processor, steering, prompt=prompt, generate=4, strength=0.5, next_tokens=1)
    if family.processor.__class__.__name__ == "PaliGemmaProcessor":  # it puts a line break behind the prompt
        assert given["input_ids"][0, -1] == 198
    assert trace.token_ids[0].tolist() == expected[0, :-1].tolist()


def test_losses_of_an_answer_are_those_of_the_model_that_sees_its_picture(family: Multimodal) -> None:
    conversation = talk(family.kind, "It is so", 1)
    given = by_processor(family.processor, conversation)
    found = perplexity(family.model, family.processor, [conversation, talk(family.kind, "No", 2)])
    with torch.no_grad():
        logs = family.model(**given).logits[0].log_softmax(-1)
    ids, end = given["input_ids"][0], family.end - 1  # the end-of-turn token is judged
    said = range(len(ids) - 8 - family.end, len(ids) - end)
    expected = -torch.stack([logs[place - 1, ids[place]] for place in said]).mean()
    assert found.losses[0] == pytest.approx(float(expected), rel=1e-4)


def test_two_conversations_of_equal_tokens_are_each_scored_with_their_own_picture() -> None:
    family = built("llava")
    conversations = [talk("image", "It is so", seed) for seed in (0, 2)]
    texts = [talk("image", f"No {seed}", seed) for seed in range(4)]
    stick = Yardstick(family.model, family.processor, source=[*conversations, *texts[:2]], control={"a": texts})
    alone = [perplexity(family.model, family.processor, [one]).losses[0] for one in conversations]
    assert alone[0] != pytest.approx(alone[1], rel=1e-4)
    assert stick._unsteered[:2] == pytest.approx([-loss for loss in alone], rel=1e-6)


def test_the_default_fit_asks_single_tokens_of_conversations_with_pictures_and_texts_beside_them() -> None:
    family = built("qwen")
    given = sets("image")
    given["control"] = [
        [{"role": "user", "content": "What?"}, {"role": "assistant", "content": f"So {n}"}] for n in range(4)
    ]
    steering = dsas.fit(family.model, family.processor, **given, selection="all", progress=False)
    assert "held_out_tokens" in steering.settings
    ported = steering.port(family.model, family.processor, source=given["source"], control=given["target"])
    assert len(ported.sites) == 2


def test_what_reads_a_conversation_with_a_picture_says_what_it_needs() -> None:
    family, given = built("llava"), sets("image")
    own = {"model": family.model, "progress": False, **given}
    template = dsas.Reading(chat=dsas.Chat(arguments={"chat_template": family.processor.chat_template}))
    with pytest.raises(OptionError, match="has images, which a tokenizer does not read: pass the model's processor"):
        dsas.fit(tokenizer=family.processor.tokenizer, reading=template, **own)
    with pytest.raises(TextsError, match=r"ends at token \d+, but only 8 tokens are read: raise max_tokens"):
        dsas.fit(tokenizer=family.processor, reading=dsas.Reading(max_tokens=8), **own)
    video = {"type": "video", "video": [medium("image", 0)] * 4}
    asked = [[{"role": "user", "content": [video]}, *talk("image", f"so {n}", 1)[1:]] for n in range(4)]
    with pytest.raises(OptionError, match="videos are not read: give some of the frames as pictures"):
        dsas.fit(tokenizer=family.processor, **{**own, "source": asked})
    texts = {name: [f"{name} {n}" for n in range(3)] + [f"<image> {name}"] for name in given}
    talks = {
        name: [[{"role": "user", "content": one}, *talk("image", "so", 1)[1:]] for one in own]
        for name, own in texts.items()
    }
    talks["source"][0] = talk("image", "<image>", 1)
    with pytest.raises(TextsError, match=r"1 images is rendered with 2 x <image>: .* one placeholder per image"):
        dsas.fit(family.model, family.processor, **talks, progress=False)


def test_spans_of_a_conversation_cover_the_same_characters_behind_a_picture(family: Multimodal) -> None:
    conversation = content_of(talk(family.kind, "It is so", 1), "it")
    (marks,) = covered(family.processor, [conversation], [[(0, 0, 4), (1, 3, 5)]])
    ids = by_processor(family.processor, talk(family.kind, "It is so", 1))["input_ids"][0].tolist()
    assert len(marks) == len(ids)
    assert family.processor.decode([one for one, shown in zip(ids, marks, strict=True) if shown]) == "Whatis"
