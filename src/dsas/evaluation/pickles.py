"""Pickles that other people wrote, read without running anything of theirs.

A pickle names the globals it wants to call. Here it gets numbers, containers and NumPy arrays, and nothing else: the
classes it was made of come back as `Record`, which only holds their attributes; any other global raises. So a stored
model is read as data, whatever version of its library wrote it and whether or not that library is installed.

joblib's files are pickles in which the bytes of an array follow the `NumpyArrayWrapper` that describes it: one byte
with the number of padding bytes, the padding, the array.

Left out: compressed joblib files, memory-mapped and object arrays.

Source: "Restricting globals" in the pickle chapter of the Python library reference; joblib/numpy_pickle.py.
"""

import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from dsas.errors import ArtifactError
from dsas.files.json_values import JsonObject
from dsas.model.foreign import Foreign


class Record:
    """An object of a class we do not have: its attributes and no behaviour."""

    def __setstate__(self, state: JsonObject) -> None:
        vars(self).update(state)


class _JoblibArray(Record):
    shape: tuple[int, ...]
    order: str
    dtype: np.dtype

    def read(self, file: BinaryIO) -> np.ndarray:
        if self.dtype.hasobject:
            raise ArtifactError(f"{file.name}: expected arrays of numbers, got an array of objects")
        file.read(file.read(1)[0])
        count = int(np.prod(self.shape, dtype=np.int64))
        flat = np.frombuffer(file.read(count * self.dtype.itemsize), dtype=self.dtype, count=count)
        return flat.reshape(self.shape, order="F" if self.order == "F" else "C")


_InPython: Any = pickle._Unpickler  # the one in C reads ahead, so no bytes can be taken out from between two objects
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_SCALAR = np.float64(0).__reduce__()[0]
_HARMLESS = {
    "builtins.int": int,
    "collections.OrderedDict": OrderedDict,
    "collections.defaultdict": defaultdict,
    "numpy.dtype": np.dtype,
    "numpy.ndarray": np.ndarray,
    "numpy.float64": np.float64,
    "numpy.core.multiarray._reconstruct": _RECONSTRUCT,
    "numpy._core.multiarray._reconstruct": _RECONSTRUCT,
    "numpy.core.multiarray.scalar": _SCALAR,
    "numpy._core.multiarray.scalar": _SCALAR,
    "joblib.numpy_pickle.NumpyArrayWrapper": _JoblibArray,
}


def _global(name: str, records: Collection[str], file: str) -> Foreign:
    if name in _HARMLESS:
        return _HARMLESS[name]
    if name in records:
        return Record
    raise ArtifactError(f"{file} asks for {name}, which is neither a number, a container nor one of {sorted(records)}")


def load_pickle(path: Path, records: Collection[str]) -> Foreign:
    """Return what a pickle file holds, with the classes named in `records` ("module.name") as `Record`.

    Raises ArtifactError for any global that is neither harmless nor in `records`.
    """

    class Restricted(pickle.Unpickler):
        def find_class(self, module: str, name: str, /) -> Foreign:
            return _global(f"{module}.{name}", records, path.name)

    with path.open("rb") as file:
        return Restricted(file).load()


def load_joblib(path: Path, records: Collection[str]) -> Foreign:
    """Return what an uncompressed joblib file holds, under the same rule as `load_pickle`."""

    class Restricted(_InPython):
        dispatch: ClassVar = dict(_InPython.dispatch)

        def find_class(self, module: str, name: str) -> Foreign:
            return _global(f"{module}.{name}", records, path.name)

        def load_build(self) -> None:
            super().load_build()
            if isinstance(self.stack[-1], _JoblibArray):
                self.stack[-1] = self.stack[-1].read(file)

        dispatch[pickle.BUILD[0]] = load_build

    with path.open("rb") as file:
        return Restricted(file).load()
