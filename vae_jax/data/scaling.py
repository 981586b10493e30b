"""The mean and the spread of each element of the training examples, and advice where they are far from 0 and 1."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from vae_jax import progress
from vae_jax.data.files import convert
from vae_jax.data.splits import Dataset
from vae_jax.errors import UserError

MAX_ELEMENTS = 50_000  # run.json holds two numbers for each
FAR = 1e3  # ratio of two standard deviations, and distance from 0 in the one of N(0, 1), that are worth a word
_ROWS = 1000  # at a time

Scaling = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each element of x


def measure(dataset: Dataset, scaled: tuple[bool, ...] | None = None) -> Scaling:
    """The mean and the standard deviation of each element of x over the training examples, flat, in float32.

    They are of the values that are not missing. An element that never varies has the standard deviation 1. scaled:
    which elements are scaled, None for all; the others have mean 0 and standard deviation 1. Raises UserError for too
    many elements.
    """
    size = int(np.prod(dataset.train.x.shape[1:]))
    if size > MAX_ELEMENTS:
        raise UserError(
            f"standardize is true, and an example has {size} elements; expected at most {MAX_ELEMENTS}. Set "
            "--config.standardize=false, and standardise the data yourself."
        )
    mean, std = _moments(lambda: _chunks(dataset), size)
    if scaled is None:
        return mean, std
    pairs = zip(mean, std, scaled, strict=True)
    means, stds = zip(*((m, s) if is_scaled else (0.0, 1.0) for m, s, is_scaled in pairs), strict=True)
    return means, stds


def measure_columns(c: np.ndarray) -> Scaling:
    """The same of each column of c, [N, C]."""
    return _moments(lambda: (c.astype(np.float64),), c.shape[1])


def _moments(chunks: Callable[[], Iterable[np.ndarray]], size: int) -> Scaling:
    """The mean and the standard deviation of each column of chunks [n, size], without the missing values."""
    num, total, squares = np.zeros(size), np.zeros(size), np.zeros(size)
    for x in chunks():
        num += np.sum(~np.isnan(x), 0)
        total += np.nansum(x, 0)
    mean = total / np.maximum(num, 1)
    for x in chunks():
        squares += np.nansum((x - mean) ** 2, 0)
    std = np.sqrt(squares / np.maximum(num, 1))
    # Equal numbers have a sum with rounding errors, which are not spread.
    std = np.where(std <= 1e-6 * np.abs(mean), 1.0, std)
    std[std == 0] = 1.0
    return tuple(mean.astype(np.float32).tolist()), tuple(std.astype(np.float32).tolist())


def advise(dataset: Dataset, scaled: tuple[bool, ...] | None = None) -> None:
    """Say in one line if the columns of a table have scales that a Gaussian of sigma 1 and a network hardly learn.

    scaled: as in `measure`. The other columns are left out.
    """
    x, c = dataset.train.x, dataset.train.c
    x = x if scaled is None else x[:, np.array(scaled, bool)]
    for what, values in (("columns", x if x.ndim == 2 and x.dtype == np.float32 else None), ("covariates", c)):
        if values is None or not values.shape[1]:
            continue
        mean, std = (np.array(part) for part in measure_columns(values))
        least, most = float(min(std)), float(max(std))
        if most > FAR * least or most > FAR / 10 or float(max(abs(mean))) > FAR:
            progress.say(
                f"{dataset.name}: the {what} have standard deviations from {least:.3g} to {most:.3g} and means from "
                f"{min(mean):.3g} to {max(mean):.3g}. --config.standardize=true shows the networks 1 and 0."
            )


def _chunks(dataset: Dataset) -> Iterator[np.ndarray]:
    """The training examples, as the model sees them, [n, D] in float64."""
    if dataset.stream is None:
        parts = (dataset.train.x[i : i + _ROWS] for i in range(0, len(dataset.train.x), _ROWS))
    else:
        parts = (
            convert(dataset.stream.rows.read(block[None]), dataset.stream.rows.how) for block in dataset.stream.blocks
        )
    for x in parts:
        yield (x / 255 if x.dtype == np.uint8 else x.astype(np.float64)).reshape(len(x), -1)
