"""Control vectors of llama.cpp: read as they were written, and written only where that says all."""

from pathlib import Path

import numpy as np
import pytest
import torch
from makers import logits_of, random_steering, unchecked

import dsas
from dsas.errors import ArtifactError, DsasWarning, OptionError, StrengthError
from dsas.formats.gguf_vectors import read_gguf, write_gguf
from dsas.testing import tiny_model

gguf = pytest.importorskip("gguf")
IDS = torch.arange(12).reshape(2, 6) + 60


def constant(model: torch.nn.Module, **options: object) -> dsas.Steering:
    return random_steering(model, [1, 2], regulator=dsas.Constant(0.5), **options)  # type: ignore[arg-type]


def write_tensor(file: Path, kind: str, name: str, value: np.ndarray, raw: object = None) -> None:
    """Write a GGUF file with one tensor; raw: the type of a value that is bytes."""
    writer = gguf.GGUFWriter(file, kind)
    writer.add_string(f"{kind}.model_hint", "llama")
    writer.add_tensor(name, value, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_what_is_written_steers_as_it_did_when_it_is_adopted_again(tmp_path: Path) -> None:
    model = tiny_model("llama", layers=3)
    steering = constant(model, weight=0.8)
    with steering.apply(model, 0.3):
        expected = logits_of(model, IDS)
    write_gguf(steering, tmp_path / "v.gguf", strength=0.3)
    published = read_gguf(tmp_path / "v.gguf")
    assert (published.format, published.of, sorted(published.edits)) == ("gguf", "llama", [1, 2])
    with dsas.adopt(tmp_path / "v.gguf", model, regulator="constant").apply(model, 1.0):
        torch.testing.assert_close(logits_of(model, IDS), expected, rtol=1e-5, atol=1e-5)


def test_what_a_control_vector_cannot_say_is_refused_by_rule_and_reason(tmp_path: Path) -> None:
    model = tiny_model("llama", layers=3)
    for steering, message in (
        (random_steering(model, [0], regulator=dsas.Constant()), "no vector for the first layer"),
        (random_steering(model, "mlp", regulator=dsas.Constant()), "not at the output of a decoder layer"),
        (random_steering(model, [1]), r"layers\.1 .* Logistic looks at the token"),
        (constant(model, transform=dsas.Ablation(torch.ones(32), torch.tensor(0.0))), "Ablation adds no vector"),
        (constant(model, weight=0.0), "nothing to write"),
    ):
        with pytest.raises(OptionError, match=message):
            write_gguf(steering, tmp_path / "v.gguf")
    with pytest.raises(OptionError, match="expected one Steering, got a Composition"):
        unchecked(write_gguf)(dsas.Composition([constant(model)]), tmp_path / "v.gguf")
    for place in (tmp_path, tmp_path / "absent" / "v.gguf"):
        with pytest.raises(OptionError, match="expected a file in a folder that is there"):
            write_gguf(constant(model), place)
    large = constant(model, transform=dsas.Addition(torch.full((32,), 4.0)))
    with pytest.raises(StrengthError, match=r"at strength 3e\+38 the vector of model\.layers\.1 is beyond"):
        write_gguf(large, tmp_path / "v.gguf", strength=3e38)
    assert not (tmp_path / "v.gguf").exists()


def test_a_regulator_is_written_at_its_mean_only_when_that_is_asked_for_and_the_file_says_so(tmp_path: Path) -> None:
    model, file = tiny_model("llama", layers=3), tmp_path / "v.gguf"
    with pytest.warns(DsasWarning, match="replaced by their mean gains: it steers every token"):
        write_gguf(random_steering(model, [1]), file, gains={"model.layers.1": 0.25})
    vector = random_steering(model, [1]).rules[0].transform.get_buffer("vector")
    found = read_gguf(file).edits[1].get_buffer("vector")
    torch.testing.assert_close(found, 0.25 * vector)
    assert "mean gains" in gguf.GGUFReader(file).get_field("general.description").contents()


@pytest.mark.parametrize("form", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("kind", ["controlvector", "steervector"])
def test_tensors_of_every_type_are_read_as_the_numbers_that_they_stand_for(
    tmp_path: Path, form: str, kind: str
) -> None:
    vector = np.random.default_rng(0).standard_normal((1, 32)).astype(np.float32)
    raw = gguf.GGMLQuantizationType[form]
    stored = gguf.quantize(vector, raw)
    write_tensor(tmp_path / "v.gguf", kind, "direction.2", stored[0], raw)
    found = read_gguf(tmp_path / "v.gguf")
    assert found.of == "llama"
    assert found.edits[2].get_buffer("vector").tolist() == gguf.dequantize(stored, raw)[0].tolist()


def test_a_file_of_the_version_before_is_read_and_an_older_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "v.gguf"
    write_tensor(file, "controlvector", "direction.2", np.ones(4, np.float32))
    data = file.read_bytes()
    file.write_bytes(data[:4] + (2).to_bytes(4, "little") + data[8:])
    assert list(read_gguf(file).edits) == [2]
    file.write_bytes(data[:4] + (1).to_bytes(4, "little") + data[8:])
    with pytest.raises(ArtifactError, match=r"not a GGUF file that the package gguf can read: .*version 1"):
        read_gguf(file)


@pytest.mark.parametrize(
    ("kind", "name", "value", "message"),
    [
        ("llama", "direction.1", np.ones(4, np.float32), "holds 'llama': expected a control vector"),
        ("controlvector", "vector.1", np.ones(4, np.float32), "named direction.N, each once, got 'vector.1'"),
        ("controlvector", "direction.99999", np.ones(4, np.float32), "named direction.N"),
        ("controlvector", "direction.1", np.ones(4, np.int32), "stored as I32"),
        ("controlvector", "direction.1", np.full(4, np.nan, np.float32), "not finite"),
        ("controlvector", "direction.1", np.ones((2, 4), np.float32), "expected one vector"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, kind: str, name: str, value: np.ndarray, message: str) -> None:
    write_tensor(tmp_path / "v.gguf", kind, name, value)
    with pytest.raises(ArtifactError, match=message):
        read_gguf(tmp_path / "v.gguf")
