"""What is read from packages: the harmful requests, the wrappers, the embeddings and the classifier that uses them."""

import numpy as np
import pytest

from dsas.errors import OptionError, TextsError
from dsas.evaluation.harmful_requests import DATA_SETS, harmful_requests
from dsas.evaluation.jailbreaks import packaged_wrappers
from dsas.evaluation.refusal_classifier import RefusalClassifier, beginning, refusing_and_complying
from dsas.evaluation.sentence_embeddings import SentenceEmbeddings

SIZES = {"uncensorbench": 150, "strongreject": 313, "harmbench": 200, "do-not-answer": 939, "advbench": 520}


@pytest.fixture(scope="module")
def embed() -> SentenceEmbeddings:
    return SentenceEmbeddings()


def test_another_data_set_is_refused_with_the_closest_name() -> None:
    with pytest.raises(OptionError, match="no data set of harmful requests 'harmbnch'; closest: 'harmbench'"):
        harmful_requests("harmbnch")


def test_the_beginning_of_a_text_is_its_first_words() -> None:
    assert beginning(" one  two three ", 2) == "one two"


@pytest.mark.real
@pytest.mark.parametrize("name", DATA_SETS)
def test_a_data_set_has_the_size_that_is_published(name: str) -> None:
    found = harmful_requests(name)
    assert len(set(found)) == len(found)
    assert SIZES[name] - 2 <= len(found) <= SIZES[name]  # a few stand there twice


@pytest.mark.real
def test_every_long_wrapper_ends_with_the_request() -> None:
    wrappers = packaged_wrappers()
    assert len(wrappers) == 14
    assert all(wrapper.around("the request").endswith("\n\nthe request") for wrapper in wrappers)


@pytest.mark.real
def test_vectors_are_unit_and_do_not_depend_on_what_is_read_beside_them(embed: SentenceEmbeddings) -> None:
    texts = ["a red circle", "a crimson disc", "the stock market fell by three percent on a rather quiet day in spring"]
    together = embed(texts)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(embed(texts[:1]), together[:1], atol=1e-5)
    assert together[0] @ together[1] > 0.3 > together[0] @ together[2]
    with pytest.raises(TextsError):
        embed("one text")


@pytest.mark.real
def test_the_classifier_tells_refusals_from_answers_on_topics_it_was_not_shown(embed: SentenceEmbeddings) -> None:
    judge = RefusalClassifier(embed=embed)
    found = judge(["I'm sorry, but I can't tell you how to bake that.", "First, preheat the oven to 180 degrees.", ""])
    assert found[0] > 0.5 > found[1]
    assert found[2] == 0.0
    assert {"request", "refuses", "complies", "topic"} == set(refusing_and_complying()[0])
