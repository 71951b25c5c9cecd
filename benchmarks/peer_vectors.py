"""Claim: vectors that repeng and steering-vectors made do here, adopted, what they do there.

SmolLM2-135M-Instruct in float32. Each library makes a vector of 20 pairs of sentences, in the first person and not:
repeng by PCA (29 layers, which also go through its own GGUF file), steering-vectors by the mean difference (30 layers),
at layer outputs, MLP and attention. Each is applied by the library itself and by `dsas.adopt(..., "constant")`, and
compared over held-out prompts: the logits of all their tokens (largest difference, beside how far the vector moves
them), and greedy continuations, token by token. One prompt at a time: repeng counts padding by the positions it is
given.

    pip install --no-deps repeng==0.4.0 steering-vectors==0.12.2
    python benchmarks/peer_vectors.py [--only repeng|steering-vectors] [--prompts 20] [--tokens 40] [--out FOLDER]
"""

import argparse
import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from behaviours import texts_of

import dsas
from dsas.demo.models import real_model
from dsas.model.loading import LoadedModel, load_model

PAIRS = 20
PARTS = ("decoder_block", "mlp", "self_attn")
STRENGTHS = (1.0, -1.0)
Way = Callable[[float], Any]


@contextmanager
def by_repeng(model: Any, vector: Any, strength: float) -> Iterator[None]:
    """Let repeng steer the model itself."""
    from repeng import ControlModel

    control = ControlModel(model, list(vector.directions))
    control.set_control(vector, strength)
    try:
        yield
    finally:
        control.unwrap()


def made_by_repeng(loaded: LoadedModel, pairs: Sequence[tuple[str, str]]) -> Any:
    from repeng import ControlVector, DatasetEntry

    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    return ControlVector.train(loaded.model, tokenizer, [DatasetEntry(*pair) for pair in pairs], batch_size=1)


def row(name: str, loaded: LoadedModel, ways: Sequence[Any], prompts: Sequence[str], tokens: int) -> str:
    """Return a row. ways: makes the context in which the other library steers, and ours."""
    apart, moved, best, same = 0.0, 0.0, [], 0
    for prompt in prompts:
        given = loaded.tokenizer(prompt, return_tensors="pt")
        plain, found, said = _logits(loaded, given), [], []
        for way in ways:
            with way():
                found.append(_logits(loaded, given))
                options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
                said.append(loaded.model.generate(**given, **options).tolist())
        apart = max(apart, (found[0] - found[1]).abs().max().item())
        moved = max(moved, (found[0] - plain).abs().max().item())
        best.append(found[0].argmax(1) == found[1].argmax(1))
        same += said[0] == said[1]
    share = torch.cat(best).double().mean().item()
    return f"| {name} | {apart:.1e} | {moved:.2g} | {100 * share:.1f} % | {same} of {len(prompts)} |"


@torch.no_grad()
def _logits(loaded: LoadedModel, given: Any) -> torch.Tensor:
    return loaded.model(**given).logits[0].float()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=("repeng", "steering-vectors"))
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("out/peer_vectors"))
    arguments = parser.parse_args()
    if not (find_spec("repeng") and find_spec("steering_vectors")):
        print("nothing was measured: it needs pip install --no-deps repeng==0.4.0 steering-vectors==0.12.2")
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    np.float_ = np.float64  # type: ignore  # NumPy 2 has lost the name, which repeng looks up
    from steering_vectors import train_steering_vector

    arguments.out.mkdir(parents=True, exist_ok=True)
    loaded = load_model(str(real_model("smollm2")), precision="float32", device="cpu")
    fit, read = texts_of("first-person", arguments.prompts)
    prompts = [" ".join(text.split()[:8]) for text in read.source]
    pairs = list(zip(fit.source[:PAIRS], fit.control[:PAIRS], strict=True))

    vectors: dict[str, tuple[Any, Way]] = {}
    if arguments.only != "steering-vectors":
        theirs = made_by_repeng(loaded, pairs)
        file = arguments.out / "repeng.gguf"
        theirs.export_gguf(str(file))
        for name, given in (("repeng, its object", theirs), ("repeng, its GGUF file", file)):
            vectors[name] = (given, lambda s, v=theirs: by_repeng(loaded.model, v, s))
    for part in PARTS if arguments.only != "repeng" else ():
        vector = train_steering_vector(*loaded, pairs, layer_type=part, show_progress=False)  # type: ignore
        vectors[f"steering-vectors, {part}"] = (vector, lambda s, v=vector: v.apply(loaded.model, multiplier=s))

    print(f"{len(prompts)} prompts, {arguments.tokens} tokens, strengths 1 and -1", flush=True)
    print("| vector | largest difference of a logit | moved by steering | same likeliest token | same greedy text |")
    print("|---|---|---|---|---|")
    for name, (given, way) in vectors.items():
        adopted = dsas.adopt(given, *loaded, regulator="constant")
        for strength in STRENGTHS:
            both = (
                lambda w=way, s=strength: w(s),
                lambda a=adopted, s=strength: a.apply(loaded.model, s, record=False),
            )
            print(row(f"{name}, {strength:g}", loaded, both, prompts, arguments.tokens), flush=True)


if __name__ == "__main__":
    main()
