"""What other libraries' vectors do to a model is what they do when dsas reads them."""

import pickle
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from makers import logits_of
from safetensors.torch import save_file
from torch import Tensor

import dsas
from dsas.errors import ArtifactError
from dsas.formats.torch_vectors import read_object
from dsas.testing import tiny_model, tiny_tokenizer

WIDTH, LAYERS = 32, 3
IDS = torch.arange(12).reshape(2, 6) + 60


def vectors(seed: int = 0) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(WIDTH, generator=generator) for layer in (0, 2)}


@contextmanager
def added(model: Any, modules: dict[str, Any]) -> Any:
    """Change what modules give by functions, independently of dsas."""

    def changing(function: Any) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> Any:
            whole = function(output[0] if isinstance(output, tuple) else output)
            return (whole, *output[1:]) if isinstance(output, tuple) else whole

        return hook

    handles = [model.get_submodule(path).register_forward_hook(changing(one)) for path, one in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def same_as(given: Any, modules: dict[str, Any], strength: float = 1.0) -> None:
    model = tiny_model("llama", layers=LAYERS)
    with added(model, modules):
        expected = logits_of(model, IDS)
    with dsas.adopt(given, model, regulator="constant").apply(model, strength):
        torch.testing.assert_close(logits_of(model, IDS), expected, rtol=1e-5, atol=1e-5)


def test_vectors_by_layer_are_added_to_the_output_of_that_decoder_layer(tmp_path: Path) -> None:
    given = vectors()
    modules = {f"model.layers.{layer}": lambda t, v=vector: t + 0.5 * v for layer, vector in given.items()}
    same_as(given, modules, 0.5)
    torch.save(given, tmp_path / "v.pt")
    same_as(tmp_path / "v.pt", modules, 0.5)
    save_file({f"layer.{layer}": vector for layer, vector in given.items()}, tmp_path / "v.safetensors")
    same_as(tmp_path / "v.safetensors", modules, 0.5)
    torch.save({f"layers.{layer}.resid": vector for layer, vector in given.items()}, tmp_path / "named.pt")
    same_as(tmp_path / "named.pt", modules, 0.5)
    torch.save({"directions": given, "model_type": "llama"}, tmp_path / "fields.pt")
    same_as(tmp_path / "fields.pt", modules, 0.5)
    same_as({str(layer - LAYERS): vector for layer, vector in given.items()}, modules, 0.5)
    same_as({layer - LAYERS: vector for layer, vector in given.items()}, modules, 0.5)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("model.layers.2", "model.layers.2"),
        ("happy_layer_2_vector", "model.layers.2"),
        ("blocks.2.hook_resid_post", "model.layers.2"),
        ("model.layers.2.mlp", "model.layers.2.mlp"),
        ("layers.2.mlp.weight", "model.layers.2.mlp"),
        ("mlp_2", "model.layers.2.mlp"),
        ("qwen2.5_layer_2", "model.layers.2"),
        ("blocks.2.hook_attn_out", "model.layers.2.self_attn"),
        ("layers.2.input_layernorm", "model.layers.2.input_layernorm"),
    ],
)
def test_a_name_says_at_which_part_of_a_layer_its_vector_is_added(tmp_path: Path, name: str, path: str) -> None:
    vector = vectors()[2]
    save_file({name: vector}, tmp_path / "v.safetensors")
    same_as(tmp_path / "v.safetensors", {path: lambda t: t + vector})


@pytest.mark.parametrize(
    "name",
    ["blocks.2.hook_resid_pre", "resid_mid_2", "blocks.2.attn.hook_z", "layers.2.self_attn.q_proj", "attn_mlp_2"],
)
def test_a_name_of_another_place_is_refused(name: str) -> None:
    with pytest.raises(ArtifactError, match=f"'{name}' names another place than the output of a decoder layer"):
        read_object({name: vectors()[2]}, "it")


def test_entry_i_plus_1_of_a_persona_vector_is_layer_i(tmp_path: Path) -> None:
    given = torch.randn(LAYERS + 1, WIDTH)
    torch.save(given, tmp_path / "evil_response_avg_diff.pt")
    modules = {f"model.layers.{layer}": lambda t, v=given[layer + 1]: t + v for layer in range(LAYERS)}
    same_as(tmp_path / "evil_response_avg_diff.pt", modules)
    with pytest.raises(ArtifactError, match=r"one tensor \(4, 32\), which does not say what its rows are"):
        read_object(given, "it")


@pytest.mark.parametrize(
    ("part", "path"),
    [("decoder_block", ""), ("mlp", ".mlp"), ("self_attn", ".self_attn"), ("input_layernorm", ".input_layernorm")],
)
def test_a_vector_of_steering_vectors_is_added_to_its_part_of_the_layer(tmp_path: Path, part: str, path: str) -> None:
    class SteeringVector(NamedTuple):
        layer_activations: dict[int, Tensor]
        layer_type: str

    given = SteeringVector(vectors(), part)
    modules = {f"model.layers.{layer}{path}": lambda t, v=vector: t + v for layer, vector in vectors().items()}
    same_as(given, modules)
    torch.save(given._asdict(), tmp_path / "v.pt")
    same_as(tmp_path / "v.pt", modules)


def test_vectors_of_lm_eval_are_added_or_set_at_their_module(tmp_path: Path) -> None:
    first, second = vectors().values()
    bias = torch.randn(WIDTH)
    given = {
        "layers.0": {"steering_vector": first, "steering_coefficient": 0.5, "action": "add", "bias": None},
        "layers.2.mlp": {"steering_vector": second, "steering_coefficient": 2.0, "action": "clamp", "bias": bias},
    }
    torch.save(given, tmp_path / "steer.pt")
    direction = second / second.norm()
    modules = {
        "model.layers.0": lambda t: t + 0.5 * first,
        "model.layers.2.mlp": lambda t: t + direction * (2.0 - ((t - bias) * direction).sum(-1, keepdim=True)),
    }
    same_as(tmp_path / "steer.pt", modules)


@pytest.mark.parametrize("part", ["decoder_block", "mlp", "self_attn", "input_layernorm", "post_attention_layernorm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_vector_of_steering_vectors_does_what_it_does_there(part: Any, dtype: torch.dtype) -> None:
    model, given = tiny_model("llama", layers=LAYERS), {n: vector.to(dtype) for n, vector in vectors().items()}
    given[-2] = given.pop(0)  # which it takes for a place in its list of layers
    theirs = pytest.importorskip("steering_vectors").SteeringVector(given, part)
    with theirs.apply(model, multiplier=0.5):
        expected = logits_of(model, IDS)
    with dsas.adopt(theirs, model, regulator="constant").apply(model, 0.5):
        torch.testing.assert_close(logits_of(model, IDS), expected, rtol=1e-5, atol=1e-5)


def test_a_vector_that_steering_vectors_trained_does_what_it_does_there() -> None:
    library = pytest.importorskip("steering_vectors")
    model, pairs = tiny_model("llama", layers=LAYERS), [(f"good {word}", f"bad {word}") for word in ("day", "soup")]
    theirs = library.train_steering_vector(model, tiny_tokenizer(), pairs, show_progress=False)
    with theirs.apply(model, multiplier=2.0):
        expected = logits_of(model, IDS)
    assert not torch.allclose(expected, logits_of(model, IDS), atol=1e-3)
    with dsas.adopt(theirs, model, regulator="constant").apply(model, 2.0):
        torch.testing.assert_close(logits_of(model, IDS), expected, rtol=1e-5, atol=1e-5)


def test_a_control_vector_of_repeng_does_what_it_does_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "float_", np.float64, raising=False)  # which repeng 0.4 names, and NumPy 2 does not have
    repeng = pytest.importorskip("repeng")
    given = {layer: vector.numpy() for layer, vector in vectors().items()}
    theirs, model = repeng.ControlVector("llama", given), tiny_model("llama", layers=LAYERS)
    steering = dsas.adopt(theirs, model, regulator="constant")
    with steering.apply(model, 0.5):
        found = logits_of(model, IDS[:1])
    control = repeng.ControlModel(model, list(given))
    control.set_control(theirs, 0.5)
    torch.testing.assert_close(found, logits_of(control, IDS[:1]), rtol=1e-5, atol=1e-5)


def test_a_file_that_repeng_wrote_and_one_that_it_reads_mean_the_same_there_and_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(np, "float_", np.float64, raising=False)
    repeng, _ = pytest.importorskip("repeng"), pytest.importorskip("gguf")
    given = {layer: vector.numpy() for layer, vector in vectors().items()}
    repeng.ControlVector("llama", given).export_gguf(str(tmp_path / "theirs.gguf"))
    model = tiny_model("llama", layers=LAYERS)
    ours = dsas.adopt(tmp_path / "theirs.gguf", model, regulator="constant")
    assert ours.settings["adopted"]["for"] == "llama"
    assert [rule.transform.get_buffer("vector").tolist() for rule in ours.rules] == [v.tolist() for v in given.values()]
    dsas.write_gguf(dsas.adopt({2: given[2]}, model, regulator="constant"), tmp_path / "ours.gguf", strength=0.5)
    again = repeng.ControlVector.import_gguf(str(tmp_path / "ours.gguf"))
    assert again.directions[2].tolist() == (0.5 * given[2]).tolist()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({0: torch.ones(3, 4)}, "layer 0: expected one vector, got shape"),
        ({0: torch.ones(4), 1: torch.ones(5)}, r"vectors of one width, got \[4, 5\]"),
        ({0: torch.tensor([1.0, float("nan")])}, "layer 0 holds values that are not finite"),
        ({"x": torch.ones(4)}, "expected the number of a decoder layer, got 'x'"),
        ({1.0: torch.ones(4)}, "expected the number of a decoder layer, got 1.0"),
        ({"layers.1.2": torch.ones(4)}, "expected the number of a decoder layer, got 'layers.1.2'"),
        ({1: torch.ones(4), "layer_1": torch.ones(4)}, "each layer once, and 'layer_1' is another one"),
        ({0: torch.zeros(4), 1: torch.zeros(4)}, "every vector in it is 0"),
        ({0: np.arange(4)}, r"expected a vector of real numbers, got \(4,\) int64"),
        (
            {0: torch.ones(4).to_sparse()},
            r"a vector of real numbers, got \(4,\) torch.float32 torch.sparse_coo",
        ),
        ({"layers.1.mlp.experts.2": torch.ones(4)}, "expected the number of a decoder layer, got"),
        ({0: "x"}, "expected a vector of real numbers, got str"),
        ({10**9: torch.ones(4)}, "expected the number of a decoder layer"),
        ({}, "expected vectors by layer, got dict"),
        (3, "expected vectors by layer, got int"),
        ({"layer_activations": {0: torch.ones(4)}, "layer_type": "lm_head"}, "expected vectors for one of"),
        (
            {"a": {"steering_vector": torch.ones(4), "action": "add", "head_index": 1}},
            "single attention heads are not supported",
        ),
        ({"a": {"steering_vector": torch.zeros(4), "action": "clamp"}}, "its vector is 0"),
        ({"a": {"steering_vector": torch.ones(4), "action": "push"}}, "expected the action 'add'"),
    ],
)
def test_what_is_no_vector_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        read_object(given, "it")


def test_a_pickle_that_runs_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return sys.exit, (3,)

    torch.save({0: Runs()}, tmp_path / "v.pt")
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Runs()))
    for name in ("v.pt", "w.pt"):
        with pytest.raises(ArtifactError, match="not a file of tensors that torch reads without running code"):
            dsas.read_vectors(tmp_path / name)
