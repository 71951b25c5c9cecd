"""Answers that a limit of tokens cut off, and answers made about equally long."""

import pytest

from dsas.drafting.whole_sentences import ended, evened


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("One two. Three four. Five si", "One two. Three four."),
        ("He said: 'Go!' And th", "He said: 'Go!'"),
        (" Pi is 3.14 or so", "Pi is 3.14 or so"),
        ("First line\n\n1. Mix. 2. Ba", "First line\n\n1. Mix. 2."),
        ("はい。次", "はい。"),
        ("", ""),
    ],
)
def test_an_answer_ends_with_its_last_whole_sentence_where_it_has_one(answer: str, expected: str) -> None:
    assert ended(answer) == expected


def test_answers_are_cut_at_the_end_of_the_sentence_nearest_to_the_length_of_the_shortest() -> None:
    shortest = "One two three four."
    longer = "One two three. Four five six. Seven."  # 3, 6 or 7 words: 3 is nearest to 4
    one_sentence = "A long sentence that has nowhere to be cut off at all."
    assert evened([longer, shortest, one_sentence]) == ["One two three.", shortest, one_sentence]
