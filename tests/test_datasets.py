"""The splits are what the docstring of `load` says, and no file can do worse than one line of error."""

import gzip
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from vae_jax import datasets, files
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
        "import sys; from vae_jax import datasets; print(datasets.load('digits').fingerprint); "
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
    assert "expected integers" in error(path, classes="13")
    assert "expected integers" in error(path, classes=3)
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
    np.save(tmp_path / "a.npy", np.tile(value, (5, 1)))
    x = datasets.load(tmp_path / "a.npy").train.x
    assert x.dtype == dtype and x.dtype.isnative
    np.testing.assert_array_equal(x[0], np.array(expected, dtype))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(("shape", "event"), [((9, 5), (5,)), ((9, 4, 5), (4, 5, 1)), ((9, 4, 5, 3), (4, 5, 3))])
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
        (np.full((3, 3), np.nan), "finite"),
        (np.full((3, 3), 1e300), "finite"),
        (np.full((3, 3), 256), "integers from 256 to 256"),
        (np.full((3, 3), -1), "integers from -1 to -1"),
        (np.eye(3, dtype=np.uint8), "Save it as bool"),
        (np.zeros((3, 3), complex), "complex"),
        (np.full((3, 3), "text"), "<U4"),
        (np.zeros((3, 1, 28, 28), np.float32), "channels first"),
        (np.array([[1], [1, 2]], dtype=object), "pickled Python objects"),
        (np.zeros(3, [("a", "f4")]), "type"),
    ],
)
def test_refused_arrays(tmp_path, value, says):
    np.save(tmp_path / "a.npy", value)
    message = error(tmp_path / "a.npy")
    assert says in message and "a.npy" in message


def test_own_test_split_and_refused_npz(tmp_path):
    x, y = np.full((6, 4), 9, np.uint8), np.arange(6)
    data = datasets.load(save(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2]))
    np.testing.assert_array_equal(data.train.label, y)
    np.testing.assert_array_equal(data.test.x, x[:2])
    assert data.name == str(tmp_path / "a.npz")

    def refused(**arrays):
        return error(save(tmp_path / "b.npz", **arrays))

    assert "labels" in refused(x=x, labels=y)
    assert "expected x (and y)" in refused()
    assert "expected x (and y)" in refused(x_train=x)
    assert "expected x (and y)" in refused(x=x, x_test=x)
    assert "expected x (and y)" in refused(x_train=x, x_test=x, y_test=y)
    assert "one shape and type" in refused(x_train=x, x_test=x[:, :3])
    assert "one shape and type" in refused(x_train=x, x_test=x.astype(np.float32))
    assert "shape (6,)" in refused(x=x, y=y[:3])
    assert "expected integers" in refused(x=x, y=y / 2)
    assert "labels from -1" in refused(x=x, y=y - 1)
    assert "labels from" in refused(x=x, y=y + 2**40)


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
    assert "expected a .npy or .npz file" in error(tmp_path / "a.txt")


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


def test_folder_of_mixed_modes_becomes_rgb(tmp_path):
    rgba = np.tile(np.uint8([10, 20, 30, 0]), (4, 4, 1))
    Image.fromarray(rgba).save(tmp_path / "a.png")
    Image.fromarray(rgba[..., 0]).save(tmp_path / "b.png")
    Image.fromarray(rgba[..., :3]).save(tmp_path / "c.jpg", quality=100)
    palette = Image.fromarray(rgba[..., :3]).quantize(4)
    palette.save(tmp_path / "d.png", transparency=b"\0\1\2\3")
    Image.fromarray(rgba[..., 0] > 50).save(tmp_path / "e.png")
    data = datasets.load(tmp_path)
    x = np.concatenate([data.train.x, data.test.x])[np.argsort(np.random.RandomState(0).permutation(5))]
    assert x.shape == (5, 4, 4, 3)
    np.testing.assert_array_equal(x[0], rgba[..., :3])
    np.testing.assert_array_equal(x[1], np.full((4, 4, 3), 10))
    np.testing.assert_allclose(x[2].astype(int), rgba[..., :3], atol=2)
    np.testing.assert_array_equal(x[3], rgba[..., :3])
    np.testing.assert_array_equal(x[4], 0)


def test_refused_folders(tmp_path, monkeypatch, rng):
    assert "no file ending in .png" in error(tmp_path)
    noise = Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8))
    noise.save(tmp_path / "a.png")
    bad = tmp_path / "b.png"

    noise.resize((30, 40)).save(bad)
    assert "b.png" in (message := error(tmp_path)) and "(30, 40)" in message and "a.png" in message
    for content in (b"", b"hello", (tmp_path / "a.png").read_bytes()[:800]):
        bad.write_bytes(content)
        assert "b.png" in error(tmp_path)
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(bad)
    assert "more than 8 bits" in error(tmp_path)
    noise.save(bad, format="GIF")
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
    from vae_jax import tfds_builders

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

    from vae_jax import tfds_builders

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
