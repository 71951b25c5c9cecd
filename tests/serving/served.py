"""Stand-ins for what dsas uses of vLLM: a model of its shape, runners of both generations, a configuration."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from makers import random_steering
from torch import Tensor, nn

from dsas.serving.config import ServingConfig, source_of
from dsas.steering.steering import Steering
from dsas.testing.models import LAYERS, WIDTH, tiny_model

TOKENS, REQUESTS = 16, 4


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


class First:
    """A model runner of the first generation: it knows its requests by id, and prepares a step for those of a batch."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.requests = model, {}
        self.input_batch = SimpleNamespace(req_ids=[])

    def get_model(self) -> nn.Module:
        return self.model

    def _prepare_inputs(self, scheduler_output: Any, counts: np.ndarray) -> Any:
        self.input_batch.req_ids = scheduler_output  # the batch is put in order here, and no sooner
        return "prepared"

    def execute_model(self, t: Tensor) -> Tensor:
        return self.model(t)

    def run(self, requests: dict[str, Any], counts: list[int]) -> Any:
        """Prepare a step of these requests, as many tokens each."""
        self.requests.update({name: SimpleNamespace(sampling_params=asked) for name, asked in requests.items()})
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


class Second:
    """A model runner of the second generation, which tells its model state of everything, by number."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.model_state = model, State()

    def get_model(self) -> nn.Module:
        return self.model

    def execute_model(self, t: Tensor) -> Tensor:
        return self.model(t)

    def run(self, requests: dict[str, Any], counts: list[int]) -> Any:
        """Add these requests, then prepare a step of them in reverse order of their numbers."""
        numbers = list(range(len(requests)))[::-1]
        for number, asked in zip(numbers, requests.values(), strict=True):
            self.model_state.add_request(number, SimpleNamespace(sampling_params=asked))
        batch = SimpleNamespace(idx_mapping_np=np.array(numbers), num_scheduled_tokens=np.array(counts))
        return self.model_state.prepare_inputs(batch, None)


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
        "cache_config": SimpleNamespace(),
        "speculative_config": None,
        "compilation_config": SimpleNamespace(max_cudagraph_capture_size=None),
        "scheduler_config": SimpleNamespace(max_num_batched_tokens=TOKENS),
    }
    return SimpleNamespace(**{**parts, **features})
