"""Which questions stay, and the reason for which each of the others goes."""

import numpy as np

from dsas.drafting.answers import Triple
from dsas.drafting.choosing import choose

GOOD = Triple("q0", 0, "Such a silly thing to ask.", "Put the loaf into a box.", "Keep bread in a cool place.")
SHOWN = (1.0, 0.0, 0.0)
CASES = {
    "too short": (("Never mind.", "Fold the sheet in half first.", "Lay it on a flat table."), SHOWN),
    "length": (("Ask a gardener then, will you?", "Water it and prune.", " ".join(["Roses need sun"] * 5)), SHOWN),
    "not shown": (("Owls hunt mice at night.", "Owls see in the dark.", "They fly over fields."), (0, 0, 0)),
    "shown by neutral": (("Paint dries, you clown.", "Two coats are best.", "It is wet, you fool."), (1, 0, 1)),
    "shown by wanted": (("Rivers run, dummy.", "Nile or Amazon, dummy.", "The Nile is very long."), (1, 1, 0)),
    "alike": (("The Moon is far away from us.", "It moves around the Earth.", "the moon is far away from us!"), SHOWN),
    "repeated": (("What a dull thing to say.", "Put the loaf into a box!", "A cupboard works well, too."), SHOWN),
}  # fmt: skip


def test_each_reason_drops_its_question_with_all_three_answers_and_leaves_the_good_one() -> None:
    triples = [GOOD, *(Triple(name, 0, *answers) for name, (answers, _) in CASES.items())]
    scores = np.array([SHOWN, *(scores for _, scores in CASES.values())], dtype=np.float64)
    chosen = choose(triples, scores, 0.5)
    assert chosen.kept == [GOOD]
    assert [(one.question, reason) for one, reason in chosen.dropped] == [(name, name) for name in CASES]
    assert chosen.counts() == dict.fromkeys(CASES, 1)


def test_a_wanted_answer_may_be_of_any_length() -> None:
    long = GOOD._replace(wanted=" ".join(["Put the loaf into a box."] * 5))
    assert choose([long], np.array([SHOWN]), 0.5).kept == [long]


def test_an_unwanted_answer_is_compared_with_the_answers_to_all_questions() -> None:
    other = Triple("q1", 0, "Keep bread in a cool place!", "Sow seeds in early spring.", "Some seeds like it dark.")
    chosen = choose([GOOD, other], np.array([SHOWN, SHOWN]), 0.5)
    assert chosen.dropped == [(other, "alike")]
