"""Storage: what is not intact is refused by name, and what cannot be written leaves what was there."""

import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from campaigns import artifacts
from makers import random_steering
from safetensors.torch import load, save

import dsas
from dsas.errors import ArtifactError
from dsas.files import atomic
from dsas.steering import artifact as storage
from dsas.steering.folder import CARD, CONFIG, TENSORS
from dsas.testing import tiny_model

CALIBRATION = dsas.Calibration(0.5, (), (), None, {}, {}, None, "0" * 16, "0" * 16, "0.1").as_dict()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_steering(tiny_model(), weight=0.5).save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any], *, tensors: bytes | None = None) -> None:
    """Change a config, and the tensors if given, and give both fresh digests, as somebody who knows dsas would."""
    config = json.loads((folder / CONFIG).read_text())
    if tensors is not None:
        (folder / TENSORS).write_bytes(tensors)
        config["tensors_sha256"] = hashlib.sha256(tensors).hexdigest()
    change(config)
    config["config_sha256"] = storage._digest(config)
    (folder / CONFIG).write_text(json.dumps(config))


def refuse(folder: Path, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        dsas.Steering.from_pretrained(folder)


def test_a_round_trip_keeps_every_bit_and_every_field(folder: Path) -> None:
    steering, again = random_steering(tiny_model(), weight=0.5), dsas.Steering.from_pretrained(folder)
    assert repr(again) == repr(steering)
    assert again.model == steering.model
    assert [rule.weight for rule in again.rules] == [0.5] * 3
    for one, other in zip(steering.rules, again.rules, strict=True):
        assert torch.equal(one.transform.get_buffer("vector"), other.transform.get_buffer("vector"))
        assert torch.equal(one.regulator.get_buffer("theta"), other.regulator.get_buffer("theta"))
    assert sorted(file.name for file in folder.iterdir()) == sorted([CARD, CONFIG, TENSORS])


def test_a_config_without_a_calibration_as_older_ones_are_has_no_strength(folder: Path) -> None:
    assert "calibration" not in json.loads((folder / CONFIG).read_text())
    steering = dsas.Steering.from_pretrained(folder)
    assert (steering.strength, steering.calibration, steering.default_strength) == (None, None, 1.0)


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refuse(folder, f"is not a stored Steering: {name} not found")


@pytest.mark.parametrize("left", [0, 10, -1])
def test_a_truncated_config_is_refused(folder: Path, left: int) -> None:
    (folder / CONFIG).write_bytes((folder / CONFIG).read_bytes()[:left])
    refuse(folder, f"{CONFIG} is truncated or not JSON")


@pytest.mark.parametrize("left", [0, 10, -1])
def test_truncated_tensors_are_refused(folder: Path, left: int) -> None:
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:left])
    refuse(folder, f"{TENSORS} does not match its digest: truncated or tampered with")


def test_one_changed_bit_of_the_tensors_is_refused(folder: Path) -> None:
    data = bytearray((folder / TENSORS).read_bytes())
    data[-1] ^= 1
    (folder / TENSORS).write_bytes(bytes(data))
    refuse(folder, f"{TENSORS} does not match its digest")


def test_an_edited_config_is_refused(folder: Path) -> None:
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace('"weight": 0.5', '"weight": 5.0', 1))
    refuse(folder, f"{CONFIG} does not match its digest: it was edited")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused_by_tensor_even_under_a_right_digest(folder: Path, value: float) -> None:
    tensors = load((folder / TENSORS).read_bytes())
    tensors["1.transform.vector"][3] = value
    rewrite(folder, lambda config: None, tensors=save(tensors))
    refuse(folder, rf"{TENSORS}: 1\.transform\.vector hold values that are not finite")


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int64, torch.complex64])
def test_a_tensor_that_torch_does_not_compute_with_is_refused_even_under_a_right_digest(
    folder: Path, kind: torch.dtype
) -> None:
    tensors = load((folder / TENSORS).read_bytes())
    tensors["1.transform.vector"] = tensors["1.transform.vector"].to(kind)
    rewrite(folder, lambda config: None, tensors=save(tensors))
    refuse(folder, rf"{TENSORS}: 1\.transform\.vector hold")


def test_bytes_that_are_no_safetensors_are_refused_even_under_a_right_digest(folder: Path) -> None:
    rewrite(folder, lambda config: None, tensors=b"not tensors")
    refuse(folder, f"{TENSORS} does not match its digest")


def test_a_newer_schema_is_refused_and_says_what_to_do(folder: Path) -> None:
    rewrite(folder, lambda config: config.update(schema=storage.SCHEMA + 1, dsas_version="9.9"))
    refuse(folder, "has schema 2, this dsas reads up to 1: it was written by dsas 9.9; upgrade dsas to read it")


@pytest.mark.parametrize("content", ["[]", "{}", '{"schema": "1"}', '{"model_type": "llama"}'])
def test_json_that_is_no_config_of_a_steering_is_refused(folder: Path, content: str) -> None:
    (folder / CONFIG).write_text(content)
    refuse(folder, "is not the config of a Steering: it has no schema number")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["rules"][0]["transform"].update(name="cab"), "unknown method 'cab'; closest: 'caa'"),
        (lambda c: c["rules"][0]["transform"].update(arguments={"vectro": 1}), r"'caa' is stored with .*'vectro'"),
        (lambda c: c["rules"][0].pop("weight"), f"{CONFIG}: rules.0 lacks or misnames a field: 'weight'"),
        (
            lambda c: c["rules"][0]["site"].update(module="x"),
            f"{CONFIG}: rules.0.site lacks or misnames a field: 'module'",
        ),
        (lambda c: c.pop("rules"), f"{CONFIG}: it lacks or misnames a field: 'rules'"),
        (lambda c: c.update(rules=[]), "at least one rule"),
        (
            lambda c: c.update(calibration={"strength": 1.0}),
            f"{CONFIG}: calibration lacks or misnames a field: .*'budgets'",
        ),
        (lambda c: c.update(calibration={**CALIBRATION, "strength": 0.0}), "must be finite and > 0, got 0"),
        (lambda c: c.update(calibration={**CALIBRATION, "strength": "1"}), "must be finite and > 0, got '1'"),
        (
            lambda c: c.update(calibration={name: one for name, one in CALIBRATION.items() if name != "strength"}),
            f"{CONFIG}: calibration lacks or misnames a field: 'strength'",
        ),
    ],
    ids=["method", "argument", "weight", "site", "rules", "none", "evidence", "zero", "no number", "no strength"],
)
def test_a_config_that_names_what_is_not_there_is_refused(folder: Path, change: Any, message: str) -> None:
    rewrite(folder, change)
    refuse(folder, message)


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_while_saving_leaves_the_old_steering_readable_and_no_file_of_the_new(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    full, calls = OSError(errno.ENOSPC, "No space left on device"), []

    def fail_late(*_arguments: Any) -> None:
        calls.append(1)
        if call == "replace" or len(calls) == 2:  # so one file has been written already
            raise full

    if call == "write":
        monkeypatch.setattr(atomic, "open", lambda *given: fail_late() or open(*given), raising=False)  # noqa: SIM115
    else:
        monkeypatch.setattr(os, call, fail_late)
    with pytest.raises(OSError, match="No space left"):
        random_steering(tiny_model(), seed=1).save_pretrained(folder)
    monkeypatch.undo()
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    dsas.Steering.from_pretrained(folder)


def test_saving_over_an_old_steering_replaces_it(folder: Path) -> None:
    other = random_steering(tiny_model(), seed=1)
    other.save_pretrained(folder)
    assert dsas.Steering.from_pretrained(folder).digest() == other.digest()


@pytest.mark.parametrize("replaced", [1, 2, 3, 4])
def test_a_writer_killed_between_any_two_files_leaves_the_old_steering_or_the_new_one(
    folder: Path, replaced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = dsas.Steering.from_pretrained(folder), random_steering(tiny_model(), seed=1)
    real, calls = os.replace, []

    def replace(source: Path, target: Path) -> None:
        real(source, target)
        calls.append(target)
        if len(calls) == replaced:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        new.save_pretrained(folder)
    monkeypatch.undo()
    there = dsas.Steering.from_pretrained(folder)
    assert there.digest() == (old.digest() if replaced < 3 else new.digest())
    old.save_pretrained(folder)
    assert dsas.Steering.from_pretrained(folder).digest() == old.digest()
    assert sorted(file.name for file in folder.iterdir()) == sorted([CARD, CONFIG, TENSORS])


def test_whoever_reads_beside_writers_has_one_of_their_steerings(folder: Path) -> None:
    steerings = [random_steering(tiny_model(), seed=seed) for seed in (1, 2)]
    steerings[0].save_pretrained(folder)
    ended, errors = threading.Event(), list[Exception]()

    def write(steering: dsas.Steering) -> None:
        try:
            while not ended.is_set():
                steering.save_pretrained(folder)
        except Exception as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(steering,)) for steering in steerings]
    for one in writers:
        one.start()
    try:
        read = {dsas.Steering.from_pretrained(folder).digest() for _ in range(60)}
    finally:
        ended.set()
        for one in writers:
            one.join()
    assert read <= {steering.digest() for steering in steerings}
    assert errors == []


def test_artifacts_changed_at_random_end_in_our_error_or_run(capsys: pytest.CaptureFixture[str]) -> None:
    found = artifacts.run(rounds=120, seed=3)
    assert [what for what in found if not what.startswith(("our", "ran", "loaded"))] == []
    assert found["our error at load"] > 60


def test_a_sparse_file_of_gigabytes_is_refused_without_reading_it(folder: Path) -> None:
    with (folder / TENSORS).open("wb") as file:
        file.truncate(5 * 2**30)
    refuse(folder, "does not match its digest")
    with (folder / CONFIG).open("wb") as file:
        file.truncate(5 * 2**30)
    refuse(folder, "the config of a Steering at most")
