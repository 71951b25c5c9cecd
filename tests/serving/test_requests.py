"""What a request may ask, what it means, and how it is told what is wrong; which requests share a prefix cache."""

from typing import Any

import pytest

from dsas.errors import DsasError, OptionError, StrengthError
from dsas.serving.requests import Entry, check_name, resolve, salt

LOADED = {"detox": Entry("d1", 0.8), "topic": Entry("d2", 1.0)}


def test_without_a_name_nothing_is_steered() -> None:
    assert resolve(None, LOADED, 1) == resolve({"other": 3}, LOADED, 1) == []


def test_a_name_alone_takes_the_stored_strength() -> None:
    assert resolve({"dsas_steering": "detox"}, LOADED, 1) == [Entry("d1", 0.8)]


def test_a_strength_that_is_given_counts() -> None:
    assert resolve({"dsas_steering": "topic", "dsas_strength": 2}, LOADED, 1) == [Entry("d2", 2.0)]


def test_below_0_it_is_the_opposite_direction_and_has_blocks_of_its_own() -> None:
    asked = resolve({"dsas_steering": "topic", "dsas_strength": -2}, LOADED, 1)
    assert asked == [Entry("d2", -2.0)]
    assert salt(asked) != salt([Entry("d2", 2.0)])


def test_several_act_in_the_order_in_which_they_are_named() -> None:
    asked = resolve({"dsas_steering": ["topic", "detox"], "dsas_strength": [0.5, 1.5]}, LOADED, 2)
    assert asked == [Entry("d2", 0.5), Entry("d1", 1.5)]


def test_strength_zero_is_no_steering() -> None:
    assert resolve({"dsas_steering": "detox", "dsas_strength": 0}, LOADED, 1) == []


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"dsas_steering": "detoks"}, OptionError, "no Steering 'detoks' is loaded; closest: 'detox'"),
        ({"dsas_steering": 3}, OptionError, "no Steering 3 is loaded"),
        ({"dsas_steering": []}, OptionError, "must be 1 to 1 different names"),
        ({"dsas_steering": ["detox", "topic"]}, OptionError, "must be 1 to 1 different names"),
        ({"dsas_steering": ["detox", "detox"]}, OptionError, "different names"),
        ({"dsas_strenght": 1.0}, OptionError, "unknown key 'dsas_strenght' in vllm_xargs; closest: 'dsas_strength'"),
        ({"dsas_resolved": [["d1", 9.0]]}, OptionError, "unknown key 'dsas_resolved'"),
        ({"dsas_strength": 1.0}, OptionError, "without 'dsas_steering'"),
        ({"dsas_report": "yes"}, OptionError, "'dsas_report' must be true or false, got 'yes'"),
        ({"dsas_report": 1}, OptionError, "needs a server that was started with --reports"),
        ({"dsas_reported": ["id"]}, OptionError, "unknown key 'dsas_reported'"),
        ({"dsas_steering": "detox", "dsas_strength": [1.0, 2.0]}, StrengthError, "1 Steerings are named but 2"),
        ({"dsas_steering": "detox", "dsas_strength": -1e7}, StrengthError, "got -10000000.0"),
        ({"dsas_steering": "detox", "dsas_strength": float("nan")}, StrengthError, "got nan"),
        ({"dsas_steering": "detox", "dsas_strength": 1e39}, StrengthError, r"from -1e\+06 to 1e\+06"),
        ({"dsas_steering": "detox", "dsas_strength": "1"}, StrengthError, "got '1'"),
        ({"dsas_steering": "detox", "dsas_strength": True}, StrengthError, "got True"),
        ({"dsas_steering": "detox", "dsas_strength": 10**5000}, StrengthError, "got a value of type int that is too"),
        ({"dsas_steering": [10**5000]}, OptionError, "no Steering a value of type int that is too long"),
        ({"dsas_steering": "x" * 10**6}, OptionError, "no Steering 'xxx"),
        ({"dsas_report": ["x"] * 10**5}, OptionError, "must be true or false, got"),
        ({"dsas" * 10**5: 1}, OptionError, "unknown key 'dsasdsas"),
        ({"dsas_steering": "\ud800"}, OptionError, r"no Steering '\\ud800' is loaded"),
    ],
)
def test_a_bad_request_is_told_what_was_expected(given: dict[str, Any], error: type[DsasError], said: str) -> None:
    with pytest.raises(error, match=said) as refused:
        resolve(given, LOADED, 1)
    assert len(str(refused.value).encode()) < 400


@pytest.mark.parametrize(
    "name", ["", " ", "a ", "a\nb", "\x1b[31m", "\u202ex", "\ud800", ".", "..", "../x", "a/b", "a\\b", "x" * 101]
)
def test_a_name_that_could_not_be_unloaded_or_shown_is_no_name(name: str) -> None:
    with pytest.raises(OptionError, match="expected the name of a Steering as 1 to 100 printable characters"):
        check_name(name)


@pytest.mark.parametrize("name", ["detox", "détox", "a b", "..x", "50%", "x?#", "x" * 100])
def test_all_other_names_are(name: str) -> None:
    check_name(name)


def test_an_unsteered_request_has_the_salt_of_a_server_that_does_not_steer() -> None:
    assert salt([]) is None
    assert salt([], "mine") == "mine"


def test_salts_differ_by_version_strength_order_and_the_clients_own() -> None:
    one, two = Entry("d1", 1.0), Entry("d2", 1.0)
    asked = [[one], [one._replace(strength=1.0000001)], [one._replace(digest="d9")], [one, two], [two, one]]
    salts = [salt(each) for each in asked] + [salt([one], "mine")]
    assert len(set(salts)) == len(salts)
    assert salt([one]) == salt([Entry("d1", 1.0)])


def test_no_salt_of_a_client_opens_the_blocks_of_steered_requests() -> None:
    steered = salt([Entry("d1", 1.0)])
    assert steered is not None
    assert salt([], steered) not in (steered, salt([Entry("d1", 1.0)], steered))
