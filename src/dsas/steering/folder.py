"""Folder: where a stored Steering is, on this disk or on the hub, found without reading its tensors."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dsas.errors import ArtifactError, closest, shown
from dsas.files.json_values import Json

CONFIG, TENSORS, CARD = "config.json", "model.safetensors", "README.md"


def steering_folder(name: str | Path, *, revision: str | None = None, hub_options: Mapping[str, Json] = {}) -> Path:
    """Return the local folder of a stored Steering; that of a hub id is downloaded first.

    hub_options: as `huggingface_hub.snapshot_download` takes them.
    Raises ArtifactError when there is no such folder or hub id, it cannot be read, or no Steering is in it.
    """
    folder = Path(name)
    with readable(name):
        there = folder.is_dir()
    if not there:
        from huggingface_hub import snapshot_download

        from dsas.steering.hub import hub_reason

        try:
            files = [CONFIG, TENSORS, CARD]
            folder = Path(snapshot_download(str(name), revision=revision, allow_patterns=files, **hub_options))
        except TypeError:  # of an unknown option
            raise
        except Exception as error:  # the client raises what the HTTP library below it does
            around = folder.parent.glob(f"*/{TENSORS}") if folder.parent.is_dir() else ()
            beside = [str(path.parent) for path in around]
            hint = f"closest folder: {closest(str(name), beside, n=1)}; " if beside else ""
            raise ArtifactError(
                f"{shown(str(name), 200)} is neither a local folder nor a readable hub id: {hint}{hub_reason(error)}"
            ) from error
    with readable(name):
        check_files(folder)
    return folder


@contextmanager
def readable(name: str | Path) -> Iterator[None]:
    """Turn the system's errors for unreadable files into ArtifactError."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{shown(str(name), 200)} cannot be read: {error.strerror or error}") from error


def check_files(folder: Path) -> None:
    """Raise ArtifactError, naming what is missing, unless the folder holds the files of a Steering."""
    missing = [name for name in (CONFIG, TENSORS) if not (folder / name).is_file()]
    if missing == [TENSORS] and any(folder.glob("model-*.safetensors")):  # its writer was interrupted
        missing = []
    if missing:
        raise ArtifactError(f"{folder} is not a stored Steering: {', '.join(missing)} not found")
