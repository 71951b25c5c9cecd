"""Gathering: what is kept does not grow with the sets, moments are those of all, and a long fit goes on."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import dsas
from dsas.errors import TextsError
from dsas.fitting import example_stream
from dsas.fitting.collect import collect
from dsas.fitting.example_stream import ExampleStream
from dsas.fitting.gathering import Gathered, Gathering, gathered
from dsas.model.examples import check_sets
from dsas.model.subject import subject_of
from dsas.testing import tiny_model, tiny_tokenizer

SITES, SIZE = ["layers.0", "layers.1"], 8
WORDS = {"source": "SHUT UP", "control": "the door", "target": "thank you"}


def texts(count: int) -> dict[str, list[str]]:
    return {name: [f"{word} {number}" for number in range(count)] for name, word in WORDS.items()}


def fit(model: Any = None, count: int = 40, **options: Any) -> dsas.Steering:
    model = tiny_model() if model is None else model
    return dsas.fit(
        model, tiny_tokenizer(), **{**texts(count), "sites": SITES, "selection": "all", "progress": False, **options}
    )


def kept(count: int, size: int = SIZE) -> Gathered:
    subject, stream = subject_of(tiny_model(), tiny_tokenizer()), ExampleStream(**texts(count), reservoir=size)
    sets = check_sets(stream.first["source"], stream.first["control"], stream.first["target"])
    return gathered(Gathering(subject.examples(), stream, sets, subject.sites(SITES), None, False))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example_stream, "PART", 6)


def test_what_is_kept_of_ten_times_as_many_examples_takes_not_one_byte_more() -> None:
    few, many = kept(30), kept(300)
    sizes = [{name: value.nbytes for name, value in one.tensors().items()} for one in (few, many)]
    assert sizes[0] == sizes[1]
    assert sum(sizes[0].values()) > 3 * SIZE * len(SITES) * 4
    assert [list(map(len, one.sampled.sets[:3])) for one in (few, many)] == 2 * [3 * [SIZE]]
    assert many.sampled.counts["control"] == 300


def test_the_vectors_kept_are_those_of_the_examples_kept_and_the_moments_those_of_all() -> None:
    found, subject = kept(40), subject_of(tiny_model(), tiny_tokenizer())
    for site in subject.sites(SITES):
        moments = dict(zip(("source", "target"), found.moments(site) or (), strict=True))
        for name, members in found.sampled.sets.as_dict().items():
            alone = collect(subject.examples(), members, range(SIZE), [site], progress=False)[site]
            torch.testing.assert_close(found.vectors(site)[name], alone, rtol=1e-4, atol=1e-5)
            if name in moments:
                every = collect(subject.examples(), texts(40)[name], range(40), [site], progress=False)[site]
                torch.testing.assert_close(moments[name].mean, every.mean((0, 1, 2)).double(), rtol=1e-4, atol=1e-5)
                assert moments[name].size == 40


def test_transforms_of_moments_are_those_of_all_examples_and_others_say_that_they_saw_the_reservoir() -> None:
    whole = partial(dsas.GaussianTransport.fit, support="everywhere")
    for transform in ("caa", "mean-act", "gaussian-act", whole):
        every, streamed = fit(transform=transform), fit(transform=transform, reservoir=SIZE)
        assert streamed.settings["reservoir"] == {"size": SIZE, "seed": 0, "transform": "all examples"}
        for one, other in zip(every.rules, streamed.rules, strict=True):
            torch.testing.assert_close(
                dict(one.transform.named_buffers()), dict(other.transform.named_buffers()), rtol=1e-4, atol=1e-5
            )
    within = partial(dsas.GaussianTransport.fit, support=(5.0, 95.0))
    for transform in ("linear-act", "caa-pca", within):
        assert fit(transform=transform, reservoir=SIZE).settings["reservoir"]["transform"] == "reservoir"


def test_a_generator_a_list_and_a_file_of_the_same_texts_give_the_same_steering_below_and_above_the_reservoir() -> None:
    for size in (SIZE, 4096):
        listed = fit(reservoir=size)
        streamed = fit(reservoir=size, **{name: iter(members) for name, members in texts(40).items()})
        assert listed.digest() == streamed.digest()
        assert ("reservoir" in listed.settings) == (size == SIZE)
    assert fit(reservoir=dsas.Reservoir(SIZE, 1)).digest() != fit(reservoir=SIZE).digest()
    assert "reservoir: " in fit(reservoir=SIZE).card()


def test_incremental_reading_runs_only_the_examples_that_are_kept() -> None:
    found = fit(reservoir=SIZE, reading=dsas.Reading(incremental=True), regulator="constant").settings
    assert found["texts"] == {"source": 40, "control": 40, "target": 40}
    assert found["reservoir"] == {"size": SIZE, "seed": 0, "transform": "reservoir"}


class Counted:
    """A model that counts its rows, and interrupts itself at pass number `stop`."""

    def __init__(self) -> None:
        self.model, self.passes, self.rows, self.stop = tiny_model(), 0, 0, 0
        self.model.model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _module: Any, _args: Any, given: dict[str, Any]) -> None:
        self.passes += 1
        if self.passes == self.stop:
            raise KeyboardInterrupt
        self.rows += len(given["input_ids"])

    def fit(self, folder: Path | None, **options: Any) -> dsas.Steering:
        reading = dsas.Reading(batch_size=4)
        options = {"regulator": "logistic", "reservoir": SIZE, "reading": reading, "checkpoint": folder, **options}
        return fit(self.model, 26, **options)


@pytest.mark.parametrize("stop", [4, 8, 13, 17])  # in the first part, of 6 batches, and in later ones, of 5
def test_a_long_fit_that_is_interrupted_goes_on_and_runs_no_text_twice(tmp_path: Path, stop: int) -> None:
    expected, counted = Counted().fit(None), Counted()
    counted.stop = stop
    with pytest.raises(KeyboardInterrupt):
        counted.fit(tmp_path)
    assert len(list(tmp_path.iterdir())) <= 2
    found = counted.fit(tmp_path, **{name: iter(members) for name, members in texts(26).items()})
    assert counted.rows == 3 * 26
    assert found.digest() == expected.digest()
    counted.fit(tmp_path, regulator="evidence")
    assert len([file for file in tmp_path.iterdir() if file.stat().st_size > 0]) <= 2


def test_a_checkpoint_is_not_used_for_other_examples(tmp_path: Path) -> None:
    counted = Counted()
    counted.fit(tmp_path)
    with pytest.raises(TextsError, match="goes on with other examples than these sets do: give the same"):
        counted.fit(tmp_path, control=[*texts(25)["control"], "another"])
    with pytest.raises(TextsError, match="goes on with other examples"):
        counted.fit(tmp_path, **texts(14))
    rows = counted.rows
    counted.fit(tmp_path, source=["first", *texts(25)["source"]])
    assert counted.rows == rows + 3 * 26  # other examples from the beginning are another collection


def test_a_stream_that_fails_half_way_leaves_what_was_collected(tmp_path: Path) -> None:
    def broken() -> Iterator[str]:
        yield from texts(15)["source"]
        raise OSError("the disk is gone")

    counted = Counted()
    with pytest.raises(OSError, match="the disk is gone"):
        counted.fit(tmp_path, source=broken())
    before = counted.rows
    counted.fit(tmp_path)
    assert counted.rows - before < 3 * 26
