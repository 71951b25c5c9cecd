import warnings

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from dsas.demo.data import split, toxic_prompts, wikipedia_sentences
from dsas.errors import TextsError
from dsas.evaluation.bag import BagWeights, bag_probability
from dsas.evaluation.scorers import CharacterGrams, Scorer, packaged_scorers

TEXTS = [
    "You are a complete idiot and nobody likes you.",
    "The committee approved the new budget on Tuesday.",
    "What a pathetic piece of garbage you are!",
    "I love how quiet the library is in the morning.",
    "well... " * 150 + "shut up",
    "",
]
# Columns 1 and 2: Keras 3.15 with the packages' weights. Columns 3 and 4: scikit-learn 1.9.1 with their pickles.
GOLDEN = [
    [0.994509, 0.000848, 0.976211, 0.002664, 0.187337, 0.019497],
    [0.991075, 0.000779, 0.967666, 0.006401, 0.084182, 0.067534],
    [0.99955256, 0.01337388, 0.99911217, 0.05111326, 0.98170521, 0.03637575],
    [0.97701378, 0.0236212, 0.96339831, 0.03221426, 0.01936803, 0.03078257],
]
# RealToxicityPrompts against Wikipedia: what each reached when it was chosen, less a margin.
AUROC = [0.89, 0.91, 0.81, 0.82]


def test_a_bag_of_terms_equals_what_scikit_learn_makes_of_the_same_numbers():
    texts = ["good good day", "bad day", "bad bad night", "good night to all"]
    vectorizer = TfidfVectorizer().fit(texts)
    model = LogisticRegression().fit(vectorizer.transform(texts), [0, 1, 1, 0])
    weights = BagWeights(vectorizer.idf_, model.coef_, model.intercept_, np.array([-1.0]), np.array([0.0]))
    new = ["a good bad day", "nothing known", "night"]
    found = bag_probability(new, CountVectorizer(vocabulary=vectorizer.vocabulary_), weights)
    np.testing.assert_allclose(found, model.predict_proba(vectorizer.transform(new))[:, 1], rtol=1e-12)


@pytest.mark.real
def test_the_packaged_scorers_give_what_the_libraries_that_trained_them_give():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scorers = (*packaged_scorers(), CharacterGrams())
    found = np.stack([scorer(TEXTS) for scorer in scorers])
    np.testing.assert_allclose(found, GOLDEN, atol=2e-6)
    assert all(isinstance(scorer, Scorer) and scorer([]).shape == (0,) for scorer in scorers)
    with pytest.raises(TextsError, match="one text"):
        scorers[0]("one text")


@pytest.mark.real
def test_the_packaged_scorers_tell_toxic_prompts_from_wikipedia():
    toxic, (neutral,) = toxic_prompts(), split(wikipedia_sentences(), [700])
    labels = [1] * len(toxic) + [0] * len(neutral)
    found = [roc_auc_score(labels, scorer(toxic + neutral)) for scorer in (*packaged_scorers(), CharacterGrams())]
    assert [f"{area:.2f}" for area, least in zip(found, AUROC, strict=True) if area < least] == []
