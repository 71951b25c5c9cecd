"""Claim: what steering adds to a token is some 1e-4 of a model's products and weights, and less the wider it is.

Counted by torch's own counter of operations and by the tensors that are made, one generated token of batch 1, steered
at every default site with CAA and a logistic regulator, less the unsteered model. Models without weights ("meta"), so
the sizes of 7B and 70B are counted, too, and nothing is timed.

    python benchmarks/scale_counts.py [--sizes 128x4,512x8,2048x16,4096x32,8192x80]
"""

import argparse
import json
import warnings
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from dsas import Addition, Logistic, Rule, Steering, find_sites
from dsas.model.identity import ModelIdentity
from dsas.runtime import edit

HIDDEN = {4096: 11008, 8192: 28672}  # of Llama 2 7B and 70B
HEADS = {8192: 8}  # for keys and values
WIDTH_OF_HEAD = 128


class Made(TorchDispatchMode):
    """Counts operators other than views, and the bytes of the tensors that they make."""

    def __init__(self) -> None:
        super().__init__()
        self.launches, self.bytes = 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not function.is_view and "view" not in function.__name__:
            self.launches += 1
            if isinstance(result, Tensor) and not function.__name__.split(".")[0].endswith("_"):
                self.bytes += result.nbytes
        return result


def model_of(width: int, depth: int) -> Any:
    heads = max(1, width // WIDTH_OF_HEAD)
    config = LlamaConfig(
        hidden_size=width, intermediate_size=HIDDEN.get(width, 4 * width), num_hidden_layers=depth, vocab_size=32000,
        num_attention_heads=heads, num_key_value_heads=HEADS.get(width, heads),
    )  # fmt: skip
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def counts(model: Any, steering: Any) -> dict[str, int]:
    """Return what the second generated token takes."""
    cache, ids = DynamicCache(), torch.zeros(1, 8, dtype=torch.long, device="meta")
    with steering.apply(model, 0.1, record=False) if steering else nullcontext():
        model(input_ids=ids, past_key_values=cache)
        model(input_ids=ids[:, :1], past_key_values=cache)
        with FlopCounterMode(display=False) as flops, Made() as made:
            model(input_ids=ids[:, :1], past_key_values=cache)
    return {"flops": flops.get_total_flops(), "launches": made.launches, "bytes made": made.bytes}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", default="128x4,512x8,2048x16,4096x32,8192x80")
    warnings.simplefilter("ignore")
    torch.set_grad_enabled(False)
    edit.autocasts = lambda _: False  # torch cannot say this of "meta"
    for size in parser.parse_args().sizes.split(","):
        width, depth = map(int, size.split("x"))
        model = model_of(width, depth)
        sites = find_sites(model)
        rules = [
            Rule(site, Addition(torch.ones(width)), Logistic(torch.ones(width), torch.zeros(()))) for site in sites
        ]
        steering = Steering(rules, ModelIdentity.of(model))
        plain, steered = counts(model, None), counts(model, steering)
        added = {name: (steered[name] - plain[name]) / len(sites) for name in plain}
        weights = sum(value.numel() * value.element_size() for value in model.parameters())
        vectors = 3 * width * 4  # theta, the vector, and the vector at this strength, which an apply keeps
        print(
            json.dumps(
                {
                    "size": size,
                    "parameters": sum(value.numel() for value in model.parameters()),
                    "sites": len(sites),
                    "added per site": added,
                    "flops over the model's": added["flops"] * len(sites) / plain["flops"],
                    "bytes made over the model's": added["bytes made"] * len(sites) / plain["bytes made"],
                    "vectors, bytes": vectors * len(sites),
                    "vectors over weights": vectors * len(sites) / weights,
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
