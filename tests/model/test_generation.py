"""Generation: what a call of `generate` says about its passes, and that listeners leave nothing on the model."""

import copy
import pickle
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from types import MethodType
from typing import Any

import pytest
import torch
from makers import Position, logits_of, random_steering
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

import dsas
from dsas.model.generation import Generations
from dsas.model.hooks import Hooks
from dsas.testing import tiny_model

PROMPT = torch.arange(1, 8)[None]
GENERATED = dsas.Schedule("generated")
OPTIONS: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}


@pytest.fixture
def model() -> Any:
    return tiny_model(layers=1)


def generate(model: Any, prompt: Tensor = PROMPT, *args: Any, **options: Any) -> Tensor:
    mask = options.pop("attention_mask", torch.ones_like(prompt))
    return model.generate(prompt, *args, attention_mask=mask, **{**OPTIONS, **options})


def strengths(applied: Any) -> list[float]:
    return applied.trace().strengths[0, 0].tolist()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prefill_chunk_size": 3},  # the last chunk is of one token
        {"prefill_chunk_size": 4},
        {"use_cache": False},
        {"cache_implementation": "static"},
    ],
    ids=str,
)
def test_a_prompt_ends_where_generate_was_given_its_end_however_it_is_read(model: Any, options: dict[str, Any]) -> None:
    with random_steering(model, regulator=GENERATED).apply(model) as applied:
        generate(model, **options)
        assert strengths(applied) == [0.0] * 7 + [1.0] * 3


def test_a_prompt_of_which_the_new_tokens_alone_are_given_begins_where_the_cache_ends(model: Any) -> None:
    cache = DynamicCache(config=model.config)
    with random_steering(model, regulator=GENERATED).apply(model) as applied:
        logits_of(model, PROMPT[:, :2], past_key_values=cache, use_cache=True)
        generate(model, PROMPT[:, 2:], past_key_values=cache, attention_mask=torch.ones(1, 7).long())
        assert strengths(applied) == [0.0] * 7 + [1.0] * 3


def test_a_prompt_of_one_token_is_a_prompt(model: Any) -> None:
    with random_steering(model, regulator=GENERATED).apply(model) as applied:
        generate(model, PROMPT[:, :1])
        assert strengths(applied) == [0.0] + [1.0] * 3


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PromptEncoderConfig"])
def test_virtual_tokens_that_come_before_a_prompt_belong_to_it(model: Any, kind: str, inside: bool) -> None:
    peft = pytest.importorskip("peft")
    options = {"encoder_hidden_size": 8} if kind == "PromptEncoderConfig" else {}
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3, **options)
    steering = random_steering(tiny_model(layers=1), regulator=GENERATED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft itself, and that virtual tokens come before the text
        tuned = peft.get_peft_model(model, config).eval()
        with steering.apply(tuned.base_model if inside else tuned) as applied:
            tuned.generate(input_ids=PROMPT, attention_mask=torch.ones_like(PROMPT), **OPTIONS)
            assert strengths(applied) == [0.0] * 10 + [1.0] * 3


def encoding(kind: str) -> Any:
    """Return a tiny model with an encoder, and the site of its decoder's first block."""
    from transformers import GPT2Config, T5Config, T5ForConditionalGeneration, ViTConfig
    from transformers import VisionEncoderDecoderConfig as Config
    from transformers import VisionEncoderDecoderModel as Model

    torch.manual_seed(0)
    if kind == "t5":
        sizes = {"num_layers": 1, "num_heads": 2, "d_kv": 8, "d_ff": 16}
        model: Any = T5ForConditionalGeneration(T5Config(vocab_size=40, d_model=32, **sizes)).eval()
        model.generation_config.decoder_start_token_id = 0
        return model, "decoder.block.0"
    options = {"bos_token_id": 0, "eos_token_id": None, "add_cross_attention": True, "is_decoder": True}
    decoder = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=40, **options)
    seen = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    config = Config.from_encoder_decoder_configs(seen, decoder, decoder_start_token_id=0, pad_token_id=0)
    model = Model(config).eval()
    model.generation_config.decoder_start_token_id = 0
    return model, "decoder.transformer.h.0"


@pytest.mark.parametrize(
    ("kind", "given", "prompt"),
    [
        ("t5", {}, 1),
        ("t5", {"decoder_input_ids": [[0, 5, 6]]}, 3),
        ("t5", {"decoder_input_ids": [[5, 6, 7]]}, 4),  # generate() puts the start token before it
        ("t5", {"decoder_input_ids": [[5, 6, 7]], "decoder_attention_mask": [[0, 1, 1]]}, 4),
        ("pictures", {"input_ids": [[5, 6, 7]]}, 4),
    ],
)
def test_a_decoders_prompt_is_what_generate_makes_of_it(kind: str, given: Any, prompt: int) -> None:
    model, site = encoding(kind)
    encoded = {"input_ids": PROMPT} if kind == "t5" else {"pixel_values": torch.rand(1, 3, 8, 8)}
    own = {name: torch.tensor(ids) for name, ids in given.items()}
    with random_steering(model, site, regulator=GENERATED).apply(model) as applied:
        model.generate(**{**encoded, **own}, **OPTIONS)
        assert strengths(applied) == [0.0] * prompt + [1.0] * 3
        hidden = [place for place, real in enumerate(applied.trace().real[0].tolist()) if not real]
        assert hidden == ([1] if "decoder_attention_mask" in given else [])


def test_padding_of_the_prompt_is_read_where_the_model_is_given_a_prepared_mask(model: Any) -> None:
    padded = torch.tensor([[0, 0, 5, 6], [1, 2, 3, 4]])
    with random_steering(model, regulator=Position()).apply(model) as applied:
        generate(model, padded, attention_mask=(padded > 0).long(), cache_implementation="static")
        trace = applied.trace()
    assert trace.real.int().tolist() == [[0, 0, 1, 1, 1, 1, 1], [1] * 7]
    assert trace.strengths[0].tolist() == [[0, 0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7]]


def test_after_generate_has_raised_its_prompt_is_that_of_nobody(model: Any) -> None:
    class Full(Exception):
        pass

    def full(_ids: Tensor, _scores: Tensor) -> Tensor:
        raise Full

    cache = DynamicCache(config=model.config)
    with random_steering(model, regulator=GENERATED).apply(model) as applied:
        with pytest.raises(Full):
            generate(model, logits_processor=[full])
        for tokens in (3, 1):
            logits_of(model, PROMPT[:, :tokens], past_key_values=cache, use_cache=True)
        assert strengths(applied) == [0.0] * 3 + [1.0]


WAYS = {
    "argument": lambda model, scale: generate(model, guidance_scale=scale),
    "config": lambda model, scale: generate(model, PROMPT, GenerationConfig(guidance_scale=scale)),
}


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("how", [*WAYS, "the model's own"])
def test_of_guidance_the_branch_that_is_asked_for_is_steered_and_no_other(model: Any, how: str, cached: bool) -> None:
    """A negative prompt is the last token of the prompt, unless one is given."""
    model.generation_config.use_cache = cached
    if how == "the model's own":
        model.generation_config.guidance_scale = 2.0
    steered = {branch: _steered(model, how, branch) for branch in ("conditional", "unconditional", "both")}
    grown = [[*range(7)], [7], [8], [9]] if cached else [[*range(7 + number)] for number in range(4)]
    other = [[0], [1], [2], [3]] if cached else [[*range(1 + number)] for number in range(4)]
    assert steered["conditional"] == grown
    assert steered["unconditional"] == other
    assert steered["both"] == [each for pair in zip(grown, other, strict=True) for each in pair]


def _steered(model: Any, how: str, branch: Any) -> list[list[int]]:
    """Return the positions of every pass at which the regulator was asked."""
    steering, asked = random_steering(model, regulator=Position()), []
    steering.rules[0].regulator.register_forward_hook(lambda _m, args, _o: asked.append(args[1].positions[0].tolist()))
    with steering.apply(model, 0.1, branch=branch):
        if how in WAYS:
            WAYS[how](model, 2.0)
        else:
            generate(model)
    return asked


def test_a_model_that_generates_inside_of_another_call_tells_the_prompt_of_the_outer_one(model: Any) -> None:
    """As an assistant does, which is given what was generated so far."""
    calls, hooks = Generations(model, both=True), Hooks()
    with hooks:
        calls.watch(hooks, lambda: None)
        seen = []

        def inner(ids: Tensor, _scores: Tensor) -> Tensor:
            if len(seen) < 2:
                seen.append(calls.current.columns if calls.current is not None else None)
                generate(model, torch.cat([ids, ids], dim=1), logits_processor=[inner])
            return _scores

        generate(model, logits_processor=[inner])
    assert seen == [7, 7]
    assert calls.current is None


def test_a_prompt_in_chunks_is_not_taken_for_a_negative_one_which_has_an_end_of_its_own(model: Any) -> None:
    options = {"guidance_scale": 2.0, "prefill_chunk_size": 4}
    steering = random_steering(model, regulator=GENERATED)
    for branch, expected in (("conditional", [0.0] * 7 + [1.0] * 3), ("unconditional", [0.0] + [1.0] * 3)):
        with steering.apply(model, branch=branch) as applied:
            generate(model, **options)
            assert strengths(applied) == expected


@pytest.mark.parametrize("both", [False, True])
def test_a_negative_prompt_is_looked_for_only_while_a_call_has_one_and_one_branch_is_steered(
    model: Any, both: bool
) -> None:
    calls, hooks, seen = Generations(model, both=both), Hooks(), []

    def look(_ids: Tensor, scores: Tensor) -> Tensor:
        seen.append(bool(calls.guided))
        return scores

    with hooks:
        calls.watch(hooks, lambda: None)
        for scale in (None, 1.0, 2.0):
            generate(model, guidance_scale=scale, logits_processor=[look], max_new_tokens=1, min_new_tokens=1)
            assert not calls.guided
    assert seen == [False, False, not both]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("own", [False, True])
def test_two_that_listen_and_leave_in_any_order_leave_the_model_the_method_it_had(
    model: Any, order: tuple[int, int], own: bool
) -> None:
    calls = []

    def method(self: Any, *args: Any, **options: Any) -> Tensor:
        calls.append(self)
        return type(self).generate(self, *args, **options)

    if own:
        model.generate = MethodType(method, model)
    before, plain = vars(model).get("generate"), generate(model)
    steering = random_steering(model, regulator=GENERATED)
    both = [steering.apply(model).install() for _ in range(2)]
    for number in order:
        generate(model, prefill_chunk_size=3)  # whose last chunk looks like a generated token to one who does not know
        assert strengths(both[number]) == [0.0] * 7 + [1.0] * 3
        both[number].remove()
    assert vars(model).get("generate") is before
    assert ("generate" in vars(model)) == own
    assert torch.equal(generate(model), plain)
    assert len(calls) == 4 * own


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_of_a_model_that_is_steered_generates_by_itself_and_as_if_it_were_not(
    model: Any, copied: Callable[[Any], Any], own: bool
) -> None:
    if own:
        model.generate = partial(_shorter, model)
    plain = generate(model)
    with ExitStack() as stack:
        for _ in range(2):
            applied = stack.enter_context(random_steering(model, regulator=GENERATED).apply(model))
        twin = copied(model)
        assert torch.equal(generate(twin), plain)
        assert not applied.has_trace
        steered = generate(model)
        assert not torch.equal(steered, plain)
    with torch.no_grad():
        twin.lm_head.weight.zero_()
    assert torch.equal(generate(model), plain)
    assert not torch.equal(generate(twin), plain)


def _shorter(self: Any, *args: Any, **options: Any) -> Tensor:
    return type(self).generate(self, *args, **options)[:, :-1]
