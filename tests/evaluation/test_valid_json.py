import json

import pytest

from dsas.errors import TextsError
from dsas.evaluation.valid_json import is_json, json_requests, valid_json


@pytest.mark.parametrize(
    ("answer", "valid"),
    [
        ('{"a": [1, null]}', True),
        (' 3 \n', True),
        ('```json\n{"a": 1}\n```', True),
        ('```\n[]\n```\n', True),
        ('Here it is: {"a": 1}', False),
        ('{"a": 1} I hope it helps', False),
        ("{'a': 1}", False),
        ('{"a": NaN}', False),
        ('{"a": 1', False),
        ("[" * 100_000, False),
        ("", False),
    ],
)  # fmt: skip
def test_one_value_alone_or_in_a_fence_is_json(answer: str, valid: bool) -> None:
    assert is_json(answer) == valid


def test_keys_that_are_asked_for_must_be_there() -> None:
    assert is_json('{"name": 1, "colour": 2, "more": 3}', ("name", "colour"))
    assert not is_json('{"name": 1}', ("name", "colour"))
    assert not is_json("[1]", ("name",))


def test_every_request_names_its_keys_and_an_object_with_them_answers_it() -> None:
    for request in json_requests():
        assert all(f'"{key}"' in request.text for key in request.keys)
        assert is_json(json.dumps(dict.fromkeys(request.keys, 1)), request.keys)
    assert len(json_requests()) == 20


def test_the_share_is_of_a_list() -> None:
    assert valid_json(["{}", "x"]).mean() == 0.5
    with pytest.raises(TextsError):
        valid_json("{}")
