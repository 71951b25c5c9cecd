import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from dsas.errors import OptionError, TextsError
from dsas.evaluation.classifier import TextClassifier
from dsas.evaluation.scorers import Scorer

TEXTS = ["a b a b", "b", "a a", "b a b", "a b b b b b a"]
IDS = {"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3}
SIZE = {
    "vocab_size": 4,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "max_position_embeddings": 16,
    "initializer_range": 1.0,
}


@pytest.fixture
def save(tmp_path):
    """Return a function that saves a tiny random classifier with these labels, and gives its folder and model."""

    def make(labels=("fine", "toxic"), kind=BertForSequenceClassification, config=BertConfig, pad="[PAD]", **options):
        core = Tokenizer(models.WordLevel(IDS, unk_token="[UNK]"))
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        PreTrainedTokenizerFast(tokenizer_object=core, pad_token=pad).save_pretrained(tmp_path)
        options = {"pad_token_id": 0, **SIZE, **options}
        names = {"id2label": dict(enumerate(labels)), "label2id": {label: n for n, label in enumerate(labels)}}
        model = kind(config(**options, **names)).eval()
        model.save_pretrained(tmp_path)
        return tmp_path, model

    return make


def by_hand(model, text: str, cut: int | None = None) -> np.ndarray:
    """Return the float64 logits of a text alone."""
    ids = [IDS[word] for word in text.split()][:cut]
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double().numpy()


def test_texts_of_unequal_length_score_the_same_in_batches_as_one_by_one_and_as_softmax_in_float64(save):
    folder, model = save()
    alone = np.concatenate([TextClassifier(folder)([text]) for text in TEXTS])
    logits = np.array([by_hand(model, text) for text in TEXTS])
    np.testing.assert_allclose(alone, np.exp(logits[:, 1]) / np.exp(logits).sum(-1), rtol=1e-5)
    for batch_size in (2, 5):
        np.testing.assert_allclose(TextClassifier(folder, batch_size=batch_size)(TEXTS), alone, rtol=1e-5)
    assert np.ptp(alone) > 0.01


@pytest.mark.parametrize("pad", ["[PAD]", None])
def test_a_decoder_reads_the_last_real_token_of_every_row_with_a_padding_token_or_without(save, pad):
    folder, model = save(
        kind=LlamaForSequenceClassification, config=LlamaConfig, pad=pad, pad_token_id=None if pad is None else 0
    )
    model.config.pad_token_id = None
    logits = np.array([by_hand(model, text) for text in TEXTS])
    expected = np.exp(logits[:, 1]) / np.exp(logits).sum(-1)
    np.testing.assert_allclose(TextClassifier(folder, batch_size=5)(TEXTS), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("labels", "problem", "chosen"),
    [
        (("Toxicity", "insult", "threat"), "multi_label_classification", 0),
        (("only",), None, 0),
    ],
)
def test_labels_that_do_not_exclude_each_other_get_sigmoids(save, labels, problem, chosen):
    folder, model = save(labels, problem_type=problem)
    logits = np.array([by_hand(model, text)[chosen] for text in TEXTS])
    np.testing.assert_allclose(TextClassifier(folder)(TEXTS), 1 / (1 + np.exp(-logits)), rtol=1e-5)


def test_a_label_is_chosen_by_name_and_the_classifier_is_a_scorer_named_as_its_folder(save):
    folder, _ = save()
    toxic, fine = TextClassifier(folder, label="toxic"), TextClassifier(folder, label="fine")
    np.testing.assert_allclose(toxic(TEXTS) + fine(TEXTS), 1, rtol=1e-6)
    np.testing.assert_array_equal(toxic(TEXTS), TextClassifier(folder)(TEXTS))
    assert isinstance(toxic, Scorer)
    assert toxic.name == str(folder)
    assert toxic([]).shape == (0,)


def test_a_longer_text_is_cut_where_asked_or_where_the_model_ends(save):
    folder, model = save()
    for text, options, cut in (("a b b a", {"max_tokens": 2}, 2), ("a b " * 20, {}, 16)):
        logits = by_hand(model, text, cut)
        expected = np.exp(logits[1]) / np.exp(logits).sum()
        np.testing.assert_allclose(TextClassifier(folder, **options)([text]), expected, rtol=1e-5)


def test_the_positions_of_roberta_begin_after_its_padding_token(save):
    folder, model = save(kind=RobertaForSequenceClassification, config=RobertaConfig)
    found = TextClassifier(folder)(["a b " * 20])
    logits = by_hand(model, "a b " * 20, 15)
    np.testing.assert_allclose(found, np.exp(logits[1]) / np.exp(logits).sum(), rtol=1e-5)
    with pytest.raises((IndexError, RuntimeError)):  # one more is one too many
        by_hand(model, "a b " * 20, 16)


@pytest.mark.parametrize(
    ("labels", "label", "said"),
    [
        (("fine", "toxic"), "toxicity", "closest: 'toxic'"),
        (("good", "bad"), None, r"label=, one of \['good', 'bad'\]"),
        (("toxic", "toxicity"), None, r"one of \['toxic', 'toxicity'\]"),
    ],
)
def test_a_label_that_is_unknown_or_not_sure_is_answered_with_those_there_are(save, labels, label, said):
    with pytest.raises(OptionError, match=said):
        TextClassifier(save(labels)[0], label=label)


def test_what_gives_no_probability_or_is_not_there_is_refused(save, tmp_path):
    folder, _ = save(("score",), problem_type="regression")
    with pytest.raises(OptionError, match="regression"):
        TextClassifier(folder)
    with pytest.raises(OptionError, match="no text classifier"):
        TextClassifier(tmp_path / "nothing")
    with pytest.raises(OptionError, match="batch_size >= 1"):
        TextClassifier(folder, batch_size=0)
    with pytest.raises(OptionError, match="device 'nowhere'"):
        TextClassifier(folder, device="nowhere")


def test_one_text_or_a_text_without_tokens_is_refused(save):
    scorer = TextClassifier(save()[0])
    with pytest.raises(TextsError, match="one text"):
        scorer("one text")
    for texts in ([""], ["a b", ""]):
        with pytest.raises(TextsError, match="no token"):
            scorer(texts)
