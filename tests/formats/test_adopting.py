"""A published vector with a regulator around it."""

from pathlib import Path

import pytest
import torch
from campaigns import vectors

import dsas
from dsas.errors import ArtifactError, OptionError, SiteError
from dsas.testing import tiny_model, tiny_tokenizer

SOURCE = [f"SHUT UP, {word} FOOLS!" for word in ("YOU", "ALL", "TWO", "MY", "OLD", "BAD")]
CONTROL = [f"the {word} is there" for word in ("door", "cat", "rain", "tree", "sun", "cup")]


def test_the_vector_stays_what_it_was_and_is_added_where_the_regulator_fires(tmp_path: Path) -> None:
    model, vector = tiny_model("llama", layers=3), torch.randn(32)
    sets = {"source": SOURCE, "control": CONTROL, "progress": False, "selection": "all"}
    steering = dsas.adopt({1: vector}, model, tiny_tokenizer(), **sets)
    (rule,) = steering.rules
    assert str(rule.site) == "model.layers.1"
    assert torch.equal(rule.transform.get_buffer("vector"), vector)
    assert isinstance(rule.regulator, dsas.Evidence)
    assert steering.settings["adopted"] == {"format": "layers", "for": "", "sites": 1}
    steering.save_pretrained(tmp_path)
    assert dsas.Steering.from_pretrained(tmp_path).digest() == steering.digest()


def test_what_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama", layers=3)
    with pytest.raises(OptionError, match="have 31 numbers each, the model's layers 32"):
        dsas.adopt({1: torch.ones(31)}, model, regulator="constant")
    with pytest.raises(SiteError):
        dsas.adopt({9: torch.ones(32)}, model, regulator="constant")
    with pytest.raises(ArtifactError, match=r"expected a file ending in .gguf, .*, got '.npy'"):
        dsas.read_vectors(tmp_path / "v.npy")
    torch.save({1: torch.ones(32)}, tmp_path / "vector.pt")
    with pytest.raises(ArtifactError, match=r"no such file; closest in its folder: 'vector.pt'"):
        dsas.read_vectors(tmp_path / "vectr.pt")


def test_files_changed_at_random_are_read_or_end_in_our_error() -> None:
    pytest.importorskip("gguf")
    found = vectors.run(rounds=150, seed=2)
    assert set(found) == {"read", "our error"}
