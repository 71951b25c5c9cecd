"""A published vector with a regulator around it."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from campaigns import vectors
from makers import random_steering

import dsas
from dsas.errors import ArtifactError, DsasWarning, OptionError, SiteError
from dsas.evaluation.perplexity import perplexity
from dsas.formats.adopting import damage_to
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
    with pytest.raises(SiteError, match=r"two vectors are for model\.layers\.2 of this model, one of them for -1"):
        dsas.adopt({2: torch.ones(32), -1: torch.ones(32)}, model, regulator="constant")
    torch.save({1: torch.ones(32)}, tmp_path / "vector.pt")
    with pytest.raises(ArtifactError, match=r"no such file; closest in its folder: 'vector.pt'"):
        dsas.read_vectors(tmp_path / "vectr.pt")


@pytest.mark.parametrize(
    ("kind", "fits"), [("llama", True), ("LLaMA", True), ("", True), ("gpt2", False), ("qwen3", False)]
)
def test_vectors_for_another_kind_of_model_are_adopted_with_a_warning(kind: str, fits: bool) -> None:
    given = {"directions": {np.int64(1): torch.randn(32)}, "model_type": kind}
    with (
        nullcontext()
        if fits
        else pytest.warns(DsasWarning, match=f"for '{kind}', and this model is a LlamaForCausalLM")
    ):
        found = dsas.adopt(given, tiny_model("llama", layers=3), regulator="constant")
    assert [str(rule.site) for rule in found.rules] == ["model.layers.1"]


def test_a_stored_steering_is_no_published_vector(tmp_path: Path) -> None:
    random_steering(tiny_model()).save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match=r"is a stored Steering, or a model: dsas\.Steering\.from_pretrained"):
        dsas.read_vectors(tmp_path)


def test_only_the_vectors_of_the_named_sites_are_adopted_and_a_site_without_one_is_refused() -> None:
    model, vectors = tiny_model("llama", layers=3), {layer: torch.randn(32) for layer in (0, 2)}

    def sites(*patterns: str | int) -> list[str]:
        return [str(rule.site) for rule in dsas.adopt(vectors, model, sites=patterns, regulator="constant").rules]

    assert sites(2) == sites(-1) == ["model.layers.2"]
    assert sites("residual") == sites(2, 0) == ["model.layers.0", "model.layers.2"]
    with pytest.raises(SiteError, match=r"no vector for 1: they are for model\.layers\.0, model\.layers\.2"):
        sites(0, 1)


def test_the_damage_of_an_adopted_vector_is_told_with_the_regulator_and_without() -> None:
    model, tokenizer = tiny_model("llama", layers=3), tiny_tokenizer()
    silent = dsas.Logistic(torch.zeros(32), torch.tensor(-1e4))
    adopted = dsas.adopt({1: 3 * torch.randn(32)}, model, regulator="constant")
    gated = dsas.Steering([rule._replace(regulator=silent) for rule in adopted.rules], adopted.model)
    found = damage_to(model, tokenizer, gated, CONTROL)
    assert found.gated == (1.0, 1.0, 1.0, len(CONTROL))
    with adopted.apply(model, 1.0):
        steered = perplexity(model, tokenizer, CONTROL).of_tokens
    expected = steered / perplexity(model, tokenizer, CONTROL).of_tokens
    assert found.everywhere.mean == pytest.approx(expected)
    assert f"{expected:.4g} [" in found.line()
    assert damage_to(model, tokenizer, adopted, CONTROL).gated == found.everywhere


def test_a_persona_vector_of_a_model_with_more_or_fewer_layers_is_refused(tmp_path: Path) -> None:
    for rows in (3, 5):
        torch.save(torch.randn(rows, 32), tmp_path / "evil_response_avg_diff.pt")
        with pytest.raises(OptionError, match=f"for a model of {rows - 1} layers, and this one has 3"):
            dsas.adopt(tmp_path / "evil_response_avg_diff.pt", tiny_model("llama", layers=3), regulator="constant")


def test_files_changed_at_random_are_read_or_end_in_our_error() -> None:
    pytest.importorskip("gguf")
    found = vectors.run(rounds=150, seed=2)
    assert set(found) == {"read", "our error"}
