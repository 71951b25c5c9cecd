"""Claim: a steered site costs a few microseconds; in float32, less even with a regulator than others without one.

A stack of 30 blocks that do next to nothing is run on one token of width 576 after another over a cache, steered and
not: what is left is what steering costs in Python and launches, with what each Steering takes once in a pass. The
fastest of many passes counts. Other libraries as in `overhead.py`.

    python benchmarks/site_cost.py [--threads 1]
"""

import argparse
import json
import sys
import timeit
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

import dsas
from dsas.model.identity import ModelIdentity

WIDTH, BLOCKS, STRENGTH = 576, 30, 0.1


class Block(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.0


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(BLOCKS))

    def forward(self, inputs_embeds: Tensor, past_key_values: DynamicCache) -> Tensor:
        nothing = torch.zeros(len(inputs_embeds), 1, inputs_embeds.shape[1], 1)
        past_key_values.update(nothing, nothing, 0)
        for layer in self.layers:
            inputs_embeds = layer(inputs_embeds)
        return inputs_embeds


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Decoder()

    def get_decoder(self) -> nn.Module:
        return self.model

    def forward(self, inputs_embeds: Tensor, past_key_values: DynamicCache) -> Tensor:
        return self.model(inputs_embeds=inputs_embeds, past_key_values=past_key_values)


def fastest(model: Model, x: Tensor, passes: int = 40) -> float:
    """Return the seconds of the fastest of some passes of one token after a prompt of 8."""
    cache = DynamicCache()
    model(x.expand(1, 8, -1), cache)
    return min(timeit.repeat(lambda: model(x, cache), number=1, repeat=passes))


def steering_of(model: Model, how: Callable[[], dsas.Transform], when: Callable[[], dsas.Regulator]) -> dsas.Steering:
    sites = [dsas.Site(f"model.layers.{layer}") for layer in range(BLOCKS)]
    return dsas.Steering([dsas.Rule(site, how(), when()) for site in sites], ModelIdentity.of(model))


@contextmanager
def repeng(model: Model, dtype: torch.dtype) -> Iterator[None]:
    np.float_ = np.float64  # type: ignore  # NumPy 2 has lost the name, which repeng looks up when imported
    from repeng.control import BlockControlParams, ControlModule

    layers = model.model.layers
    for number, layer in enumerate(layers):
        layers[number] = ControlModule(layer)
        layers[number].set_control(BlockControlParams(torch.randn(WIDTH).to(dtype)))
    yield
    for number, layer in enumerate(layers):
        layers[number] = layer.block


def steering_vectors(model: Model, dtype: torch.dtype) -> Any:
    from steering_vectors import SteeringVector

    vectors = {layer: torch.randn(WIDTH).to(dtype) for layer in range(BLOCKS)}
    return SteeringVector(vectors).apply(model, layer_config={"decoder_block": "model.layers.{num}"})


@contextmanager
def composed(steering: dsas.Steering, model: Model, count: int) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(steering.apply(model, STRENGTH, record=False))
        yield


def ways_of(model: Model, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    vector = lambda: torch.randn(WIDTH) * 1e-3  # noqa: E731
    addition, logistic = lambda: dsas.Addition(vector()), lambda: dsas.Logistic(vector(), torch.tensor(0.0))
    caa = steering_of(model, addition, logistic)
    zero = torch.tensor(0.0)
    evidence = steering_of(model, addition, lambda: dsas.Evidence(vector(), zero, zero))
    affine = steering_of(model, lambda: dsas.Lineas(1 + vector(), vector()), logistic)
    constant = steering_of(model, addition, dsas.Constant)
    peers = {"steering_vectors": steering_vectors, "repeng": repeng}
    return {
        "nothing": nullcontext,
        "addition, constant": lambda: constant.apply(model, STRENGTH, record=False),
        "addition, logistic": lambda: caa.apply(model, STRENGTH, record=False),
        "addition, evidence": lambda: evidence.apply(model, STRENGTH, record=False),
        "affine, logistic": lambda: affine.apply(model, STRENGTH, record=False),
        "addition, logistic, recorded": lambda: caa.apply(model, STRENGTH),
        "addition, logistic, fused (wrapped)": lambda: caa.fuse(model, STRENGTH),
        "4 composed": lambda: composed(caa, model, 4),
        "16 composed": lambda: composed(caa, model, 16),
    } | {name: lambda way=way: way(model, dtype) for name, way in peers.items() if find_spec(name)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    warnings.simplefilter("ignore")
    torch.set_num_threads(parser.parse_args().threads)
    torch.set_grad_enabled(False)
    found: dict[str, Any] = {"python": sys.version.split()[0], "torch": torch.__version__}
    model = Model()
    for dtype in (torch.float32, torch.bfloat16):
        x, ways = torch.randn(1, 1, WIDTH, dtype=dtype), ways_of(model, dtype)
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(6):
            for name, way in ways.items():
                with way():
                    best[name] = min(best[name], fastest(model, x))
        bare = best.pop("nothing")
        found[str(dtype)] = {name: round((value - bare) / BLOCKS * 1e6, 2) for name, value in best.items()}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
