import os
import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from dsas.errors import ArtifactError
from dsas.evaluation.pickles import Record, load_joblib, load_pickle

LOADERS = [load_pickle, load_joblib]


class Call:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("call", [(os.system, "exit 1"), (eval, "1"), (getattr, "", "upper")])
def test_a_pickle_that_calls_anything_is_refused(tmp_path, load, call):
    file = tmp_path / "bad.pkl"
    file.write_bytes(pickle.dumps(Call(*call)))
    with pytest.raises(ArtifactError, match=call[0].__name__):
        load(file, ["sklearn.linear_model._logistic.LogisticRegression"])


def test_numbers_containers_and_records_come_back(tmp_path):
    model = LogisticRegression().fit(np.array([[0.0], [1.0]]), [0, 1])
    held = [OrderedDict(a=1), defaultdict(int, b=2), np.arange(6.0).reshape(2, 3), np.float64(3.5), model]
    name = "sklearn.linear_model._logistic.LogisticRegression"
    pickled, dumped = tmp_path / "a.pkl", tmp_path / "a.joblib"
    pickled.write_bytes(pickle.dumps(held))
    joblib.dump(held, dumped)
    for load, file in zip(LOADERS, (pickled, dumped), strict=True):
        first, second, array, number, record = load(file, [name])
        assert (first, second, number) == (OrderedDict(a=1), {"b": 2}, 3.5)
        np.testing.assert_array_equal(array, held[2])
        assert type(record) is Record
        np.testing.assert_array_equal(record.coef_, model.coef_)


def test_joblib_arrays_in_fortran_order_and_of_no_dimension_come_back(tmp_path):
    file = tmp_path / "a.joblib"
    held = [np.asfortranarray(np.arange(6).reshape(2, 3)), np.array(7.0), np.zeros((0, 2), np.float32)]
    joblib.dump(held, file)
    for found, expected in zip(load_joblib(file, []), held, strict=True):
        np.testing.assert_array_equal(found, expected, strict=True)


def test_an_array_of_objects_in_a_joblib_file_is_refused(tmp_path: Path):
    file = tmp_path / "a.joblib"
    joblib.dump(np.array([Call(os.system, "exit 1")], dtype=object), file)
    with pytest.raises(ArtifactError, match="array of objects"):
        load_joblib(file, [])
