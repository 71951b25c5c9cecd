"""A bag of terms and a linear model on it: the classical text classifier, computed from its stored numbers.

    z = normalise(count(term) * idf(term)),   f_k = w_k . z + b_k,   p = mean_k 1 / (1 + exp(slope_k f_k + shift_k))

One row k with slope -1 and shift 0 is logistic regression; several rows are the support vector machines of a
cross-validation, each with Platt's fit of slope and shift, whose probabilities are averaged. Terms are words or runs of
letters.

Limitations: prediction only, no training.

Source: scikit-learn `TfidfVectorizer`, `CalibratedClassifierCV(method="sigmoid")`; Platt 1999.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.preprocessing import normalize


class BagWeights(NamedTuple):
    """The model: `idf` (term), `weights` (row, term), `bias`, `slope` and `shift` (row), all float64."""

    idf: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    slope: np.ndarray
    shift: np.ndarray


def bag_probability(texts: Sequence[str], counter: CountVectorizer, model: BagWeights) -> Float[np.ndarray, " text"]:
    """Return the probability of each text, in [0, 1]; `counter` holds the vocabulary and says what a term is."""
    if not texts:
        return np.zeros(0)
    counts = counter.transform(texts).astype(np.float64)
    terms = normalize(counts.multiply(model.idf).tocsr())
    decision = terms @ model.weights.T + model.bias
    return (1 / (1 + np.exp(decision * model.slope + model.shift))).mean(axis=1)
