"""Collecting and fitting over several workers."""

import pytest
import torch

import dsas
from dsas.errors import ModelMismatchError, OptionError
from dsas.fitting.collect import collect
from dsas.fitting.parallel_collect import _Reader, pooled_by_name
from dsas.model.loading import load_model
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
    spread_out = dsas.fit(*loaded, **sets, selection="all", reading=READING, spread=spread, progress=False)
    assert spread_out.digest() == alone.digest()


def test_what_was_collected_before_is_not_collected_again(loaded, tmp_path, monkeypatch):
    sites = dsas.find_sites(loaded.model, "residual")
    where = {"reading": READING, "checkpoint": tmp_path / "kept", "progress": False}
    first = collect(*loaded, TEXTS, sites, **where)

    def nothing(_how, batches, _spread):
        assert batches == []
        return iter(())

    monkeypatch.setattr("dsas.fitting.collect.pooled_shards", nothing)
    again = collect(*loaded, TEXTS, sites, **where, spread=dsas.Spread(workers=2))
    assert all(torch.equal(first[site], again[site]) for site in sites)


def test_workers_refuse_another_model_than_the_one_at_hand(loaded):
    with torch.no_grad():
        loaded.model.lm_head.weight.add_(1.0)
    how = pooled_by_name(loaded.model, dsas.find_sites(loaded.model, "residual"), pooling="mean", skip_sinks=True)
    with pytest.raises(ModelMismatchError, match="not those of the model at hand"):
        _Reader(how)


def test_a_model_that_nothing_was_loaded_from_and_a_fit_in_one_process_are_refused():
    sets = {"source": TEXTS[:15], "control": TEXTS[15:30], "target": TEXTS[15:30]}
    for options, message in (({}, "loaded from neither"), ({"incremental": True}, "leave spread out")):
        with pytest.raises(OptionError, match=message):
            dsas.fit(tiny_model(), tiny_tokenizer(), **sets, **options, spread=dsas.Spread(workers=2), progress=False)
