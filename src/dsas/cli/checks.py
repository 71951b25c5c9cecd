"""Checks of files, folders and names, made before anything heavy is imported and before a model is loaded."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from dsas.cli.choices import SCORERS
from dsas.errors import OptionError, StrengthError, TextsError, closest
from dsas.files.text_files import read_texts
from dsas.regulators import factors_of
from dsas.transforms import TRANSFORMS

LEAST_TEXTS = 4  # MINIMUM_TEXTS of the library, whose import takes seconds
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def check_methods(transforms: Iterable[str], regulators: Iterable[str]) -> None:
    """Raise OptionError for a name that `dsas methods` does not list."""
    for transform in transforms:
        TRANSFORMS.check(transform)
    for regulator in regulators:
        if regulator != "auto":
            factors_of(regulator)


def check_model(name: str, kind: str = "transformers model") -> None:
    """Raise OptionError for a model that is neither there nor a hub id."""
    file = name.endswith(".gguf")
    if not (Path(name).is_file() if file else Path(name).is_dir() or _HUB_ID.fullmatch(name)):
        or_file = " or a .gguf file" if kind == "transformers model" else ""
        wanted = f"a folder with a {kind}, or a hub id{or_file}"
        raise OptionError(f"no model could be loaded from {name!r} (expected {wanted}): nothing is there")


def check_out(folder: Path) -> None:
    """Raise OptionError unless files can be written into the folder, which may have to be made."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
    if not there.is_dir():
        raise OptionError(f"cannot write to {folder}: expected a folder, but {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OptionError(f"cannot write to {folder}: no permission to write in {there}")


def check_out_file(file: Path) -> None:
    """Raise OptionError unless the file can be written."""
    if file.is_dir():
        raise OptionError(f"cannot write {file}: expected a file, but it is a folder")
    check_out(file.parent)


def check_enough(sets: Mapping[str, Sequence[object]]) -> None:
    """Raise TextsError for a set of texts, by the option that names it, too small for selectivity to be measured on."""
    for option, texts in sets.items():
        if len(texts) < LEAST_TEXTS:
            needed = f"selectivity needs at least {LEAST_TEXTS} texts of each kind"
            raise TextsError(f"{needed}, got {len(texts)} by {option}")


def check_scorers(names: Iterable[str]) -> None:
    """Raise OptionError for a scorer that is not packaged and cannot be a classifier's folder or hub id."""
    for name in names:
        model, _, label = name.rpartition("@")
        if name not in SCORERS and "/" not in name and not Path(model or label).is_dir():
            near = closest(name, SCORERS)
            raise OptionError(
                f"no scorer {name!r}, of the packaged ones closest to it: {near}; "
                "others are the folder of a classifier, or its id on the hub, owner/name"
            )


def check_strength(strength: float | None) -> None:
    """Raise StrengthError for a strength at which there is nothing to show."""
    if strength == 0:
        raise StrengthError("expected a strength that is not 0: at 0 no token is steered")


def check_apart(**given: bool) -> None:
    """Raise OptionError when two options are given that exclude each other."""
    for one, other in combinations([name for name, there in given.items() if there], 2):
        raise OptionError(f"--{one} and --{other} cannot be combined")


def prompts_of(prompt: str | None, file: Path | None, field: str) -> list[str]:
    """Return the prompt that was given, or those of the file. Raises OptionError unless exactly one is given."""
    if prompt is not None and file is None:
        return [prompt]
    if file is not None and prompt is None:
        return read_texts(file, field=field)
    raise OptionError("give either one prompt or --file with prompts")
