"""Chat templates: which tokens of real ones count as the answer, against expectations that were written by hand.

The templates are shortened to what they do with system, user and assistant messages, thinking and tool calls.
"""

import warnings
from typing import Any, NamedTuple

import pytest
from makers import templated

import dsas
from dsas.errors import DsasWarning, OptionError, TextsError
from dsas.model.chat_template import chat_prompts
from dsas.model.conversation import Conversation, content_of
from dsas.model.rendering import Rendered, rendered

USER = {"role": "user", "content": "Why?"}
SYSTEM = {"role": "system", "content": "Be brief."}
SAID = {"role": "assistant", "content": "So it is."}
THOUGHT = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nSo it is."}
REASONED = {"role": "assistant", "content": "So it is.", "reasoning_content": "Hm."}


class Real(NamedTuple):
    """A model's template. before, answer, after: how it renders USER and SAID, with the answer's own part between.

    end: the end-of-turn token, which is judged and does not count; it begins `after`. bos: what the tokenizer puts
    before every text, where it does.
    """

    template: str
    specials: tuple[str, ...]
    before: str
    answer: str
    after: str
    end: str | None
    bos: str | None = None


CHATML = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}"
ASKING = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
HEADER = "'<|start_header_id|>' + m.role + '<|end_header_id|>\n\n'"
QWEN3 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set thought = m.reasoning_content if m.reasoning_content else '' %}{% set said = m.content %}"
    "{% if not thought and '</think>' in said %}{% set thought = said.split('</think>')[0].split('<think>')[-1] %}"
    "{% set said = said.split('</think>')[-1] %}{% endif %}"
    "{{ '<|im_start|>assistant\n' }}{% if loop.last %}"
    "{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{% endif %}{{ said.lstrip('\n') }}"
    "{% if m.tool_calls %}{% for call in m.tool_calls %}"
    "{{ '\n<tool_call>\n' + (call.function | tojson) + '\n</tool_call>' }}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{% else %}" + CHATML + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set first = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (first if loop.first else '') }}"
    "{{ m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + (system + '\n\n' if WHERE and system is defined else '') + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] }}"
    "{{ '<｜end▁of▁sentence｜>' }}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}{% endfor %}" + ASKING
)
REAL = {
    "llama 2": Real(
        LLAMA2, ("<s>", "</s>"), "<s>[INST] Why? [/INST]", " So it is. ", "</s>", "</s>", bos="<s>",
    ),
    "llama 3": Real(
        "{% for m in messages %}{% set said = " + HEADER + " + m.content | trim + '<|eot_id|>' %}"
        "{{ (bos_token if loop.first else '') + said }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "So it is.", "<|eot_id|>", "<|eot_id|>", bos="<|begin_of_text|>",
    ),
    "qwen 2.5": Real(
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}{% endif %}"
        "{% for m in messages %}" + CHATML + "{% endfor %}" + ASKING,
        ("<|im_start|>", "<|im_end|>"),
        "<|im_start|>system\nYou are Qwen.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        "So it is.", "<|im_end|>\n", "<|im_end|>",
    ),
    "qwen 3": Real(
        QWEN3, ("<|im_start|>", "<|im_end|>"),
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "So it is.", "<|im_end|>\n", "<|im_end|>",
    ),
    "smollm2": Real(
        "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n' }}{% endif %}" + CHATML + "{% endfor %}"
        + ASKING,
        ("<|im_start|>", "<|im_end|>"),
        "<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "So it is.", "<|im_end|>\n", "<|im_end|>",
    ),
    "gemma": Real(
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
        "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        ("<bos>", "<start_of_turn>", "<end_of_turn>"),
        "<bos><start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n",
        "So it is.", "<end_of_turn>\n", "<end_of_turn>", bos="<bos>",
    ),
    "mistral v3": Real(
        MISTRAL.replace("WHERE", "loop.first"), ("<s>", "[INST]", "[/INST]", "</s>"),
        "<s>[INST] Why?[/INST]", " So it is.", "</s>", "</s>", bos="<s>",
    ),
    "phi 3": Real(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|endoftext|>"),
        "<|user|>\nWhy?<|end|>\n<|assistant|>\n", "So it is.", "<|end|>\n<|endoftext|>", "<|end|>",
    ),
    "zephyr": Real(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>' + '\n' }}{% endif %}{% endfor %}",
        ("<s>", "</s>"), "<|user|>\nWhy?</s>\n<|assistant|>\n", "So it is.", "</s>\n", "</s>", bos="<s>",
    ),
    "deepseek r1": Real(
        R1, ("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
        "<｜begin▁of▁sentence｜><｜User｜>Why?<｜Assistant｜>", "So it is.", "<｜end▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>", bos="<｜begin▁of▁sentence｜>",
    ),
    "command r": Real(
        "{{ bos_token }}{% for m in messages %}{% set role = {'user': '<|USER_TOKEN|>',"
        " 'assistant': '<|CHATBOT_TOKEN|>', 'system': '<|SYSTEM_TOKEN|>'}[m.role] %}"
        "{{ '<|START_OF_TURN_TOKEN|>' + role + m.content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}",
        ("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>",
         "<|END_OF_TURN_TOKEN|>"),
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Why?<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "So it is.", "<|END_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", bos="<BOS_TOKEN>",
    ),
    "with a generation mask": Real(
        MARKED, ("<|im_start|>", "<|im_end|>"), "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        "So it is.", "<|im_end|>\n", "<|im_end|>",
    ),
    "plain words, no special tokens": Real(
        "{% for m in messages %}{{ m.role | title + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}",
        (), "User: Why?\nAssistant: ", "So it is.\n", "", None,
    ),
}  # fmt: skip


def tokenizer_of(real: Real) -> Any:
    return templated(real.template, specials=real.specials, bos=real.bos)


def chosen(tokenizer: Any, row: Rendered, flags: list[bool]) -> str:
    return tokenizer.decode([token for token, flag in zip(row.ids, flags, strict=True) if flag])


def read(tokenizer: Any, messages: list[Any], tokens: Any = "auto", **options: Any) -> tuple[Rendered, str]:
    content = content_of(messages, "the conversation")
    assert isinstance(content, Conversation)
    (row,) = rendered(tokenizer, [content.under(dsas.Chat(**options))], tokens)
    return row, chosen(tokenizer, row, row.counted)


@pytest.mark.parametrize("name", REAL)
def test_what_counts_of_a_real_template_is_what_a_reader_would_call_the_answer(name: str) -> None:
    real = REAL[name]
    tokenizer = tokenizer_of(real)
    row, answer = read(tokenizer, [USER, SAID])
    assert tokenizer.decode(row.ids) == real.before + real.answer + real.after
    assert answer == real.answer
    assert chosen(tokenizer, row, row.judged) == real.answer + (real.end or "")
    assert row.ids == tokenizer.apply_chat_template([USER, SAID], return_dict=False)
    if real.bos is not None:
        assert row.ids.count(tokenizer.bos_token_id) == real.before.count(real.bos)


@pytest.mark.parametrize("name", REAL)
def test_in_a_long_conversation_the_last_answer_alone_counts(name: str) -> None:
    real = REAL[name]
    other = {"role": "assistant", "content": "Once it was."}
    row, answer = read(tokenizer_of(real), [USER, other, USER, SAID])
    assert answer == real.answer
    assert row.counted.index(True) > len(row.ids) // 2


@pytest.mark.parametrize("name", REAL)
def test_the_last_instruction_is_the_last_token_of_the_rendering_that_is_ready_for_an_answer(name: str) -> None:
    tokenizer = tokenizer_of(REAL[name])
    ready = tokenizer.apply_chat_template([USER], add_generation_prompt=True, return_dict=False)
    for messages in ([USER], [USER, SAID]):
        row, _ = read(tokenizer, messages, "last-instruction")
        assert row.ids == ready
        assert row.counted == [False] * (len(ready) - 1) + [True]


@pytest.mark.parametrize("name", REAL)
def test_the_last_token_of_an_answer_is_not_the_one_that_ends_the_turn(name: str) -> None:
    real = REAL[name]
    row, last = read(tokenizer_of(real), [USER, SAID], "last")
    assert last == real.answer[-1]
    assert sum(row.counted) == 1


@pytest.mark.parametrize("name", ["qwen 2.5", "qwen 3", "zephyr", "llama 2", "mistral v3", "command r"])
def test_a_system_message_of_the_options_is_put_where_there_is_none(name: str) -> None:
    tokenizer, brief = tokenizer_of(REAL[name]), {"system": SYSTEM["content"]}
    assert read(tokenizer, [USER, SAID], **brief) == read(tokenizer, [SYSTEM, USER, SAID])
    assert read(tokenizer, [SYSTEM, USER, SAID], system="Another one.") == read(tokenizer, [SYSTEM, USER, SAID])
    assert "Be brief." in tokenizer.decode(read(tokenizer, [USER, SAID], **brief)[0].ids)


def test_a_template_that_refuses_messages_is_quoted() -> None:
    with pytest.raises(TextsError, match=r"the chat template refuses messages of system, user.*System role not"):
        read(tokenizer_of(REAL["gemma"]), [SYSTEM, USER, SAID])


@pytest.mark.parametrize("name", ["llama 2", "qwen 2.5"])
def test_a_tool_call_that_a_template_drops_is_no_answer_of_one_space(name: str) -> None:
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}
    with pytest.raises(TextsError, match=r"no token counts in the conversation .* dropped by the chat template"):
        read(tokenizer_of(REAL[name]), [USER, call])


def test_a_template_that_drops_the_system_message_of_the_options_without_a_word_is_refused() -> None:
    deaf = templated("{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    assert read(deaf, [SYSTEM, USER, SAID]) == read(deaf, [USER, SAID])  # what is in the data is the user's own affair
    with pytest.raises(TextsError, match=r"drops the system message 'Be brief\.': leave it out, or say it"):
        read(deaf, [USER, SAID], system="Be brief.")
    with pytest.raises(TextsError, match="drops the system message"):
        chat_prompts(deaf, ["Why?"], dsas.Chat(system="Be brief."))


def test_a_template_that_moves_the_system_message_once_an_answer_follows_is_refused_with_the_reason() -> None:
    """An older Mistral writes the system message into the last message, if that is the user's."""
    old = templated(MISTRAL.replace("WHERE", "loop.last"), specials=("<s>", "</s>"), bos="<s>")
    assert read(old, [USER, SAID])[1] == " So it is."
    with pytest.raises(
        TextsError, match=r"differently once the answer follows \(at 'Be brief\..*unknown which tokens are the answer"
    ):
        read(old, [SYSTEM, USER, SAID])
    assert read(old, [SYSTEM, USER, SAID], "all")[0].counted[0]


def test_thinking_counts_unless_left_out_and_can_be_read_alone() -> None:
    qwen = tokenizer_of(REAL["qwen 3"])
    for thinking in (THOUGHT, REASONED):
        assert read(qwen, [USER, thinking])[1] == "<think>\nHm.\n</think>\n\nSo it is."
        assert read(qwen, [USER, thinking], parts=("text",))[1] == "So it is."
        assert read(qwen, [USER, thinking], parts=("thinking",))[1] == "<think>\nHm.\n</think>\n\n"
    with pytest.raises(TextsError, match=r"no token counts in the conversation.*none of the parts"):
        read(qwen, [USER, SAID], parts=("thinking",))


def test_markers_in_what_the_user_says_are_no_thinking() -> None:
    qwen, user = tokenizer_of(REAL["qwen 3"]), {"role": "user", "content": "What is <think> for?"}
    assert read(qwen, [user, THOUGHT], parts=("text",))[1] == "So it is."
    assert read(qwen, [user, SAID], parts=("text",))[1] == "So it is."


def test_where_a_template_marks_several_parts_of_an_answer_what_is_between_them_does_not_count() -> None:
    template = MARKED.replace("{{ m.content + '<|im_end|>' }}{% endgen", "So{% endgeneration %} (note) {% generation %}"
                              "{{ m.content + '<|im_end|>' }}{% endgen")  # fmt: skip
    tokenizer = templated(template, specials=("<|im_start|>", "<|im_end|>"))
    assert read(tokenizer, [USER, SAID, USER, SAID])[1] == "SoSo it is."


def test_what_the_generation_prompt_holds_is_no_part_of_the_answer() -> None:
    qwen = tokenizer_of(REAL["qwen 3"])
    row, answer = read(qwen, [USER, SAID], arguments={"enable_thinking": False})
    assert answer == "So it is."
    assert qwen.decode(row.ids[: row.counted.index(True)]).endswith("<think>\n\n</think>\n\n")


def test_a_template_that_opens_thinking_in_the_prompt_and_drops_it_from_answers_is_read_from_the_content_on() -> None:
    r1 = tokenizer_of(REAL["deepseek r1"])
    assert read(r1, [USER, THOUGHT])[1] == "\n\nSo it is."
    assert r1.decode(read(r1, [USER], "last-instruction")[0].ids).endswith("<｜Assistant｜><think>\n")


CALLS = {"role": "assistant", "content": "Look.", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
CALL = '{"name": "f", "arguments": {"x": 1}}'
BARE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{{ '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "call"),
    [(QWEN3, f"<tool_call>\n{CALL}\n</tool_call>"), (BARE, CALL)],  # with markers and without
)
def test_tool_calls_can_be_left_out_or_read_alone_and_their_results_are_not_read(template: str, call: str) -> None:
    tokenizer = templated(template, specials=("<|im_start|>", "<|im_end|>", "</s>"))
    messages = [USER, CALLS, {"role": "tool", "content": "2"}]
    row, answer = read(tokenizer, messages)
    assert answer.startswith("Look.")
    assert answer.endswith(call)
    assert "tool|>" not in tokenizer.decode(row.ids)
    assert read(tokenizer, messages, parts=("tool-calls",))[1] == call
    assert read(tokenizer, messages, parts=("text", "thinking"))[1].strip() == "Look."


@pytest.mark.parametrize("key", ["tool_calls", "reasoning_content"])
def test_a_part_of_an_answer_that_the_template_drops_is_told_unless_it_is_left_out(key: str) -> None:
    tokenizer = tokenizer_of(REAL["qwen 2.5"])
    answer = {"role": "assistant", "content": "Look.", key: CALLS["tool_calls"] if key == "tool_calls" else "Hm."}
    with pytest.warns(DsasWarning, match=f"drops the {key} of answers"):
        assert read(tokenizer, [USER, answer])[1] == "Look."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(tokenizer, [USER, answer], parts=("text",))[1] == "Look."


def test_a_conversation_without_an_answer_is_refused_and_told_what_can_be_read() -> None:
    with pytest.raises(TextsError, match=r"ends with a message of user, so it has no answer.*'last-instruction'"):
        read(tokenizer_of(REAL["qwen 2.5"]), [USER, SAID, USER])
    with pytest.raises(TextsError, match="there is no message before the answer: add the user's"):
        rendered(tokenizer_of(REAL["qwen 2.5"]), [Conversation.of([SAID])], "last-instruction")


def test_a_tokenizer_without_a_template_reads_no_conversations_unless_it_is_given_one() -> None:
    bare = templated("", specials=("<|im_start|>", "<|im_end|>"))
    bare.chat_template = None
    with pytest.raises(OptionError, match="no chat template, so it reads no conversations"):
        read(bare, [USER, SAID])
    assert read(bare, [USER, SAID], arguments={"chat_template": REAL["qwen 2.5"].template})[1] == "So it is."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arguments": {"tokenize": True}}, "'tokenize' cannot be a template argument"),
        ({"arguments": {"tools": [print]}}, "template arguments must be JSON-ready"),
        ({"parts": ("thought",)}, "parts must be one or several of .*; closest: 'thinking'"),
        ({"parts": ()}, "parts must be one or several of"),
    ],
)
def test_options_that_no_template_takes_are_refused(options: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        dsas.Chat(**options)
