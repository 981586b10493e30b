"""From a data set to what a model sees: arrays on the device, labels as context, binarisation, and their checks."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax.config import Config
from vae_jax.core import Examples, to_float
from vae_jax.data import datasets
from vae_jax.data.datasets import Dataset, Split
from vae_jax.data.files import check_memory
from vae_jax.data.streaming import Stream
from vae_jax.errors import UserError

BINARIZATION_SEED = 0  # of the binarised validation and test splits, which every run shares
SPLITS = ("train", "validation", "test")
_ROWS = 1000  # looked through at a time: their floats take little memory


class DataInfo(NamedTuple):
    """What a model needs to know of its data."""

    shape: tuple[int, ...]  # of an example
    classes: tuple[int, ...]  # the labels that a conditional VAE knows, in rising order; () for another VAE
    range: tuple[float, float]  # of its values, as the model sees them
    num_train: int
    num_validation: int
    num_test: int
    fingerprint: str
    data_dir: str | None  # where it was found

    @property
    def num_classes(self) -> int:
        return len(self.classes)


class Inputs(NamedTuple):
    """What a run trains on, and the split that it is evaluated on."""

    data: DataInfo
    examples: Examples | Stream  # to train on
    split: str  # validation, or test without one
    held_out: Examples
    label: np.ndarray | None  # of the examples held out


def absolute(config: Config) -> Config:
    """The config with absolute paths, so that a run directory serves from anywhere."""
    init_from = config.init_from and os.path.abspath(os.path.expanduser(config.init_from))
    return replace(config, dataset=datasets.absolute(config.dataset), init_from=init_from)


def load(config: Config, data_dir: str | None, num_levels: int | None) -> Inputs:
    """The data of a run. data_dir: where tensorflow-datasets keeps its data, by default TFDS_DATA_DIR.

    num_levels: how many values the likelihood is of, None for any.
    """
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR")
    if config.stream and config.binarization == "static":
        raise UserError(
            "binarization 'static' keeps all training examples in memory, and stream is true. Set "
            "--config.binarization=dynamic."
        )
    dataset = datasets.load(
        config.dataset,
        data_dir=data_dir,
        classes=config.classes,
        validation_size=config.validation_size,
        stream=config.stream,
    )
    check_levels(dataset, config, num_levels)
    split = "validation" if dataset.validation else "test"
    data, label = describe(dataset, config, data_dir), getattr(dataset, split).label
    held_out = evaluation_examples(dataset, split, config, data.classes)
    return Inputs(data, training_examples(dataset, config, data.classes), split, held_out, label)


def describe(dataset: Dataset, config: Config, data_dir: str | None) -> DataInfo:
    x, validation = dataset.train.x, dataset.validation
    return DataInfo(
        x.shape[1:],
        classes_of(dataset) if config.conditional else (),
        value_range(dataset),
        dataset.num_train,
        0 if validation is None else len(validation.x),
        len(dataset.test.x),
        dataset.fingerprint,
        None if data_dir is None else str(Path(data_dir).absolute()),
    )


def value_range(dataset: Dataset) -> tuple[float, float]:
    """The least and the largest value of all splits, as the model sees them."""
    arrays = [split.x for split in (dataset.train, dataset.validation, dataset.test) if split is not None]
    ranges = [(float(x.min()), float(x.max())) for x in arrays] if dataset.stream is None else [dataset.stream.range]
    scale = 255 if arrays[0].dtype == np.uint8 else 1
    return min(low for low, _ in ranges) / scale, max(high for _, high in ranges) / scale


def classes_of(dataset: Dataset) -> tuple[int, ...]:
    """The labels that occur in any split, in rising order; () without labels."""
    splits = (dataset.train, dataset.validation, dataset.test)
    labels = [split.label for split in splits if split is not None and split.label is not None]
    return tuple(np.unique(np.concatenate(labels)).tolist()) if labels else ()


def check_levels(dataset: Dataset, config: Config, num: int | None) -> None:
    """UserError if the likelihood is of evenly spaced values of [0, 1], and the data holds others.

    num: how many values, None for any. Of a stream only bytes are known to be such values, of all 256. Data outside
    [0, 1] is refused for its range.
    """
    if num is None or config.binarization != "none":
        return
    x, (low, high) = dataset.train.x, value_range(dataset)
    if low < 0 or high > 1 or (x.dtype == np.uint8 and (num - 1) % 255 == 0):
        return
    needs = f"likelihood {config.likelihood!r} needs data of {num} evenly spaced values, 0, 1/{num - 1} .. 1"
    if dataset.stream is not None:
        raise UserError(
            f"{needs}; {dataset.name} is a stream of {x.dtype}, whose values are not all known. Save x as uint8 and "
            "use 256 levels, or train with --config.stream=false."
        )
    value = _off_levels(dataset, num)
    if value is None:
        return
    fitting = next((n for n in range(2, 257) if _off_levels(dataset, n) is None), None)
    other = {None: "gaussian_scalar", 256: "discretized_logistic"}.get(fitting, "categorical")
    options = {"num_levels": fitting} if other == "categorical" else {}
    raise UserError(
        f"{needs}; {dataset.name} holds {value:g}. Give such data, or train with --config.likelihood={other} "
        f"--config.likelihood_options='{json.dumps(options)}', or with --config.binarization=dynamic."
    )


def _off_levels(dataset: Dataset, num: int) -> float | None:
    """The first value that is not one of `num` evenly spaced ones of [0, 1]."""
    splits = [split.x for split in (dataset.train, dataset.validation, dataset.test) if split is not None]
    for values in (x[start : start + _ROWS] for x in splits for start in range(0, len(x), _ROWS)):
        if values.dtype == np.uint8:
            values = np.flatnonzero(np.bincount(values.reshape(-1))) / 255
        level = values * (num - 1)
        off = np.abs(level - np.round(level)) > max(1e-3, 1e-7 * num)  # as near as float32 comes
        if off.any():
            return float(values[off][0])
    return None


def training_examples(dataset: Dataset, config: Config, classes: tuple[int, ...] = ()) -> Examples | Stream:
    """The training split, as stored: `make_prepare(config)` turns its batches into the model's input."""
    if dataset.stream is not None:
        return dataset.stream
    if config.binarization == "static":
        return evaluation_examples(dataset, "train", config, classes)
    return Examples(jax.device_put(dataset.train.x), _context(dataset, dataset.train, config, classes))


def evaluation_examples(dataset: Dataset, split: str, config: Config, classes: tuple[int, ...] = ()) -> Examples:
    """A split as the model sees it, float32: binarised once by a fixed seed if the config binarises at all.

    Of the training split of a stream, the examples that are in memory. classes: those of the `DataInfo`, for the
    context of a conditional VAE. UserError if the data set has no such split, or labels of other classes.
    """
    part = getattr(dataset, split) if split in SPLITS else None
    if part is None:
        known = [name for name in SPLITS if getattr(dataset, name) is not None]
        raise UserError(f"{dataset.name} has no split {split!r}. Choose one of: {', '.join(known)}.")
    return Examples(prepare_fixed(part.x, split, config), _context(dataset, part, config, classes))


def prepare_fixed(x: np.ndarray, split: str, config: Config) -> Array:
    """Stored examples as float32, binarised by the fixed seed and the split's name if the config binarises at all."""
    floats = to_float(jax.device_put(x))
    if config.binarization == "none":
        return floats
    key = jax.random.key(BINARIZATION_SEED, impl="threefry2x32")  # the same examples whatever JAX's default
    return binarize(jax.random.fold_in(key, SPLITS.index(split)), floats)


def make_prepare(config: Config):
    """prepare(key, x): a stored batch as the model's input in training."""
    if config.binarization == "dynamic":
        return lambda key, x: binarize(key, to_float(x))
    return lambda key, x: to_float(x)


def binarize(key: Array, x: Array) -> Array:
    """A draw from Bernoulli(x), elementwise, for x in [0, 1]: 0 never sets a pixel and 1 always does.

    Uniform floats are multiples of 2^-23 below 1: the probability is x to float precision.
    """
    return (jax.random.uniform(key, x.shape, x.dtype) < x).astype(x.dtype)


def _context(dataset: Dataset, split: Split, config: Config, classes: tuple[int, ...]) -> Array | None:
    if not config.conditional or split.label is None:
        return None
    try:
        check_memory(4 * len(split.label) * len(classes), "the labels of a conditional VAE, one-hot, take")
    except ValueError as error:
        raise UserError(
            f"{dataset.name} has {len(split.label)} examples of {len(classes)} classes: {error}. Give fewer classes, "
            "or set --config.conditional=false."
        ) from None
    if unknown := sorted(set(np.unique(split.label).tolist()) - set(classes)):
        raise UserError(
            f"{dataset.name} has the labels {str(unknown)[1:-1][:200]}; the VAE knows {show_classes(classes)}. Give "
            "examples of these."
        )
    index = np.searchsorted(np.array(classes), split.label)
    return jax.nn.one_hot(jax.device_put(index), len(classes), dtype=jnp.float32)


def show_classes(classes: tuple[int, ...]) -> str:
    """The classes for a person."""
    if len(classes) > 1 and classes == tuple(range(classes[0], classes[-1] + 1)):
        return f"the classes {classes[0]} to {classes[-1]}"
    return f"the classes {str(list(classes))[1:-1][:200]}"
