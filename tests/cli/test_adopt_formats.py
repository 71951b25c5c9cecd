"""`dsas adopt` reads every format, and the model then gives the logits that it gives under the library of origin.

repeng, steering-vectors and lm-eval steer the model themselves; persona vectors and ml-act are no packages, and plain
files have no library: there it is a hook, written from what the format's own code or paper says.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from formats.test_gguf_vectors import write_tensor
from formats.test_lm_eval_csv import HEAD, decoders
from formats.test_ml_act import PATH, linear_state
from formats.test_torch_vectors import IDS, LAYERS, WIDTH, added, vectors
from makers import logits_of
from safetensors.torch import save_file

import dsas
from dsas.testing import tiny_model, tiny_tokenizer

Written = tuple[Path, Callable[[Any], AbstractContextManager[Any]]]  # the file, and what steers a model as it says


def layers_moved(given: dict[int, torch.Tensor]) -> Callable[[Any], AbstractContextManager[Any]]:
    hooks = {f"model.layers.{layer}": lambda t, v=vector: t + v for layer, vector in given.items()}
    return lambda model: added(model, hooks)


def plain_pt(folder: Path) -> Written:
    torch.save({f"layer_{layer}": vector.bfloat16() for layer, vector in vectors().items()}, folder / "v.pt")
    return folder / "v.pt", layers_moved({layer: vector.bfloat16().float() for layer, vector in vectors().items()})


def safetensors(folder: Path) -> Written:
    save_file({f"layers.{layer}": vector.half() for layer, vector in vectors().items()}, folder / "v.safetensors")
    return folder / "v.safetensors", layers_moved({layer: v.half().float() for layer, v in vectors().items()})


def persona(folder: Path) -> Written:
    given = torch.randn(LAYERS + 1, WIDTH)
    torch.save(given, folder / "evil_response_avg_diff.pt")
    return folder / "evil_response_avg_diff.pt", layers_moved(dict(enumerate(given[1:])))


def ml_act(folder: Path) -> Written:
    state = linear_state()
    (folder / "states").mkdir()
    torch.save(state, folder / "states" / f"{PATH}:0.statedict")
    return folder / "states", lambda model: added(model, {PATH: lambda t: state["net.w1"] * t + state["net.b1"]})


def quantised_gguf(folder: Path) -> Written:
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType.Q8_0
    stored = gguf.quantize(vectors()[2].numpy()[None], kind)
    write_tensor(folder / "v.gguf", "controlvector", "direction.2", stored, kind)
    return folder / "v.gguf", layers_moved({2: torch.from_numpy(gguf.dequantize(stored, kind)[0])})


def repeng_gguf(folder: Path) -> Written:
    repeng = pytest.importorskip("repeng")
    theirs = repeng.ControlVector("llama", {layer: vector.numpy() for layer, vector in vectors().items()})
    theirs.export_gguf(str(folder / "v.gguf"))

    @contextmanager
    def steered(model: Any) -> Any:
        control = repeng.ControlModel(model, list(theirs.directions))
        control.set_control(theirs, 1.0)
        yield
        control.unwrap()

    return folder / "v.gguf", steered


def steering_vectors(folder: Path) -> Written:
    theirs = pytest.importorskip("steering_vectors").SteeringVector(vectors(), "mlp")
    torch.save(vars(theirs), folder / "v.pt")
    return folder / "v.pt", lambda model: theirs.apply(model)


def of_lm_eval(folder: Path, file: Path) -> Written:
    hf_steered = pytest.importorskip("lm_eval.models.hf_steered")
    theirs = hf_steered.SteeredModel(str(folder / "model"), str(file), device="cpu", dtype="float32")
    return file, lambda model: hf_steered.steer(model, theirs.hook_to_steer)


def lm_eval_pt(folder: Path) -> Written:
    first, second = vectors().values()
    given = {
        "layers.0": {"steering_vector": first, "steering_coefficient": 0.5, "action": "add", "bias": None},
        "layers.2.mlp": {"steering_vector": second, "action": "clamp", "bias": torch.randn(WIDTH)},
    }
    torch.save(given, folder / "steer.pt")
    return of_lm_eval(folder, folder / "steer.pt")


def lm_eval_csv(folder: Path) -> Written:
    weights = decoders(folder)
    line = f"sparsify,clamp,{folder / 'sae'},layers.0,3,0.5,,,\n"
    (folder / "steer.csv").write_text(HEAD + line, encoding="utf-8")
    direction, bias = weights["W_dec"][3] / weights["W_dec"][3].norm(), weights["b_dec"]
    hook = {"model.layers.0": lambda t: t + direction * (0.5 - ((t - bias) * direction).sum(-1, keepdim=True))}
    return folder / "steer.csv", lambda model: added(model, hook)


FORMATS = (
    plain_pt,
    safetensors,
    persona,
    ml_act,
    quantised_gguf,
    repeng_gguf,
    steering_vectors,
    lm_eval_pt,
    lm_eval_csv,
)


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.filterwarnings("ignore:.*deprecated")  # of other libraries
def test_adopting_from_the_command_line_gives_the_logits_of_the_library_of_origin(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Written]
) -> None:
    monkeypatch.setattr(np, "float_", np.float64, raising=False)  # which repeng 0.4 names, and NumPy 2 does not have
    model = tiny_model("llama", layers=LAYERS)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    file, steered = write(tmp_path)
    out = tmp_path / "adopted"
    status, _, error = run("adopt", file, "--model", tmp_path / "model", "--regulator", "constant", "--out", out)
    assert status == 0, error
    ids = IDS[:1]  # repeng reads no batches without positions
    plain = logits_of(model, ids)
    with steered(model), torch.no_grad():
        expected = logits_of(model, ids)
    assert not torch.allclose(expected, plain, atol=1e-3)
    with dsas.Steering.from_pretrained(out).apply(model, 1.0):
        torch.testing.assert_close(logits_of(model, ids), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits_of(model, ids), plain, rtol=0, atol=0)
