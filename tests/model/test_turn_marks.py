"""Turn marks: with which tokens real templates begin messages, against expectations that were written by hand."""

import pytest
from makers import templated
from test_chat_template import REAL

import dsas
from dsas.errors import OptionError
from dsas.model.turn_marks import turn_marks

MARKS = {
    "llama 2": {"user": {"<s>[INST]", "<</SYS>>"}, "assistant": {"[/INST]"}},
    "llama 3": {
        "system": {"<|begin_of_text|><|start_header_id|>system<|end_header_id|>"},
        "user": {"<|start_header_id|>user<|end_header_id|>"},
        "assistant": {"<|start_header_id|>assistant<|end_header_id|>"},
        "tool": {"<|start_header_id|>tool<|end_header_id|>"},
    },
    "qwen 3": {role: {f"<|im_start|>{role}"} for role in ("system", "user", "assistant", "tool")},
    "gemma": {
        "user": {"<start_of_turn>user"},
        "assistant": {"<start_of_turn>model"},
        "tool": {"<start_of_turn>tool"},
    },
    "mistral v3": {"user": {"[INST]"}, "assistant": {"[/INST]"}},
    "phi 3": {role: {f"<|{role}|>"} for role in ("system", "user", "assistant", "tool")},
    "deepseek r1": {
        "system": {"<｜begin▁of▁sentence｜>"},
        "user": {"<｜User｜>"},
        "assistant": {"<｜Assistant｜>"},
    },
    "plain words, no special tokens": {
        role: {f"{role.capitalize()}:"} for role in ("system", "user", "assistant", "tool")
    },
}


@pytest.mark.parametrize("name", MARKS)
def test_messages_begin_with_what_the_template_puts_before_them(name: str) -> None:
    real = REAL[name]
    tokenizer = templated(real.template, specials=real.specials, bos=real.bos)
    found: dict[str, set[str]] = {}
    for mark in turn_marks(tokenizer):
        if not mark.ends and mark.name not in ("thinking", "tool-calls"):
            found.setdefault(mark.name, set()).add(tokenizer.decode(list(mark.ids)))
    assert found == MARKS[name]


def test_templates_whose_roles_begin_alike_are_refused() -> None:
    ready = "{% if add_generation_prompt %}# {% endif %}"
    alike = "{% for m in messages %}{{ '# ' + m.content + '\n' }}{% endfor %}" + ready
    with pytest.raises(OptionError, match="begins messages of user with the tokens of another role, '#'"):
        turn_marks(templated(alike))
    with pytest.raises(OptionError, match="writes nothing before messages"):
        turn_marks(templated("{% for m in messages %}{{ m.content }}{% endfor %}"))


def test_a_template_that_is_given_is_the_one_that_is_read() -> None:
    given = REAL["phi 3"]
    tokenizer = templated(given.template, specials=given.specials)
    tokenizer.chat_template = None
    arguments = {"chat_template": given.template + "{# <think> #}"}
    marks = turn_marks(tokenizer, dsas.Chat(arguments=arguments))
    assert {mark.name for mark in marks} == {"system", "user", "assistant", "tool", "thinking"}
    assert [tokenizer.decode(list(mark.ids)) for mark in marks if mark.name == "thinking"] == ["<think>", "</think>"]
