"""Everyday mistakes end in our own errors, before a text runs; models that take other arguments still run."""

from typing import Any

import pytest
import torch
from makers import logits_of
from torch import Tensor, nn

import dsas
from dsas.errors import ActivationError, OptionError, SiteError, TextsError
from dsas.model.language_model import LanguageModel
from dsas.model.running import own_tokens
from dsas.testing import tiny_model, tiny_tokenizer

SETS: Any = {
    "source": [f"bad {number}" for number in range(4)],
    "control": [f"fine {number}" for number in range(4)],
    "target": [f"good {number}" for number in range(4)],
    "selection": "all",
    "progress": False,
}


class Counting(nn.Module):
    """Counts the passes of a model."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.passes = 0
        model.register_forward_pre_hook(lambda *_given: setattr(self, "passes", self.passes + 1))


@pytest.mark.parametrize(
    ("model", "sets", "error", "message"),
    [
        (tiny_model("gpt2"), {"source": ["a" * 300] * 2 + ["b", "c"]}, TextsError,
         "the longest text has 300 tokens, and GPT2LMHeadModel 256 positions: .*max_tokens=256"),
        (tiny_model("opt"), {"control": ["a" * 257, "b", "c", "d"]}, TextsError, "257 tokens, and .* 256 positions"),
        (tiny_model(vocab_size=80, eos_token_id=0), {}, OptionError,
         r"the tokenizer gives token \d+, and LlamaForCausalLM knows 80 tokens, 0 to 79: give the tokenizer of this"),
    ],
)  # fmt: skip
def test_texts_that_a_model_cannot_read_are_refused_before_any_runs(
    model: nn.Module, sets: dict[str, Any], error: type[Exception], message: str
) -> None:
    counting = Counting(model)
    with pytest.raises(error, match=message):
        dsas.fit(model, tiny_tokenizer(), **{**SETS, **sets})
    assert counting.passes == 0


def test_a_text_that_fills_all_places_is_read() -> None:
    dsas.fit(tiny_model("opt"), tiny_tokenizer(), **{**SETS, "control": ["a" * 256, "b", "c", "d"]})


def test_rotary_positions_are_no_limit() -> None:
    dsas.fit(tiny_model(), tiny_tokenizer(), **{**SETS, "control": ["a" * 300, "b", "c", "d"]})


@pytest.mark.parametrize("verb", ["perplexity", "kl", "explain"])
def test_other_verbs_refuse_them_too(verb: str) -> None:
    from dsas.evaluation.divergence import divergence
    from dsas.evaluation.perplexity import perplexity

    model, tokenizer, text = tiny_model("gpt2"), tiny_tokenizer(), "a" * 300
    steering = dsas.fit(model, tokenizer, **SETS)
    verbs: dict[str, Any] = {
        "perplexity": lambda: perplexity(model, tokenizer, [text], max_tokens=300),
        "kl": lambda: divergence(model, tokenizer, [text], lambda: steering.apply(model, 1.0), max_tokens=300),
        "explain": lambda: dsas.explain(model, tokenizer, steering, text),
    }
    with pytest.raises(TextsError, match="the longest text has 300 tokens, and GPT2LMHeadModel 256 positions"):
        verbs[verb]()


def test_a_model_on_meta_holds_no_values_and_is_refused() -> None:
    with torch.device("meta"):
        model = tiny_model()
    with pytest.raises(OptionError, match=r"weights of this LlamaForCausalLM, such as 'model.* on the device 'meta'"):
        dsas.fit(model, tiny_tokenizer(), **SETS)


def test_a_model_that_reads_no_texts_is_refused_by_what_it_takes() -> None:
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = ViTModel(ViTConfig(**sizes, image_size=28, patch_size=14))
    message = r"takes input_ids or decoder_input_ids, got a ViTModel, which takes pixel_values, .*record=False"
    with pytest.raises(OptionError, match=message):
        dsas.fit(model, tiny_tokenizer(), sites="layers.*", **SETS)


def test_a_processor_is_as_good_as_the_tokenizer_that_it_holds_and_anything_else_is_refused() -> None:
    class Processor:
        def __init__(self) -> None:
            self.tokenizer = tiny_tokenizer()

        def __call__(self, images: Any) -> None:
            raise ValueError("no image")

    plain = dsas.fit(tiny_model(), tiny_tokenizer(), **SETS)
    assert dsas.fit(tiny_model(), Processor(), **SETS).digest() == plain.digest()
    assert dsas.explain(tiny_model(), Processor(), plain, "hello").tokens == (tuple("hello"),)
    with pytest.raises(OptionError, match=r"expected a tokenizer, .* got str; .*AutoTokenizer.from_pretrained"):
        dsas.fit(tiny_model(), "gpt2", **SETS)
    with pytest.raises(OptionError, match=r"wrap it, transformers\.PreTrainedTokenizerFast\(tokenizer_object="):
        dsas.fit(tiny_model(), tiny_tokenizer().backend_tokenizer, **SETS)
    with pytest.raises(OptionError, match=r"expected a tokenizer, .* got function"):
        dsas.fit(tiny_model(), lambda texts: texts, **SETS)


class Bare(type(tiny_model())):  # type: ignore
    """A model whose forward takes tokens and a mask, and no more."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return super().forward(input_ids, attention_mask)


class Blind(Bare):
    """A model that is given no mask."""

    def forward(self, input_ids: Tensor) -> Any:
        return super().forward(input_ids, torch.ones_like(input_ids))


def test_a_forward_without_use_cache_or_a_mask_gets_only_what_it_takes() -> None:
    weights, config = tiny_model().state_dict(), tiny_model().config  # type: ignore
    found = {kind: kind(config).eval() for kind in (Bare, Blind)}
    for model in found.values():
        model.load_state_dict(weights)
    expected = dsas.fit(tiny_model(), tiny_tokenizer(), **SETS).digest()
    assert dsas.fit(found[Bare], tiny_tokenizer(), **SETS).digest() == expected
    with pytest.raises(OptionError, match=r"Blind takes no attention_mask, .*Reading\(batch_size=1\)"):
        dsas.fit(found[Blind], tiny_tokenizer(), **SETS)
    alone = dsas.fit(found[Blind], tiny_tokenizer(), reading=dsas.Reading(batch_size=1), **SETS)
    plain = dsas.fit(tiny_model(), tiny_tokenizer(), reading=dsas.Reading(batch_size=1), **SETS)
    assert alone.digest() == plain.digest()


def test_a_layer_by_its_number_is_the_residual_stream_after_it() -> None:
    model = tiny_model()
    every = dsas.find_sites(model)
    for number in (0, 1, 2, -1, "1", "-3"):
        assert dsas.find_sites(model, number) == [every[int(number)]]
    assert dsas.find_sites(model, [2, 0, -3]) == [every[0], every[2]]
    for number in (3, -4, "15"):
        with pytest.raises(SiteError, match=f"LlamaForCausalLM has 3 layers, 0 to 2; got {number}"):
            dsas.find_sites(model, number)


def test_time_first_is_told_from_batch_first() -> None:
    mask = torch.ones(2, 7, dtype=torch.bool)
    assert own_tokens(torch.arange(9.0).view(1, 9, 1).expand(2, 9, 1), mask, "x")[0, :, 0].tolist() == [*range(2, 9)]
    with pytest.raises(
        ActivationError, match=r"x: expected .* with 2 rows of 7 tokens, got .*7, 2, 3.*time stands first"
    ):
        own_tokens(torch.zeros(7, 2, 3), mask, "x")


def test_both_sides_of_a_model_with_an_encoder_read_the_text() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=257, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config).eval()
    steering = dsas.fit(
        model, tiny_tokenizer(), sites=["encoder.block.1", "decoder.block.0"],
        reading=dsas.Reading(skip_sinks=False, batch_size=1), **SETS,
    )  # fmt: skip
    assert [rule.site.path for rule in steering.rules] == ["encoder.block.1", "decoder.block.0"]
    means: dict[str, list[Tensor]] = {"encoder": [], "decoder": []}
    for text in (*SETS["target"], *SETS["source"]):
        ids = tiny_tokenizer()(text, return_tensors="pt")["input_ids"]
        output = model(ids, decoder_input_ids=ids, output_hidden_states=True)
        means["encoder"].append(model.encoder.block[1](output.encoder_hidden_states[1])[0].mean((0, 1)))
        means["decoder"].append(output.decoder_hidden_states[1].mean((0, 1)))
    with torch.no_grad():
        moved = torch.stack(means["decoder"][:4]).mean(0) - torch.stack(means["decoder"][4:]).mean(0)
    torch.testing.assert_close(steering.rules[1].transform.vector, moved, rtol=1e-4, atol=1e-5)
    assert logits_of(model, ids, decoder_input_ids=ids).shape == (1, ids.shape[1], 257)
    assert LanguageModel(model).sites("encoder.block.1")


def test_what_a_configuration_collects_besides_the_output_is_not_collected_for_a_fit() -> None:
    """With transformers 4.56 every layer stayed wrapped when such a pass was ended early, as a fit's passes are."""
    model = tiny_model(output_hidden_states=True)
    before = model.model.layers[0].forward
    seen: list[Any] = []
    model.model.register_forward_pre_hook(lambda _m, _args, given: seen.append(given), with_kwargs=True)
    dsas.fit(model, tiny_tokenizer(), **SETS)
    assert {given["output_hidden_states"] for given in seen} == {False}
    assert model.model.layers[0].forward == before
    assert "output_hidden_states" not in seen_by(tiny_model())


def seen_by(model: Any) -> set[str]:
    seen: set[str] = set()
    model.model.register_forward_pre_hook(lambda _m, _args, given: seen.update(given), with_kwargs=True)
    dsas.fit(model, tiny_tokenizer(), **SETS)
    return seen
