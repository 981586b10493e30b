"""Prepare and read MNIST and its relatives with tensorflow-datasets (TFDS), but without TensorFlow.

The stock builders of TFDS need TensorFlow to unpack and parse the downloaded files; the subclasses here parse the bytes
themselves but keep name, version, features, addresses and checksums, so every TFDS program can read what they write.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import struct
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import requests
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image
from tensorflow_datasets.image_classification import mnist as stock

from vae_jax.data.files import DEFLATE_MAX_RATIO, leads_outside
from vae_jax.errors import UserError

CONNECT_SECONDS = 5.0
MAX_FEATURES = 1 << 20  # bytes of a features.json, which has 700 for MNIST
_READ_CHUNK = 10_000
_FEATURES = [
    f"tensorflow_datasets.core.features.{name}"
    for name in ("features_dict.FeaturesDict", "image_feature.Image", "class_label_feature.ClassLabel")
]


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Read a gzipped idx file, the format of MNIST, as a uint8 array with `ndim` axes.

    Raises ValueError if the file is not such an array, or if it is longer or shorter than its header says.
    """
    with gzip.open(path, "rb") as file:
        header = file.read(4 + 4 * ndim)
        if len(header) != 4 + 4 * ndim or header[:4] != bytes([0, 0, 8, ndim]):
            raise ValueError(f"{path} is not a gzipped idx file of uint8 values with {ndim} axes")
        shape = struct.unpack(f">{ndim}I", header[4:])
        size = math.prod(shape)
        # A size that the compressed bytes cannot hold is refused before memory is allocated for it.
        if size > DEFLATE_MAX_RATIO * path.stat().st_size:
            raise ValueError(f"{path} is too short for the shape {shape} in its header")
        data = file.read(size + 1)
    if len(data) != size:
        raise ValueError(f"{path} does not hold the {size} bytes that its header announces")
    return np.frombuffer(data, np.uint8).reshape(shape)


# TFDS has builders of these names already, so these classes are not registered. mypy does not see the keyword
# skip_registration, which belongs to the __init_subclass__ of TFDS.
class _IdxBuilder(stock.MNIST, skip_registration=True):  # type: ignore[call-arg]
    """The stock MNIST builder, but its two steps that need TensorFlow are replaced."""

    name = "mnist"

    @classmethod
    def urls(cls) -> dict[str, str]:
        """Return the address of each of the four files."""
        return {
            f"{split}_{kind}": f"{cls.URL}{prefix}-{kind}-{suffix}-ubyte.gz"
            for split, prefix in (("train", "train"), ("test", "t10k"))
            for kind, suffix in (("images", "idx3"), ("labels", "idx1"))
        }

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        files = dl_manager.download(self.urls())
        return {
            split: self._generate_examples(Path(files[f"{split}_images"]), Path(files[f"{split}_labels"]))
            for split in ("train", "test")
        }

    def _generate_examples(self, images_path: Path, labels_path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
        if len(images) != len(labels):
            raise ValueError(f"{images_path} holds {len(images)} images, {labels_path} {len(labels)} labels")
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            # TFDS encodes a PIL image with Pillow, but it would encode an array with TensorFlow.
            yield index, {"image": Image.fromarray(image), "label": int(label)}


class _FashionMNIST(_IdxBuilder, stock.FashionMNIST, skip_registration=True):  # type: ignore[call-arg]
    name = "fashion_mnist"


class _KMNIST(_IdxBuilder, stock.KMNIST, skip_registration=True):  # type: ignore[call-arg]
    name = "kmnist"


BUILDERS: dict[str, type[_IdxBuilder]] = {b.name: b for b in (_IdxBuilder, _FashionMNIST, _KMNIST)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TFDS from logging, warning, printing and drawing progress bars within the `with` block."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        sink = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)


def unreachable(url: str) -> str:
    """Return why `url` cannot be downloaded, or '' if its server answers within `CONNECT_SECONDS`.

    TFDS itself would retry for minutes. This function uses the library that TFDS uses, and so the same proxies and
    certificates.
    """
    host = url.split("/")[2]
    try:
        response = requests.head(url, timeout=CONNECT_SECONDS, allow_redirects=True)
    except requests.Timeout:
        return f"no answer from {host} in {CONNECT_SECONDS:g} s"
    except requests.RequestException:
        return f"no connection to {host}"
    return "" if response.ok else f"{host} answered {response.status_code}"


def prepare(name: str, data_dir: Path) -> Path:
    """Download the data set of one of `BUILDERS`, write it as array_record, and return the prepared directory.

    Raises UserError if the files cannot be downloaded or the directory cannot be written.
    """
    try:
        if reason := unreachable(BUILDERS[name].urls()["train_images"]):
            raise ConnectionError(reason)
        print(f"Downloading {name} and preparing it in {data_dir} ...", file=sys.stderr)
        with _quiet():
            builder = BUILDERS[name](data_dir=data_dir, file_format="array_record")
            # By default, TFDS first looks for a copy on Google Cloud Storage, which needs TensorFlow.
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
            return Path(builder.data_dir)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{name} is not prepared in {data_dir} and its files could not be downloaded ({reason}). "
            "Give --data_dir with a prepared copy, or train on the embedded data with --config.dataset=digits."
        ) from error


def tfrecords(path: Path) -> Iterator[bytes]:
    """Yield the records of a TFRECORD file. Raises ValueError if the file ends inside a record.

    The checksums are not verified, because the standard library has no CRC-32C.
    """
    left = path.stat().st_size
    with open(path, "rb") as file:
        while left:
            head = file.read(12)
            length = int.from_bytes(head[:8], "little")
            left -= 12 + length + 4
            if len(head) < 12 or left < 0:
                raise ValueError(f"{path.name} ends inside a record")
            yield file.read(length)
            file.seek(4, 1)


def _examples(builder: Any, split: str) -> Iterator[dict[str, Any]]:
    if builder.info.file_format.value == "tfrecord":
        for path in builder.info.splits[split].filepaths:
            for record in tfrecords(Path(path)):
                yield builder.info.features.deserialize_example_np(record)
    else:
        source = builder.as_data_source(split=split)
        for start in range(0, len(source), _READ_CHUNK):
            yield from source.__getitems__(range(start, min(start + _READ_CHUNK, len(source))))


def check_prepared(directory: Path) -> None:
    """Raise ValueError if features.json names any feature that MNIST lacks: TFDS would import the module it names."""
    path = directory / "features.json"
    if path.stat().st_size > MAX_FEATURES:
        raise ValueError(f"features.json has {path.stat().st_size} bytes")

    def check(value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                named = key.replace("_", "").lower() in ("type", "pythonclassname")
                if (named and item not in _FEATURES) or (key == "content" and isinstance(item, str)):
                    raise ValueError(f"features.json names {str(item)[:100]!r}, which is not a feature of MNIST")
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(item)

    check(json.loads(path.read_text("utf-8")))


def read(directory: Path) -> dict[str, np.ndarray]:
    """Return x_train, y_train, x_test and y_test of a prepared directory, from array_record or TFRECORD files.

    x holds images, [N, H, W, C], uint8, and y holds labels, [N], int64, both in the order of the records. Raises
    UserError if the directory cannot be read.
    """
    arrays = {}
    try:
        with _quiet():
            check_prepared(directory)
            builder = tfds.builder_from_directory(directory)
            for split in ("train", "test"):
                if any(leads_outside(path, directory) for path in builder.info.splits[split].filepaths):
                    raise ValueError(f"the {split} records lie outside of it")
                examples = list(_examples(builder, split))
                if len(examples) != builder.info.splits[split].num_examples:
                    raise ValueError(f"{len(examples)} {split} records do not match dataset_info.json")
                arrays[f"x_{split}"] = np.stack([example["image"] for example in examples])
                arrays[f"y_{split}"] = np.array([example["label"] for example in examples], np.int64)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"The prepared data in {directory} cannot be read ({reason}). "
            "Give another --data_dir, or remove that directory to prepare it again."
        ) from error
    return arrays
