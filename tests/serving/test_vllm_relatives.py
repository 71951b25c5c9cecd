"""With vLLM: adapters, quantised weights and sounds are served beside steering as transformers has them."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import PROMPTS, Ask, Reference, Wanted, adding, generate, running, worst_difference
from makers import random_steering
from multimodal import medium, qwen_audio
from safetensors.torch import load_file, save_file
from served_relatives import llama, write_adapter, write_quantised
from transformers import AutoProcessor

import dsas
from dsas.testing import tiny_tokenizer

pytestmark = pytest.mark.vllm
NAMES = ("detox", "tone")
ASKS = (Ask(), Ask(("detox",), (1.0,)), Ask(("tone",), (1.0,)), Ask(("tone", "detox"), (0.7, 0.3)))
TOLERANCE = 1e-4


def write_steerings(root: Path, model: Any) -> None:
    """Write two Steerings of a model, of a logistic regulator and of evidence that adds up."""
    random_steering(model, ["residual", "mlp"], seed=1).save_pretrained(root / "detox")
    generator, plain = torch.Generator().manual_seed(7), random_steering(model, "residual", seed=6)
    rules = [rule._replace(regulator=adding(generator, 1.0, 0.9)) for rule in plain.rules]
    dsas.Steering(rules, plain.model).save_pretrained(root / "tone")


@contextmanager
def steered(model: Any, steerings: Sequence[dsas.Steering], strengths: Sequence[float], prompt: int) -> Iterator[None]:
    """Apply these, in order; prompt: how many tokens it has."""
    with ExitStack() as stack:
        for steering, strength in zip(steerings, strengths, strict=True):
            stack.enter_context(steering.apply(model, strength, record=False, prompt_tokens=prompt))
        yield


def test_adapters_and_steerings_are_chosen_request_by_request_in_one_batch(
    tmp_path: Path, record_property: Any
) -> None:
    model = llama()
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    write_steerings(tmp_path, model)
    models = {"": model, **{name: write_adapter(tmp_path / name, seed) for name, seed in (("one", 1), ("two", 2))}}
    references = {name: Reference(tmp_path, NAMES, one) for name, one in models.items()}
    work = [(prompt, ask, adapter) for ask in ASKS for adapter in models for prompt in PROMPTS]
    wanted = [references[adapter].generate(prompt, ask) for prompt, ask, adapter in work]
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    asked = {name: LoRARequest(name, number, str(tmp_path / name)) for number, name in enumerate(models) if name}
    # One place more than adapters: on CPUs, vLLM gives requests without an adapter what lies in the last place.
    options = {"enable_lora": True, "max_loras": 3, "max_lora_rank": 8, "max_num_batched_tokens": 64}
    with running(tmp_path, names=NAMES, **options) as llm:
        lora = [asked.get(adapter) for *_, adapter in work]
        every = [output for _ in range(2) for output in generate(llm, [one[:2] for one in work], lora_request=lora)]
    worst = max(worst_difference(*pair) for pair in zip(every, 2 * wanted, strict=True))
    record_property("worst log-probability difference", worst)
    record_property("prompt tokens that the prefix cache gave", sum(one.num_cached_tokens or 0 for one in every))
    assert worst < TOLERANCE
    first = {tuple(one.log_probabilities[0, :9].tolist()) for one in wanted[:: len(PROMPTS)]}
    assert len(first) == len(ASKS) * len(models)


def test_weights_of_four_bits_are_served_as_near_to_what_they_mean_as_transformers_in_bfloat16(
    tmp_path: Path, record_property: Any
) -> None:
    """The kernel multiplies in bfloat16, so the measure is the error that transformers makes in it."""
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

    write_steerings(tmp_path, llama())  # fitted on the model before it was quantised
    meant = write_quantised(tmp_path / "model")
    exact = Reference(tmp_path, NAMES, meant)
    wanted = {(ask, prompt): torch.tensor(exact.scores(prompt, ask)) for ask in ASKS for prompt in PROMPTS}
    whole = Reference(tmp_path, NAMES, llama())
    lost = {pair: torch.tensor(whole.scores(pair[1], pair[0])) - own for pair, own in wanted.items()}
    rounded = Reference(tmp_path, NAMES, meant.bfloat16())
    theirs = {pair: torch.tensor(rounded.scores(pair[1], pair[0])) - own for pair, own in wanted.items()}
    served = {}
    with running(tmp_path, names=NAMES, dtype="bfloat16", enable_prefix_caching=False) as llm:
        parameters = [SamplingParams(max_tokens=1, prompt_logprobs=0, extra_args=ask.extra_args()) for ask, _ in wanted]
        outputs = llm.generate([prompt for _, prompt in wanted], parameters, use_tqdm=False)
        for pair, output in zip(wanted, outputs, strict=True):
            ids = output.prompt_token_ids[1:]
            scores = [at[token].logprob for at, token in zip(output.prompt_logprobs[1:], ids, strict=True)]
            served[pair] = torch.tensor(scores) - wanted[pair]
    for ask in ASKS:
        own, other, quantising = (
            float(torch.cat([errors[ask, prompt] for prompt in PROMPTS]).square().mean().sqrt())
            for errors in (served, theirs, lost)
        )
        record_property(
            f"root mean square errors of {ask.names}: served, transformers, quantising", (own, other, quantising)
        )
        assert 0 < own < 1.5 * other < quantising


WIDE = {"num_attention_heads": 1, "num_key_value_heads": 1, "initializer_range": 0.2}  # heads that its attention takes


def test_a_prompt_with_a_sound_is_steered_as_transformers_steers_it(tmp_path: Path, record_property: Any) -> None:
    """Of the models that read more than texts, those of sounds ask for no package that fetches another torch."""
    family, said = qwen_audio(**WIDE), "<|audio_bos|><|AUDIO|><|audio_eos|>What?"
    model: Any = family.model
    model.save_pretrained(tmp_path / "model")
    family.processor.save_pretrained(tmp_path / "model")
    processor: Any = AutoProcessor.from_pretrained(tmp_path / "model")  # as vLLM makes it
    file = tmp_path / "model" / "model.safetensors"  # transformers 5.19 names the decoder of Qwen2-Audio twice
    named = {name.replace(".model.model.", ".model."): weight for name, weight in load_file(file).items()}
    save_file(named, file, metadata={"format": "pt"})
    write_steerings(tmp_path, model)
    steerings = {name: dsas.Steering.from_pretrained(tmp_path / name) for name in NAMES}
    work = [(medium("audio", seed), ask) for ask in ASKS for seed in (0, 1)]
    wanted = []
    for heard, ask in work:
        given = processor(text=said, audio=heard, sampling_rate=16000, return_tensors="pt")
        length = given.input_ids.shape[1]
        with steered(model, [steerings[name] for name in ask.names], ask.strengths, length), torch.no_grad():
            out = model.generate(**given, max_new_tokens=8, do_sample=False, eos_token_id=None)
            given["input_ids"], given["attention_mask"] = out, torch.ones_like(out)
            logits = model(**given).logits[0, length - 1 : -1]
        wanted.append(Wanted(out[0, length:].tolist(), torch.log_softmax(logits, -1)))
    options = {"max_model_len": 1024, "max_num_batched_tokens": 1024, "skip_mm_profiling": True}
    with running(tmp_path, names=NAMES, **options) as llm:
        prompts = [{"prompt": said, "multi_modal_data": {"audio": (heard, 16000)}} for heard, _ in work]
        outputs = generate(llm, [(prompt, ask) for prompt, (_, ask) in zip(prompts, work, strict=True)])
    worst = max(worst_difference(*pair) for pair in zip(outputs, wanted, strict=True))
    record_property("worst log-probability difference", worst)
    assert worst < TOLERANCE
    assert len({tuple(one.log_probabilities[0, :9].tolist()) for one in wanted}) == len(
        work
    )  # what is heard counts too
