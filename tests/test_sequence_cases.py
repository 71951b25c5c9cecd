"""Ways of running a model in which a pass does not simply follow on the one before: one sharp test each.

All against numbers that follow from the tokens alone; the table of methods and ways is in test_sequences.py.
"""

import copy
import json
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from makers import Position, ids_of, logits_of, random_steering
from torch import Tensor, nn
from transformers import DynamicCache

import dsas
from dsas.errors import DsasWarning
from dsas.model.forward_pass import ForwardPass
from dsas.model.identity import ModelIdentity
from dsas.regulators.cast import similarity
from dsas.runtime.applied import Applied
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.testing.models import WIDTH

GENERATED = dsas.Schedule("generated")


@pytest.fixture
def model() -> Any:
    return tiny_model("llama")


def ids(text: str) -> Tensor:
    return ids_of(tiny_tokenizer(), text)


def at_one_site(model: nn.Module, regulator: dsas.Regulator, sites: Any = "residual") -> dsas.Steering:
    """Return a Steering of ones at the last site that the pattern names."""
    site = dsas.find_sites(model, sites)[-1]
    return dsas.Steering([dsas.Rule(site, dsas.Addition(torch.ones(WIDTH)), regulator)], ModelIdentity.of(model))


def generate(model: Any, prompt: Tensor | None = None, count: int = 5, **options: Any) -> Tensor:
    """Return the prompt and `count` tokens, greedily."""
    given = options if prompt is None else {"input_ids": prompt, **options}
    read = next(given[name] for name in ("input_ids", "inputs_embeds") if name in given)
    return model.generate(
        attention_mask=torch.ones(read.shape[:2], dtype=torch.long), max_new_tokens=count, min_new_tokens=count,
        do_sample=False, pad_token_id=0, **given,
    )  # fmt: skip


def strengths(applied: Applied, last: int | None = None) -> list[float]:
    """Return what the first row's tokens, or the last of them, got at the first site."""
    found = applied.trace().strengths[0, 0].tolist()
    return found if last is None else found[-last:]


def run_on(model: Any, cache: Any, tokens: Tensor) -> Tensor:
    return logits_of(model, tokens, past_key_values=cache, use_cache=True)


@pytest.mark.parametrize("part", ["generated", "prompt"])
def test_every_request_over_a_copied_prefix_begins_a_prompt_of_its_own(model: Any, part: Any) -> None:
    prefix, cache = ids("You are helpful. "), DynamicCache(config=model.config)
    run_on(model, cache, prefix)
    asked, answered = (0.0, 1.0) if part == "generated" else (1.0, 0.0)
    with at_one_site(model, dsas.Schedule(part)).apply(model) as applied:
        for text in ("how are you today", "no"):
            full, own = torch.cat([prefix, ids(text)], dim=1), copy.deepcopy(cache)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                generate(model, full, past_key_values=own)
            told = [str(one.message) for one in caught if issubclass(one.category, DsasWarning)]
            assert len(told) == (text != "no"), told  # the prefix was filled without the steering, which is said once
            assert strengths(applied, len(text) + 4) == [asked] * len(text) + [answered] * 4


def test_a_prefix_that_was_filled_under_the_same_steering_goes_on_in_silence_and_is_counted(model: Any) -> None:
    steering, prefix = at_one_site(model, Position()), ids("You are helpful. ")
    cache = DynamicCache(config=model.config)
    with steering.apply(model, 0.5):
        run_on(model, cache, prefix)
    with steering.apply(model, 0.5) as applied:
        for _ in range(2):
            generate(model, torch.cat([prefix, ids("no")], dim=1), past_key_values=copy.deepcopy(cache), count=3)
            assert strengths(applied, 4) == [0.5 * (prefix.shape[1] + place) for place in (1, 2, 3, 4)]
    with steering.apply(model, 1.0), pytest.warns(DsasWarning, match=f"{prefix.shape[1]} tokens.*filled"):
        run_on(model, copy.deepcopy(cache), ids("no"))


@pytest.mark.parametrize("part", ["generated", "prompt"])
def test_every_turn_of_a_conversation_over_one_cache_has_a_prompt_and_an_answer(model: Any, part: Any) -> None:
    cache = DynamicCache(config=model.config)
    with at_one_site(model, dsas.Schedule(part)).apply(model) as applied:
        first = ids("hello there")
        answer = generate(model, first, past_key_values=cache)
        second = torch.cat([answer, ids(" and now?")], dim=1)
        generate(model, second, past_key_values=cache)
        found = strengths(applied)
    asked, answered = (0.0, 1.0) if part == "generated" else (1.0, 0.0)
    assert found[: first.shape[1]] == [asked] * 11
    assert found[first.shape[1] : first.shape[1] + 4] == [answered] * 4
    assert found[answer.shape[1] : second.shape[1]] == [asked] * 9
    assert found[second.shape[1] :] == [answered] * 4


def test_turns_stepped_by_hand_are_told_by_passes_of_several_tokens_after_single_ones(model: Any) -> None:
    cache, passes = DynamicCache(config=model.config), (4, 1, 1, 3, 1, 1)
    with at_one_site(model, GENERATED).apply(model) as applied:
        for count in passes:
            run_on(model, cache, torch.arange(1, count + 1)[None])
        assert strengths(applied) == [0.0] * 4 + [1.0] * 2 + [0.0] * 3 + [1.0] * 2


@pytest.mark.parametrize(
    "how",
    [{"prompt_lookup_num_tokens": 4}, {"assistant_model": tiny_model("llama", seed=5)}],
    ids=["prompt lookup", "assisted"],
)
def test_tokens_that_are_guessed_ahead_are_steered_as_generated_ones(model: Any, how: dict[str, Any]) -> None:
    prompt = ids("the cat sat on the mat and the cat sat on the")
    with at_one_site(model, GENERATED).apply(model) as applied:
        plain = generate(model, prompt, 12)
        expected = strengths(applied)
        guessed = generate(model, prompt, 12, **how)
        found = strengths(applied)
    assert expected == [0.0] * prompt.shape[1] + [1.0] * 11
    assert found[: len(expected)] == expected
    assert len(found) <= len(expected) + 4  # guesses that were refused may be among the last
    assert guessed.tolist() == plain.tolist()


RECURRENT = {
    "Mamba": {"state_size": 8},
    "FalconMamba": {"state_size": 8},
    "Mamba2": {"state_size": 8, "head_dim": 16, "num_heads": 4, "n_groups": 1, "chunk_size": 8},
}


@pytest.mark.parametrize("family", RECURRENT)
def test_a_state_that_is_no_cache_of_keys_carries_the_sequence_too(family: str) -> None:
    options = {"vocab_size": 257, "hidden_size": WIDTH, "num_hidden_layers": 2, **RECURRENT[family]}
    config = getattr(transformers, f"{family}Config")(**options)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    prompt = ids("hello there")
    with at_one_site(model, dsas.Constant()).apply(model, skip_sinks=True) as applied:
        generate(model, prompt, 6)
        assert strengths(applied) == [0.0] + [1.0] * 15
    with at_one_site(model, GENERATED).apply(model) as applied:
        for _ in range(2):
            generate(model, prompt, 6)
            assert strengths(applied) == [0.0] * 11 + [1.0] * 5
    explained = dsas.explain(
        model, tiny_tokenizer(), at_one_site(model, dsas.Constant()), prompt="hello there", generate=5, strength=0.1
    )
    assert [len(row) for row in explained.tokens] == [16]


def test_a_token_that_was_given_as_an_embedding_has_no_number_and_later_ones_have_theirs(model: Any) -> None:
    given = model.get_input_embeddings()(torch.arange(50, 58)[None]).detach()
    with at_one_site(model, GENERATED).apply(model) as applied:
        made = generate(model, count=4, inputs_embeds=given)
        trace = applied.trace()
        assert trace.token_ids.tolist() == [[-1] * 8 + made[0, :3].tolist()]
        assert trace.row().tokens == ("#",) * 8 + tuple(f"[{token}]" for token in made[0, :3].tolist())
        assert strengths(applied) == [0.0] * 8 + [1.0] * 3
        with torch.no_grad():
            model(inputs_embeds=given)
        assert applied.trace().row().tokens == ("#",) * 8


def test_two_caches_that_are_stepped_in_turn_are_two_sequences(model: Any) -> None:
    @torch.no_grad()
    def chat(tokens: Tensor) -> Iterator[tuple[int, list[float]]]:
        cache = DynamicCache(config=model.config)
        while True:
            tokens = run_on(model, cache, tokens)[:, -1:].argmax(-1)
            yield int(tokens), strengths(applied)

    long, short = torch.arange(1, 22)[None], torch.arange(30, 33)[None]
    with at_one_site(model, GENERATED).apply(model) as applied:
        alone = [[next(one) for _ in range(5)] for one in (chat(long), chat(short))]
        first, second = chat(long), chat(short)
        in_turn = [(next(first), next(second)) for _ in range(5)]
    assert [list(one) for one in zip(*in_turn, strict=True)] == alone
    assert alone[1][-1][1] == [0.0] * 3 + [1.0] * 4


def test_after_a_crop_the_trace_is_that_of_the_tokens_that_are_left(model: Any) -> None:
    cache = DynamicCache(config=model.config)
    with at_one_site(model, Position()).apply(model) as applied:
        run_on(model, cache, torch.arange(1, 9)[None])
        cache.crop(-3)
        trace = applied.trace()
        assert trace.token_ids.tolist() == [[1, 2, 3, 4, 5]]
        assert strengths(applied) == [1.0, 2.0, 3.0, 4.0, 5.0]
        assert [line.mean_strength for line in applied.report()] == [3.0]
        run_on(model, cache, torch.tensor([[40]]))
        assert applied.trace().token_ids.tolist() == [[1, 2, 3, 4, 5, 40]]
        assert strengths(applied, 1) == [6.0]


def test_an_encoder_is_not_taken_for_the_decoder_that_ran_before_it_and_has_a_record_of_its_own() -> None:
    """The encoder reads as many tokens as the decoder has read in the pass before, which says nothing about them."""
    config = transformers.T5Config(
        vocab_size=257, d_model=WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0,
        eos_token_id=256, pad_token_id=0,
    )  # fmt: skip
    model: Any = transformers.T5ForConditionalGeneration(config).eval()
    steering = random_steering(model, ["encoder.block.*", "decoder.block.*"], regulator=Position())
    read, cache = torch.tensor([[5, 6, 7, 8]]), transformers.EncoderDecoderCache(DynamicCache(), DynamicCache())

    def answer(tokens: Tensor) -> Tensor:
        return logits_of(model, read, decoder_input_ids=tokens)

    with steering.apply(model, 0.01):
        expected = answer(read[:, :2])
    with steering.apply(model, 0.01) as applied:
        logits_of(model, read, decoder_input_ids=read[:, :3], past_key_values=cache, use_cache=True)
        logits_of(model, read, decoder_input_ids=read, past_key_values=cache, use_cache=True)
        assert torch.equal(answer(read[:, :2]), expected)
        trace = applied.trace()
        lines = {line.site: line for line in applied.report()}
        logits_of(model, read, decoder_input_ids=read[:, :1], attention_mask=torch.tensor([[0, 1, 1, 1]]))
        padded = applied.trace().outside["encoder.block.1"][0]
    assert trace.token_ids.tolist() == [[5, 6]]
    for site in ("decoder.block.0", "decoder.block.1"):
        assert trace.strengths[trace.sites.index(site), 0].tolist() == pytest.approx([0.01, 0.02])
        assert lines[site].mean_strength == pytest.approx(0.015)
    for site in ("encoder.block.0", "encoder.block.1"):
        assert [call.strengths[0].tolist() for call in trace.outside[site]] == [pytest.approx([0.01, 0.02, 0.03, 0.04])]
        assert (lines[site].mean_strength, lines[site].hits) == (pytest.approx(0.025), 4)
    assert padded.strengths[0].tolist() == pytest.approx([0.0, 0.01, 0.02, 0.03])
    assert padded.real.tolist() == [[False, True, True, True]]


def _right_or_not_recorded(line: Any, mean: float) -> None:
    if line.mean_strength is None:
        assert "not recorded" in line.status
        assert line.hits is None
    else:
        assert line.mean_strength == pytest.approx(mean)


class Looped(nn.Module):
    """A decoder that calls one block, which looks at each token alone, twice a pass, and counts tokens in a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(257, WIDTH), nn.Linear(WIDTH, 257)
        self.block = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())

    def forward(self, input_ids: Tensor, past_key_values: Any = None) -> Tensor:
        x = self.embedding(input_ids)
        if past_key_values is not None:
            past_key_values.update(x.unsqueeze(1), x.unsqueeze(1), 0)
        return self.head(self.block(self.block(x)))


def regulated(steering: dsas.Steering, module: nn.Module) -> tuple[list[Tensor], Any]:
    """Return the list to which every call of a module adds what the rule's regulator says of it, and the handle."""
    found: list[Tensor] = []

    def note(_module: nn.Module, _args: Any, output: Any) -> None:
        t = output[0] if isinstance(output, tuple) else output
        found.append(steering.rules[0].regulator(t, ForwardPass(*t.shape[:2])).detach())

    return found, module.register_forward_hook(note, prepend=True)  # before the activation is edited


def test_a_block_that_runs_twice_a_pass_has_the_mean_of_both_calls_recorded_or_nothing() -> None:
    model = Looped()
    steering = random_steering(model, "block")
    with steering.apply(model, 0.5) as applied:
        found, seen = regulated(steering, model.block)
        model(torch.tensor([[3, 1, 4, 1, 5]]))
        seen.remove()
        (line,) = applied.report()
    first, second = (0.5 * float(values.mean()) for values in found)
    assert abs(first - second) > 0.01
    _right_or_not_recorded(line, (first + second) / 2)


def test_a_block_that_runs_twice_a_pass_remembers_each_of_its_calls_by_itself() -> None:
    """CAST decides at each call by the mean of what that call has read of the prompt, whatever pieces it came in."""
    model, read, vector, condition = Looped(), torch.randint(256, (1, 24)), torch.randn(WIDTH), torch.randn(WIDTH)
    count = torch.arange(1, 24)[:, None]

    def similarities(output: Tensor) -> Tensor:
        return similarity(output[0, 1:].cumsum(0) / count, condition)

    with torch.no_grad():
        x = model.embedding(read)
        threshold = similarities(model.block(x)).median()
        for _ in range(2):
            x = model.block(x)
            holds = similarities(x) > threshold
            assert 0 < int(holds.sum()) < 23
            x[0, 1:] += holds[:, None] * vector
        expected = model.head(x)
        steering = random_steering(
            model, "block", transform=dsas.Addition(vector), regulator=dsas.Cast(condition, threshold)
        )
        with steering.apply(model):
            torch.testing.assert_close(model(read), expected)
            cache = DynamicCache()
            pieces = [model(piece, past_key_values=cache) for piece in read.split(4, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected)


def test_one_layer_that_stands_for_all_is_recorded_rightly_or_not_at_all() -> None:
    config = transformers.AlbertConfig(
        vocab_size=257, embedding_size=16, hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=64, initializer_range=0.5,
    )  # fmt: skip
    model: Any = transformers.AlbertModel(config).eval()
    steering = random_steering(model, "encoder.albert_layer_groups.0.albert_layers.0")
    with torch.no_grad(), steering.apply(model) as applied:
        found, seen = regulated(steering, model.get_submodule(steering.rules[0].site.path))
        model(input_ids=torch.tensor([[3, 1, 4, 1, 5]]))
        seen.remove()
        (line,) = applied.report()
    means = [float(values.mean()) for values in found]
    assert len(means) == 3
    assert max(means) - min(means) > 0.01
    _right_or_not_recorded(line, sum(means) / 3)


@pytest.mark.parametrize("text", [[256] * 4 + [1], [1, 2, *[256] * 4, 3, 4]], ids=["as many tokens", "other count"])
def test_a_vision_tower_is_recorded_by_itself_and_not_as_if_its_patches_were_tokens(text: list[int]) -> None:
    """The tower gives 5 tokens: 4 patches and its class."""
    vision = transformers.CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=8, patch_size=4
    )
    words = transformers.LlamaConfig(
        vocab_size=257, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=words, image_token_index=256, image_seq_length=4, vision_feature_layer=-1
    )
    model: Any = transformers.LlavaForConditionalGeneration(config).eval()
    sites = "layers.*"  # of both
    read, picture = torch.tensor([text]), torch.randn(1, 3, 8, 8)
    plain = logits_of(model, read, pixel_values=picture)
    tower = [site for site in dsas.find_sites(model, sites) if "vision" in site.path]
    with random_steering(model, tower, regulator=dsas.Constant()).apply(model, 0.5):
        assert not torch.allclose(logits_of(model, read, pixel_values=picture), plain)
    with random_steering(model, sites, regulator=dsas.Constant()).apply(model, 0.5) as applied:
        for _ in range(2):
            logits_of(model, read, pixel_values=picture)
            lines = applied.report()
            assert [line[3:] for line in lines if "vision" in line.site] == [(0.5, 5), (0.5, 5)]
            assert [line[3:] for line in lines if "language" in line.site] == [(0.5, len(text)), (0.5, len(text))]
            _of_one_call(applied.trace())
        assert applied.trace().row().tokens.count("[image]") == 4
        for _ in range(2):  # which sees the picture before the model's own call begins
            model.generate(read, pixel_values=picture, attention_mask=torch.ones_like(read), max_new_tokens=3)
            _of_one_call(applied.trace())


def _of_one_call(trace: Any) -> None:
    """Check that only the tower's sites are recorded apart, in one call of five tokens, and only the others inside."""
    assert [("vision" in site, calls[0].strengths.tolist(), len(calls)) for site, calls in trace.outside.items()] == [
        (True, [[0.5] * 5], 1)
    ] * 2
    assert trace.strengths.isnan().all((1, 2)).tolist() == ["vision" in site for site in trace.sites]
    assert list(json.loads(trace.to_json())["outside"]) == list(trace.outside)


def test_virtual_tokens_of_prefix_tuning_are_no_tokens_of_the_text(model: Any) -> None:
    peft = pytest.importorskip("peft")
    virtual = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft itself, and that nobody steered what was learned and never read
        tuned = peft.get_peft_model(model, virtual).eval()
        with at_one_site(tuned, GENERATED).apply(tuned) as applied:
            for text in ("hello there", "no"):
                generate(tuned, ids(text))
                assert strengths(applied, len(text) + 4) == [0.0] * len(text) + [1.0] * 4
        with at_one_site(tuned, dsas.Constant()).apply(tuned, skip_sinks=True) as applied:
            generate(tuned, ids("no"))
            assert strengths(applied, 5) == [1.0] * 5
