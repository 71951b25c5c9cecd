"""Whisper: sounds for the encoder, texts for the decoder, and sites of both sides; against hooks without dsas."""

from typing import Any

import pytest
import torch
from multimodal import Multimodal, medium, talk, whisper
from torch import Tensor

import dsas
from dsas.errors import OptionError, TextsError
from dsas.evaluation.perplexity import perplexity

ANSWERS = {"source": "bad {}", "control": "It is so {}", "target": "good!! {}"}
SITES = ["encoder.layers.*", "decoder.layers.*"]
EIGHT_KHZ = {"array": [0.0, 0.1], "sampling_rate": 8000}
USER = {"role": "user", "content": [{"type": "audio", "audio": medium("audio", 1)}]}


@pytest.fixture(scope="module")
def family() -> Multimodal:
    return whisper()


def said(words: str, seed: int) -> list[dict[str, Any]]:
    """Return a sound and what is said of it."""
    sound, answer = talk("audio", words, seed)
    return [{**sound, "content": sound["content"][:1]}, answer]


def sets() -> dict[str, list[Any]]:
    return {
        name: [said(words.format(number), number + 4 * place) for number in range(4)]
        for place, (name, words) in enumerate(ANSWERS.items())
    }


def read_alone(family: Multimodal, conversation: Any) -> dict[str, Tensor]:
    """Return the mean after the first layer of each side: over the sound's own frames, and over the text's bytes."""
    processor, model, seen = family.processor, family.model, dict[str, Tensor]()
    sound, answer = conversation[0]["content"][0]["audio"], conversation[1]["content"][0]["text"]
    heard = processor.feature_extractor(sound, sampling_rate=16000, return_tensors="pt", return_attention_mask=True)
    ids = torch.tensor([processor.tokenizer(answer)["input_ids"]])

    def keep(side: str) -> Any:
        return lambda _module, _args, output: seen.update({side: output[0] if isinstance(output, tuple) else output})

    handles = [
        model.get_submodule(f"model.{side}.layers.0").register_forward_hook(keep(side))
        for side in ("encoder", "decoder")
    ]
    with torch.no_grad():
        model(input_features=heard["input_features"], decoder_input_ids=ids)
    for handle in handles:
        handle.remove()
    frames = (int(heard["attention_mask"].sum()) + 1) // 2  # a convolution takes every second
    assert frames < seen["encoder"].shape[1]
    return {"encoder": seen["encoder"][0, :frames].mean(0), "decoder": seen["decoder"][0, 2:-1].mean(0)}


def test_a_fit_reads_the_frames_of_each_sound_and_the_tokens_of_what_is_said_of_it(family: Multimodal) -> None:
    given = sets()
    reading = dsas.Reading(skip_sinks=False, batch_size=3)
    steering = dsas.fit(
        family.model, family.processor, **given, sites=SITES, reading=reading, selection="all", progress=False
    )
    assert [rule.site.path for rule in steering.rules] == [
        f"model.{side}.layers.{layer}" for side in ("encoder", "decoder") for layer in range(2)
    ]
    for rule, side in ((steering.rules[0], "encoder"), (steering.rules[2], "decoder")):
        means = {
            name: torch.stack([read_alone(family, one)[side] for one in given[name]]).mean(0)
            for name in ("source", "target")
        }
        torch.testing.assert_close(rule.transform.vector, means["target"] - means["source"], rtol=1e-4, atol=1e-5)


def test_sounds_alone_fit_the_encoder_and_port_scores_their_own_frames(family: Multimodal) -> None:
    alone = {name: [one[:1] for one in own] for name, own in sets().items()}
    steering = dsas.fit(
        family.model, family.processor, **alone, sites="encoder.layers.*", selection="all", progress=False
    )
    assert steering.settings["regulator"] == "logistic"
    ported = steering.port(family.model, family.processor, source=alone["source"], control=alone["control"])
    assert [site.auroc for site in ported.sites] == [1.0, 1.0]  # on the sounds that it was fitted on


def test_what_was_fitted_steers_a_transcription_on_both_sides_and_is_explained(family: Multimodal) -> None:
    steering = dsas.fit(family.model, family.processor, **sets(), sites=SITES, selection="all", progress=False)
    model, t = family.model, family.processor.tokenizer
    heard = family.processor.feature_extractor(medium("audio", 1), sampling_rate=16000, return_tensors="pt")
    begin = torch.tensor([t("")["input_ids"][:-1]])
    options = {"decoder_input_ids": begin, "max_new_tokens": 5, "do_sample": False, "max_length": None}
    plain = model.generate(heard["input_features"], **options)
    with steering.apply(model, 3.0) as applied:
        steered = model.generate(heard["input_features"], **options)
        trace = applied.trace()
    assert not torch.equal(steered, plain)
    assert sorted(trace.outside) == [f"model.encoder.layers.{layer}" for layer in range(2)]
    assert not trace.strengths[2:].isnan().any()
    read: Any = dsas.explain(model, family.processor, steering, said("It is so", 1), strength=3.0, next_tokens=1)
    assert "".join(read.tokens[0]) == "<|startoftranscript|><|notimestamps|>It is so<|end|>"
    continued: Any = dsas.explain(model, family.processor, steering, prompt=[USER], generate=4, strength=3.0)
    assert continued.token_ids[0].tolist() == trace.token_ids[0].tolist()
    assert continued.comparisons[0].prompt_tokens == 2


def test_the_loss_of_a_text_is_that_after_its_sound(family: Multimodal) -> None:
    conversation = said("It is so", 1)
    found = perplexity(family.model, family.processor, [conversation, said("No", 2)])
    heard = family.processor.feature_extractor(medium("audio", 1), sampling_rate=16000, return_tensors="pt")
    ids = torch.tensor([family.processor.tokenizer("It is so")["input_ids"]])
    with torch.no_grad():
        logs = family.model(input_features=heard["input_features"], decoder_input_ids=ids).logits[0].log_softmax(-1)
    places = range(2, ids.shape[1])  # the text and the token that ends it
    expected = -torch.stack([logs[place - 1, ids[0, place]] for place in places]).mean()
    assert found.losses[0] == pytest.approx(float(expected), rel=1e-4)


def hearing(kind: str, value: Any, number: int) -> list[dict[str, Any]]:
    """Return a conversation of something, with an answer."""
    answer = {"role": "assistant", "content": f"so {number}"}
    return [{"role": "user", "content": [{"type": kind, kind: value}]}, answer]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([f"bad {n}" for n in range(4)], "is a text|is a conversation"),
        ([talk("audio", "so", n) for n in range(4)], "reads one of them and its text"),
        ([hearing("image", medium("image", 0), n) for n in range(4)], "WhisperProcessor reads no images"),
        ([hearing("audio", EIGHT_KHZ, n) for n in range(4)], "8000 values per second, the model takes 16000: resample"),
    ],
)
def test_what_such_a_model_cannot_read_is_said(family: Multimodal, source: list[Any], message: str) -> None:
    with pytest.raises(TextsError, match=message):
        dsas.fit(family.model, family.processor, **{**sets(), "source": source}, sites=SITES, progress=False)


def test_neither_incremental_fits_nor_training_read_sounds(family: Multimodal) -> None:
    with pytest.raises(OptionError, match="not trained, nor fitted with incremental=True"):
        dsas.fit(family.model, family.processor, **sets(), reading=dsas.Reading(incremental=True), progress=False)


def test_texts_alone_are_refused_with_what_to_pass(family: Multimodal) -> None:
    texts = {name: [f"{name} {number}" for number in range(4)] for name in ANSWERS}
    with pytest.raises(TextsError, match=r"takes input_features, which texts do not give: pass conversations"):
        dsas.fit(family.model, family.processor, **texts, sites=SITES, progress=False)
