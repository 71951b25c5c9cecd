"""Turns: which tokens of a conversation are steered, over chunks and caches, beside padding, and what is refused."""

import json
from typing import Any

import pytest
import torch
from makers import check_golden_regulator, golden, random_steering, templated

import dsas
from dsas.errors import DsasWarning, OptionError, StateError
from dsas.model.forward_pass import ForwardPass
from dsas.model.sequence import Sequences
from dsas.testing import tiny_model

SPECIALS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = (
    "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n<think>T</think>A<|im_end|>\n"
    "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\nB<tool_call>{}</tool_call>C<|im_end|>\n"
)


def chat() -> Any:
    return templated(CHATML, specials=SPECIALS)


def steered(tokenizer: Any, regulator: dsas.Turns, *, chunks: tuple[int, ...] = (), text: str = TEXT) -> str:
    """Return the text of the tokens that are steered, read at once or in chunks that end at these places."""
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    history, found, start = Sequences(1), [], 0
    for end in (*chunks, ids.shape[1]):
        history.begin(start, end - start)
        step = ForwardPass(1, end - start, past=start, token_ids=ids[:, start:end], history=history)
        found.append(regulator(torch.zeros(1, end - start, 4), step))
        history.end()
        start = end
    return tokenizer.decode(ids[torch.cat(found, 1)[..., 0] > 0.5].tolist())


def test_the_tokens_steered_are_those_of_the_reference() -> None:
    mask, ids = (torch.tensor(golden()[name]) for name in ("mask", "turn_ids"))
    check_golden_regulator(dsas.Turns, "turns assistant", ForwardPass(2, 5, mask=mask, token_ids=ids))


CHOICES: dict[str, tuple[dict[str, Any], str]] = {  # what is read, from the last token of a mark on
    "answers": (
        {"only": ["assistant"]},
        "t\n<think>T</think>A<|im_end|>\n<|im_start|>uset\nB<tool_call>{}</tool_call>C<|im_end|>\n",
    ),
    "without parts": (
        {"only": ["assistant"], "leave_out": ["thinking", "tool-calls"]},
        "t\nA<|im_end|>\n<|im_start|>uset\nBC<|im_end|>\n",
    ),
    "thinking": ({"only": ["thinking"]}, "<think>T</think>"),
    "all but the user": (
        {"leave_out": ["user", "system", "assistant"]},
        "<|im_start|>syste",
    ),
    "second turn": ({"only": ["user"], "turns": [1, None]}, "r\nV<|im_end|>\n<|im_start|>assistan"),
    "first words": ({"only": ["assistant"], "leave_out": ["thinking"], "places": [1, 6]}, "\nA\nB<tool_call>{}"),
    "spared": ({"only": ["thinking"], "spared": ["T"]}, "<think></think>"),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_roles_parts_and_windows_are_read_from_the_template_alike_in_any_chunks(choice: str) -> None:
    tokenizer, (options, expected) = chat(), CHOICES[choice]
    if "spared" in options:
        options = {**options, "spared": [tokenizer(one)["input_ids"][0] for one in options["spared"]]}
    regulator = dsas.Turns.of(tokenizer, **options)
    size = len(tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    whole = steered(tokenizer, regulator)
    assert whole == expected
    assert steered(tokenizer, regulator, chunks=tuple(range(1, size))) == whole
    assert steered(tokenizer, regulator, chunks=(3, 17, 40)) == whole


def test_a_steering_within_turns_generates_as_its_stored_self_does_and_spares_the_prompt(tmp_path: Any) -> None:
    model, tokenizer = tiny_model(vocab_size=400), chat()
    within = random_steering(model).within(dsas.Turns.of(tokenizer, only=["assistant"]))
    within.save_pretrained(tmp_path)
    again = dsas.Steering.from_pretrained(tmp_path)
    assert again.digest() == within.digest()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    prompt = ids["input_ids"].shape[1]
    with again.apply(model, 0.7) as applied:
        model.generate(**ids, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
    strengths = applied.trace().strengths[:, 0]
    opened = prompt - len(tokenizer("t\n", add_special_tokens=False)["input_ids"])
    assert bool((strengths[:, :opened] == 0).all())
    assert bool((strengths[:, opened : prompt + 4] > 0).all())


def test_padding_on_the_left_changes_nothing() -> None:
    tokenizer = chat()
    regulator = dsas.Turns.of(tokenizer, only=["assistant"])
    ids = torch.tensor([tokenizer(TEXT, add_special_tokens=False)["input_ids"]])
    size = ids.shape[1]
    alone = regulator(torch.zeros(1, size, 4), ForwardPass(1, size, token_ids=ids))
    wide = torch.cat([torch.full((1, 3), 7), ids], 1)
    mask = torch.tensor([[0] * 3 + [1] * size])
    padded = regulator(torch.zeros(1, size + 3, 4), ForwardPass(1, size + 3, mask=mask, token_ids=wide))
    assert bool((padded[:, :3] == 0).all())
    torch.testing.assert_close(padded[:, 3:], alone)


def test_what_cannot_be_told_is_said() -> None:
    tokenizer = chat()
    regulator = dsas.Turns.of(tokenizer, only=["assistant"])
    with pytest.raises(StateError, match="this model was given embeddings"):
        regulator(torch.zeros(1, 3, 4), ForwardPass(1, 3))
    with pytest.warns(DsasWarning, match="no message of system, user, assistant, tool begins in these tokens"):
        assert steered(tokenizer, regulator, text="Once upon a time") == ""
    with pytest.raises(OptionError, match="got 'asistant'; closest: 'assistant'"):
        dsas.Turns.of(tokenizer, only=["asistant"])
    for window in ([-1, None], [3, 3], [1]):
        with pytest.raises(OptionError, match=r"turns must be \[start, stop\)"):
            dsas.Turns.of(tokenizer, turns=window)


def test_json_stays_valid_where_tool_calls_are_left_out() -> None:
    """A model that says what it is steered to: unsteered it goes on with the call, steered it breaks it."""
    tokenizer = chat()
    call = json.dumps({"name": "weather", "arguments": {"place": "Oslo"}})
    text = f"<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nI ask.<tool_call>{call}</tool_call>Done."
    for leave_out, broken in ((["tool-calls"], False), ([], True)):
        regulator = dsas.Turns.of(tokenizer, only=["assistant"], leave_out=leave_out)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        value = regulator(torch.zeros(1, len(ids), 4), ForwardPass(1, len(ids), token_ids=torch.tensor([ids])))
        said = tokenizer.decode(
            [0 if h > 0.5 else token for token, h in zip(ids, value[0, :, 0].tolist(), strict=True)]
        )
        assert (call not in said) == broken
