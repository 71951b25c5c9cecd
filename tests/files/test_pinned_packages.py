import hashlib
import os
import sys
import zipfile
from pathlib import Path

import pytest

from dsas.errors import ArtifactError, DsasWarning, OptionError, StateError
from dsas.files import pinned_packages as assets
from dsas.files.pinned_packages import Package, building, cache_folder, fetch


def make_wheel(folder: Path, members: dict[str, str], wanted: tuple[str, ...] = ("*",)) -> Package:
    wheel = folder / "demo_pack-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in members.items():
            archive.writestr(path, text)
    return Package("demo-pack", "1.0", wheel.name, hashlib.sha256(wheel.read_bytes()).hexdigest(), wanted)


@pytest.fixture
def pin(monkeypatch):
    monkeypatch.setattr(assets, "_verified", set())
    return lambda package: monkeypatch.setattr(assets, "PACKAGES", {package.name: package})


def test_a_wheel_lying_in_the_cache_is_unpacked_without_pip_and_only_its_wanted_members(tmp_path, pin, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/python")
    pin(
        make_wheel(
            tmp_path, {"demo/data/a.txt": "a", "demo/code.py": "b", "x/LICENSE": "c"}, ("demo/data/*", "*/LICENSE")
        )
    )
    folder = fetch("demo-pack", cache=tmp_path)
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert found == ["demo/data/a.txt", "x/LICENSE"]


def test_the_second_call_needs_neither_the_wheel_nor_pip(tmp_path, pin, monkeypatch):
    package = make_wheel(tmp_path, {"a.txt": "a"})
    pin(package)
    first = fetch("demo-pack", cache=tmp_path)
    (tmp_path / package.wheel).unlink()
    monkeypatch.setattr(sys, "executable", "/no/python")
    assert fetch("demo-pack", cache=tmp_path) == first
    assert (first / "a.txt").read_text() == "a"


def test_a_choice_of_other_members_is_kept_apart_and_one_that_is_not_there_is_refused(tmp_path, pin):
    package = make_wheel(tmp_path, {"a.txt": "a", "b.txt": "b"}, ("a.txt",))
    pin(package)
    first = fetch("demo-pack", cache=tmp_path)
    pin(package._replace(members=("a.txt", "b.txt")))
    assert (fetch("demo-pack", cache=tmp_path) / "b.txt").read_text() == "b"
    assert not (first / "b.txt").exists()
    pin(package._replace(members=("a.txt", "c.txt")))
    with pytest.raises(ArtifactError, match=r"no file that matches \['c.txt'\]"):
        fetch("demo-pack", cache=tmp_path)


def test_a_wheel_with_another_sha256_is_refused_and_leaves_nothing(tmp_path, pin):
    package = make_wheel(tmp_path, {"a.txt": "a"})
    pin(package._replace(sha256="0" * 64))
    with pytest.raises(ArtifactError, match=f"expected sha256 {'0' * 64}, got {package.sha256}"):
        fetch("demo-pack", cache=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [package.wheel]


@pytest.mark.parametrize("path", ["../out.txt", "/out.txt", "a/../../out.txt", "C:\\out.txt"])
def test_a_member_outside_its_folder_is_refused(tmp_path, pin, path):
    pin(make_wheel(tmp_path, {path: "a"}))
    with pytest.raises(ArtifactError, match="outside its own folder"):
        fetch("demo-pack", cache=tmp_path)


def test_the_error_of_a_failed_download_says_what_pip_said_and_what_to_do(tmp_path, pin, monkeypatch):
    package = make_wheel(tmp_path, {"a.txt": "a"})
    pin(package)
    cache = tmp_path / "cache"
    pip = tmp_path / "python"
    pip.write_text("#!/bin/sh\necho 'ERROR: no route to anywhere' >&2\nexit 1\n")
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pip))
    with pytest.raises(StateError, match=r"demo-pack==1\.0(.|\n)*no route to anywhere(.|\n)*by hand") as raised:
        fetch("demo-pack", cache=cache)
    assert str(cache) in str(raised.value)
    assert package.wheel in str(raised.value)


def test_pip_is_asked_for_the_pinned_wheel_alone_and_for_its_platform_where_it_has_one(tmp_path, pin, monkeypatch):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    package = make_wheel(wheels, {"a.txt": "a"})
    pin(package._replace(platforms=("linux_one", "linux_two")))
    pip = tmp_path / "python"
    pip.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n'
        'while [ "$1" != --dest ]; do shift; done\n'
        f'cp {wheels}/{package.wheel} "$2"\n'
    )
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pip))
    assert (fetch("demo-pack", cache=tmp_path / "cache") / "a.txt").is_file()
    asked = (tmp_path / "asked").read_text().split()
    assert asked[-1] == "demo-pack==1.0"
    assert {"--no-deps", "--only-binary=:all:", "--python-version", "linux_one", "linux_two"} <= set(asked)


def test_where_another_process_was_faster_its_folder_stays(tmp_path):
    final = tmp_path / "final"
    with building(final) as partial:
        (partial / "a.txt").write_text("ours")
        final.mkdir()
        (final / "a.txt").write_text("theirs")
    assert (final / "a.txt").read_text() == "theirs"
    assert os.listdir(tmp_path) == ["final"]


def test_a_block_that_fails_leaves_no_folder(tmp_path):
    def interrupted():
        with building(tmp_path / "final") as partial:
            (partial / "a.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_an_unknown_package_is_answered_with_the_closest_name():
    with pytest.raises(OptionError, match="'gensim'"):
        fetch("gensin")


def test_the_cache_folder_is_the_one_of_the_environment(monkeypatch):
    monkeypatch.setenv("DSAS_CACHE", "/some/where")
    assert cache_folder() == Path("/some/where")
    monkeypatch.delenv("DSAS_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "dsas"


def test_an_unpacked_package_is_verified_when_a_process_first_uses_it_and_unpacked_anew_when_damaged(
    tmp_path, pin, monkeypatch
):
    pin(make_wheel(tmp_path, {"a.txt": "a", "b/c.txt": "c"}))
    folder = fetch("demo-pack", cache=tmp_path)
    for damage in (lambda: (folder / "a.txt").write_text("x"), lambda: (folder / "b" / "c.txt").unlink()):
        damage()
        monkeypatch.setattr(assets, "_verified", set())
        with pytest.warns(DsasWarning, match="is damaged: it is unpacked anew"):
            fetch("demo-pack", cache=tmp_path)
        assert [(folder / name).read_text() for name in ("a.txt", "b/c.txt")] == ["a", "c"]


def test_an_empty_folder_is_no_package(tmp_path, pin):
    package = make_wheel(tmp_path, {"a.txt": "a"})
    pin(package)
    (tmp_path / package.folder).mkdir()
    assert (fetch("demo-pack", cache=tmp_path) / "a.txt").read_text() == "a"


def test_a_wheel_that_would_fill_the_disk_is_refused_by_the_size_it_states(tmp_path, pin, monkeypatch):
    pin(make_wheel(tmp_path, {"a.txt": "a" * 1000}))
    monkeypatch.setattr(assets, "LARGEST", 999)
    with pytest.raises(ArtifactError, match="would unpack to 1000 bytes"):
        fetch("demo-pack", cache=tmp_path)


@pytest.mark.parametrize("place", [1, 40, -10], ids=["local header", "data", "directory"])
def test_a_broken_wheel_is_our_error(tmp_path, pin, place):
    package = make_wheel(tmp_path, {"a.txt": "some words"})
    wheel = tmp_path / package.wheel
    data = bytearray(wheel.read_bytes())
    data[place] ^= 0xFF
    wheel.write_bytes(data)
    pin(package._replace(sha256=hashlib.sha256(data).hexdigest()))
    with pytest.raises(ArtifactError, match="not a readable wheel"):
        fetch("demo-pack", cache=tmp_path)
    assert os.listdir(tmp_path) == [package.wheel]
