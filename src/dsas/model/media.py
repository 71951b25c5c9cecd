"""Media: the pictures, videos and sounds of a conversation's messages.

A message holds them as parts of its content, as in transformers:

    {"role": "user", "content": [{"type": "image", "image": PIL image or path}, {"type": "text", "text": "What?"}]}

Two media are the same when their numbers are the same or, for two files, their bytes.

A sound that is given as numbers has the sampling rate of the model's processor; with a rate of its own,
{"array": ..., "sampling_rate": ...}, as `datasets` has it, another one is refused.

Limitations: nothing is fetched from a network, so addresses are refused. Files of sounds are read by transformers,
which needs torchcodec or soundfile and soxr.
"""

import base64
import binascii
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal, cast, final, get_args

from dsas.errors import TextsError
from dsas.model.foreign import Foreign

Kind = Literal["image", "video", "audio"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_HOLDERS = ("url", "path", "base64", "image_url", "audio_url", "video_url")  # the key in other formats


@final
@dataclass(frozen=True)
class Medium:
    """A picture, a video or a sound.

    digest: 16 hexadecimal digits of what it shows. value: as a processor takes it, such as a PIL image, an array, or
    the path of a file.
    """

    kind: Kind
    digest: str
    value: Foreign = field(compare=False, repr=False)

    def as_dict(self) -> dict[str, str]:
        """Return the part as templates take it, JSON-ready, with the digest in place of the value."""
        return {"type": self.kind, self.kind: f"sha256:{self.digest}"}

    def __str__(self) -> str:
        return f"[{self.kind}]"


def medium_of(part: Mapping[str, Any], where: str) -> Medium | None:
    """Return the medium of a message's part, None for a part of another type.

    where: its name in error messages. Raises TextsError for a part without a value, or one that cannot be read.
    """
    kind = str(part.get("type", "")).removesuffix("_url")
    if kind not in KINDS:
        return None
    value = next((part[name] for name in (kind, *_HOLDERS) if part.get(name) is not None), None)
    value = value.get("url") if isinstance(value, Mapping) and "url" in value else value
    if value is None:
        raise TextsError(
            f'{where}: expected the {kind} itself, {{"type": "{kind}", "{kind}": ...}}, got the keys '
            f"{', '.join(map(repr, part))}"
        )
    if isinstance(value, str) and value.startswith("data:"):
        value = _decoded(value, where)
    digest = hashlib.sha256()
    _digest(value, digest, where, kind)
    return Medium(cast(Kind, kind), digest.hexdigest()[:16], value)


def sound_of(medium: Medium, rate: int) -> Foreign:
    """Return a sound as numbers at a sampling rate in Hz. Raises TextsError for one that has another, or no reader."""
    value = medium.value
    if isinstance(value, Mapping):
        if value["sampling_rate"] != rate:
            raise TextsError(
                f"a sound has {value['sampling_rate']} values per second, the model takes {rate}: resample it"
            )
        return value["array"]
    if not isinstance(value, str | PathLike):
        return value
    from transformers.audio_utils import load_audio

    try:
        return load_audio(str(value), sampling_rate=rate)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise TextsError(f"the sound {str(value)!r:.80} cannot be read; give it as numbers: {error}") from error


def _decoded(address: str, where: str) -> Foreign:
    """Return the picture of a data: address."""
    from PIL import Image  # imported only if there are pictures

    try:
        return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2], validate=True)))
    except (binascii.Error, OSError) as error:
        raise TextsError(f"{where}: expected a picture as a data: address in base64: {error}") from error


def _digest(value: Foreign, digest: "hashlib._Hash", where: str, kind: str) -> None:
    if isinstance(value, str | PathLike):
        if "://" in str(value):
            raise TextsError(f"{where}: nothing is fetched from a network; download {str(value)!r:.80} first")
        try:
            digest.update(Path(value).read_bytes())
        except OSError as error:
            raise TextsError(f"{where}: the {kind} cannot be read: {error}") from error
    elif hasattr(value, "tobytes") and hasattr(value, "mode"):  # a PIL image
        digest.update(f"{value.mode}{value.size}".encode() + value.tobytes())
    elif isinstance(value, Mapping) and {"array", "sampling_rate"} <= value.keys():
        digest.update(f"{value['sampling_rate']}".encode())
        _digest(value["array"], digest, where, kind)
    elif isinstance(value, Sequence) and value and not isinstance(value[0], float | int):
        for one in value:
            _digest(one, digest, where, kind)
    else:
        import numpy as np  # imported only if there are arrays: commands start without it

        numbers = np.asarray(value)
        if numbers.dtype.kind not in "biuf" or not numbers.size:
            raise TextsError(f"{where}: expected the {kind} as a PIL image, an array or a path, got {value!r:.60}")
        digest.update(f"{numbers.dtype}{numbers.shape}".encode() + numbers.tobytes())
