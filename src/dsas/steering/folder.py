"""Folder: where a stored Steering lies, on this disk or on the hub, found without reading its tensors."""

from collections.abc import Mapping
from pathlib import Path

from dsas.errors import ArtifactError, closest
from dsas.files.json_values import Json

CONFIG, TENSORS, CARD = "config.json", "model.safetensors", "README.md"


def steering_folder(name: str | Path, *, revision: str | None = None, hub_options: Mapping[str, Json] = {}) -> Path:
    """Return the local folder of a stored Steering; that of a hub id is downloaded first.

    hub_options: as `huggingface_hub.snapshot_download` takes them.
    Raises ArtifactError when there is no such folder or hub id, or no Steering in it.
    """
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            files = [CONFIG, TENSORS, CARD]
            folder = Path(snapshot_download(str(name), revision=revision, allow_patterns=files, **hub_options))
        except (OSError, ValueError) as error:
            beside = [str(path.parent) for path in folder.parent.glob(f"*/{TENSORS}")]
            hint = f"closest folder: {closest(str(name), beside, n=1)}; " if beside else ""
            raise ArtifactError(
                f"{str(name)!r} is neither a local folder nor a readable hub id: {hint}{error}"
            ) from error
    check_files(folder)
    return folder


def check_files(folder: Path) -> None:
    """Raise ArtifactError, naming what is missing, unless the folder holds the files of a Steering."""
    missing = [name for name in (CONFIG, TENSORS) if not (folder / name).is_file()]
    if missing:
        raise ArtifactError(f"{folder} is not a stored Steering: {', '.join(missing)} not found")
