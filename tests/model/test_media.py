"""Media: what a part of a message's content is taken for, and when two of them are the same."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from multimodal import medium

from dsas.errors import TextsError
from dsas.model.conversation import as_json, as_text, content_of


def test_a_picture_is_itself_by_its_pixels_or_its_bytes_and_a_sound_by_its_numbers(tmp_path: Path) -> None:
    picture, file = medium("image", 0), tmp_path / "it.png"
    picture.save(file)

    def of(part: dict[str, Any]) -> Any:
        return content_of([{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}], "it")

    assert of({"type": "image", "image": picture}) == of({"type": "image", "image": picture.copy()})
    assert of({"type": "image", "image": picture}) != of({"type": "image", "image": medium("image", 2)})
    same = [
        of({"type": "image", key: value}) for key, value in (("path", str(file)), ("image", file), ("url", str(file)))
    ]
    assert same[0] == same[1] == same[2] != of({"type": "image", "image": picture})
    data = "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
    assert of({"type": "image_url", "image_url": {"url": data}}) == of({"type": "image", "image": picture})
    sounds = [of({"type": "audio", "audio": medium("audio", seed)}) for seed in (0, 0, 1)]
    assert sounds[0] == sounds[1] != sounds[2]
    assert as_text(sounds[0]) == "user: [audio]What?"
    assert json.loads(json.dumps(as_json(sounds[0]))) == as_json(sounds[0])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "image"}, r'message 0: expected the image itself, \{"type": "image", "image": ...\}, got the keys'),
        ({"type": "image", "url": "https://example.org/a.png"}, "nothing is fetched from a network; download"),
        ({"type": "image", "path": "nowhere.png"}, "message 0: the image cannot be read: .*nowhere.png"),
        ({"type": "image", "image": {"a": 1}}, "expected the image as a PIL image, an array or a path"),
        ({"type": "image", "image": "data:image/png;base64,AAAA"}, "expected a picture as a data: address in base64"),
        ({"type": "file", "file": "x"}, "only parts of type 'text', 'image', 'video' and 'audio' are read"),
    ],
)
def test_a_part_that_is_no_medium_is_refused_by_its_place(part: dict[str, Any], message: str) -> None:
    with pytest.raises(TextsError, match=message):
        content_of([{"role": "user", "content": [part]}], "it")
