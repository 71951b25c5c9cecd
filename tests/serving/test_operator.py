"""The operator's endpoint: the key first, folders and names of every kind, and nothing is half loaded."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from served import store

from dsas.errors import OptionError

pytest.importorskip("fastapi")
from campaigns import requests
from operated import KEY, Operated

from dsas.serving import server as serving


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Operated:
    monkeypatch.setitem(os.environb, b"DSAS_OPERATOR_KEY", KEY)
    monkeypatch.delenv("DSAS_OPERATOR_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    return Operated(tmp_path)


def test_what_is_loaded_is_listed_and_can_be_unloaded(server: Operated, tmp_path: Path) -> None:
    for name in ("extra", "détox", "a b", "50%", "x?#"):
        assert server.ask("POST", body={"name": name, "folder": "topic"}).status == 200
        assert json.loads(server.ask("GET").body)[name]["folder"] == str(tmp_path / "topic")
        assert server.ask("DELETE", f"/{quote(name, safe='')}").status == 200
    assert server.names == ["detox"]
    assert len(server.slots()) == 1  # those of the others are given back


@pytest.mark.parametrize("name", ["", "a\nb", "../../x", "..", "a/b", "\x1b[31m", "x" * 300])
def test_a_name_that_could_not_be_unloaded_is_not_loaded(server: Operated, name: str) -> None:
    answer = server.ask("POST", body={"name": name, "folder": "topic"})
    assert answer.status == 400
    assert "expected the name of a Steering" in answer.message
    assert (server.names, len(server.slots())) == (["detox"], 1)


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"name": 1}', b"[" * 10**5, b"1" * 5000, b'{"a": NaN}', b"\xff", b"x" * 10**6]
)
@pytest.mark.parametrize("key", [b"wrong", b"", None, "clé".encode("latin-1"), KEY + b" "])
def test_nothing_of_a_request_is_looked_at_before_the_key(server: Operated, body: bytes, key: bytes | None) -> None:
    assert server.ask("POST", body=body, key=key).status == 401
    answer = server.ask("POST", body=body)
    assert answer.status == 400
    assert "expected a JSON object" in answer.message or "at most 65536 bytes" in answer.message
    assert len(answer.body) < 500


def test_a_request_that_is_cut_short_is_refused(server: Operated) -> None:
    assert server.ask("POST", body={"name": "extra", "folder": "topic"}, parts=0).status == 400
    assert server.ask("POST", body={"name": "extra", "folder": "topic"}, parts=9).status == 200


def missing(folder: Path) -> None:
    shutil.rmtree(folder)


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


def a_loop(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder.name)


def loop_inside(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")


def cut(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:99])


def too_large(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(5 * 2**30)


@pytest.mark.parametrize("spoil", [missing, empty, a_file, a_loop, loop_inside, cut, too_large])
def test_a_folder_of_any_kind_gets_an_answer_of_ours_again_and_again(
    server: Operated, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(tmp_path / "topic")
    before = server.rows()
    for _ in range(2):
        answer = server.ask("POST", body={"name": "extra", "folder": "topic"})
        assert answer.status == 400
        assert "topic" in answer.message
    assert (server.names, len(server.slots())) == (["detox"], 1)
    assert all(one.equal(other) for one, other in zip(before, server.rows(), strict=True))


@pytest.mark.parametrize("folder", ["x" * 300, "x/" * 3000, "a\x00b", "\ud800", "someone/absent", "~", "/dev/null"])
def test_what_is_no_folder_of_this_machine_is_refused_and_nothing_is_fetched(server: Operated, folder: str) -> None:
    answer = server.ask("POST", body={"name": "extra", "folder": folder})
    assert answer.status == 400
    assert "cannot be read" in answer.message or "expected a folder on the server's machine" in answer.message


def test_what_the_system_does_not_let_anybody_read_is_refused(
    server: Operated, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(folder: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("dsas.steering.steering.read_artifact", denied)
    answer = server.ask("POST", body={"name": "extra", "folder": "topic"})
    assert (answer.status, "topic' cannot be read: Permission denied" in answer.message) == (400, True)


def test_below_a_root_only_what_is_there_is_loaded_wherever_links_lead(
    server: Operated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(tmp_path / "root", "inside")
    shutil.copytree(tmp_path / "root" / "inside", tmp_path / "root" / "mixed")
    (tmp_path / "root" / "mixed" / "model.safetensors").unlink()
    (tmp_path / "root" / "mixed" / "model.safetensors").symlink_to(tmp_path / "topic" / "model.safetensors")
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "topic")
    monkeypatch.setenv("DSAS_OPERATOR_ROOT", "root")
    for folder in (str(tmp_path / "topic"), "../topic", "linked", "mixed", ".."):
        answer = server.ask("POST", body={"name": "extra", "folder": folder})
        assert answer.status == 400, folder
        assert "is not below the folder from which this server loads Steerings" in answer.message
    assert server.ask("POST", body={"name": "extra", "folder": "inside"}).status == 200


def test_an_error_of_another_package_in_a_worker_is_refused_as_well(
    server: Operated, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("dsas.serving.tables.SiteTable.put", fail)
    answer = server.ask("POST", body={"name": "extra", "folder": "topic"})
    assert answer.status == 400
    assert answer.message == "'extra' cannot be served: RuntimeError: out of memory"
    assert (server.names, len(server.slots())) == (["detox"], 1)


@pytest.mark.parametrize("key", ["", " x", "x\n", "a\x07b"])
def test_a_key_that_no_request_can_carry_is_refused_at_the_start(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSAS_OPERATOR_KEY", key)
    with pytest.raises(OptionError, match=r"no header of HTTP can carry it"):
        serving.serve("model", ["detox"], [])


def test_a_root_that_is_no_folder_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSAS_OPERATOR_ROOT", str(tmp_path / "gone"))
    with pytest.raises(OptionError, match="must be the folder below which Steerings may be loaded"):
        serving.serve("model", ["detox"], [])


@pytest.mark.usefixtures("server")
def test_a_slot_is_given_back_when_the_last_request_that_names_it_has_ended(tmp_path: Path) -> None:
    server = Operated(tmp_path, spare=1)
    steerings = store(tmp_path / "more", "first", "second", "third")
    topic, third = (str(tmp_path / "more" / name) for name in ("second", "third"))
    digest = steerings["second"].digest()
    assert server.ask("POST", body={"name": "topic", "folder": topic}).status == 200
    server.output_processor.request_states["r"] = server.output_processor.dsas_digests["r"] = [digest]
    assert server.ask("DELETE", "/topic").status == 200
    assert digest in server.slots()  # a request runs
    assert server.ask("POST", body={"name": "third", "folder": third}).status == 400
    del server.output_processor.request_states["r"]
    assert server.ask("POST", body={"name": "third", "folder": third}).status == 200
    assert digest not in server.slots()


def test_the_operator_is_told_of_a_request_by_its_id_and_nobody_else_is(server: Operated) -> None:
    report = {"tokens": 3, "mean_strength": {"detox": 0.5}, "above_half": {"detox": 1}}
    server.worker.dsas.reports.find = lambda request: {"cmpl-1-0": report} if request == "cmpl-1" else {}
    answer = server.ask("GET", "/dsas/reports/cmpl-1")
    assert (answer.status, json.loads(answer.body)) == (200, {"cmpl-1-0": report})
    assert server.ask("GET", "/dsas/reports/cmpl-2").status == 400
    assert server.ask("GET", "/dsas/reports/cmpl-1", key=b"clients").status == 401


def test_requests_of_every_kind_at_random_end_in_an_answer_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the campaign goes elsewhere, and sets these two
    monkeypatch.setitem(os.environb, b"DSAS_OPERATOR_KEY", KEY)
    monkeypatch.setenv("DSAS_OPERATOR_ROOT", str(tmp_path))
    ends = requests.run(rounds=300, seed=1)
    assert [what for what in ends if "WRONG" in what] == []
    assert ends.total() == 300
