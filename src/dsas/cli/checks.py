"""Checks of files, folders and names, made before anything heavy is imported and before a model is loaded."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryFile

from dsas.cli.choices import SCORERS
from dsas.errors import OptionError, StrengthError, TextsError, closest
from dsas.files.text_files import read_texts
from dsas.files.tidy_tables import check_ending
from dsas.regulators import factors_of
from dsas.steering.folder import steering_folder
from dsas.transforms import TRANSFORMS

TRIED = 2**16  # bytes that must fit into a folder, about those of a small Steering
MOST_FOLDERS = 100  # that a command makes, one in the other
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
    """Raise OptionError for a model that is neither there nor a hub id, and for a pipeline where none is meant."""
    if "pipeline" not in kind and (Path(name) / "model_index.json").is_file():
        raise OptionError(f"{name!r} holds a diffusers pipeline, not a {kind}: `dsas fit` and `dsas images` take one")
    file = name.endswith(".gguf")
    if not (Path(name).is_file() if file else Path(name).is_dir() or _HUB_ID.fullmatch(name)):
        or_file = " or a .gguf file" if kind.startswith("transformers model") else ""
        wanted = f"a folder with a {kind}, or a hub id{or_file}"
        raise OptionError(f"no model could be loaded from {name!r} (expected {wanted}): it does not exist")


def check_out(folder: Path) -> None:
    """Raise OptionError unless files can be written into the folder, which may have to be made."""
    whole = folder.absolute()
    there = next(path for path in (whole, *whole.parents) if os.path.lexists(path))
    problem = _problem(there, whole.relative_to(there).parts)
    if problem is not None:
        raise OptionError(f"cannot write to {folder}: {problem}")


def resumed_from(folder: Path, what: str) -> Path:
    """Return the hidden folder beside `folder` in which a command keeps what it resumes from; inside where it is /."""
    whole = Path(os.path.realpath(folder))
    return whole.parent / f".{whole.name}.{what}"


def check_out_file(file: Path) -> None:
    """Raise OptionError unless the file can be written."""
    whole = os.path.abspath(file)
    if os.path.lexists(whole) and not os.path.isfile(whole):
        found = "a device or pipe" if os.path.exists(whole) else "a broken link"
        found = "a folder" if os.path.isdir(whole) else found
        raise OptionError(f"cannot write {file}: expected a file, but it is {found}")
    check_out(file.parent)
    if (problem := _problem(file.absolute().parent, (file.name,))) is not None:
        raise OptionError(f"cannot write {file}: {problem}")


def check_table(file: Path | None) -> None:
    """Raise OptionError unless a table can be written, judged by its ending and its folder; None asks for no table."""
    if file is not None:
        check_ending(file)
        check_out_file(file)


def _problem(there: Path, names: Sequence[str]) -> str | None:
    """Return why folders of these names, one in the other, and files cannot be made in a folder; None if they can."""
    if not there.exists():
        return f"{there} is a link to a path that does not exist" if there.is_symlink() else None
    if not there.is_dir():
        return f"expected a folder, but {there} is a file"
    if len(names) > MOST_FOLDERS:
        return f"{len(names)} nested folders would have to be made, more than {MOST_FOLDERS}"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"no permission to write in {there}"
    try:
        too_long = [name for name in names if len(os.fsencode(name)) > os.pathconf(there, "PC_NAME_MAX")]
        with TemporaryFile(dir=there) as tried:
            tried.write(bytes(TRIED))
            tried.flush()
            os.fsync(tried.fileno())
    except (AttributeError, ValueError):  # a system without such limits
        return None
    except OSError as error:
        return f"{error.strerror} in {there}"
    return f"the name {too_long[0][:40]}... is too long" if too_long else None


def folders_by_name(names: Iterable[str | Path]) -> dict[str, Path]:
    """Return the local folders of stored Steerings by the last part of their names. Raises OptionError for repeats."""
    found: dict[str, Path] = {}
    for given in names:
        name = Path(given).name or Path(given).resolve().name
        if name in found:
            raise OptionError(f"two Steerings are called {name!r}: give one of their folders another name")
        found[name] = steering_folder(given)
    return found


def check_enough(sets: Mapping[str, Sequence[object]]) -> None:
    """Raise TextsError for a set of texts, by the option that names it, too small for selectivity to be measured on."""
    for option, texts in sets.items():
        if len(texts) < LEAST_TEXTS:
            needed = f"selectivity needs at least {LEAST_TEXTS} texts of each kind"
            raise TextsError(f"{needed}, got {len(texts)} from {option}")


def check_scorers(names: Iterable[str]) -> None:
    """Raise OptionError for a scorer that is not packaged and cannot be a classifier's folder or hub id."""
    for name in names:
        model, _, label = name.rpartition("@")
        if name not in SCORERS and "/" not in name and not Path(model or label).is_dir():
            near = closest(name, SCORERS)
            raise OptionError(
                f"no scorer {name!r}; closest packaged ones: {near}; "
                "or give the folder of a classifier, or its id on the hub, owner/name"
            )


def check_strength(strength: float | None) -> None:
    """Raise StrengthError for strength 0, at which there is nothing to show."""
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
