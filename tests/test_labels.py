"""Labels of any kind are numbered from 0 in rising order, and keep their names."""

import numpy as np
import pytest

from vae_jax.data.labels import number
from vae_jax.errors import UserError

GOOD = {
    "from 0": (np.array([2, 0, 1, 0]), ("0", "1", "2")),
    "gaps": (np.array([10, 2, 30]), ("2", "10", "30")),
    "negative": (np.array([1, -1, -10]), ("-10", "-1", "1")),
    "bytes of 255": (np.array([255, 0], np.uint8), ("0", "255")),
    "ids": (np.array([2**63 - 1, -(2**63)]), (str(-(2**63)), str(2**63 - 1))),
    "unsigned ids": (np.array([2**64 - 1, 2**64 - 2], np.uint64), (str(2**64 - 2), str(2**64 - 1))),
    "other byte order": (np.array([300, 2], ">i4"), ("2", "300")),
    "bools": (np.array([True, False]), ("False", "True")),
    "one class": (np.array([7, 7]), ("7",)),
    "whole floats": (np.array([10.0, 2.0, -0.0]), ("0", "2", "10")),
    "float16": (np.array([3, 1], np.float16), ("1", "3")),
    "large floats": (np.array([2.0**70, 1]), ("1", str(2**70))),
    "strings": (np.array(["dog", "cat", "Zoo", "ü", "a,b"]), ("Zoo", "a,b", "cat", "dog", "ü")),
    "strings of numbers": (np.array(["10", "9", "-1"]), ("-1", "9", "10")),
    "strings of long numbers": (np.array(["1" + "0" * 30, "9"]), ("9", "1" + "0" * 30)),
    "strings, some of numbers": (np.array(["10", "9", "x"]), ("10", "9", "x")),
    "leading zeros": (np.array(["07", "7", "1"]), ("07", "1", "7")),
    "bytes": (np.array(["ü".encode(), b"a"]), ("a", "ü")),
    "bytes of numbers": (np.array([b"10", b"9"]), ("9", "10")),
}


@pytest.mark.parametrize("case", GOOD)
@pytest.mark.parametrize("columns", [(), (1,)], ids=["[N]", "[N, 1]"])
def test_names_rise_and_give_back_every_label(case, columns):
    y, expected = GOOD[case]
    y = np.concatenate([y, y[::-1]])
    label, names = number(y.reshape(-1, *columns), "y")
    assert names == expected and label.dtype == np.int32 and label.shape == (len(y),)
    for value, index in zip(y.tolist(), label, strict=True):
        text = value.decode() if isinstance(value, bytes) else str(int(value) if isinstance(value, float) else value)
        assert names[index] == text


def test_many_labels_are_those_of_numpy():
    y = np.random.default_rng(0).integers(-50, 50, 10_000)
    expected, index = np.unique(y, return_inverse=True)
    for given in (y, y.astype(str), y.astype(float), y.astype("S4")):
        label, names = number(given, "y")
        np.testing.assert_array_equal(label, index)
        assert names == tuple(map(str, expected.tolist()))


BAD = {
    "one-hot": (np.eye(3), ["(3, 3)", "y.argmax(1)"]),
    "images": (np.zeros((3, 2, 2)), ["(3, 2, 2)", "[N] or [N, 1]"]),
    "a number": (np.array(3), ["shape ()"]),
    "no labels": (np.zeros(0, int), ["shape (0,)", "N at least 1"]),
    "no column": (np.zeros((3, 0), int), ["shape (3, 0)"]),
    "halves": (np.array([1.0, 0.5, 1.5]), ["not whole numbers (2; the first is 0.5 in row 1)", "return_inverse"]),
    "NaN": (np.array([1.0, np.nan]), ["(1; the first is nan in row 1)"]),
    "infinite": (np.array([1.0, -np.inf]), ["the first is -inf in row 1"]),
    "objects": (np.array(["a", None], object), ["type object", "y.astype(str)"]),
    "dates": (np.array(["2020-01-01"], "datetime64[D]"), ["datetime64[D]", "return_inverse"]),
    "complex": (np.array([1j]), ["complex128"]),
    "records": (np.zeros(2, [("a", int)]), ["expected whole numbers, bools or strings"]),
    "empty string": (np.array(["a", " ", "b"]), ["empty label in row 1"]),
    "bytes of no text": (np.array([b"\xff\n" * 200]), ["\\xff", "expected UTF-8"]),
}


@pytest.mark.parametrize("case", BAD)
def test_other_labels_are_one_line_of_error(case):
    y, parts = BAD[case]
    with pytest.raises(UserError) as caught:
        number(y, "y of 'a.npz'")
    message = str(caught.value)
    assert message.startswith("y of 'a.npz' has ") and "\n" not in message and len(message) < 400
    assert all(part in message for part in parts), message
