"""Explain: the numbers are those of a hand-written computation, and continuations are compared where they part."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from makers import Idle, ids_of, logits_of, random_steering
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import dsas
from dsas.errors import OptionError, StrengthError, TextsError
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.testing.models import WIDTH

TEXT = "Who goes there?"


@pytest.fixture
def model() -> Any:
    return tiny_model()


@pytest.fixture
def tokenizer() -> Any:
    return tiny_tokenizer()


def hidden_before(model: Any, ids: Tensor, layer: int) -> Tensor:
    """Return what a decoder layer gives before steering changes it, (token, dim)."""
    found: list[Tensor] = []
    watch = model.model.layers[layer].register_forward_hook(lambda _m, _i, output: found.append(output[0].clone()))
    watch_first = model.model.layers[layer]._forward_hooks
    watch_first.move_to_end(watch.id, last=False)
    logits_of(model, ids)
    watch.remove()
    return found[0]


def test_strength_regulator_and_dose_are_those_of_a_computation_by_hand_in_float64(model: Any, tokenizer: Any) -> None:
    steering, strength, weight = random_steering(model, weight=0.8), 0.7, 0.8
    trace = dsas.explain(model, tokenizer, steering, TEXT, strength=strength)
    assert trace.regulators is not None
    assert trace.doses is not None
    ids = ids_of(tokenizer, TEXT)
    for layer, rule in enumerate(steering.rules):
        with steering.apply(model, strength):
            t = hidden_before(model, ids, layer).double().numpy()
        theta, vector = rule.regulator.theta.double().numpy(), rule.transform.vector.double().numpy()
        regulator = 1 / (1 + np.exp(-(t @ theta + float(rule.regulator.bias))))
        applied = strength * weight * regulator
        dose = applied * math.sqrt(float((vector**2).sum())) / np.sqrt((t**2).sum(-1))
        for got, expected in ((trace.regulators, regulator), (trace.strengths, applied), (trace.doses, dose)):
            np.testing.assert_allclose(got[layer, 0].double().numpy(), expected, rtol=2e-5)


def test_kl_is_that_of_a_computation_by_hand_in_float64(model: Any, tokenizer: Any) -> None:
    steering, ids = random_steering(model), ids_of(tokenizer, TEXT)
    (next_tokens,) = dsas.explain(model, tokenizer, steering, TEXT, next_tokens=2).next_tokens
    p = torch.softmax(logits_of(model, ids)[0].double(), -1)
    with steering.apply(model):
        q = torch.softmax(logits_of(model, ids)[0].double(), -1)
    torch.testing.assert_close(next_tokens.kl, tuple((p * (p / q).log()).sum(-1).tolist()), rtol=1e-4, atol=1e-6)
    for choices, expected in ((next_tokens.before, p), (next_tokens.after, q)):
        best = expected.topk(2)
        assert [[c.token for c in row] for row in choices] == [[tokenizer.decode([i]) for i in row] for row in best[1]]
        torch.testing.assert_close(
            [[c.probability for c in row] for row in choices], best[0].tolist(), rtol=1e-4, atol=0
        )


def test_a_dose_in_bfloat16_is_that_of_the_edit_and_not_of_what_rounding_left_of_it() -> None:
    model = Idle().bfloat16()
    model.used = torch.nn.Identity()
    t = torch.full((1, 2, WIDTH), 3.0).bfloat16()
    steering = random_steering(model, "used", regulator=dsas.Constant(), transform=dsas.Addition(torch.ones(WIDTH)))
    with steering.apply(model, 1e-4, record="doses") as applied:
        assert torch.equal(model(inputs_embeds=t), t)  # too little for bfloat16 to hold
    doses = applied.trace().doses
    assert doses is not None
    torch.testing.assert_close(doses, torch.full((1, 1, 2), 1e-4 / 3))


def test_without_being_asked_a_recording_keeps_no_doses(model: Any, tokenizer: Any) -> None:
    with random_steering(model).apply(model) as applied:
        logits_of(model, ids_of(tokenizer, TEXT))
    trace = applied.trace()
    assert (trace.regulators, trace.doses) == (None, None)
    assert trace.strength is not None
    assert trace.strength.tolist() == [1.0]


def test_skipped_sinks_are_not_steered_though_their_regulator_answers(model: Any, tokenizer: Any) -> None:
    trace = dsas.explain(model, tokenizer, random_steering(model), TEXT, skip_sinks=True)
    assert trace.regulators is not None
    assert trace.doses is not None
    assert trace.strengths[:, 0, 0].tolist() == trace.doses[:, 0, 0].tolist() == [0.0] * 3
    assert (trace.regulators[:, 0, 0] > 0).all()
    assert (trace.strengths[:, 0, 1:] > 0).all()


def test_several_texts_are_rows_with_the_numbers_that_each_has_alone(model: Any, tokenizer: Any) -> None:
    steering = random_steering(model)
    both = dsas.explain(model, tokenizer, steering, ["Hi", TEXT], next_tokens=1)
    assert both.real.sum(1).tolist() == [2, len(TEXT)]
    assert ["".join(row) for row in both.tokens] == ["Hi", TEXT]
    for number, text in enumerate(["Hi", TEXT]):
        alone, among = dsas.explain(model, tokenizer, steering, text, next_tokens=1).row(), both.row(number)
        assert among.tokens == alone.tokens
        assert among.next_tokens == alone.next_tokens
        for name, values in alone.values.items():
            assert torch.equal(among.values[name], values)


def test_a_prompt_is_continued_as_generate_does_and_compared_with_the_unsteered_text(
    model: Any, tokenizer: Any
) -> None:
    steering, ids = random_steering(model), ids_of(tokenizer, TEXT)
    options = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 6}
    plain = model.generate(ids, **options)[0, ids.shape[1] :].tolist()
    with steering.apply(model, 3.0):
        steered = model.generate(ids, **options)[0].tolist()
    trace = dsas.explain(model, tokenizer, steering, prompt=TEXT, generate=6, strength=3.0)
    (comparison,) = trace.comparisons
    assert trace.token_ids is not None
    assert trace.token_ids[0].tolist() == steered
    assert comparison.prompt_tokens == len(TEXT)
    assert "".join(comparison.unsteered) == tokenizer.decode(plain)
    new = steered[ids.shape[1] :]
    assert new != plain
    assert comparison.first_difference == next(i for i in range(6) if new[i] != plain[i])
    faint = dsas.explain(model, tokenizer, steering, prompt=TEXT, generate=6, strength=1e-6)
    assert faint.comparisons[0].first_difference is None


def test_a_continuation_that_ends_earlier_differs_where_it_ends(model: Any, tokenizer: Any) -> None:
    steering, ids = random_steering(model), ids_of(tokenizer, TEXT)
    plain = dsas.explain(model, tokenizer, steering, prompt=TEXT, generate=6, strength=1e-6).token_ids
    assert plain is not None
    continued = plain[0, ids.shape[1] :].tolist()
    model.generation_config.eos_token_id = continued[3]
    (comparison,) = dsas.explain(model, tokenizer, steering, prompt=TEXT, generate=6, strength=1e-6).comparisons
    assert len(comparison.unsteered) == continued.index(continued[3])


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({}, OptionError, "got neither"),
        ({"text": "a", "prompt": "b"}, OptionError, "got both"),
        ({"text": "a", "strength": 0.0}, StrengthError, "at 0 no token is steered"),
        ({"prompt": "a", "generate": 0}, OptionError, "generate >= 1"),
        ({"text": []}, TextsError, "at least 1 texts, got 0"),
    ],
)
def test_what_cannot_be_explained_is_refused(
    model: Any, tokenizer: Any, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        dsas.explain(model, tokenizer, random_steering(model), **options)


def test_a_steering_that_steers_no_site_has_nothing_to_explain(model: Any, tokenizer: Any) -> None:
    with pytest.raises(OptionError, match="weights are all 0"):
        dsas.explain(model, tokenizer, random_steering(model, weight=0.0), TEXT)


def test_a_trace_can_be_read_from_a_later_pass_on(model: Any) -> None:
    from transformers import DynamicCache

    cache, ids = DynamicCache(), torch.tensor([[1, 2, 3]])
    with random_steering(model).apply(model) as applied:
        logits_of(model, ids, past_key_values=cache)
        logits_of(model, torch.tensor([[7]]), past_key_values=cache)
        whole, later = applied.trace(), applied.trace(start=3)
        with pytest.raises(dsas.DsasError, match="nothing was recorded"):
            applied.trace(start=4)
    assert whole.token_ids is not None
    assert later.token_ids is not None
    assert (whole.token_ids.tolist(), later.token_ids.tolist()) == ([[1, 2, 3, 7]], [[7]])
    assert torch.equal(whole.strengths[..., 3:], later.strengths)


def test_the_json_of_a_trace_holds_every_number(model: Any, tokenizer: Any) -> None:
    trace = dsas.explain(model, tokenizer, random_steering(model), prompt="Hi", generate=3, strength=0.5, next_tokens=1)
    told = json.loads(trace.to_json())
    (row,) = told["rows"]
    assert told["sites"] == list(trace.sites)
    assert (row["asked"], row["tokens"]) == (0.5, list(trace.tokens[0]))
    assert trace.doses is not None
    assert row["dose"] == trace.doses[:, 0].tolist()
    assert row["next_tokens"]["kl"] == list(trace.next_tokens[0].kl)
    assert row["comparison"]["unsteered"] == list(trace.comparisons[0].unsteered)


def test_a_row_that_is_not_there_is_refused_and_tokens_without_text_have_numbers(model: Any, tokenizer: Any) -> None:
    with random_steering(model).apply(model) as applied:
        logits_of(model, torch.tensor([[5, 6]]))
    assert applied.trace().row().tokens == ("[5]", "[6]")
    with pytest.raises(OptionError, match="row from 0 to 0, got 1"):
        applied.trace().row(1)


def test_a_model_that_embeds_its_tokens_outside_its_decoder_is_explained_by_its_tokens(tokenizer: Any) -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    seen, text = CLIPVisionConfig(**sizes, image_size=28, patch_size=14), LlamaConfig(**sizes, vocab_size=300)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=seen, text_config=text, image_token_index=299))
    trace = dsas.explain(model, tokenizer, random_steering(model), TEXT, next_tokens=1)
    assert trace.token_ids is not None
    assert trace.token_ids[0].tolist() == tokenizer(TEXT)["input_ids"]
    assert "".join(trace.tokens[0]) == TEXT
    assert len(trace.next_tokens[0].kl) == len(TEXT)
    model.config.image_token_id, model.config.video_token_id = tokenizer("#$")["input_ids"]
    assert dsas.explain(model, tokenizer, random_steering(model), "a#$#").tokens == (
        ("a", "[image]", "[video]", "[image]"),
    )


def test_a_decoder_beside_an_encoder_is_explained_by_its_own_tokens(tokenizer: Any) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=257, d_model=WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4, eos_token_id=256,
                      decoder_start_token_id=0)  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    steering = random_steering(model, "decoder.block.1")
    read = dsas.explain(model, tokenizer, steering, TEXT)
    assert "".join(read.tokens[0]) == TEXT
    said = dsas.explain(model, tokenizer, steering, prompt=TEXT, generate=3, next_tokens=1)
    assert said.comparisons[0].prompt_tokens == 1
    assert said.strengths.shape == (1, 1, 4)
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    expected = model(input_ids=ids, decoder_input_ids=said.token_ids).logits[0].softmax(-1).max(-1).values
    assert [choices[0].probability for choices in said.next_tokens[0].before] == pytest.approx(
        expected.tolist(), abs=1e-5
    )


@pytest.mark.parametrize("family", ["cpmant", "xlnet"])
def test_models_that_read_tokens_again_are_explained_on_finished_texts_alone(tokenizer: Any, family: str) -> None:
    sizes = {"vocab_size": 257, "hidden_size": WIDTH, "d_model": WIDTH, "num_hidden_layers": 2, "n_layer": 2}
    heads = {"num_attention_heads": 4, "n_head": 4, "dim_head": 8, "dim_ff": 64, "d_inner": 64, "prompt_length": 3}
    built: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **heads)).eval()
    steering = random_steering(built)
    trace: Any = dsas.explain(built, tokenizer, steering, TEXT, strength=0.5)
    assert "".join(trace.tokens[0]) == TEXT
    assert not trace.strengths.isnan().any()
    assert trace.strengths.any()
    with pytest.raises(
        OptionError, match=r"reads other tokens than those that it generates.*explain the finished text"
    ):
        dsas.explain(built, tokenizer, steering, prompt=TEXT, strength=0.5)
