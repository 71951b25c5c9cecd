import math

from dsas.evaluation.coherence import incoherent


def test_short_repeating_and_surprising_answers_are_incoherent_and_others_are_not() -> None:
    assert incoherent("two words")
    assert not incoherent("these three words")
    assert incoherent("a b c d " * 4)  # of 13 runs of four words, 4 are different
    assert not incoherent("a b c d e f g h a b c d")  # of 9, 8
    assert incoherent("one two three four", nats=5.1)
    assert not incoherent("one two three four", nats=4.9)
    assert not incoherent("one two three four", nats=math.nan)
