"""Read what tensorflow-datasets (TFDS) has prepared, from array_record or TFRECORD files, without TensorFlow.

A prepared directory is not trusted: its features.json names classes, whose modules TFDS would import, and its records
hold images of any size. Only the two features that are asked for are decoded.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from vae_jax.data.files import check_memory, leads_outside
from vae_jax.data.images import check_depth
from vae_jax.errors import UserError

SPLITS = ("train", "validation", "test")
MAX_FEATURES = 1 << 20  # bytes of a features.json, which has 700 for MNIST
MAX_TEXT = 1 << 24  # bytes of any other file that TFDS reads at once, such as the names of the classes
_READ_CHUNK = 256  # records
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's names, by the number of channels
# The classes that TFDS has imported already, and that read no file which features.json names.
_FEATURES = [
    f"tensorflow_datasets.core.features.{name}"
    for name in (
        "features_dict.FeaturesDict",
        "image_feature.Image",
        "class_label_feature.ClassLabel",
        "tensor_feature.Tensor",
        "feature.Tensor",  # its name of old
        "scalar.Scalar",
        "text_feature.Text",
        "bounding_boxes.BBoxFeature",
        "sequence_feature.Sequence",
        "dataset_feature.Dataset",
    )
]

Shape = tuple[int, ...]
# From a value of a record to an image. The second argument checks the image's shape, before its pixels are decoded.
Decode = Callable[[Any, Callable[[Shape], None]], np.ndarray]


class _OtherSizeError(ValueError):
    """An image has another shape than the first one."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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


def known_names() -> list[str]:
    """The names of all data sets that this version of TFDS can prepare. Asks nothing of the network."""
    return list(tfds.list_builders(with_community_datasets=False))


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


def _records(builder: Any, split: str) -> Iterator[bytes]:
    kind = builder.info.file_format.value
    if kind == "tfrecord":
        for path in builder.info.splits[split].filepaths:
            yield from tfrecords(Path(path))
    elif kind == "array_record":
        source = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        for start in range(0, len(source), _READ_CHUNK):
            yield from source.__getitems__(range(start, min(start + _READ_CHUNK, len(source))))
    else:
        raise ValueError(f"its file format is {kind}, expected array_record or tfrecord")


def check_prepared(directory: Path) -> None:
    """Raise ValueError if the directory names any class but the few of TFDS in `_FEATURES`, or if a file leads outside.

    TFDS would import the module of any class that is named in features.json, or in the features of dataset_info.json.
    """
    for path in directory.iterdir():
        if leads_outside(path, directory):
            raise ValueError(f"{path.name} lies outside of it")
        limit = MAX_FEATURES if path.name == "features.json" else MAX_TEXT
        if path.suffix in (".json", ".txt") and path.stat().st_size > limit:
            raise ValueError(f"{path.name} has {path.stat().st_size} bytes, and the limit is {limit}")
    info = json.loads((directory / "dataset_info.json").read_text("utf-8"))
    _check_classes(info.get("features"), "dataset_info.json")
    _check_classes(json.loads((directory / "features.json").read_text("utf-8")), "features.json")
    for split in info.get("splits", []):
        # TFDS fills it in with str.format, which makes texts of any length out of fields like {SPLIT:>1000000000}.
        template = split.get("filepathTemplate") or split.get("filepath_template") or ""
        if re.sub(r"\{[A-Z_]+\}", "", template).count("{"):
            raise ValueError(f"dataset_info.json calls its records {template[:100]!r}")


def _check_classes(value: Any, file: str) -> None:
    for key, item in value.items() if isinstance(value, dict) else ():
        plain = key.replace("_", "").lower()
        # A feature may itself be called `type`: then the item is a dictionary, which names no class.
        if plain in ("type", "pythonclassname") and not isinstance(item, dict) and item not in _FEATURES:
            raise ValueError(f"{file} names {str(item)[:100]!r}, which is not a feature that is read here")
        if plain == "namesfile":
            raise ValueError(f"{file} names another file")
        if plain in ("json", "content") and isinstance(item, str):  # JSON in a text, which TFDS parses too
            _check_classes(json.loads(item), file)
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_classes(item, file)


def _shape(feature: Any) -> tuple[int | None, ...]:
    return tuple(feature.get_tensor_info().shape)


def _is_image(feature: Any) -> bool:
    if type(feature) not in (tfds.features.Image, tfds.features.Tensor):
        return False
    info = feature.get_tensor_info()
    fixed = len(info.shape) in (2, 3) and None not in info.shape
    return bool(info.np_dtype == np.uint8) and (fixed or type(feature) is tfds.features.Image)


def _is_label(feature: Any) -> bool:
    if not isinstance(feature, tfds.features.Tensor):
        return False
    return _shape(feature) == () and np.issubdtype(feature.get_tensor_info().np_dtype, np.integer)


def _listed(features: Any, names: list[str] | None = None) -> str:
    shown = (f"{name} ({type(features[name]).__name__})" for name in sorted(features if names is None else names))
    return ", ".join(shown)[:500] or "none"


def choose(features: Any, wanted: tuple[str, ...], name: str) -> tuple[str, str | None]:
    """Return the names of the image and of the label, or None for the label.

    features: the FeaturesDict of the data set `name`; wanted: the image's name, and the label's name, if given.
    Raises UserError if they are not such features, or if the image is not given and there is more or less than one.
    """
    images, labels = ([key for key in sorted(features) if test(features[key])] for test in (_is_image, _is_label))
    for key, found, kind in zip(wanted, (images, labels), ("image", "label"), strict=False):
        if key not in found:
            expected = "an image, uint8" if kind == "image" else "a whole number per example"
            raise UserError(
                f"Got the {kind} {key!r} of {name}, expected the name of {expected}. "
                f"Choose among: {_listed(features, found)}. All its features: {_listed(features)}."
            )
    if not images:
        raise UserError(
            f"{name} has no image feature, expected an Image or a Tensor [H, W, C] or [H, W] of uint8. "
            f"Its features: {_listed(features)}."
        )
    if not wanted and len(images) > 1:
        raise UserError(
            f"{name} has several image features: {_listed(features, images)}.",
            "Choose one, and a label if you like, with --config.features=IMAGE,LABEL.",
            "Save one of them as x in a .npy file, and give that file.",
        )
    classes = [key for key in labels if isinstance(features[key], tfds.features.ClassLabel)]
    default = classes[0] if len(classes) == 1 else "label" if "label" in labels else None
    return (wanted[0] if wanted else images[0]), (wanted[1] if len(wanted) == 2 else default)


def _one(values: Any) -> Any:
    if len(values) != 1:
        raise ValueError(f"a record holds {len(values)} values, expected one")
    return values[0]


def _decode_image(channels: int | None) -> Decode:
    """Decode PNG or JPEG bytes as [H, W, C], uint8. Like TFDS, this leaves EXIF data and transparency alone."""

    def decode(value: Any, check: Callable[[Shape], None]) -> np.ndarray:
        with Image.open(io.BytesIO(_one(value.bytes_list.value)), formats=("PNG", "JPEG")) as image:
            check_depth(image)
            mode = _MODES[channels] if channels else "L" if image.mode in ("1", "L") else "RGB"
            shape = (image.height, image.width, len(mode))
            check(shape)
            return np.asarray(image if image.mode == mode else image.convert(mode)).reshape(shape)

    return decode


def _decode_tensor(shape: Shape, encoding: str) -> Decode:
    """Decode a Tensor of TFDS, uint8, that is stored as integers, as bytes or as compressed bytes."""
    size = math.prod(shape)

    def decode(value: Any, check: Callable[[Shape], None]) -> np.ndarray:
        check(shape)
        if encoding == "none":
            return np.array(value.int64_list.value, np.uint8).reshape(shape)
        data = _one(value.bytes_list.value)
        data = zlib.decompressobj().decompress(data, size + 1) if encoding == "zlib" else data
        return np.frombuffer(data, np.uint8).reshape(shape)

    return decode


def _decoder(feature: Any) -> Decode:
    shape = feature.get_tensor_info().shape
    if isinstance(feature, tfds.features.Image):
        return _decode_image(shape[-1])
    return _decode_tensor(tuple(shape), feature.to_json_content().encoding)


def read(directory: Path, name: str, features: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Return x_train, and y_train if there are labels, of a prepared directory; _validation and _test, if it has them.

    name: what the data set is called in an error; features: as for `choose`. x holds images, [N, H, W, C] or [N, H, W],
    uint8, or bool if no split has values other than 0 and 1. y holds labels, [N], int64. Both are in the order of the
    records. Raises UserError if the directory cannot be read, or if its images have several sizes.
    """
    try:
        with quiet():
            check_prepared(directory)
            builder = tfds.builder_from_directory(directory)
            return _read(builder, directory, name, features)
    except UserError:
        raise
    except _OtherSizeError as error:
        raise UserError(
            f"{name} has images of several sizes, such as {error}, expected one size.",
            "Save them as PNG files in a folder and give that folder with --config.image_size.",
            "Scale them, save them as x in a .npy file, and give that file.",
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"The prepared data in {directory} cannot be read ({reason}). "
            "Give another --data_dir, or remove that directory to prepare it again."
        ) from error


def _check_size(shape: Shape, total: int, name: str) -> None:
    try:
        check_memory(total * (math.prod(shape) + 8), "they take")  # 8 bytes for the label
    except ValueError as error:
        raise UserError(
            f"{name} has {total} images of shape {shape}: {error}.",
            "Save fewer or smaller images as a .npy file, which training reads piece by piece with "
            "--config.stream=true.",
            "Save fewer of them as x in a .npy file, and give that file.",
        ) from error


def _read(builder: Any, directory: Path, name: str, features: tuple[str, ...]) -> dict[str, np.ndarray]:
    image, label = choose(builder.info.features, features, name)
    decode = _decoder(builder.info.features[image])
    nums = {split: builder.info.splits[split].num_examples for split in SPLITS if split in builder.info.splits}
    if "train" not in nums:
        raise UserError(f"{name} has the splits {sorted(builder.info.splits)}, expected train. Give another data set.")
    shapes: list[Shape] = []  # that of the first image of all

    def check(shape: Shape) -> None:
        if not shapes:
            _check_size(shape, sum(nums.values()), name)
            shapes.append(shape)
        # Nothing of another size is decoded, since only the size of the first was checked against the memory.
        if shape != shapes[0]:
            raise _OtherSizeError(f"{shapes[0]} and {shape}")

    def examples(split: str) -> Iterator[tuple[np.ndarray, int]]:
        for record in _records(builder, split):
            values = tf_example_pb2.Example.FromString(record).features.feature
            yield decode(values[image], check), 0 if label is None else _one(values[label].int64_list.value)

    arrays: dict[str, np.ndarray] = {}
    for split, num in nums.items():
        if any(leads_outside(path, directory) for path in builder.info.splits[split].filepaths):
            raise ValueError(f"the {split} records lie outside of it")
        x, y = _stack(examples(split), num, split)
        arrays |= {f"x_{split}": x} if label is None else {f"x_{split}": x, f"y_{split}": y}
    xs = [key for key in arrays if key.startswith("x_")]
    if all(arrays[key].max() <= 1 for key in xs):  # then 1 is white, but in other images v stands for v/255
        arrays |= {key: arrays[key].view(np.bool_) for key in xs}
    return arrays


def _stack(examples: Iterator[tuple[np.ndarray, int]], num: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Stack just `num` images and labels. Raises ValueError if there are more or fewer, or none."""
    x, y = np.empty(0, np.uint8), np.empty(0, np.int64)
    count = 0
    for image, label in examples:
        if count == 0:  # the first image has been checked against the memory
            x, y = np.empty((num, *image.shape), np.uint8), np.empty(num, np.int64)
        if count == num:
            raise ValueError(f"it holds more than the {num} {split} records that dataset_info.json announces")
        x[count], y[count] = image, label
        count += 1
    if count != num or not num:
        raise ValueError(f"it holds {count} {split} records, and dataset_info.json announces {num}")
    return x, y
