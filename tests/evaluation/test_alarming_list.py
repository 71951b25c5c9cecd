from dsas.evaluation.alarming_list import alarming_questions
from dsas.evaluation.question_list import everyday_questions


def test_there_are_a_hundred_different_instructions_and_none_is_an_everyday_question() -> None:
    questions = alarming_questions()
    assert len(set(questions)) == len(questions) == 100
    assert not set(questions) & set(everyday_questions())
    assert all(question.endswith("?") for question in questions)
