import collections
import os
import pickle

import numpy as np
import pytest

from deepres.data import DataError
from deepres.data.unpickle import load_byte_arrays


class Malicious:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.fixture
def load(tmp_path):
    def loaded(content: bytes):
        path = tmp_path / "batch"
        path.write_bytes(content)
        return load_byte_arrays(path)

    return loaded


def test_a_pickle_of_python_2_is_read(load, python2_pickle):
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    content = load(python2_pickle({"data": array, "labels": [3, 1], "batch_label": "testing"}))
    assert np.array_equal(content.pop("data"), array)
    assert content == {"labels": [3, 1], "batch_label": b"testing"}


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_what_python_3_writes_in_old_protocols_is_read(load, protocol):
    array = np.arange(200, 206, dtype=np.uint8).reshape(2, 3)
    content = load(pickle.dumps({"data": array, "labels": [3, 1]}, protocol))
    assert np.array_equal(content.pop("data"), array)
    assert content == {"labels": [3, 1]}


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Malicious(os.system, "touch {}"), "posix.system"),
        (Malicious(eval, "open({!r}, 'w')"), "builtins.eval|__builtin__.eval"),
        (Malicious(getattr, "a", "b"), "getattr"),
        (collections.OrderedDict(), "collections.OrderedDict"),
        (np.zeros(2, np.float32), "an array of type 'f4'"),
        (np.array([None, "x"], object), "an array of type 'O8'"),
        (np.zeros(2, [("a", "u1")]), "V1"),
        (np.float64(1), "scalar"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_asks_for_more_is_refused_and_nothing_run(load, tmp_path, value, named, protocol):
    mark = tmp_path / "mark"
    if isinstance(value, Malicious) and "{" in value.call[1][0]:
        value = Malicious(value.call[0], value.call[1][0].format(str(mark)))
    with pytest.raises(DataError, match=f"batch: refused: the pickle asks for .*({named}).*nothing was run"):
        load(pickle.dumps({"data": value}, protocol))
    assert not mark.exists()


def raw(dtype: bytes, state: bytes) -> bytes:
    """A pickle {"data": array} with a handmade dtype and state."""
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return b"\x80\x02}U\x04data" + empty + state.replace(b"DTYPE", b"cnumpy\ndtype\n" + dtype) + b"bs."


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (b"(K\x01(K\x05tDTYPE\x89U\x02xxt", r"an array of shape \(5,\) in 2 bytes"),
        (b"(K\x01(J\xff\xff\xff\xffJ\xfe\xff\xff\xfftDTYPE\x89U\x02xxt", r"shape \(-1, -2\)"),
        (b"(K\x01(K\x02tDTYPE\x88U\x02xxt", "not of plain bytes"),  # Fortran order
        (b"(K\x01(K\x02tDTYPE\x89](NNet", "not of plain bytes"),  # a list of objects
        (b"(K\x01(K\x02tK\x07\x89U\x02xxt", "not of plain bytes"),  # no dtype at all
        (b"K\x07", "not of plain bytes"),
    ],
)
def test_a_crafted_array_is_refused(load, state, why):
    with pytest.raises(DataError, match=why):
        load(raw(b"U\x02u1K\x00K\x01\x87R", state))


def test_a_crafted_dtype_cannot_become_another(load):
    # 'u1' at first, then told to be an object by its state: the state means nothing here.
    dtype = b"U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNK\x08K\x08K?tb"
    content = load(raw(dtype, b"(K\x01(K\x02tDTYPE\x89U\x02xyt"))
    assert content["data"].tolist() == [ord("x"), ord("y")]


def test_an_object_outside_the_file_is_refused(load):
    with pytest.raises(DataError, match="asks for an object outside the file"):
        load(b"\x80\x02}U\x04dataU\x01xQs.")


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x02}(U\x04da", b"no pickle", b"\x80\x02K\x01.", b"\x80\xff}."]
)
def test_what_is_no_pickled_dictionary_is_an_error_of_one_line(load, content):
    with pytest.raises(DataError) as error:
        load(content)
    assert "batch: " in str(error.value)
    assert "\n" not in str(error.value)


def test_every_cut_through_a_pickle_is_an_error(load, python2_pickle):
    content = python2_pickle({"data": np.zeros((2, 3), np.uint8), "labels": [1, 2]})
    for num_bytes in range(len(content)):
        with pytest.raises(DataError):
            load(content[:num_bytes])
