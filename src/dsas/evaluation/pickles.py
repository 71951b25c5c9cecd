"""Pickles that other people wrote, read without running anything of theirs.

A pickle names the globals it wants to call. Here it gets numbers, containers and NumPy arrays, and nothing else:
objects of the named classes come back as `Record`, which only holds their attributes; any other global raises. So a
stored model is read as data, whatever version of its library wrote it and whether or not that library is installed.

NumPy trusts what a pickle says of a data type or an array. So neither is passed to it: a data type is one of
`PLAIN`, in either byte order, and an array has exactly the bytes that its shape and its data type need, or is refused
before anything is allocated. The keys of containers are numbers and texts. The file is read by Python's own unpickler,
because the one in C allocates whatever sizes the file names, and reads ahead.

joblib's files are pickles in which the bytes of an array follow the `NumpyArrayWrapper` that describes it: one byte
with the number of padding bytes, the padding, the array.

Limitations: compressed joblib files, memory-mapped arrays, and arrays of anything but numbers are refused.

Source: "Restricting globals" in the pickle chapter of the Python library reference; joblib/numpy_pickle.py.
"""

import io
import math
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dsas.errors import ArtifactError
from dsas.files.json_values import JsonObject
from dsas.model.foreign import Foreign

LARGEST = 2**30  # largest file, in bytes
PLAIN = frozenset(("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"))


class Record:
    """An object of a class that is not imported: its attributes and no behaviour."""

    def __setstate__(self, state: JsonObject) -> None:
        vars(self).update(state)


class _Dtype:
    """A data type of NumPy as a pickle describes it."""

    def __init__(self, code: str = "", *_flags: Foreign) -> None:
        if code not in PLAIN:
            raise ArtifactError(f"expected arrays of numbers, got an array of {_said(code)}")
        self.code, self.order = code, "="

    def __setstate__(self, state: Foreign) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) == 8 else None
        if order not in ("<", ">", "|", "=") or state[2:7] != (None, None, None, -1, -1):
            raise ArtifactError(f"expected the state of a plain data type, got {state!r:.80}")
        self.order = order

    def plain(self) -> np.dtype:
        """Return the data type."""
        return np.dtype(self.order + self.code)


class _Array(np.ndarray):
    """An array that takes a pickle's contents only if they fit its description."""

    def __setstate__(self, state: Foreign, /) -> None:
        _version, shape, dtype, fortran, data = state
        plain = _checked(shape, dtype, len(data) if isinstance(data, bytes) else -1)
        super().__setstate__((1, shape, plain, bool(fortran), data))  # pyright: ignore[reportArgumentType]


class _JoblibArray(Record):
    shape: tuple[int, ...]
    order: str
    dtype: _Dtype

    def take(self, file: io.BytesIO) -> np.ndarray:
        """Return the array whose bytes come next in a file."""
        file.read(file.read(1)[0])
        begin = file.tell()
        left = file.seek(0, io.SEEK_END) - begin
        file.seek(begin)
        plain = _checked(self.shape, self.dtype, left, exactly=False)
        flat = np.frombuffer(file.read(math.prod(self.shape) * plain.itemsize), dtype=plain)
        return flat.reshape(self.shape, order="F" if self.order == "F" else "C")


class _NoArray:
    """Stands for `numpy.ndarray` in a pickle, where it is named and never called."""

    def __new__(cls, *_: Foreign) -> "_NoArray":
        raise ArtifactError("expected arrays with their bytes, got one without")


def _checked(shape: Foreign, dtype: Foreign, size: int, *, exactly: bool = True) -> np.dtype:
    """Return the data type of an array that has `size` bytes, or at most that many. Raises ArtifactError."""
    if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple) or len(shape) > 32:
        raise ArtifactError(f"expected the shape and the data type of an array, got {shape!r:.40} and {_said(dtype)}")
    if not all(type(length) is int and length >= 0 for length in shape):
        raise ArtifactError(f"expected the shape of an array, got {shape!r:.80}")
    needed = math.prod(shape) * dtype.plain().itemsize
    if size != needed if exactly else size < needed:
        raise ArtifactError(f"an array of shape {shape!r:.80} needs {needed} bytes, and there are {size}")
    return dtype.plain()


def _said(value: Foreign) -> str:
    return "objects" if value == "O8" else f"{value!r:.40}"


def _reconstruct(*_: Foreign) -> np.ndarray:
    return np.ndarray.__new__(_Array, (0,), np.int8)


def _scalar(dtype: Foreign, data: Foreign = b"") -> Foreign:
    return np.frombuffer(data, _checked((), dtype, len(data) if isinstance(data, bytes) else -1))[0]


def _ordered(pairs: Foreign = ()) -> OrderedDict[Foreign, Foreign]:
    return OrderedDict((_key(key), value) for key, value in pairs)


def _counting(_factory: Foreign = None, *_: Foreign) -> defaultdict[Foreign, Foreign]:
    return defaultdict(int if _factory is int else None)


def _key(key: Foreign) -> Foreign:
    if key is not None and type(key) not in (str, bytes, int, float, bool) and not isinstance(key, np.number):
        raise ArtifactError(f"expected numbers and texts as keys, got {type(key).__name__}")
    return key


_HARMLESS: dict[str, Foreign] = {
    "builtins.int": int,
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": _counting,
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _NoArray,
    "numpy.float64": np.float64,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "joblib.numpy_pickle.NumpyArrayWrapper": _JoblibArray,
}
_Python: Any = pickle._Unpickler


class _Restricted(_Python):
    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(_Python.dispatch)

    def __init__(self, file: io.BytesIO, records: Collection[str]) -> None:
        super().__init__(file)
        self._file, self._records = file, records

    def find_class(self, module: str, name: str) -> Foreign:
        asked = f"{module}.{name}"
        if asked not in _HARMLESS and asked not in self._records:
            known = sorted(self._records)
            raise ArtifactError(f"it needs {asked}, which is neither a number, a container nor one of {known}")
        return _HARMLESS.get(asked, Record)

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], Record | _Dtype | _Array):  # the state would be set on one of our own objects
            raise ArtifactError(f"expected the state of an object or an array, got one of {self.stack[-2]!r:.40}")
        super().load_build()
        if type(self.stack[-1]) is _JoblibArray:
            self.stack[-1] = _JoblibArray.take(self.stack[-1], self._file)

    def load_setitem(self) -> None:
        _key(self.stack[-2])
        super().load_setitem()

    def load_setitems(self) -> None:
        list(map(_key, self.stack[::2]))
        super().load_setitems()

    def load_dict(self) -> None:
        list(map(_key, self.stack[::2]))
        super().load_dict()

    def load_additems(self) -> None:
        list(map(_key, self.stack))
        super().load_additems()

    def load_frozenset(self) -> None:
        list(map(_key, self.stack))
        super().load_frozenset()

    for _code in ("BUILD", "SETITEM", "SETITEMS", "DICT", "ADDITEMS", "FROZENSET"):
        dispatch[getattr(pickle, _code)[0]] = locals()[f"load_{_code.lower()}"]


def load_pickle(path: Path, records: Collection[str]) -> Foreign:
    """Return what a pickle or an uncompressed joblib file holds, with the classes named in `records` as `Record`.

    records: "module.name". Raises ArtifactError, with the file's name, for any global that is neither harmless nor in
    `records`, for an array that contradicts its description, and for a file that is not a pickle or exceeds 1 GiB.
    """
    if (size := path.stat().st_size) > LARGEST:
        raise ArtifactError(f"{path.name} has {size} bytes, more than the {LARGEST} that a pickle may have here")
    try:
        return _Restricted(io.BytesIO(path.read_bytes()), records).load()
    except ArtifactError as error:
        raise ArtifactError(f"{path.name}: {error}") from error
    except Exception as error:  # a broken pickle may raise anything
        raise ArtifactError(f"{path.name} is not a readable pickle: {type(error).__name__}: {error}") from error
