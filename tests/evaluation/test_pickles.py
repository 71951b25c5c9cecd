import os
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from campaigns import pickles
from sklearn.linear_model import LogisticRegression

from dsas.errors import ArtifactError
from dsas.evaluation.pickles import Record, load_pickle


class Call:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("call", [(os.system, "exit 1"), (eval, "1"), (getattr, "", "upper")])
def test_a_pickle_that_calls_anything_is_refused(tmp_path, call):
    file = tmp_path / "bad.pkl"
    file.write_bytes(pickle.dumps(Call(*call)))
    with pytest.raises(ArtifactError, match=call[0].__name__):
        load_pickle(file, ["sklearn.linear_model._logistic.LogisticRegression"])


def test_numbers_containers_and_records_come_back(tmp_path):
    model = LogisticRegression().fit(np.array([[0.0], [1.0]]), [0, 1])
    held = [OrderedDict(a=1), defaultdict(int, b=2), np.arange(6.0).reshape(2, 3), np.float64(3.5), model]
    name = "sklearn.linear_model._logistic.LogisticRegression"
    pickled, dumped = tmp_path / "a.pkl", tmp_path / "a.joblib"
    pickled.write_bytes(pickle.dumps(held))
    joblib.dump(held, dumped)
    for file in (pickled, dumped):
        first, second, array, number, record = load_pickle(file, [name])
        assert (first, second, number) == (OrderedDict(a=1), {"b": 2}, 3.5)
        np.testing.assert_array_equal(array, held[2])
        assert type(record) is Record
        np.testing.assert_array_equal(record.coef_, model.coef_)


def test_joblib_arrays_in_fortran_order_and_of_no_dimension_come_back(tmp_path):
    file = tmp_path / "a.joblib"
    held = [np.asfortranarray(np.arange(6).reshape(2, 3)), np.array(7.0), np.zeros((0, 2), np.float32)]
    joblib.dump(held, file)
    for found, expected in zip(load_pickle(file, []), held, strict=True):
        np.testing.assert_array_equal(found, expected, strict=False)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


def test_an_array_of_objects_in_a_joblib_file_is_refused(tmp_path: Path):
    file = tmp_path / "a.joblib"
    joblib.dump(np.array([Call(os.system, "exit 1")], dtype=object), file)
    with pytest.raises(ArtifactError, match=r"a.joblib: .*array of objects"):
        load_pickle(file, [])


ARRAY, DTYPE = np.empty(0).__reduce__()[0], np.dtype


class Built:
    """Pickled as a call with a state that is set on what it gives."""

    def __init__(self, call: Callable[..., Any], arguments: tuple[Any, ...], state: Any) -> None:
        self.reduced = call, arguments, state

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


F8 = np.dtype("f8")
LIES = {
    "an item size": Built(DTYPE, ("f8", False, True), (3, "<", None, None, None, 2**31 - 1, 1, 0)),
    "fields": Built(DTYPE, ("V8", False, True), (3, "|", None, ("a",), {"a": (F8, 2**40)}, 8, 1, 16)),
    "a subarray": Built(DTYPE, ("f8", False, True), (3, "<", (F8, (2**40,)), None, None, -1, -1, 0)),
    "too few bytes": Built(ARRAY, (np.ndarray, (0,), b"b"), (1, (2**40,), F8, False, b"12345678")),
    "a negative length": Built(ARRAY, (np.ndarray, (0,), b"b"), (1, (-1, -1), F8, False, b"12345678")),
    "a list": Built(ARRAY, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype(object), False, [1])),
    "void": Built(ARRAY, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype("V8"), False, b"12345678")),
    "memory alone": Call(np.ndarray, (2**40,)),
    "a scalar of objects": Call(np.float64(0).__reduce__()[0], np.dtype(object), b"12345678"),
    "a tuple as key": {(1, 2): 3},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_what_a_pickle_says_of_data_types_and_arrays_is_checked_before_numpy_hears_of_it(tmp_path: Path, lie: Any):
    file = tmp_path / "lies.pkl"
    file.write_bytes(pickle.dumps(lie))
    with pytest.raises(ArtifactError, match=r"lies.pkl: "):
        load_pickle(file, [])


def test_no_state_is_set_on_what_a_pickle_only_names(tmp_path: Path):
    file = tmp_path / "bad.pkl"
    file.write_bytes(b"ccollections\nOrderedDict\n}(V__defaults__\nI1\nub.")
    with pytest.raises(ArtifactError, match="expected the state of an object or an array"):
        load_pickle(file, [])


def test_a_file_that_is_too_large_or_no_pickle_is_our_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "a.pkl"
    file.write_bytes(b"\x80\x04\x8e" + (2**60).to_bytes(8, "little"))  # a bytes object of an exbibyte
    with pytest.raises(ArtifactError, match=r"a.pkl is not a readable pickle"):
        load_pickle(file, [])
    with file.open("r+b") as sparse:
        sparse.truncate(2**40)
    with pytest.raises(ArtifactError, match=f"has {2**40} bytes"):
        load_pickle(file, [])


def test_pickles_changed_at_random_end_in_our_error_or_in_what_they_say():
    ends = pickles.run(rounds=400, seed=0)
    assert {what for what in ends if "WRONG" in what} == set()
    assert ends["our error"] > 100
