"""Reads pickles of byte arrays and plain containers without executing anything.

A pickle is a program: an ordinary unpickler calls whatever callable it names. The official CIFAR batches (Python 2,
protocol 2) name three of NumPy's, and even those would let a crafted file hand NumPy a corrupt dtype or an array of
objects. So here these names resolve to stand-ins that accept nothing but arrays of bytes, whose sizes are checked.
"""

import math
import pickle
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deepres.data.batch import DataError


class _RefusedError(pickle.UnpicklingError):
    """The pickle asks for something that is not harmless."""


class _ByteType:
    """Stands in for `numpy.dtype`; accepts only 'u1'."""

    def __init__(self, code: object = None, *_flags: object) -> None:
        if code not in ("u1", b"u1"):
            raise _RefusedError(f"an array of type {code!r}")

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and the like, which mean nothing for single bytes."""


class _ByteArray:
    """Stands in for a `numpy.ndarray` under construction."""

    array: npt.NDArray[np.uint8]

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), tuple(shape), _ByteType(), bool() | int() as fortran, bytes(raw)) if not fortran:
                if not all(isinstance(n, int) and n >= 0 for n in shape) or math.prod(shape) != len(raw):
                    raise _RefusedError(f"an array of shape {shape} in {len(raw)} bytes")
                self.array = np.frombuffer(raw, np.uint8).reshape(shape)
            case _:
                raise _RefusedError("an array that is not of plain bytes")


class _ArrayType:
    """Stands in for `numpy.ndarray`, which the batches name but never call."""


def _reconstruct(*_: object) -> _ByteArray:
    return _ByteArray()


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """Stands in for `_codecs.encode`: in protocol 2, Python 3 writes bytes as text to be encoded."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise _RefusedError("an encoding other than latin1")
    return text.encode("latin1")


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): _ByteType,
    ("_codecs", "encode"): _encode,
}


class _ByteArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}") from None

    def persistent_load(self, _pid: object) -> object:
        raise _RefusedError("an object outside the file")


def load_byte_arrays(path: Path) -> dict[str, object]:
    """Reads a pickled dictionary with text keys.

    Returns:
        The dictionary; values that are arrays are uint8 arrays (read-only), Python 2's strings are bytes.

    Raises:
        DataError: the file is truncated or not such a pickle, or it asks for anything but arrays of bytes and plain
            containers; nothing that it asks for is run.
    """
    try:
        with path.open("rb") as file:
            content = _ByteArrayUnpickler(file, encoding="bytes").load()
        if type(content) is not dict:
            raise _RefusedError(f"a {type(content).__name__} instead of a dictionary")
        return {
            key.decode("ascii") if isinstance(key, bytes) else str(key): (
                value.array if isinstance(value, _ByteArray) else value
            )
            for key, value in content.items()
        }
    except _RefusedError as error:
        raise DataError(
            f"{path}: refused: the pickle asks for {error}; only arrays of bytes and plain containers are read, "
            "and nothing was run"
        ) from None
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise DataError(f"{path}: a broken or cut off pickle ({error})") from error
    except (OSError, MemoryError, OverflowError) as error:
        raise DataError(f"{path}: cannot be read ({error or type(error).__name__})") from error
