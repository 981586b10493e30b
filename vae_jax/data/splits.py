"""Splits of examples with their labels and covariates: made of arrays by their names, cut, and renumbered."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vae_jax.data.files import (
    Reading,
    as_images,
    channels_last,
    check_finite,
    log_counts,
    log_integers,
    not_finite,
    permutation,
)
from vae_jax.data.labels import number
from vae_jax.data.streaming import Stream
from vae_jax.errors import UserError


class Split(NamedTuple):
    """The examples of one split, with their labels and covariates if the data set has them."""

    x: np.ndarray  # [N, H, W, C] or [N, D]; float32, or uint8 where the byte v stands for v/255
    label: np.ndarray | None  # int32, [N]
    c: np.ndarray | None = None  # covariates, float32, [N, C]
    factors: np.ndarray | None = None  # the true factors of variation, int32, [N, F], which training does not see


class Dataset(NamedTuple):
    """The three splits of a data set."""

    name: str
    train: Split  # only some of the training examples, if there is a stream
    validation: Split | None  # None if the data set has none of its own, and none was asked for
    test: Split
    names: tuple[str, ...] = ()  # the names of the labels 0, 1, ...; () if the labels are the numbers of the data
    columns: tuple[str, ...] = ()  # the names of the columns of a table
    texts: tuple[tuple[str, ...], ...] = ()  # of each column, the texts that its numbers 0, 1, ... stand for, if any
    stream: Stream | None = None  # every training example, if a file is read during training
    factors: tuple[str, ...] = ()  # the names of the factors

    @property
    def num_train(self) -> int:
        return len(self.train.x) if self.stream is None else self.stream.num_examples

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of the shape, dtype and bytes of x, label and c: equal only for equal splits.

        A stream has the fingerprint of its file instead.
        """
        if self.stream is not None:
            return self.stream.fingerprint
        digest = hashlib.sha256("\n".join(self.names).encode())
        for split in (self.train, self.validation, self.test):
            for array in (None, None) if split is None else split[: 2 if split.c is None else 3]:
                digest.update(b"none" if array is None else f"{array.shape}{array.dtype.str}".encode())
                if array is not None:
                    digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]


def whole(arrays: dict[str, np.ndarray], name: str, how: Reading) -> Dataset:
    (split,), names = parts(arrays, ("",), repr(name), how)
    return named_factors(Dataset(name, split, None, split, names))


def named_factors(dataset: Dataset) -> Dataset:
    """The data set with the names f_0, f_1, ... of its factors, if it has any."""
    factors = dataset.train.factors
    return dataset if factors is None else dataset._replace(factors=tuple(f"f_{i}" for i in range(factors.shape[1])))


def named(arrays: dict[str, np.ndarray], *suffixes: str) -> bool:
    """Whether arrays are x, and perhaps y, c and f, with each of the suffixes and nothing else."""
    kinds = {name.partition("_")[0] for name in arrays}
    full = {kind + suffix for kind in kinds for suffix in suffixes}
    return {"x"} <= kinds <= {"x", "y", "c", "f"} and arrays.keys() == full


def take(split: Split, index: np.ndarray) -> Split:
    return Split(split.x[index], *(None if array is None else array[index] for array in split[1:]))


def only_classes(dataset: Dataset, classes: Iterable[int | str]) -> Dataset:
    """The data set with the examples of some classes alone, which are numbers or names of labels."""
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        raise UserError(f"Got classes={classes!r}, expected labels, such as classes=(3, 7).")
    wanted = {value_of(dataset.names, c) for c in classes}
    kept: dict[str, Any] = {}
    for part in ("train", "validation", "test") if wanted else ():
        split = getattr(dataset, part)
        if split is None:
            continue
        if split.label is None:
            raise UserError(f"Got classes for {dataset.name!r}, which has no labels. Leave classes empty.")
        present = set(np.unique(split.label).tolist())
        if missing := wanted - present:
            shown = [
                str([text_of(dataset.names, v) for v in sorted(values, key=str)])[:200]
                for values in (wanted, missing, present)
            ]
            raise UserError(
                f"Got classes {shown[0]}, but the {part} split of {dataset.name!r} has no example of {shown[1]}. "
                f"Choose among {shown[2]}."
            )
        kept[part] = take(split, np.isin(split.label, sorted(wanted)))
    return dataset._replace(**kept)


def renamed(dataset: Dataset, names: tuple[str, ...]) -> Dataset:
    """The data set with the labels 0, 1, ... for `names`, those of another data set, and more for names beyond them.

    Without `names` the labels become the numbers that their own names are. Raises UserError if one is not a number.
    """
    if dataset.names == names:
        return dataset
    splits = [split for split in dataset[1:4] if split is not None and split.label is not None]
    values = np.unique(np.concatenate([split.label for split in splits] or [np.zeros(0, np.int32)])).tolist()
    texts = [str(text_of(dataset.names, value)) for value in values]
    every = (*names, *(text for text in texts if text not in names)) if names else ()
    if not names and (unknown := [text for text in texts if not text.isdecimal()]):
        raise UserError(f"{dataset.name} has the labels {str(unknown)[:200]}; expected numbers, as in training.")
    target = np.array([every.index(text) if every else int(text) for text in texts], np.int32)

    def of(split: Split) -> Split:
        if split.label is None:
            return split
        return split._replace(label=target[np.searchsorted(values, split.label)])

    validation = None if dataset.validation is None else of(dataset.validation)
    return dataset._replace(train=of(dataset.train), validation=validation, test=of(dataset.test), names=every)


def in_order(dataset: Dataset, columns: tuple[str, ...]) -> Dataset:
    """The table with its columns in the order of `columns`. Raises UserError if it has others."""
    if not columns or not dataset.columns or dataset.columns == columns:
        return dataset
    if sorted(dataset.columns) != sorted(columns):
        other = [*(set(columns) - {*dataset.columns}), *(set(dataset.columns) - {*columns})]
        raise UserError(
            f"{dataset.name} has other columns than the table of the training ({str(sorted(other))[1:-1][:200]}). Give "
            f"these: {', '.join(columns)[:300]}."
        )
    index = [dataset.columns.index(name) for name in columns]
    kept: list[Any] = [None if split is None else split._replace(x=split.x[:, index]) for split in dataset[1:4]]
    texts = tuple(dataset.texts[i] for i in index) if dataset.texts else ()
    return dataset._replace(train=kept[0], validation=kept[1], test=kept[2], columns=columns, texts=texts)


def value_of(names: tuple[str, ...], text: int | str) -> int | str:
    """The label that a number or a name stands for; the text itself if there is no such name."""
    if names:
        return names.index(str(text)) if str(text) in names else str(text)
    return int(text) if str(text).removeprefix("-").isdecimal() else text


def text_of(names: tuple[str, ...], value: int | str) -> int | str:
    """The name of a label, or the label itself if it has none."""
    return names[value] if names and isinstance(value, int) else value


def hold_out(train: Split, validation_size: int) -> tuple[Split, Split | None]:
    n = len(train.x)
    check_validation_size(validation_size, n)
    if validation_size == 0:
        return train, None
    order = permutation(n)
    return take(train, order[:-validation_size]), take(train, order[-validation_size:])


def check_num(n: int, source: str) -> None:
    if n < 2:
        raise UserError(f"{source} holds one example, expected at least 2, since one becomes the test split.")


def check_validation_size(validation_size: int, num_train: int) -> None:
    if not isinstance(validation_size, (int, np.integer)) or not 0 <= validation_size < num_train:
        raise UserError(f"Got validation_size={validation_size!r}, expected an integer from 0 to {num_train - 1}.")


def _as_labels(ys: list[np.ndarray], sources: list[str]) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """The labels of each split, int32, and their names. Numbers from 0 on stay what they are and need no names."""
    found = [number(y, source) for y, source in zip(ys, sources, strict=True)]
    values = [y.reshape(len(y)) for y in ys]
    most = np.iinfo(np.int32).max
    if all(y.dtype.kind in "buif" and 0 <= y.min().item() <= y.max().item() <= most for y in values):
        return [y.astype(np.int32) for y in values], ()
    names = [name for _, names in found for name in names]
    _, every = number(np.array(names), sources[0])
    places = [np.array([every.index(name) for name in names], np.int32) for _, names in found]
    return [place[index] for place, (index, _) in zip(places, found, strict=True)], every


def _as_covariates(c: np.ndarray, n: int, source: str) -> np.ndarray:
    c = c[:, None] if c.ndim == 1 else c
    if c.dtype.kind not in "buif" or c.ndim != 2 or len(c) != n or not c.shape[1]:
        raise UserError(f"{source} holds {c.dtype} of shape {c.shape}; expected numbers of shape ({n}, C).")
    with np.errstate(over="ignore"):
        c = c.astype(np.float32)
    check_finite(*not_finite(c), 2, source, False)
    return c


def _as_factors(f: np.ndarray, n: int, source: str) -> np.ndarray:
    f, limits = f[:, None] if f.ndim == 1 else f, np.iinfo(np.int32)
    if f.dtype.kind not in "buif" or f.ndim != 2 or len(f) != n or not f.shape[1]:
        raise UserError(f"{source} holds {f.dtype} of shape {f.shape}; expected whole numbers of shape ({n}, F).")
    if not np.all((f == np.rint(f)) & (f >= limits.min) & (f <= limits.max)):
        raise UserError(
            f"{source} holds factors that are not whole numbers of 32 bits. Number the values of each factor from 0."
        )
    return f.astype(np.int32)


def parts(
    arrays: dict[str, np.ndarray], suffixes: tuple[str, ...], source: str, how: Reading
) -> tuple[list[Split], tuple[str, ...]]:
    """The splits of arrays x, y, c and f with these suffixes, and the names of the labels."""
    splits: list[Split] = []
    labels: Sequence[np.ndarray | None] = [None] * len(suffixes)
    names: tuple[str, ...] = ()
    of = {suffix: {kind: f"{kind}{suffix} of {source}" for kind in "xycf"} for suffix in suffixes}
    ys = [arrays[f"y{suffix}"] for suffix in suffixes if f"y{suffix}" in arrays]
    for y, suffix in zip(ys, suffixes, strict=False):
        if y.shape[:1] != (n := arrays[f"x{suffix}"].shape[:1]):
            raise UserError(f"{of[suffix]['y']} has shape {y.shape}; expected one label per example, {n}.")
    for suffix in suffixes:
        stored = channels_last(arrays[f"x{suffix}"], how.layout, of[suffix]["x"])
        x, c = as_images(stored, of[suffix]["x"], how), arrays.get(f"c{suffix}")
        factors = arrays.get(f"f{suffix}")
        splits.append(
            Split(
                x,
                None,
                None if c is None else _as_covariates(c, len(x), of[suffix]["c"]),
                None if factors is None else _as_factors(factors, len(x), of[suffix]["f"]),
            )
        )
        if x.dtype == np.uint8 and suffix != "_test":  # one line per file is enough
            log_integers(int(x.min()), int(x.max()), stored.shape, stored.dtype, of[suffix]["x"])
        elif how.counts and suffix != "_test":
            log_counts(float(np.max(x, initial=0, where=~np.isnan(x))), stored.dtype, of[suffix]["x"])
    if ys:
        labels, names = _as_labels(ys, [of[suffix]["y"] for suffix in suffixes])
    return [split._replace(label=label) for split, label in zip(splits, labels, strict=True)], names


def split_by_names(arrays: dict[str, np.ndarray], name: str, source: str, how: Reading) -> Dataset:
    """Return the train and test splits of arrays that are named as the docstring of `load` says."""

    if named(arrays, ""):
        (whole,), names = parts(arrays, ("",), source, how)
        n = len(whole.x)
        check_num(n, source)
        order, cut = permutation(n), n - max(1, n // 10)
        return named_factors(Dataset(name, take(whole, order[:cut]), None, take(whole, order[cut:]), names))
    if named(arrays, "_train", "_test"):
        (train, test), names = parts(arrays, ("_train", "_test"), source, how)
        if train.x.shape[1:] != test.x.shape[1:] or train.x.dtype != test.x.dtype:
            raise UserError(
                f"{source} has x_train of shape {train.x.shape}, {train.x.dtype}, and x_test of shape {test.x.shape}, "
                f"{test.x.dtype}; expected examples of one shape and type."
            )
        shapes = [split.factors.shape for split in (train, test) if split.factors is not None]
        if len({shape[1] for shape in shapes}) > 1:
            raise UserError(f"{source} has f_train and f_test of shapes {shapes}; expected as many factors in both.")
        return named_factors(Dataset(name, train, None, test, names))
    advice = "Type np.savez(FILE, x=a, y=b) instead of np.savez(FILE, a, b)." if "arr_0" in arrays else "Rename them."
    raise UserError(
        f"{source} holds the arrays {str(sorted(arrays))[:200]}; expected x (and y, c, f), or x_train and x_test "
        f"(and y_train, y_test, c_train, c_test, f_train, f_test). {advice}"
    )
