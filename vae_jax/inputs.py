"""From a data set to what a model sees: arrays on the device, labels as context, binarisation, and their checks."""

import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax import datasets
from vae_jax.config import Config
from vae_jax.datasets import Dataset, Split
from vae_jax.errors import UserError
from vae_jax.streaming import Stream

BINARIZATION_SEED = 0  # of the binarised validation and test splits, which every run shares
SPLITS = ("train", "validation", "test")


class DataInfo(NamedTuple):
    """What a model needs to know of its data."""

    shape: tuple[int, ...]  # of an example
    num_classes: int  # 0 without labels
    range: tuple[float, float]  # of its values, as the model sees them
    num_train: int
    num_validation: int
    num_test: int
    fingerprint: str
    data_dir: str | None  # where it was found


class Examples(NamedTuple):
    """Examples on the device."""

    x: Array  # [N, *shape], uint8 or float32
    context: Array | None  # [N, C], one-hot labels of a conditional VAE


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


def load(config: Config, data_dir: str | None) -> Inputs:
    """The data of a run. data_dir: where tensorflow-datasets keeps its data, by default TFDS_DATA_DIR."""
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
    split = "validation" if dataset.validation else "test"
    held_out, label = evaluation_examples(dataset, split, config), getattr(dataset, split).label
    return Inputs(describe(dataset, data_dir), training_examples(dataset, config), split, held_out, label)


def describe(dataset: Dataset, data_dir: str | None) -> DataInfo:
    x, validation = dataset.train.x, dataset.validation
    return DataInfo(
        x.shape[1:],
        num_classes(dataset),
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


def num_classes(dataset: Dataset) -> int:
    """One more than the largest label; 0 without labels."""
    labels = [split.label for split in (dataset.train, dataset.test)]
    return max((int(label.max()) + 1 for label in labels if label is not None), default=0)


def training_examples(dataset: Dataset, config: Config) -> Examples | Stream:
    """The training split, as stored: `make_prepare(config)` turns its batches into the model's input."""
    if dataset.stream is not None:
        return dataset.stream
    if config.binarization == "static":
        return evaluation_examples(dataset, "train", config)
    return Examples(jax.device_put(dataset.train.x), _context(dataset, dataset.train, config))


def evaluation_examples(dataset: Dataset, split: str, config: Config) -> Examples:
    """A split as the model sees it, float32: binarised once by a fixed seed if the config binarises at all.

    Of the training split of a stream, the examples that are in memory. UserError if the data set has no such split.
    """
    part = getattr(dataset, split) if split in SPLITS else None
    if part is None:
        known = [name for name in SPLITS if getattr(dataset, name) is not None]
        raise UserError(f"{dataset.name} has no split {split!r}. Choose one of: {', '.join(known)}.")
    return Examples(prepare_fixed(part.x, split, config), _context(dataset, part, config))


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


def to_float(x: Array) -> Array:
    """A byte v stands for v / 255."""
    if x.dtype != jnp.uint8:
        return x
    # XLA would divide by multiplying with 1 / 255, wrong in the last bit. 65793 / 2^24 is 1 / 255 less 1 / (255 2^24).
    v = x.astype(jnp.float32)
    return v * (65793 / 2**24) + v * (1 / 255 / 2**24)


def binarize(key: Array, x: Array) -> Array:
    """A draw from Bernoulli(x), elementwise, for x in [0, 1]: 0 never sets a pixel and 1 always does.

    Uniform floats are multiples of 2^-23 below 1: the probability is x to float precision.
    """
    return (jax.random.uniform(key, x.shape, x.dtype) < x).astype(x.dtype)


def _context(dataset: Dataset, split: Split, config: Config) -> Array | None:
    if not config.conditional or split.label is None:
        return None
    return jax.nn.one_hot(jax.device_put(split.label), num_classes(dataset), dtype=jnp.float32)
