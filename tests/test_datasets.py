"""The splits are what the docstring of `load` says, and no file can do worse than one line of error."""

import gzip
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from vae_jax.data import datasets, files, splits, streaming
from vae_jax.data.files import Reading
from vae_jax.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vae_jax"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def error(name, **kwargs):
    """Return the message of the UserError that loading raises, after checking that it is one line."""
    with pytest.raises(UserError) as caught:
        datasets.load(name, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def rows(x):
    return sorted(map(bytes, np.ascontiguousarray(x)))


# names


def test_digits_are_scikit_learns_in_two_disjoint_parts():
    from sklearn.datasets import load_digits

    data = datasets.load("digits")
    assert data.validation is None
    assert data.train.x.shape == (1500, 8, 8, 1) and data.test.x.shape == (297, 8, 8, 1)
    assert data.train.x.dtype == np.float32 and data.train.label.dtype == np.int32
    expected = load_digits()
    x = np.concatenate([data.train.x, data.test.x])
    label = np.concatenate([data.train.label, data.test.label])
    assert rows(x * 16) == rows(expected.images.astype(np.float32))
    pairs = {(bytes(i.astype(np.float32)), t) for i, t in zip(expected.images, expected.target, strict=True)}
    assert {(bytes(np.ascontiguousarray(i)), t) for i, t in zip(x * 16, label, strict=True)} == pairs


def test_second_load_is_equal_and_imports_neither_scikit_learn_nor_tfds(cache):
    first = datasets.load("digits")
    assert len(list(cache.iterdir())) == 1
    code = (
        "import sys; from vae_jax.data import datasets; print(datasets.load('digits').fingerprint); "
        "assert not {'sklearn', 'tensorflow_datasets', 'PIL', 'jax'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == first.fingerprint


def test_unknown_name_lists_the_names_and_guesses():
    assert "Did you mean 'mnist'?" in (message := error("mnits"))
    assert all(name in message for name in datasets.NAMES) and ".npz" in message
    assert "Did you mean" not in error("qqqq")
    for name in ("", "a\0b", "x" * 5000, "two\nlines"):
        assert "Unknown data set" in error(name)
    assert "No file or folder" in error("./missing")
    assert "No file or folder" in error("missing.npy")


# cutting


def test_classes_and_validation(tmp_path, rng):
    x, y = rng.integers(0, 256, (200, 6), dtype=np.uint8), np.arange(200) % 4
    path = save(tmp_path / "a.npz", x=x, y=y)
    whole = datasets.load(path)
    assert len(whole.train.x) == 180 and len(whole.test.x) == 20
    assert rows(np.concatenate([whole.train.x, whole.test.x])) == rows(x)

    kept = datasets.load(path, classes=[3, np.int64(1)])
    for before, after in ((whole.train, kept.train), (whole.test, kept.test)):
        mask = (before.label == 1) | (before.label == 3)
        np.testing.assert_array_equal(after.x, before.x[mask])
        np.testing.assert_array_equal(after.label, before.label[mask])

    cut = datasets.load(path, classes=(1, 3), validation_size=30)
    assert len(cut.validation.x) == len(cut.validation.label) == 30
    assert rows(np.concatenate([cut.train.x, cut.validation.x])) == rows(kept.train.x)
    np.testing.assert_array_equal(cut.test.x, kept.test.x)
    assert cut.fingerprint == datasets.load(path, classes=(1, 3), validation_size=30).fingerprint
    assert len({whole.fingerprint, kept.fingerprint, cut.fingerprint}) == 3

    assert "no example of [7]" in error(path, classes=(1, 7))
    assert "expected labels" in error(path, classes="13")
    assert "expected labels" in error(path, classes=3)
    assert "no labels" in error(save(tmp_path / "b.npz", x=x), classes=(1,))
    for size in (-1, 180, 1.5, "3"):
        assert "from 0 to 179" in error(path, validation_size=size)
    assert len(datasets.load(path, validation_size=179).train.x) == 1


def test_permutation_is_the_documented_one(tmp_path):
    x = np.arange(20, dtype=np.float32)[:, None]
    np.save(tmp_path / "a.npy", x)
    data = datasets.load(tmp_path / "a.npy")
    order = np.random.RandomState(0).permutation(20)
    np.testing.assert_array_equal(data.test.x[:, 0], order[18:])
    np.testing.assert_array_equal(data.train.x[:, 0], order[:18])


def test_fingerprint_sees_values_shapes_types_and_labels():
    x, label = np.zeros((4, 6), np.uint8), np.zeros(4, np.int32)
    split = datasets.Split(x, label)
    base = datasets.Dataset("a", split, None, split)
    assert base.fingerprint == base._replace(name="b").fingerprint
    others = [
        datasets.Split(x.reshape(4, 3, 2), label),
        datasets.Split(x.view(np.int8), label),
        datasets.Split(x, None),
        datasets.Split(x, label + np.int32(1)),
        datasets.Split(x + np.uint8(1), label),
    ]
    prints = {base._replace(train=other).fingerprint for other in others}
    prints |= {base._replace(validation=split).fingerprint, base.fingerprint}
    assert len(prints) == len(others) + 2


# one's own arrays


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (np.uint8([0, 7, 255]), np.uint8, [0, 7, 255]),
        (np.int64([0, 7, 255]), np.uint8, [0, 7, 255]),
        (np.array([False, True, True]), np.uint8, [0, 255, 255]),
        (np.float64([0, 0.5, -3]), np.float32, [0, 0.5, -3]),
        (np.float16([0, 0.5, 1]), np.float32, [0, 0.5, 1]),
        (np.array([0, 0.5, 1], ">f8"), np.float32, [0, 0.5, 1]),
    ],
)
def test_types(tmp_path, value, dtype, expected):
    np.save(tmp_path / "a.npy", np.tile(value, (5, 1, 1)))
    x = datasets.load(tmp_path / "a.npy").train.x
    assert x.dtype == dtype and x.dtype.isnative
    np.testing.assert_array_equal(x[0, 0, :, 0], np.array(expected, dtype))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("shape", "dtype", "said"),
    [
        ((4,), np.uint8, True),
        ((2, 5), np.int64, True),
        ((5, 5, 3), ">u2", True),
        ((2, 5), np.uint8, False),
        ((5, 5, 3), np.uint8, False),
        ((4,), bool, False),
        ((4,), np.float32, False),
    ],
)
def test_what_may_be_no_bytes_is_said_to_be_taken_so(tmp_path, capsys, shape, dtype, said, stream):
    x = np.resize([0, 178, 3], (40, *shape)).astype(dtype)
    np.save(tmp_path / "a.npy", x)
    np.savez(tmp_path / "b.npz", x_train=x, x_test=x[:2])
    paths = [tmp_path / "a.npy"] if stream else [tmp_path / "a.npy", tmp_path / "b.npz"]
    for path in paths:
        datasets.load(path, stream=stream)
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == said
        assert not said or "the integers from 0 to 178 are taken as v/255" in captured.err


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint16])
def test_a_table_of_integers_is_refused_and_the_advice_works(tmp_path, dtype, stream):
    x = np.resize(np.arange(100, dtype=dtype), (40, 3))
    np.save(tmp_path / "a.npy", x)
    message = error(tmp_path / "a.npy", stream=stream)
    assert f"a table of {x.dtype} from 0 to 99" in message and "float32 for its own values" in message
    for kind in (np.float32, np.uint8):
        np.save(tmp_path / "a.npy", x.astype(kind))
        assert datasets.load(tmp_path / "a.npy", stream=stream).train.x.dtype == kind


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("shape", "event"), [((9, 5), (5,)), ((9, 4, 5), (4, 5, 1)), ((9, 5, 4, 3), (5, 4, 3)), ((9, 4, 4, 2), (4, 4, 2))]
)
def test_shapes(tmp_path, rng, shape, event, order):
    value = np.asarray(rng.random(shape, np.float32), order=order)
    np.save(tmp_path / "a.npy", value)
    data = datasets.load(str(tmp_path / "a.npy"), validation_size=2)
    assert [s.x.shape for s in (data.train, data.validation, data.test)] == [(6, *event), (2, *event), (1, *event)]
    assert data.train.label is None
    assert rows(np.concatenate([data.train.x, data.validation.x, data.test.x])) == rows(value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.zeros(5, np.float32), "has shape (5,)"),
        (np.zeros((2, 2, 2, 2, 2), np.float32), "[N, H, W, C]"),
        (np.zeros((0, 3), np.float32), "non-empty"),
        (np.zeros((10**12, 0), np.float32), "non-empty"),
        (np.zeros((1, 3), np.float32), "at least 2"),
        (np.full((3, 3), np.nan), "(9; the first in row 0, column 0), expected finite"),
        (np.full((3, 3), 1e300), "(9; the first in row 0, column 0), expected finite"),
        (np.full((3, 3), 256), "integers from 256 to 256"),
        (np.full((3, 3), -1), "integers from -1 to -1"),
        (np.eye(3, dtype=np.uint8), "Save it as bool"),
        (np.zeros((3, 3), complex), "complex"),
        (np.full((3, 3), "text"), "<U4"),
        (np.array([[1], [1, 2]], dtype=object), "pickled Python objects"),
        (np.zeros(3, [("a", "f4")]), "type"),
    ],
)
def test_refused_arrays(tmp_path, value, says):
    np.save(tmp_path / "a.npy", value)
    message = error(tmp_path / "a.npy")
    assert says in message and "a.npy" in message


FIRST = [(1, 28, 28), (2, 28, 28), (3, 5, 5), (4, 64, 64)]
UNCLEAR = [(1, 131, 2), (3, 2, 8), (1, 9, 1), (2, 3, 5), (4, 300, 3)]


@pytest.mark.parametrize("shape", FIRST)
def test_channels_first_are_recognised_where_they_cannot_be_meant_otherwise(tmp_path, shape, capsys):
    x = np.random.default_rng(0).random((3, *shape)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x_train=x, x_test=x)
    np.testing.assert_array_equal(datasets.load(tmp_path / "a.npz").train.x, x.transpose(0, 2, 3, 1))
    assert f"the shape {x.shape} is taken as channels first" in capsys.readouterr().err
    np.testing.assert_array_equal(
        datasets.load(tmp_path / "a.npz", how=Reading("nchw")).train.x, x.transpose(0, 2, 3, 1)
    )
    np.testing.assert_array_equal(datasets.load(tmp_path / "a.npz", how=Reading("nhwc")).train.x, x)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("shape", UNCLEAR)
def test_a_shape_with_two_meanings_is_refused_and_the_advice_works(tmp_path, shape):
    x = np.random.default_rng(0).random((3, *shape)).astype(np.float32)
    np.save(tmp_path / "a.npy", x)
    message = error(tmp_path / "a.npy")
    assert f"a.npy' has shape {x.shape}, which may have the channels first or last" in message
    for layout, expected in (("nchw", x.transpose(0, 2, 3, 1)), ("nhwc", x)):
        assert f"--config.layout={layout}" in message
        assert datasets.load_whole(tmp_path / "a.npy", Reading(layout)).train.x.tolist() == expected.tolist()


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_layout_of_images_is_refused_for_vectors(tmp_path, layout):
    np.save(tmp_path / "a.npy", np.zeros((9, 4), np.float32))
    for stream in (False, True):
        message = error(tmp_path / "a.npy", how=Reading(layout), stream=stream)
        assert f"layout is {layout!r}, which is for images; " in message and "has the shape (9, 4)" in message


@pytest.mark.parametrize("shape", FIRST + UNCLEAR)
def test_a_stream_has_its_channels_last(tmp_path, shape):
    x = np.random.default_rng(0).random((30, *shape)).astype(np.float32)
    np.save(tmp_path / "a.npy", x)
    for layout in ("auto", "nchw"):
        message = error(tmp_path / "a.npy", stream=True, how=Reading(layout))
        assert "save x.transpose(0, 2, 3, 1)" in message and "--config.layout=nhwc" in message
    assert datasets.load(tmp_path / "a.npy", stream=True, how=Reading("nhwc")).train.x.shape[1:] == shape
    np.save(tmp_path / "b.npy", np.ascontiguousarray(x.transpose(0, 2, 3, 1)))
    assert datasets.load(tmp_path / "b.npy", stream=True, how=Reading("nhwc")).train.x.shape[1:] == (
        *shape[1:],
        shape[0],
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("shape", "where"),
    [
        ((700, 20), "row 603, column 17"),
        ((700, 5, 4), "row 603, y 4, x 1"),
        ((700, 5, 2, 2), "row 603, y 4, x 0, channel 1"),
    ],
)
def test_missing_values_are_found_and_the_advice_works(tmp_path, monkeypatch, shape, where, stream):
    x = np.ones(shape)
    x.reshape(700, 20)[603, 17] = np.nan
    x.reshape(700, 20)[603:605, 18] = np.inf
    x.reshape(700, 20)[699, 0] = 1e300
    np.save(tmp_path / "a.npy", x)
    monkeypatch.setattr(streaming, "READ_BYTES", 100 * 20 * 8)
    message = error(tmp_path / "a.npy", stream=stream)
    assert f"a.npy' holds NaN, infinite or too large values (4; the first in {where}), expected finite" in message
    (expression,) = re.findall(r"where (np\..*) is true", message)
    with np.errstate(over="ignore"):
        kept = eval(expression, {"x": x, "np": np, "len": len})
    assert np.flatnonzero(~kept).tolist() == [603, 604, 699]


@pytest.mark.parametrize(
    "y",
    [
        np.arange(6)[:, None],
        np.arange(6.0),
        np.arange(6, dtype=np.float16)[:, None],
        np.arange(6, dtype=">u8"),
    ],
    ids=lambda y: f"{y.dtype} {y.shape}",
)
def test_labels_that_are_whole_numbers(tmp_path, y):
    label = datasets.load(save(tmp_path / "a.npz", x_train=np.eye(6), x_test=np.eye(6), y_train=y, y_test=y)).test.label
    assert label.dtype == np.int32
    np.testing.assert_array_equal(label, np.arange(6))


@pytest.mark.parametrize(
    ("y", "names", "numbers"),
    [
        (np.array(["dog", "cat"] * 3), ("cat", "dog"), [1, 0]),
        (np.array([["dog"], ["cat"]] * 3), ("cat", "dog"), [1, 0]),
        (np.array([-1, 10, 9] * 2), ("-1", "9", "10"), [0, 2, 1]),
        (np.float64([0, 1, 2**31] * 2), ("0", "1", "2147483648"), [0, 1, 2]),
        (np.array([True, False] * 3), (), [1, 0]),
        (np.array([255, 7] * 3), (), [255, 7]),
    ],
    ids=lambda value: str(value).replace("\n", ""),
)
def test_labels_as_people_have_them(tmp_path, y, names, numbers):
    data = datasets.load_whole(save(tmp_path / "a.npz", x=np.eye(6), y=y))
    assert data.names == names and data.train.label.tolist() == numbers * (6 // len(numbers))
    assert data.train.label.dtype == np.int32


def test_two_splits_share_the_names_of_their_labels(tmp_path):
    arrays = {"y_train": np.array(["b", "c"] * 3), "y_test": np.array(["a", "c"] * 3)}
    data = datasets.load(save(tmp_path / "a.npz", x_train=np.eye(6), x_test=np.eye(6), **arrays))
    assert data.names == ("a", "b", "c")
    assert data.train.label.tolist() == [1, 2] * 3 and data.test.label.tolist() == [0, 2] * 3
    kept = datasets.load(tmp_path / "a.npz", classes=("c",))
    assert set(kept.train.label.tolist() + kept.test.label.tolist()) == {2} and kept.names == data.names
    assert "has no example of ['a']. Choose among ['b', 'c']" in error(tmp_path / "a.npz", classes=("a", "c"))


@pytest.mark.parametrize(
    ("names", "expected", "every"),
    [
        (("x", "c", "b"), [2, 1], ("x", "c", "b")),
        (("c",), [1, 0], ("c", "b")),
        (("b", "c"), [0, 1], ("b", "c")),
    ],
)
def test_labels_take_the_numbers_of_another_data_set_by_name(tmp_path, names, expected, every):
    data = datasets.load_whole(save(tmp_path / "a.npz", x=np.eye(4), y=np.array(["b", "c"] * 2)))
    new = splits.renamed(data, names)
    assert new.names == every and new.train.label.tolist() == expected * 2
    with pytest.raises(UserError, match=r"has the labels \['b', 'c'\]; expected numbers"):
        splits.renamed(data, ())


@pytest.mark.parametrize(
    ("y", "says"),
    [
        (np.arange(6) / 2, "labels that are not whole numbers"),
        (np.array([0, 1, np.nan] * 2), "labels that are not whole numbers"),
        (np.array([0, 1, np.inf] * 2), "labels that are not whole numbers"),
    ],
    ids=lambda value: str(value).replace("\n", ""),
)
def test_other_labels_are_refused(tmp_path, y, says):
    message = error(save(tmp_path / "a.npz", x=np.eye(6), y=y))
    assert "y of" in message and says in message


def test_one_hot_labels_and_arrays_without_names_are_told_what_to_type(tmp_path):
    assert "Save y.argmax(1) if rows are one-hot" in error(save(tmp_path / "a.npz", x=np.eye(6), y=np.eye(6)))
    np.savez(tmp_path / "a.npz", np.eye(6), np.arange(6))
    assert "['arr_0', 'arr_1']" in (message := error(tmp_path / "a.npz"))
    assert "Type np.savez(FILE, x=a, y=b) instead of np.savez(FILE, a, b)." in message


def test_own_test_split_and_refused_npz(tmp_path):
    x, y = np.full((6, 4), 9, np.uint8), np.arange(6)
    data = datasets.load(save(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2]))
    np.testing.assert_array_equal(data.train.label, y)
    np.testing.assert_array_equal(data.test.x, x[:2])
    assert data.name == str(tmp_path / "a.npz")

    def refused(**arrays):
        return error(save(tmp_path / "b.npz", **arrays))

    assert "labels" in refused(x=x, labels=y)
    assert "expected x (and y, c, f)" in refused()
    assert "expected x (and y, c, f)" in refused(x_train=x)
    assert "expected x (and y, c, f)" in refused(x=x, x_test=x)
    assert "expected x (and y, c, f)" in refused(x_train=x, x_test=x, y_test=y)
    assert "one shape and type" in refused(x_train=x, x_test=x[:, :3])
    assert "one shape and type" in refused(x_train=x, x_test=x.astype(np.float32))
    assert "one label per example, (6,)" in refused(x=x, y=y[:3])


# hostile files


class _Evil:
    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


def npy_header(shape, descr="|u1"):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"hello",
        pickle.dumps(_Evil()),
        npy_header((10**12,)) + bytes(10),
        npy_header((10**6, 10**6), "<f8") + bytes(64),
        npy_header((-8, -8)) + bytes(64),
        npy_header((4, 4)) + bytes(17),
        npy_header((4, 4)) + bytes(15),
        npy_header((10**12,), "|V0"),
        npy_header((10**12, 3), "|O") + bytes(64),
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
        b"\x93NUMPY\x09\x00" + bytes(200),
    ],
)
def test_hostile_npy_alone_and_inside_npz(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    assert "a.npy" in error(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
    assert "a.npz" in error(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(content)
    assert "b.npz" in error(tmp_path / "b.npz")


def test_pickled_npz_is_refused_unopened(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([_Evil()] * 3, dtype=object))
    assert "pickled Python objects" in error(tmp_path / "a.npz")


def test_zip_bomb_and_sparse_giant_are_refused_before_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 1 << 20)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((1 << 11, 1 << 10), np.uint8))
    assert (tmp_path / "a.npz").stat().st_size < 10_000
    assert "expands to 2097" in error(tmp_path / "a.npz")
    monkeypatch.undo()
    with open(tmp_path / "b.npy", "wb") as file:
        file.write(npy_header((1 << 20, 1 << 20)))
        file.truncate(file.tell() + (1 << 40))
    assert "limit" in error(tmp_path / "b.npy")


def test_damaged_files_load_or_give_one_line(tmp_path, rng):
    np.save(tmp_path / "a.npy", rng.integers(0, 256, (20, 8), dtype=np.uint8))
    np.savez_compressed(tmp_path / "a.npz", x=rng.integers(0, 256, (20, 8), dtype=np.uint8), y=np.arange(20))
    good = {name: (tmp_path / name).read_bytes() for name in ("a.npy", "a.npz")}
    outcomes = set()
    for trial in range(400):
        name = ("a.npy", "a.npz")[trial % 2]
        content = bytearray(good[name])
        content[rng.integers(len(content) if name == "a.npz" else 128)] ^= 1 << int(rng.integers(8))
        if trial % 8 > 5:
            del content[rng.integers(len(content)) :]
        (tmp_path / name).write_bytes(content)
        try:
            datasets.load(tmp_path / name)
            outcomes.add("loaded")
        except UserError as caught:
            assert "\n" not in str(caught)
            outcomes.add("refused")
    assert outcomes == {"loaded", "refused"}


def test_special_files(tmp_path):
    os.mkfifo(tmp_path / "fifo.npy")
    assert "No file or folder" in error(tmp_path / "fifo.npy")
    (tmp_path / "a.txt").write_text("hello")
    assert "expected a .npy, .npz, .csv, .csv.gz, .tsv, .tsv.gz or .parquet file" in error(tmp_path / "a.txt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 3)))
    (tmp_path / "a.npy").chmod(0)
    assert "Permission denied" in error(tmp_path / "a.npy")


# folders of images


def test_folder_of_grey_images_in_the_order_of_names(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in reversed(range(20)):
        Image.fromarray(np.full((3, 5), i + 100, np.uint8)).save(folder / f"{i:02}.PNG")
    (folder / "notes.txt").write_text("ignored")
    (folder / ".hidden.png").write_text("ignored")
    (folder / "sub.png").mkdir()
    data = datasets.load(folder)
    assert data.train.x.shape == (18, 3, 5, 1) and data.train.x.dtype == np.uint8 and data.train.label is None
    order = np.random.RandomState(0).permutation(20) + 100
    np.testing.assert_array_equal(data.train.x[:, 0, 0, 0], order[:18])
    np.testing.assert_array_equal(data.test.x[:, 2, 4, 0], order[18:])


def test_folder_of_low_images_has_its_channels_last(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((2, 8, 3), i + 100, np.uint8)).save(tmp_path / f"{i}.png")
    assert datasets.load(tmp_path).train.x.shape == (2, 2, 8, 3)


def folder_images(folder):
    """The images of a folder, in its order."""
    return datasets.load_whole(folder).train.x.astype(int)


def test_folder_of_mixed_modes_becomes_rgb(tmp_path):
    rgba = np.tile(np.uint8([10, 20, 30, 255]), (4, 4, 1))
    Image.fromarray(rgba).save(tmp_path / "a.png")
    Image.fromarray(rgba[..., 0]).save(tmp_path / "b.png")
    Image.fromarray(rgba[..., :3]).save(tmp_path / "c.jpg", quality=100)
    palette = Image.fromarray(rgba[..., :3]).quantize(4)
    palette.save(tmp_path / "d.png")
    Image.fromarray(rgba[..., 0] > 50).save(tmp_path / "e.png")
    x = folder_images(tmp_path)
    assert x.shape == (5, 4, 4, 3)
    np.testing.assert_array_equal(x[0], rgba[..., :3])
    np.testing.assert_array_equal(x[1], np.full((4, 4, 3), 10))
    np.testing.assert_allclose(x[2], rgba[..., :3], atol=2)
    np.testing.assert_array_equal(x[3], rgba[..., :3])
    np.testing.assert_array_equal(x[4], 0)


def test_transparent_images_lie_over_white(tmp_path, rng):
    def over_white(values, alpha):
        return 255 + alpha[..., None] / 255 * (values - 255.0)

    (tmp_path / "grey").mkdir()
    v, alpha = rng.integers(0, 256, (2, 5, 6), dtype=np.uint8)
    alpha[0], alpha[1] = 0, 255
    Image.fromarray(np.stack([v, alpha], -1)).save(tmp_path / "grey" / "a.png")
    Image.fromarray(v).save(tmp_path / "grey" / "b.png")
    Image.fromarray(v).save(tmp_path / "grey" / "c.png", transparency=int(v[2, 2]))
    x = folder_images(tmp_path / "grey")
    assert x.shape == (3, 5, 6, 1)
    np.testing.assert_allclose(x[0], over_white(v[..., None], alpha), atol=1)
    np.testing.assert_array_equal(x[0][:2, :, 0], [np.full(6, 255), v[1]])
    np.testing.assert_array_equal(x[1][..., 0], v)
    np.testing.assert_array_equal(x[2][..., 0], np.where(v == v[2, 2], 255, v))

    (tmp_path / "colour").mkdir()
    rgb = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(np.concatenate([rgb, alpha[..., None]], -1)).save(tmp_path / "colour" / "a.png")
    index = rng.integers(0, 4, (5, 6), dtype=np.uint8)
    palette, levels = rng.integers(0, 256, (4, 3), dtype=np.uint8), np.uint8([0, 99, 200, 255])
    image = Image.fromarray(index)
    image.putpalette(palette.tobytes())  # makes it an image of mode P
    image.save(tmp_path / "colour" / "b.png", transparency=levels.tobytes())
    image.save(tmp_path / "colour" / "c.png", transparency=2)
    Image.fromarray(rgb).save(tmp_path / "colour" / "d.png", transparency=tuple(rgb[3, 3].tolist()))
    x = folder_images(tmp_path / "colour")
    np.testing.assert_allclose(x[0], over_white(rgb, alpha), atol=1)
    np.testing.assert_allclose(x[1], over_white(palette[index], levels[index]), atol=1)
    np.testing.assert_array_equal(x[2], np.where(index[..., None] == 2, 255, palette[index]))
    np.testing.assert_array_equal(x[3], np.where((rgb == rgb[3, 3]).all(-1, keepdims=True), 255, rgb))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_images_are_turned_as_exif_says(tmp_path, rng, suffix):
    upright = rng.integers(0, 2, (3, 5), dtype=np.uint8).repeat(8, 0).repeat(8, 1) * np.uint8(200)
    # Where the file's first row and first column lie in the upright image, as the EXIF standard lists it.
    stored = {
        1: upright,  # top, left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.T,  # left, top
        6: upright.T[::-1],  # right, top
        7: upright.T[::-1, ::-1],  # right, bottom
        8: upright.T[:, ::-1],  # left, bottom
    }
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"quality": 100} if suffix == "jpg" else {}
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / f"{orientation}.{suffix}", exif=exif, **options)
    Image.fromarray(upright).save(tmp_path / f"9.{suffix}", exif=b"Exif\0\0damaged")
    x = folder_images(tmp_path)
    assert x.shape == (9, 24, 40, 1)
    for image in x[..., 0]:
        np.testing.assert_allclose(image, upright, atol=0 if suffix == "png" else 4)


def test_sizes_are_those_of_turned_images(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.zeros((4, 6), np.uint8))
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.png", exif=exif)
    assert "b.png" in (message := error(tmp_path)) and "has the size 6 x 4 (height x width), and" in message
    # EXIF may stand behind the pixels, where a header's reader does not look.
    content = (tmp_path / "b.png").read_bytes()
    start = content.index(b"eXIf") - 4
    length = 12 + int.from_bytes(content[start : start + 4], "big")
    end = content.index(b"IEND") - 4
    moved = content[:start] + content[start + length : end] + content[start : start + length] + content[end:]
    (tmp_path / "b.png").write_bytes(moved)
    assert "its EXIF orientation stands behind its pixels" in error(tmp_path)


def test_refused_folders(tmp_path, monkeypatch, rng):
    assert "no file ending in .png" in error(tmp_path)
    noise = Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8))
    noise.save(tmp_path / "a.png")
    bad = tmp_path / "b.png"

    noise.resize((30, 40)).save(bad)
    assert "b.png" in (message := error(tmp_path)) and "40 x 30 (height x width)" in message and "a.png" in message
    for content in (b"", b"hello", (tmp_path / "a.png").read_bytes()[:800]):
        bad.write_bytes(content)
        assert "b.png" in error(tmp_path)
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(bad)
    assert "more than 8 bits" in error(tmp_path)
    noise.save(bad, format="PPM")
    assert "b.png" in error(tmp_path)

    # A few bytes that announce 60,000 x 60,000, then 12,000 x 12,000 pixels: nothing is decoded.
    for side in (60_000, 12_000):
        chunk = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
        bad.write_bytes(b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 4) + b"IDAT" + bytes(8))
        assert "decompression bomb" in error(tmp_path)
    bad.unlink()
    noise.save(bad)
    monkeypatch.setattr(files, "MAX_BYTES", 2000)
    assert "expands to 3200 bytes" in error(tmp_path)


# TFDS


def write_idx(path, array):
    with gzip.open(path, "wb") as file:
        file.write(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


@pytest.fixture
def downloads(tmp_path, monkeypatch, rng):
    """Synthetic idx files in the place of the network; returns the arrays and the files."""
    from vae_jax.data import tfds_builders

    arrays, files = {}, {}
    for split, n in (("train", 30), ("test", 10)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 10, n).astype(np.uint8)
    for key, array in arrays.items():
        files[key] = tmp_path / f"{key}.gz"
        write_idx(files[key], array)

    def download(self, urls):
        assert urls.keys() == files.keys() and all(url.startswith("http") for url in urls.values())
        return files

    monkeypatch.setattr(tfds_builders, "unreachable", lambda url: "")
    monkeypatch.setattr(tfds_builders.tfds.download.DownloadManager, "download", download)
    return arrays, files


def assert_holds(data, arrays):
    for split, part in (("train", data.train), ("test", data.test)):
        assert part.x.dtype == np.uint8 and part.label.dtype == np.int32
        got = {(bytes(np.ascontiguousarray(x)), y) for x, y in zip(part.x, part.label.tolist(), strict=True)}
        pairs = zip(arrays[f"{split}_images"], arrays[f"{split}_labels"].tolist(), strict=True)
        assert got == {(bytes(x), y) for x, y in pairs}
        assert len(part.x) == len(arrays[f"{split}_images"])


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_prepared_without_tensorflow_as_the_stock_data_set(tmp_path, downloads, name, capsys, cache):
    import tensorflow_datasets as tfds

    data = datasets.load(name, data_dir=tmp_path / "tfds")
    assert_holds(data, downloads[0])
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1

    stock = tfds.builder(name, data_dir=tmp_path / "tfds")
    assert stock.is_prepared() and len(stock.as_data_source("train")) == 30
    assert stock.info.features["image"].shape == (28, 28, 1)
    assert "tensorflow" not in sys.modules

    (kept,) = cache.iterdir()
    again = datasets.load(name, data_dir=tmp_path / "tfds")
    assert again.fingerprint == data.fingerprint
    kept.write_bytes(kept.read_bytes()[:-30])
    assert datasets.load(name, data_dir=tmp_path / "tfds").fingerprint == data.fingerprint
    assert files.read_npz(kept)["x_test"].shape == (10, 28, 28, 1)


def test_cache_follows_the_record_files_and_is_optional(tmp_path, downloads, cache, monkeypatch):
    datasets.load("mnist", data_dir=tmp_path / "tfds")
    (record,) = tmp_path.glob("tfds/mnist/*/mnist-test*")
    os.utime(record, (1, 1))
    datasets.load("mnist", data_dir=tmp_path / "tfds")
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "train_images.gz"))
    assert_holds(datasets.load("mnist", data_dir=tmp_path / "tfds"), downloads[0])


def to_tfrecord(directory):
    """Turn a prepared array_record directory into what TensorFlow would have written, with empty checksums."""
    from array_record.python.array_record_module import ArrayRecordReader

    for path in list(directory.glob("*.array_record-*")):
        reader = ArrayRecordReader(str(path))
        frames = [struct.pack("<Q4x", len(record)) + record + bytes(4) for record in reader.read_all()]
        reader.close()
        path.with_name(path.name.replace("array_record", "tfrecord")).write_bytes(b"".join(frames))
        path.unlink()
    info = directory / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))


def test_tfrecord_directory_is_read(tmp_path, downloads, monkeypatch):
    root = tmp_path / "tfds"
    expected = datasets.load("mnist", data_dir=root)
    to_tfrecord(root / "mnist" / "3.0.1")
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    assert datasets.load("mnist").fingerprint == expected.fingerprint

    (record,) = root.glob("mnist/*/*train*")
    content = record.read_bytes()
    for damaged in (content[:-1], content[:-20], content[:5], b"", b"\xff" * 40):
        record.write_bytes(damaged)
        assert "cannot be read" in error("mnist")


def test_damaged_prepared_directories(tmp_path, downloads):
    datasets.load("mnist", data_dir=tmp_path / "good")
    for number, (pattern, content) in enumerate(
        [("*train*", b""), ("*train*", b"x" * 200_000), ("dataset_info.json", b"{"), ("features.json", b"[]")]
    ):
        root = tmp_path / str(number)
        shutil.copytree(tmp_path / "good", root)
        (path,) = root.glob(f"mnist/*/{pattern}")
        path.write_bytes(content)
        assert "cannot be read" in error("mnist", data_dir=root)


def test_newest_version_is_taken_and_unfinished_ones_are_not(tmp_path):
    for version in ("3.0.1", "10.0.0", "9.0.0", "11.0.0.incompleteABC", "x"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "dataset_info.json").write_text("{}")
    (tmp_path / "12.0.0").mkdir()
    assert datasets._newest_version(tmp_path).name == "10.0.0"
    assert datasets._newest_version(tmp_path / "missing") is None


def test_no_network_is_one_line(tmp_path, monkeypatch):
    import requests

    from vae_jax.data import tfds_builders

    def head(reply):
        def call(url, *, timeout, allow_redirects):
            assert timeout <= 5
            if isinstance(reply, Exception):
                raise reply
            response = requests.Response()
            response.status_code = reply
            return response

        monkeypatch.setattr(requests, "head", call)

    for reply, reason in (
        (requests.ConnectionError("long\ntext"), "no connection to storage.googleapis.com"),
        (requests.Timeout(), "no answer from storage.googleapis.com in 5 s"),
        (404, "storage.googleapis.com answered 404"),
    ):
        head(reply)
        assert error("mnist", data_dir=tmp_path / "tfds") == (
            f"mnist is not prepared in {tmp_path / 'tfds'} and its files could not be downloaded ({reason}). "
            "Give --data_dir with a prepared copy, or train on the embedded data with --config.dataset=digits."
        )
    assert not (tmp_path / "tfds").exists()
    head(200)
    assert tfds_builders.unreachable("https://example.org/a") == ""


# Names and not the bytes as the tests' ids: a gzip header holds the time, and the workers of one run must agree on ids.
DAMAGED = {
    "not gzip": b"not gzip",
    "empty": gzip.compress(b""),
    "one label short": gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 5]) + bytes(4)),
    "one label over": gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 5]) + bytes(6)),
    "three axes": gzip.compress(bytes([0, 0, 8, 3, 0, 0, 0, 5]) + bytes(5)),
    "huge count": gzip.compress(bytes([0, 0, 8, 1, 255, 255, 255, 255]) + bytes(5)),
    "cut short": gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 5]) + bytes(5))[:-9],
    "other count": gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9]) + bytes(9)),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_downloads(tmp_path, downloads, damage):
    downloads[1]["train_labels"].write_bytes(DAMAGED[damage])
    assert "could not be downloaded" in error("mnist", data_dir=tmp_path / "tfds")
    assert datasets._newest_version(tmp_path / "tfds" / "mnist") is None


def test_a_folder_named_as_a_data_set_does_not_take_its_place(tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert datasets.load_whole("digits") is None and len(datasets.load("digits").test.x) == 297
