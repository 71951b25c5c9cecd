"""Collection: what is interrupted goes on, what is not the same is not reused, what is damaged is redone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

import dsas
from dsas.errors import DsasWarning, OptionError
from dsas.fitting import collect as collection
from dsas.fitting.collect import collect
from dsas.model.reading import Reading
from dsas.model.subject import subject_of
from dsas.testing import tiny_model, tiny_tokenizer

TEXTS = [f"{'a long text ' * (number % 3)}number {number}" for number in range(10)]
READING = Reading(batch_size=2)  # five passes


class Counted:
    """A tiny model, two of its sites, and how often it ran; it interrupts itself at pass number `stop`."""

    def __init__(self) -> None:
        self.model = tiny_model()
        self.sites = dsas.find_sites(self.model, ["layers.0", "layers.1"])
        self.passes, self.stop = 0, 0
        self.model.model.register_forward_pre_hook(self._count)

    def _count(self, *_arguments: Any) -> None:
        self.passes += 1
        if self.passes == self.stop:
            raise KeyboardInterrupt

    def collect(self, folder: Path | None, texts: list[str] = TEXTS, **options: Any) -> dict[dsas.Site, torch.Tensor]:
        options = {"sites": self.sites, "reading": READING, **options}
        examples = subject_of(self.model, tiny_tokenizer()).examples(options["reading"])
        texts = options.get("texts", texts)
        return collect(examples, texts, range(len(texts)), options["sites"], checkpoint=folder, progress=False)


@pytest.fixture
def counted() -> Counted:
    return Counted()


def test_each_text_keeps_its_place_although_batches_are_sorted_by_length(counted: Counted) -> None:
    together = counted.collect(None)
    for number, text in enumerate(TEXTS):
        alone = counted.collect(None, [text])
        for site in counted.sites:
            torch.testing.assert_close(together[site][number], alone[site][0], rtol=1e-4, atol=1e-5)


def test_an_interrupted_collection_goes_on_and_runs_no_text_twice(counted: Counted, tmp_path: Path) -> None:
    expected = Counted().collect(None)
    counted.stop = 4
    with pytest.raises(KeyboardInterrupt):
        counted.collect(tmp_path)
    counted.stop = 0
    found = counted.collect(tmp_path)
    assert counted.passes == 4 + 2  # three done and the fourth interrupted; then the fourth and the fifth
    assert list(found) == counted.sites
    assert all(torch.equal(found[site], expected[site]) for site in counted.sites)
    again = counted.collect(tmp_path)
    assert counted.passes == 6
    assert all(torch.equal(again[site], expected[site]) for site in counted.sites)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_checkpoint_is_written_on_the_way_and_not_only_at_the_end(
    counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    there: list[bool] = []
    counted.model.model.register_forward_pre_hook(lambda *_: there.append(any(tmp_path.iterdir())))
    counted.collect(tmp_path)
    assert there == [False, True, True, True, True]


@pytest.mark.parametrize("what", ["texts", "order", "sites", "reading", "weights", "precision"])
def test_a_checkpoint_of_anything_else_is_not_used(counted: Counted, tmp_path: Path, what: str) -> None:
    counted.collect(tmp_path)
    other: dict[str, Any] = {
        "texts": {"texts": [*TEXTS[:-1], "another"]},
        "order": {"texts": TEXTS[::-1]},
        "sites": {"sites": dsas.find_sites(counted.model, ["layers.0", "layers.2"])},
        "reading": {"reading": READING._replace(skip_sinks=False)},
    }.get(what, {})
    if what == "weights":
        with torch.no_grad():
            counted.model.lm_head.weight[0, 0] += 1.0
    if what == "precision":
        counted.model.bfloat16()
    counted.collect(tmp_path, **other)
    assert counted.passes == 10
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign"])
def test_a_damaged_checkpoint_is_named_and_everything_is_run_again(
    counted: Counted, tmp_path: Path, damage: str
) -> None:
    expected = counted.collect(tmp_path)
    (file,) = tmp_path.iterdir()
    data = file.read_bytes()
    file.write_bytes({"truncated": data[:-100], "empty": b"", "foreign": save({"x": torch.zeros(1)})}[damage])
    with pytest.warns(DsasWarning, match=rf"{file.name} is damaged .* all texts are run again"):
        found = counted.collect(tmp_path)
    assert counted.passes == 10
    assert all(torch.equal(found[site], expected[site]) for site in counted.sites)
    counted.collect(tmp_path)
    assert counted.passes == 10  # and the file is whole again


def test_texts_that_are_too_long_are_cut_and_counted(counted: Counted) -> None:
    with pytest.warns(DsasWarning, match="2 texts were cut to max_tokens=3"):
        found = counted.collect(None, ["abcd", "abcX", "abc"], reading=Reading(max_tokens=3))
    for vectors in found.values():
        torch.testing.assert_close(vectors, vectors[:1].expand_as(vectors))


@pytest.mark.parametrize(("option", "message"), [("max_tokens", "max_tokens"), ("batch_size", "batch size")])
def test_readings_of_nothing_are_refused(counted: Counted, option: str, message: str) -> None:
    with pytest.raises(OptionError, match=f"{message}.* at least 1, got 0"):
        counted.collect(None, reading=Reading(**{option: 0}))
