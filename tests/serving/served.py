"""Stand-ins for what dsas uses of vLLM: a model of its shape, runners of both generations, a configuration."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from makers import random_steering
from torch import Tensor, nn

from dsas.model.forward_pass import ForwardPass
from dsas.model.sequence import Sequences
from dsas.serving.config import ServingConfig, source_of
from dsas.steering.steering import Steering
from dsas.testing.models import LAYERS, WIDTH, tiny_model

TOKENS, REQUESTS = 16, 4
BLOCKS, BLOCK = 24, 4  # of the KV cache: how many, of how many tokens


class Layer(nn.Module):
    """A decoder layer that gives (hidden, residual) and changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return hidden, residual


class Served(nn.Module):
    """A model whose layers have the paths of a tiny Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, hidden: Tensor) -> Tensor:
        residual = torch.zeros_like(hidden)
        for layer in self.model.layers:  # pyright: ignore[reportGeneralTypeIssues]
            hidden, residual = layer(hidden, residual)
        return hidden + residual


def request(*resolved: tuple[str, float], **extra_args: Any) -> Any:
    """Return the parameters of a request that was let in with these digests and strengths."""
    return SimpleNamespace(extra_args={"dsas_resolved": list(resolved), **extra_args} if resolved else extra_args)


class SlidingWindowSpec(SimpleNamespace):
    """What vLLM says of layers with a window."""


class FullAttentionSpec(SimpleNamespace):
    """What vLLM says of layers that attend to everything."""


class MambaSpec(SimpleNamespace):
    """What vLLM says of layers that keep one state."""


def kv_cache(*specs: Any) -> Any:
    """Return vLLM's configuration of a KV cache of these groups of layers; usually of two, the second with windows."""
    usual = [SlidingWindowSpec(block_size=1), FullAttentionSpec(block_size=BLOCK)]
    groups = [SimpleNamespace(kv_cache_spec=spec) for spec in specs or usual]
    return SimpleNamespace(num_blocks=BLOCKS, kv_cache_groups=groups)


def table_of_blocks(blocks: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the block table of requests."""
    table = np.zeros((REQUESTS, BLOCKS), dtype=np.int32)
    for row, own in zip(table, blocks, strict=False):
        row[: len(own)] = own
    return table


class First:
    """A model runner of the first generation: it knows its requests by id, and prepares a step for those of a batch."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.requests = model, {}
        self.input_batch = SimpleNamespace(req_ids=[])

    def get_model(self) -> nn.Module:
        return self.model

    def initialize_kv_cache(self, config: Any) -> None:
        self.kv_cache_config = config

    def _prepare_inputs(self, scheduler_output: Any, counts: np.ndarray) -> Any:
        self.input_batch.req_ids = scheduler_output  # the batch is put in order here, and no sooner
        return "prepared"

    def execute_model(self, t: Tensor) -> Tensor:
        return self.model(t)

    def run(
        self,
        requests: dict[str, Any],
        counts: list[int],
        computed: Sequence[int] = (),
        blocks: Sequence[Sequence[int]] = (),
        *,
        prompts: Sequence[int] = (),
        ids: Sequence[Sequence[int]] = (),
    ) -> Any:
        """Prepare a step of these requests, as many tokens each, after those computed before, in their blocks.

        prompts: how long the prompt of each is. ids: the numbers of the tokens of each.
        """
        batch, table = self.input_batch, table_of_blocks(blocks)
        batch.num_computed_tokens_cpu = np.zeros(REQUESTS, dtype=np.int32)
        batch.num_computed_tokens_cpu[: len(computed)] = computed
        batch.block_table = [SimpleNamespace(get_numpy_array=lambda of=of: of) for of in (0 * table, table)]
        batch.token_ids_cpu = table_of_blocks(ids)
        lengths = list(prompts) or [0] * len(requests)
        self.requests |= {
            name: SimpleNamespace(sampling_params=asked, num_prompt_tokens=length)
            for (name, asked), length in zip(requests.items(), lengths, strict=True)
        }
        return self._prepare_inputs(list(requests), np.array(counts, dtype=np.int32))


class State:
    """A model state of the second generation."""

    max_num_reqs = REQUESTS

    def __init__(self) -> None:
        self.added: list[int] = []

    def add_request(self, number: int, new: Any) -> None:
        self.added.append(number)

    def prepare_inputs(self, batch: Any, states: Any) -> dict[str, Any]:
        return {"positions": None}


class Tables:
    """Block tables of the second generation, which lie on the device."""

    def append_block_ids(self, number: int, ids: Any, overwrite: bool) -> None:
        """Take more blocks of a request."""


class Second:
    """A model runner of the second generation, which tells its model state of everything, by number."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.model_state = model, State()

    def get_model(self) -> nn.Module:
        return self.model

    def initialize_kv_cache(self, config: Any) -> None:
        self.kv_cache_config, self.block_tables = config, Tables()

    def execute_model(self, t: Tensor) -> Tensor:
        return self.model(t)

    def run(
        self,
        requests: dict[str, Any],
        counts: list[int],
        computed: Sequence[int] = (),
        blocks: Sequence[Sequence[int]] = (),
        *,
        prompts: Sequence[int] = (),
        ids: Sequence[Sequence[int]] = (),
    ) -> Any:
        """Add these requests, then prepare a step of them in reverse order of their numbers."""
        numbers = list(range(len(requests)))[::-1]
        for number, own in zip(numbers, blocks, strict=False):
            self.block_tables.append_block_ids(number, ([0] * len(own), own[:1]), overwrite=True)
            self.block_tables.append_block_ids(number, ([], own[1:]), overwrite=False)
        lengths = list(prompts) or [0] * len(requests)
        for number, asked, length in zip(numbers, requests.values(), lengths, strict=True):
            name = next(name for name, one in requests.items() if one is asked)
            new = SimpleNamespace(req_id=name, sampling_params=asked, prompt_token_ids=[0] * length)
            self.model_state.add_request(number, new)
        batch = SimpleNamespace(
            idx_mapping_np=np.array(numbers),
            num_scheduled_tokens=np.array(counts),
            num_computed_tokens_np=np.array(computed or [0] * len(counts)),
        )
        return self.model_state.prepare_inputs(batch, None)


def steered_by_hand(steering: Steering, t: Tensor, strength: float, prompt: int | None = None) -> Tensor:
    """Return the tokens of one row after all layers, each of which does nothing but steer.

    prompt: how many of them are its prompt; all, unless given.
    """
    history = Sequences(1, prompt_tokens=None if prompt is None else torch.tensor([prompt]))
    history.begin(0, len(t))
    step = ForwardPass(1, len(t), history=history)
    for number, rule in enumerate(steering.rules):
        step.site = number
        t = t + strength * rule.weight * (rule.regulator(t[None], step) * rule.transform.edit(t[None]))[0]
    return t


def store(root: Path, *names: str, sites: Any = "residual", **methods: Any) -> dict[str, Steering]:
    """Write Steerings of a tiny Llama into folders of these names, each of its own vectors, and return them."""
    model = tiny_model("llama")
    steerings = {name: random_steering(model, sites, seed=seed, **methods) for seed, name in enumerate(names, 1)}
    for name, steering in steerings.items():
        steering.save_pretrained(root / name)
    return steerings


def vllm_config(
    root: Path, *names: str, together: int = 1, spare: int = 0, reports: bool = False, **features: Any
) -> Any:
    """Return a configuration of vLLM that serves these Steerings on a tiny Llama."""
    folders = {name: str(root / name) for name in names}
    sources = {name: source_of(folder, Steering.from_pretrained(folder)) for name, folder in folders.items()}
    text = SimpleNamespace(hidden_size=WIDTH, num_hidden_layers=LAYERS)
    parts = {
        "additional_config": ServingConfig(sources, together, spare, reports).as_json(),
        "model_config": SimpleNamespace(
            hf_text_config=text, hf_config=SimpleNamespace(architectures=["LlamaForCausalLM"])
        ),
        "parallel_config": SimpleNamespace(),
        "cache_config": SimpleNamespace(enable_prefix_caching=True),
        "kv_transfer_config": None,
        "speculative_config": None,
        "compilation_config": SimpleNamespace(max_cudagraph_capture_size=None),
        "scheduler_config": SimpleNamespace(max_num_batched_tokens=TOKENS, max_num_seqs=REQUESTS),
    }
    return SimpleNamespace(**{**parts, **features})
