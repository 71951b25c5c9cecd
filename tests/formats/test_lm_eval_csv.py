"""lm-eval's CSV of features does here what lm-eval says it does, with decoders that lie in folders."""

from pathlib import Path
from typing import Any

import pytest
import torch
from formats.test_torch_vectors import WIDTH, same_as
from safetensors.torch import save_file

import dsas
from dsas.errors import ArtifactError

HEAD = "loader,action,sparse_model,hookpoint,feature_index,steering_coefficient,head_index,sae_id,description\n"


def decoders(folder: Path) -> dict[str, torch.Tensor]:
    """Write two decoders of five features, as sparsify and as sae_lens store them, and return one."""
    weights = {"W_dec": torch.randn(5, WIDTH), "b_dec": torch.randn(WIDTH), "encoder.weight": torch.randn(5, WIDTH)}
    for place, name in (("layers.0", "sae"), ("layer_2/canonical", "sae_weights")):
        (folder / "sae" / place).mkdir(parents=True)
        save_file(weights, folder / "sae" / place / f"{name}.safetensors")
    return weights


def test_features_are_added_or_set_at_their_hook_point(tmp_path: Path) -> None:
    weights, file = decoders(tmp_path), tmp_path / "steer.csv"
    file.write_text(
        HEAD
        + f"sparsify,add,{tmp_path / 'sae'},layers.0,3,0.5,,,\n"
        + f"sae_lens,clamp,{tmp_path / 'sae'},layers.2.mlp,1,2.0,,layer_2/canonical,more dogs\n",
        encoding="utf-8",
    )
    added, bias = weights["W_dec"][3], weights["b_dec"]
    direction = weights["W_dec"][1] / weights["W_dec"][1].norm()
    modules: dict[str, Any] = {
        "model.layers.0": lambda t: t + 0.5 * added,
        "model.layers.2.mlp": lambda t: t + direction * (2.0 - ((t - bias) * direction).sum(-1, keepdim=True)),
    }
    same_as(file, modules)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sparsify,add,{sae},layers.0,5,1.0,,,", r"line 2: expected a feature_index below \[5\] .*, got 5"),
        ("sparsify,add,{sae},layers.0,-1,1.0,,,", "expected a feature_index from 0"),
        ("sparsify,add,{sae},layers.0,1,much,,,", "a finite steering_coefficient, got '1' and 'much'"),
        ("sparsify,add,{sae},layers.0,1,1.0,4,,", "single attention heads are not supported"),
        ("sparsify,push,{sae},layers.0,1,1.0,,,", "expected the action 'add'"),
        ("sparsify,add,{sae},layers.1,1,1.0,,,", "is not a decoder with W_dec and b_dec"),
        ("sae_lens,add,{sae},layers.1,1,1.0,,,", "for sae_lens an sae_id"),
        ("other,add,{sae},layers.1,1,1.0,,,", "expected the loader sparsify or sae_lens, got 'other'"),
        ("sparsify,add,nobody/here,layers.1,1,1.0,,,", "neither a folder nor a repository of the hub"),
        (
            "sparsify,add,{sae},layers.0,1,1.0,,,\nsparsify,add,{sae},layers.0,2,1.0,,,",
            "line 3: an earlier line is for",
        ),
        ("", "it holds no vector in the format"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, line: str, message: str) -> None:
    decoders(tmp_path)
    (tmp_path / "steer.csv").write_text(HEAD + line.format(sae=tmp_path / "sae"), encoding="utf-8")
    with pytest.raises(ArtifactError, match=message):
        dsas.read_vectors(tmp_path / "steer.csv")


def test_another_csv_is_refused_by_its_columns(tmp_path: Path) -> None:
    (tmp_path / "steer.csv").write_text("text,label\nhello,1\n", encoding="utf-8")
    with pytest.raises(ArtifactError, match="missing: sparse_model, hookpoint, feature_index, steering_coefficient"):
        dsas.read_vectors(tmp_path / "steer.csv")
