import pytest

from dsas.errors import OptionError
from dsas.evaluation.jailbreaks import WRAPPERS, Wrapper


def test_every_wrapper_holds_the_request_once_and_says_more() -> None:
    for wrapper in WRAPPERS:
        around = wrapper.around("do {this}")
        assert around.count("do {this}") == 1
        assert len(around) > 2 * len("do {this}")
    assert len({wrapper.name for wrapper in WRAPPERS}) == len(WRAPPERS)


def test_a_wrapper_without_a_place_for_the_request_is_refused() -> None:
    with pytest.raises(OptionError, match=r"expected \{request\} in the wrapper 'mine', got 'do it'"):
        Wrapper("mine", "do it").around("x")
