"""What every test runs under: one thread, no network, fixed seeds; and a model whose tokens are words."""

import os
import random
from collections.abc import Iterator
from importlib.util import find_spec

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported: so before the imports below

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 90

torch.set_num_threads(1)


def _skipping_without_diffusers() -> Iterator[None]:
    """Skip what asks for diffusers where it is not installed, as beside the oldest transformers."""
    try:
        return (yield)
    except ImportError as error:
        if find_spec("diffusers") is None and "diffusers" in str(error):
            pytest.skip("needs diffusers")
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    return (yield from _skipping_without_diffusers())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    return (yield from _skipping_without_diffusers())


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_compiled_code_of_others(request: pytest.FixtureRequest) -> None:
    """Begin without what other tests compiled: torch makes code for a function eight times, whichever the model."""
    if request.node.get_closest_marker("compile"):
        torch.compiler.reset()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<end>": 0, **{f"w{i}": i for i in range(1, VOCABULARY)}}
    core = Tokenizer(models.WordLevel(words, unk_token="w1"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")


@pytest.fixture
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
        initializer_range=0.4,
        attention_dropout=0.5,  # so that a result in training mode is another
    )
    return LlamaForCausalLM(config)
