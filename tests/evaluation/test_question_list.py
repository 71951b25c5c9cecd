"""The questions that come with dsas."""

from dsas.evaluation.question_list import everyday_questions


def test_there_are_two_hundred_everyday_questions_all_different() -> None:
    questions = everyday_questions()
    assert len(questions) == len({question.casefold() for question in questions}) == 200
    assert all(question.endswith("?") and 3 <= len(question.split()) <= 15 for question in questions)
