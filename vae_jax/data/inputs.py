"""Turn a data set into what a model sees: check it, binarise it, and put it on the device with its labels."""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax import progress
from vae_jax.config import COUNTS, Config
from vae_jax.core import Examples, Likelihood, to_float
from vae_jax.data import datasets, kinds, splits
from vae_jax.data.columns import some
from vae_jax.data.files import Reading, check_memory, extremes, not_counts
from vae_jax.data.scaling import MAX_ELEMENTS, Scaling, advise, measure, measure_columns
from vae_jax.data.splits import Dataset, Split
from vae_jax.data.streaming import Stream
from vae_jax.errors import UserError
from vae_jax.progress import plural

BINARIZATION_SEED = 0  # for splits that are binarised once, and so in the same way in every run
SPLITS = ("train", "validation", "test")
MAX_NAMES = 10_000  # of labels that only pictures show
_ROWS = 1000  # how many rows are checked at a time, so that their floats take little memory


class DataInfo(NamedTuple):
    """What a model needs to know about its data."""

    shape: tuple[int, ...]  # of one example
    classes: tuple[int, ...]  # the labels that a conditional VAE knows, in rising order; () if it is not conditional
    range: tuple[float, float]  # the smallest and the largest value, as the model sees them
    num_train: int
    num_validation: int
    num_test: int
    fingerprint: str
    data_dir: str | None  # where tensorflow-datasets keeps its data, if that was given
    num_covariates: int = 0  # C, of the covariates that a conditional VAE takes in place of labels
    names: tuple[str, ...] = ()  # of the labels 0, 1, ...; () if the labels are the numbers of the data
    columns: tuple[str, ...] = ()  # the names of the columns of a table
    scaling: Scaling | None = None  # of `standardize`: the mean and the standard deviation of each element of x
    covariate_scaling: Scaling | None = None  # the same of each covariate
    spread: Scaling | None = None  # the same of each column of a table, for pictures

    @property
    def context_size(self) -> int:
        """How many numbers the context of an example has: one per class or covariate, 0 without a context."""
        return len(self.classes) or self.num_covariates


class Inputs(NamedTuple):
    """The data that a run trains on, and the split that it is evaluated on."""

    config: Config  # with the kinds of a mixed table's columns
    data: DataInfo
    examples: Examples | Stream  # the training examples
    split: str  # the name of the held-out split: validation, or test if there is no validation split
    held_out: Examples  # the examples of that split
    label: np.ndarray | None  # the labels of that split


def absolute(config: Config) -> Config:
    """Make the paths in a config absolute, so that a run directory works from anywhere."""
    init_from = config.init_from and os.path.abspath(os.path.expanduser(config.init_from))
    return replace(config, dataset=datasets.absolute(config.dataset), init_from=init_from)


def load(
    config: Config,
    data_dir: str | None,
    likelihood: Callable[[Config, tuple[int, ...]], Likelihood | None] = lambda config, shape: None,
) -> Inputs:
    """Load and check the data of a run.

    data_dir: where tensorflow-datasets keeps its data, by default TFDS_DATA_DIR. likelihood: from the shape of
    an example, the likelihood of the config, whose values the data must have; None if any data will do.
    """
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or None
    if config.stream and config.binarization == "static":
        raise UserError(
            "binarization 'static' keeps all training examples in memory, and stream is true. Set "
            "--config.binarization=dynamic."
        )
    datasets.check_reading(config.dataset, reading_of(config))
    dataset = datasets.load(
        config.dataset,
        data_dir=data_dir,
        classes=config.classes,
        validation_size=config.validation_size,
        stream=config.stream,
        how=reading_of(config),
        features=config.features,
        options=config.dataset_options,
    )
    if config.standardize and config.binarization != "none":
        raise UserError(
            f"standardize is true, and binarization {config.binarization!r} makes zeros and ones. Set one of them only."
        )
    if is_mixed(config):
        config = kinds.resolve(config, dataset)
        dataset = kinds.encode(dataset, config)
    part = likelihood(config, dataset.train.x.shape[1:])
    check_levels(dataset, config, part and part.num_levels)
    check_counts(dataset, config, part is not None and part.whole)
    if config.missing:
        _check_missing(dataset, config)
    if not config.standardize and not reading_of(config).counts:
        advise(dataset, part and part.scaled)
    split = "validation" if dataset.validation else "test"
    data, label = describe(dataset, config, data_dir, part), getattr(dataset, split).label
    held_out = evaluation_examples(dataset, split, config, data.classes)
    return Inputs(config, data, training_examples(dataset, config, data.classes), split, held_out, label)


def _check_missing(dataset: Dataset, config: Config) -> None:
    """Say how many values are missing. Raises UserError if the config makes zeros and ones of them."""
    if config.binarization != "none":
        raise UserError(
            f"missing is true, and binarization {config.binarization!r} makes zeros and ones. Set one of them only."
        )
    arrays = [split.x for split in (dataset.train, dataset.validation, dataset.test) if split is not None]
    num, count = sum(x.size for x in arrays), sum(int(np.count_nonzero(np.isnan(x))) for x in arrays)
    where = " in memory" if dataset.stream else ""
    if count:
        progress.say(f"{dataset.name}: {count} of {num} values{where} are missing ({count / num:.1%}).")
    x = dataset.train.x
    if x.ndim == 2 and dataset.stream is None and (empty := np.flatnonzero(np.isnan(x).all(0))).size:
        names = [dataset.columns[i] if dataset.columns else str(i) for i in empty]
        progress.say(
            f"{dataset.name}: no training example has a value in {plural(len(names), 'column')} ({some(names)}), so "
            "that nothing is learned of it and `impute` cannot know it. Leave it out."
        )


def reading_of(config: Config) -> Reading:
    by_likelihood = config.likelihood in COUNTS and config.binarization == "none" and not config.vae
    counts = config.integers == "counts" or (config.integers == "auto" and by_likelihood)
    fields = {name: getattr(config, name) for name in Reading._fields if name not in ("counts", "texts")}
    return Reading(**fields, counts=counts, texts=is_mixed(config))


def is_mixed(config: Config) -> bool:
    return config.likelihood == "mixed" and not config.vae


def describe(dataset: Dataset, config: Config, data_dir: str | None, part: Likelihood | None = None) -> DataInfo:
    """What a model needs to know. part: the likelihood, if it is known; it may leave some elements unscaled."""
    x, validation = dataset.train.x, dataset.validation
    c = _covariates(dataset, dataset.train) if config.conditional == "covariates" else None
    return DataInfo(
        x.shape[1:],
        classes_of(dataset) if config.conditional is True else (),
        value_range(dataset),
        dataset.num_train,
        0 if validation is None else len(validation.x),
        len(dataset.test.x),
        dataset.fingerprint,
        None if data_dir is None else str(Path(data_dir).absolute()),
        0 if c is None else c.shape[1],
        dataset.names if len(dataset.names) <= MAX_NAMES or config.conditional is True else (),
        dataset.columns,
        measure(dataset, part and part.scaled) if config.standardize else None,
        measure_columns(c) if config.standardize and c is not None else None,
        measure(dataset) if dataset.columns and x.shape[1] <= MAX_ELEMENTS else None,
    )


def columns_of(x: np.ndarray, config: Config, data: DataInfo) -> dict[str, np.ndarray]:
    """The columns of a table x [N, D] by their names; those of a mixed table with the types of their kinds."""
    return kinds.decode(x, config) if is_mixed(config) else dict(zip(data.columns, x.T, strict=True))


def covariates_of(c: np.ndarray, config: Config) -> dict[str, np.ndarray]:
    """The covariates [N, C] by their names, or by c_0, c_1, ... those of an array."""
    return dict(zip(config.covariate_columns or [f"c_{i}" for i in range(c.shape[1])], c.T, strict=True))


def value_range(dataset: Dataset) -> tuple[float, float]:
    """The smallest and the largest value in all splits, as the model sees them. Raises UserError if all are missing."""
    arrays = [split.x for split in (dataset.train, dataset.validation, dataset.test) if split is not None]
    ranges = [dataset.stream.range] if dataset.stream else [extremes(x) for x in arrays]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    if not isfinite(low):
        raise UserError(f"{dataset.name} has no value: all are missing. Give data with some.")
    scale = 255 if arrays[0].dtype == np.uint8 else 1
    return low / scale, high / scale


def classes_of(dataset: Dataset) -> tuple[int, ...]:
    """The labels that occur in any split, in rising order; () if the data set has no labels."""
    splits = (dataset.train, dataset.validation, dataset.test)
    labels = [split.label for split in splits if split is not None and split.label is not None]
    return tuple(np.unique(np.concatenate(labels)).tolist()) if labels else ()


def check_levels(dataset: Dataset, config: Config, num: int | None) -> None:
    """Raise UserError if the likelihood allows only evenly spaced values in [0, 1] and the data holds others.

    num: how many different values it allows; None if it allows any. The values of a stream are not all checked, so it
    must hold bytes, and all 256 of them must be allowed. `build.check_range` refuses data outside [0, 1].
    """
    if num is None or config.binarization != "none":
        return
    x, (low, high) = dataset.train.x, value_range(dataset)
    if low < 0 or high > 1 or (x.dtype == np.uint8 and (num - 1) % 255 == 0):
        return
    needs = f"likelihood {config.likelihood!r} needs data of {num} evenly spaced values, 0, 1/{num - 1} .. 1"
    if dataset.stream is not None:
        raise UserError(
            f"{needs}; {dataset.name} is a stream of {x.dtype}, whose values are not all known.",
            "Save x as uint8 and use 256 levels, or train with --config.stream=false.",
            "Give such data with --data.",
        )
    value = _off_levels(dataset, num)
    if value is None:
        return
    fitting = next((n for n in range(2, 257) if _off_levels(dataset, n) is None), None)
    other = {None: "gaussian_scalar", 256: "discretized_logistic"}.get(fitting, "categorical")
    options = {"num_levels": fitting} if other == "categorical" else {}
    raise UserError(
        f"{needs}; {dataset.name} holds {value:g}.",
        f"Give such data, or train with --config.likelihood={other} "
        f"--config.likelihood_options='{json.dumps(options)}', or with --config.binarization=dynamic.",
        "Give such data.",
    )


def check_counts(dataset: Dataset, config: Config, whole: bool) -> None:
    """Raise UserError if the data must be counts, for the likelihood (`whole`) or by `integers`, and is not."""
    asked = reading_of(config).counts
    if config.binarization != "none" or not (whole or asked):
        return
    if dataset.stream is not None and dataset.stream.rows.how.counts:
        return  # its values were checked when it was read
    value = _off_levels(dataset, 2) if dataset.train.x.dtype == np.uint8 else _not_whole(dataset)
    if dataset.stream is not None and dataset.stream.rows.dtype.kind != "b":
        value = value_range(dataset)[1]
    if value is None:
        return
    needs = f"likelihood {config.likelihood!r} is of counts" if whole else "integers is 'counts'"
    raise UserError(
        f"{needs}, 0, 1, 2, ..., and {dataset.name} holds {value:g}. Give whole numbers in an array or a table with "
        "--config.integers=counts, or another likelihood."
    )


def _not_whole(dataset: Dataset) -> float | None:
    """Find the first value that is not a count; None if there is no such value."""
    splits = [split.x for split in (dataset.train, dataset.validation, dataset.test) if split is not None]
    found = (not_counts(x) for x in splits)
    return next((value for count, _, value in found if count), None)


def _off_levels(dataset: Dataset, num: int) -> float | None:
    """Find the first value that is not one of `num` evenly spaced values in [0, 1]; None if there is no such value."""
    splits = [split.x for split in (dataset.train, dataset.validation, dataset.test) if split is not None]
    for values in (x[start : start + _ROWS] for x in splits for start in range(0, len(x), _ROWS)):
        if values.dtype == np.uint8:
            values = np.flatnonzero(np.bincount(values.reshape(-1))) / 255
        level = values * (num - 1)
        off = np.abs(level - np.round(level)) > max(1e-3, 1e-7 * num)  # allows float32 rounding
        if off.any():
            return float(values[off][0])
    return None


def training_examples(dataset: Dataset, config: Config, classes: tuple[int, ...] = ()) -> Examples | Stream:
    """Return the training split as it is stored, but already binarised if `binarization` is 'static'.

    `make_prepare(config)` makes the function that turns its batches into the model's input.
    """
    if dataset.stream is not None:
        return dataset.stream
    if config.binarization == "static":
        return evaluation_examples(dataset, "train", config, classes)
    return Examples(jax.device_put(dataset.train.x), _context(dataset, dataset.train, config, classes))


def evaluation_examples(dataset: Dataset, split: str, config: Config, classes: tuple[int, ...] = ()) -> Examples:
    """Return a split as the model sees it: float32, and binarised once with a fixed seed if the config binarises.

    For the training split of a stream, only the examples in memory are returned. classes: `DataInfo.classes`, for the
    context of a conditional VAE. Raises UserError if the data set has no such split, or has labels of other classes.
    """
    part = getattr(dataset, split) if split in SPLITS else None
    if part is None:
        known = [name for name in SPLITS if getattr(dataset, name) is not None]
        raise UserError(f"{dataset.name} has no split {split!r}. Choose one of: {', '.join(known)}.")
    return Examples(prepare_fixed(part.x, split, config), _context(dataset, part, config, classes))


def prepare_fixed(x: np.ndarray, split: str, config: Config) -> Array:
    """Convert stored examples to float32. If the config binarises, the draw depends on a fixed seed and `split`."""
    floats = to_float(jax.device_put(x))
    if config.binarization == "none":
        return floats
    key = jax.random.key(BINARIZATION_SEED, impl="threefry2x32")  # gives the same examples whatever JAX's default is
    return binarize(jax.random.fold_in(key, SPLITS.index(split)), floats)


def make_prepare(config: Config):
    """Make prepare(key, x), which turns a stored batch into the model's input in training."""
    if config.binarization == "dynamic":
        return lambda key, x: binarize(key, to_float(x))
    return lambda key, x: to_float(x)


def binarize(key: Array, x: Array) -> Array:
    """Draw from Bernoulli(x) for each element of x in [0, 1]: 0 always gives 0, and 1 always gives 1.

    The uniform floats are multiples of 2^-23 below 1, so the probability of 1 is x to float precision.
    """
    return (jax.random.uniform(key, x.shape, x.dtype) < x).astype(x.dtype)


def _context(dataset: Dataset, split: Split, config: Config, classes: tuple[int, ...]) -> Array | None:
    if config.conditional == "covariates":
        return jax.device_put(_covariates(dataset, split))
    if not config.conditional or split.label is None:
        return None
    try:
        check_memory(4 * len(split.label) * len(classes), "the labels of a conditional VAE, one-hot, take")
    except ValueError as error:
        raise UserError(
            f"{dataset.name} has {len(split.label)} examples of {len(classes)} classes: {error}.",
            "Give fewer classes, or set --config.conditional=false.",
            "Give fewer examples.",
        ) from None
    unknown = split.label[~np.isin(split.label, classes)]
    if len(unknown):
        raise UserError(
            f"{dataset.name} has the {show_labels(unknown, dataset.names)}; the VAE knows "
            f"{show_classes(classes, dataset.names)}. Give examples of these."
        )
    index = np.searchsorted(np.array(classes), split.label)
    return jax.nn.one_hot(jax.device_put(index), len(classes), dtype=jnp.float32)


def _covariates(dataset: Dataset, split: Split) -> np.ndarray:
    if split.c is None:
        raise UserError(
            f"conditional is covariates, and {dataset.name} has none.",
            "Give an .npz file with c, [N, C], beside x, or set --config.conditional=false.",
            "Give an .npz file with c, [N, C], beside x.",
        )
    return split.c


def show_labels(label: np.ndarray, names: tuple[str, ...] = ()) -> str:
    """Name the different labels among those of examples, for an error or a line of the log."""
    different = np.unique(label).tolist()
    return f"{'label' if len(different) == 1 else 'labels'} {_listed(different, names)}"


def show_classes(classes: tuple[int, ...], names: tuple[str, ...] = ()) -> str:
    """Describe the classes in words, for an error or a log line. names: of the labels, if they have names."""
    if not names and len(classes) > 1 and classes == tuple(range(classes[0], classes[-1] + 1)):
        return f"the classes {classes[0]} to {classes[-1]}"
    return f"the classes {_listed(classes, names)}"


def _listed(labels: Iterable[int], names: tuple[str, ...]) -> str:
    return str([splits.text_of(names, label) for label in labels])[1:-1][:200]
