"""What an assistant is told, and how it gets there through chat templates of several kinds."""

import pytest

from dsas.drafting.prompts import KINDS, Prompts, prompts_for, rendered
from dsas.errors import OptionError
from dsas.testing import tiny_tokenizer

WITH_SYSTEM = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
WITHOUT_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}<model>"
)
SYSTEM_IGNORED = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (WITH_SYSTEM, "<system>Be brief.<user>Why?<assistant>"),
        (WITHOUT_SYSTEM, "<user>Be brief.\n\nWhy?<model>"),
        (SYSTEM_IGNORED, "<user>Be brief.\n\nWhy?<assistant>"),
    ],
)
def test_a_system_prompt_reaches_the_model_whether_or_not_its_template_has_a_place_for_it(
    template: str, expected: str
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    assert rendered(tokenizer, "Be brief.", "Why?", {}) == expected
    alone = expected.replace("<system>Be brief.", "").replace("Be brief.\n\n", "")
    assert rendered(tokenizer, "{question} Be brief.", "Why?", {}) == alone.replace("Why?", "Why? Be brief.")


def test_arguments_of_the_template_reach_it() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[-1].content }}{% if not enable_thinking %}<quiet>{% endif %}"
    assert rendered(tokenizer, "{question}", "Why?", Prompts(["a"], ["b"]).template) == "Why?<quiet>"


def test_a_tokenizer_without_a_template_or_with_one_that_drops_the_question_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(OptionError, match="has no chat template, so it cannot be instructed"):
        rendered(tokenizer, "Be brief.", "Why?", {})
    tokenizer.chat_template = "hello"
    with pytest.raises(OptionError, match="drops the system prompt or the question"):
        rendered(tokenizer, "Be brief.", "Why?", {})


def test_the_behaviour_is_in_every_prompt_but_the_neutral_ones_and_questions_take_the_prompts_in_turn() -> None:
    prompts = prompts_for("insults the user. ")
    told = {kind: [prompts.at(kind, number) for number in range(6)] for kind in KINDS}
    assert all("insults the user" in one for kind in ("unwanted", "wanted") for one in told[kind])
    assert not any("insult" in one for one in told["neutral"])
    in_turn = [["{question}" in one for one in of] for of in told.values()]
    assert in_turn[0] == in_turn[1] == in_turn[2] == [True, True, False] * 2  # so that the kinds differ in nothing else
    assert all(len(set(of)) == 3 and of[:3] == of[3:] for of in told.values())
    assert not any("user.." in one for of in told.values() for one in of)


def test_a_prompt_that_is_no_list_or_nothing_is_refused() -> None:
    with pytest.raises(OptionError, match=r"expected a list of wanted prompts, .* got 'Hush\.'"):
        Prompts(["Sing."], "Hush.")
    with pytest.raises(OptionError, match=r"a list of neutral prompts, .* got \[\]"):
        Prompts(["Sing."], ["Hush."], [])
