"""Collecting and fitting over several workers."""

import pytest
import torch

import dsas
from dsas.errors import ModelMismatchError, OptionError
from dsas.fitting.collect import collect
from dsas.fitting.parallel_collect import _Reader, source_of
from dsas.model.loading import load_model
from dsas.model.subject import subject_of
from dsas.testing import tiny_model, tiny_tokenizer

TEXTS = [f"{'the door ' * (1 + n % 7)}{n}" for n in range(40)]
READING = dsas.Reading(batch_size=3)


@pytest.fixture
def loaded(tmp_path):
    tiny_model(layers=2).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return load_model(str(tmp_path / "model"), device="cpu")


@pytest.mark.parametrize("spread", [dsas.Spread(workers=2), dsas.Spread(ray="auto")], ids=["processes", "ray"])
def test_a_steering_fitted_over_workers_is_the_one_that_one_process_fits(loaded, spread):
    if spread.ray:
        pytest.importorskip("ray")
    sets = {"source": TEXTS[:15], "control": TEXTS[15:30], "target": TEXTS[25:40]}
    alone = dsas.fit(*loaded, **sets, selection="all", reading=READING, progress=False)
    spread_out = dsas.fit(*loaded, **sets, selection="all", reading=READING._replace(spread=spread), progress=False)
    assert spread_out.digest() == alone.digest()


def test_what_was_collected_before_is_not_collected_again(loaded, tmp_path, monkeypatch):
    subject, places = subject_of(*loaded), range(len(TEXTS))
    sites, where = subject.sites("residual"), {"checkpoint": tmp_path / "kept", "progress": False}
    first = collect(subject.examples(READING), TEXTS, places, sites, **where)

    def nothing(_examples, batches, _sites):
        assert batches == []
        return iter(())

    monkeypatch.setattr("dsas.fitting.collect.vectors_by_workers", nothing)
    over_workers = subject.examples(READING._replace(spread=dsas.Spread(workers=2)))
    again = collect(over_workers, TEXTS, places, sites, **where)
    assert all(torch.equal(first[site], again[site]) for site in sites)


def test_workers_refuse_another_model_than_the_one_at_hand(loaded):
    with torch.no_grad():
        loaded.model.lm_head.weight.add_(1.0)
    source = source_of(loaded.model, dsas.find_sites(loaded.model, "residual"), READING)
    with pytest.raises(ModelMismatchError, match="not those of this model"):
        _Reader(source)


def test_workers_refuse_a_model_that_was_loaded_from_nowhere():
    sets = {"source": TEXTS[:15], "control": TEXTS[15:30], "target": TEXTS[15:30]}
    with pytest.raises(OptionError, match="loaded from neither"):
        dsas.fit(tiny_model(), tiny_tokenizer(), **sets, reading=dsas.Reading(spread=dsas.Spread(2)), progress=False)
