"""Labelled: the spans are where the marks were, and tokens are labelled by their letters."""

from labelled import LabelledText, labelled_texts


def test_there_are_48_texts_without_marks_and_the_insult_comes_first_in_half_of_them() -> None:
    texts = labelled_texts()
    assert len(set(texts)) == 48
    assert sum(text.start == 0 for text in texts) == 24
    assert not any(mark in text.text for text in texts for mark in ("[[", "]]"))
    assert texts[0].text[texts[0].start : texts[0].end] == "You are a stupid idiot and I hate you."


def test_a_token_is_labelled_by_its_letters_and_not_by_the_space_before_them() -> None:
    text = LabelledText("Hi. You fool. Bye.", 4, 13)
    assert text.labels(["Hi", ".", " ", "You", " fo", "ol", ".", " Bye", "."]) == [
        *[False] * 3,
        *[True] * 4,
        *[False] * 2,
    ]
