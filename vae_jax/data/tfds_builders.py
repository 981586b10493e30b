"""Prepare MNIST and its relatives with tensorflow-datasets (TFDS), but without TensorFlow.

The stock builders of TFDS need TensorFlow to unpack and parse the downloaded files; the subclasses here parse the bytes
themselves but keep name, version, features, addresses and checksums, so every TFDS program can read what they write.
"""

from __future__ import annotations

import gzip
import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import requests
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import mnist as stock

from vae_jax.data.files import DEFLATE_MAX_RATIO
from vae_jax.data.tfds_records import quiet
from vae_jax.errors import UserError

CONNECT_SECONDS = 5.0


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
        with quiet():
            builder = BUILDERS[name](data_dir=data_dir, file_format="array_record")
            # By default, TFDS first looks for a copy on Google Cloud Storage, which needs TensorFlow.
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
            return Path(builder.data_dir)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{name} is not prepared in {data_dir} and its files could not be downloaded ({reason}).",
            "Give --data_dir with a prepared copy, or train on the embedded data with --config.dataset=digits.",
            "Give --data_dir with a prepared copy.",
        ) from error
