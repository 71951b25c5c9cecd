"""Scorers: how toxic is a text? Each gives one probability in [0, 1] per text.

| name | model | trained on | package |
|---|---|---|---|
| tox-block | bidirectional LSTM, GloVe words, hard gates | Jigsaw comments | tox-block |
| toxic-comment-classifier | bidirectional LSTM, trained separately | Jigsaw comments | toxic-comment-classifier |
| profanity-check | five calibrated linear SVMs on words | Jigsaw comments and tweets | alt-profanity-check |
| character-grams | logistic regression on 2 to 4 letters | Jigsaw comments | toxicityclassifier |

Any classifier of the transformers library is a scorer as well: see `classifier`.

The packages' files are read as data (see `pickles`): none of them has to be installed, nor TensorFlow, joblib or a
given version of scikit-learn. For models with six labels, the first one ("toxic") counts.

Known faults of the first two: they call many sentences with words for groups of people toxic, "gay" above all.

Limitations: tox-block's own rescaling of its probabilities is not applied (it moves them by less than 0.003), nor are
the stemming and stop words of toxicityclassifier (they need downloads of their own).
"""

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from sklearn.feature_extraction.text import CountVectorizer

from dsas.errors import MissingExtraError, TextsError
from dsas.evaluation.bag import BagWeights, bag_probability
from dsas.evaluation.bilstm import BiLstmWeights, LstmWeights, bilstm, encode
from dsas.evaluation.pickles import load_pickle
from dsas.files.pinned_packages import fetch
from dsas.model.foreign import Tokenizer

_VOCABULARY = 20_000  # both recurrent models know the words with numbers below this
_BATCH = 256


@runtime_checkable
class Scorer(Protocol):
    """Anything with a `name` that turns texts into toxicity probabilities in [0, 1], one per text, in order."""

    name: str

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        """Return the probability that each text is toxic."""
        ...


def packaged_scorers(*, cache: Path | None = None) -> tuple[Scorer, ...]:
    """Return the ensemble of the demo: two models that read word order and one that reads words alone."""
    return ToxBlock(cache=cache), ToxicCommentClassifier(cache=cache), ProfanityCheck(cache=cache)


@final
class ToxBlock:
    """Bidirectional LSTM of the package tox-block. Raises MissingExtraError without h5py."""

    name = "tox-block"

    def __init__(self, *, cache: Path | None = None) -> None:
        folder = fetch("tox-block", cache=cache) / "tox_block" / "trained_models"
        classes = ("tox_block.data_processing.preprocessors.TokenSequencer", "keras_preprocessing.text.Tokenizer")
        self._words = _known_words(load_pickle(folder / "encoder_0.1.2.pkl", classes).tokenizer)
        lstm = "bidirectional/bidirectional/{}_lstm"
        names = [f"{lstm.format(way)}/{part}:0" for way in ("forward", "backward") for part in _LSTM_PARTS]
        names += [f"{layer}/{layer}/{part}:0" for layer in ("dense", "dense_1") for part in ("kernel", "bias")]
        names = [f"model_weights/{name}" for name in ("embedding/embedding/embeddings:0", *names)]
        self._weights = _weights(folder / "lstm_model_0.1.2.h5", names)

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        """Return the probability of the label "toxic"."""
        return _first_label(_checked(texts), self._words, self._weights, hard_gates=True)


@final
class ToxicCommentClassifier:
    """Bidirectional LSTM of the package toxic-comment-classifier. Raises MissingExtraError without h5py."""

    name = "toxic-comment-classifier"

    def __init__(self, *, cache: Path | None = None) -> None:
        folder = fetch("toxic-comment-classifier", cache=cache) / "toxic_classifier" / "model"
        classes = ("keras.src.legacy.preprocessing.text.Tokenizer",)
        self._words = _known_words(load_pickle(folder / "tokenizer.pickle", classes))
        names = [f"bidirectional/{way}_layer/cell/vars/{i}" for way in ("forward", "backward") for i in range(3)]
        names += [f"{layer}/vars/{i}" for layer in ("dense", "dense_1") for i in range(2)]
        self._weights = _weights(folder / "model.weights.h5", [f"layers/{n}" for n in ("embedding/vars/0", *names)])

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        """Return the probability of the label "toxic"."""
        return _first_label(_checked(texts), self._words, self._weights, hard_gates=False)


@final
class ProfanityCheck:
    """Five calibrated linear support vector machines on words, of the package alt-profanity-check."""

    name = "profanity-check"

    def __init__(self, *, cache: Path | None = None) -> None:
        folder = fetch("alt-profanity-check", cache=cache) / "profanity_check" / "data"
        vectorizer = load_pickle(folder / "vectorizer.joblib", _SKLEARN)
        self._counter = CountVectorizer(vocabulary=vectorizer.vocabulary_)
        folds = load_pickle(folder / "model.joblib", _SKLEARN).calibrated_classifiers_
        self._model = BagWeights(
            idf=vectorizer._tfidf.idf_,
            weights=np.concatenate([fold.estimator.coef_ for fold in folds]),
            bias=np.concatenate([fold.estimator.intercept_ for fold in folds]),
            slope=np.array([fold.calibrators[0].a_ for fold in folds]),
            shift=np.array([fold.calibrators[0].b_ for fold in folds]),
        )

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        """Return the probability that a text is profane or insulting."""
        return bag_probability(_checked(texts), self._counter, self._model)


@final
class CharacterGrams:
    """Logistic regression on runs of 2 to 4 letters, of the package toxicityclassifier: an independent check."""

    name = "character-grams"

    def __init__(self, *, cache: Path | None = None) -> None:
        folder = fetch("toxicityclassifier", cache=cache) / "toxicityclassifier" / "models"
        vectorizer = load_pickle(folder / "EnglishVectorizer.bf", _SKLEARN)
        model = load_pickle(folder / "EnglishModel.bf", _SKLEARN)
        self._counter = CountVectorizer(vocabulary=vectorizer.vocabulary_, analyzer="char_wb", ngram_range=(2, 4))
        self._model = BagWeights(
            idf=vectorizer._tfidf._idf_diag.data,
            weights=model.coef_,
            bias=model.intercept_,
            slope=np.array([-1.0]),
            shift=np.array([0.0]),
        )

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        """Return the probability that a text is toxic."""
        plain = [text.strip().translate(_NO_PUNCTUATION) for text in _checked(texts)]
        return bag_probability(plain, self._counter, self._model)


_LSTM_PARTS = ("kernel", "recurrent_kernel", "bias")
_NO_PUNCTUATION = dict.fromkeys(map(ord, string.punctuation))
_SKLEARN = (
    "scipy.sparse._csr.csr_matrix",
    "sklearn.calibration.CalibratedClassifierCV",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.feature_extraction.text.TfidfTransformer",
    "sklearn.feature_extraction.text.TfidfVectorizer",
    "sklearn.linear_model._logistic.LogisticRegression",
    "sklearn.svm._classes.LinearSVC",
)


def _checked(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise TextsError(f"expected a list of texts, got one text: {texts[:40]!r}")
    return list(texts)


def _known_words(tokenizer: Tokenizer) -> dict[str, int]:
    return {word: number for word, number in tokenizer.word_index.items() if number < _VOCABULARY}


def _weights(path: Path, names: Sequence[str]) -> BiLstmWeights:
    """Read the eleven arrays of a network, listed in the order of `BiLstmWeights`."""
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("h5py", "demo") from error
    with h5py.File(path) as file:
        arrays = [torch.from_numpy(np.asarray(file[name])) for name in names]
    return BiLstmWeights(
        arrays[0],
        LstmWeights(*arrays[1:4]),
        LstmWeights(*arrays[4:7]),
        (arrays[7], arrays[8]),
        (arrays[9], arrays[10]),
    )


@torch.no_grad()
def _first_label(
    texts: list[str], words: dict[str, int], weights: BiLstmWeights, *, hard_gates: bool
) -> Float[np.ndarray, " text"]:
    scores = np.zeros(len(texts))
    for start in range(0, len(texts), _BATCH):
        tokens = encode(texts[start : start + _BATCH], words)
        scores[start : start + _BATCH] = bilstm(tokens, weights, hard_gates=hard_gates)[:, 0].numpy()
    return scores
