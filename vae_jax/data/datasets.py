"""Load data sets as arrays in memory, by name or from the user's own file or folder.

Every split depends only on the data and the sizes asked for: the permutations use a fixed seed and NumPy's
`RandomState`, whose random numbers are the same in every version of NumPy.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.metadata
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vae_jax.data.files import (
    READERS,
    as_images,
    channels_last,
    check_finite,
    check_layout,
    log_integers,
    not_finite,
    open_rows,
    permutation,
    read_npz,
    reading,
    write_npz,
)
from vae_jax.data.images import read_folder
from vae_jax.data.labels import number
from vae_jax.data.streaming import Stream, num_test, open_stream
from vae_jax.errors import UserError

NAMES = ("digits", "mnist", "fashion_mnist", "kmnist")


class Split(NamedTuple):
    """The examples of one split, with their labels and covariates if the data set has them."""

    x: np.ndarray  # [N, H, W, C] or [N, D]; float32, or uint8 where the byte v stands for v/255
    label: np.ndarray | None  # int32, [N]
    c: np.ndarray | None = None  # covariates, float32, [N, C]


class Dataset(NamedTuple):
    """The three splits of a data set."""

    name: str
    train: Split  # only some of the training examples, if there is a stream
    validation: Split | None  # None if no validation split was asked for
    test: Split
    names: tuple[str, ...] = ()  # the names of the labels 0, 1, ...; () if the labels are the numbers of the data
    stream: Stream | None = None  # every training example, if a file is read during training

    @property
    def num_train(self) -> int:
        return len(self.train.x) if self.stream is None else self.stream.num_examples

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of every array's shape, dtype and bytes: equal only for equal splits.

        A stream has the fingerprint of its file instead.
        """
        if self.stream is not None:
            return self.stream.fingerprint
        digest = hashlib.sha256("\n".join(self.names).encode())
        for split in (self.train, self.validation, self.test):
            for array in (None, None) if split is None else split if split.c is not None else split[:2]:
                digest.update(b"none" if array is None else f"{array.shape}{array.dtype.str}".encode())
                if array is not None:
                    digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]


def load(
    name: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    classes: Iterable[int | str] = (),
    validation_size: int = 0,
    stream: bool = False,
    layout: str = "auto",
) -> Dataset:
    """Load a data set by name or from a path.

    name: one of
      `digits`: scikit-learn's 8x8 digits, float32 in [0, 1]; 1,500 train and 297 test, by a fixed permutation;
      `mnist`, `fashion_mnist`, `kmnist`: their own 60,000 train and 10,000 test images, uint8;
      a `.npy` file with x; an `.npz` file with x (and y, c), or with x_train and x_test (and y_train, y_test, c_train,
        c_test), where c are covariates, numbers of shape [N, C];
      a folder of .png, .jpg and .jpeg files, all of one size, taken in the order of their names. Hidden files,
        sub-folders and other files are ignored. If all images are grey, C is 1; otherwise they become RGB. Each image
        is turned as its EXIF data says, and transparent parts are drawn over white.
      x has the shape [N, D], [N, H, W] (taken as C = 1) or [N, H, W, C]. Floats become float32, and bools become 0 and
      255. Integers from 0 to 255 become uint8, but integers of shape [N, D] must be uint8 already. If integers have
      the shape [N, D] or are not uint8, a line on stderr says that they are taken as v/255. y has the shape [N] or
      [N, 1] and holds whole numbers, as integers or floats. Without x_test, the test split is the last tenth (at
      least one example) of a fixed permutation.
    data_dir: where TFDS (tensorflow-datasets) finds or prepares its data; by default `TFDS_DATA_DIR`, or else
      `~/tensorflow_datasets`. A decoded copy is kept in `$XDG_CACHE_HOME/vae_jax` or `~/.cache/vae_jax`.
    classes: keep only the examples with these labels, in every split.
    validation_size: how many examples move from train to validation, after `classes` is applied: the last ones of a
      fixed permutation. With 0, the train split keeps its order and `validation` is None.
    stream: load only some training examples of a `.npy` file, and read the others during training. The file is then
      split in another way, which `streaming.open_stream` describes.

    layout: where the channels of images in an own file are: 'nhwc', 'nchw', or 'auto' to see it by the shape.

    Raises UserError, which names the file if there is one, if the data cannot be loaded as described.
    """
    name = os.fspath(name)
    if stream:
        return _streamed(name, classes, validation_size, layout)
    whole = _train_and_test(name, data_dir, layout)
    train, test = _only_classes(whole, classes)
    train, validation = _hold_out(train, validation_size)
    return Dataset(name, train, validation, test, whole.names)


def absolute(name: str) -> str:
    """Make an existing path absolute, so that a run directory works from anywhere; keep any other name as it is."""
    path = os.path.expanduser(name)
    return os.path.abspath(path) if name not in NAMES and os.path.exists(path) else name


def load_whole(name: str | os.PathLike[str], layout: str = "auto") -> Dataset | None:
    """Load every example of the user's file or folder, in its order, as both the train and the test split.

    Returns None for anything else, such as the name of a data set, or a file that holds a train and a test split.
    """
    path = Path(os.path.expanduser(name))
    if os.fspath(name) in NAMES:  # even if a folder has this name
        return None
    if path.is_dir():
        return _whole({"x": read_folder(path)}, os.fspath(name), "nhwc")
    arrays = READERS[path.suffix](path) if path.suffix in READERS and path.is_file() else {}
    return _whole(arrays, os.fspath(name), layout) if _named(arrays, "") else None


def _whole(arrays: dict[str, np.ndarray], name: str, layout: str) -> Dataset:
    (split,), names = _parts(arrays, ("",), repr(name), layout)
    return Dataset(name, split, None, split, names)


def _named(arrays: dict[str, np.ndarray], *suffixes: str) -> bool:
    """Whether arrays are x, and perhaps y and c, with each of the suffixes and nothing else."""
    kinds = {name.partition("_")[0] for name in arrays}
    full = {kind + suffix for kind in kinds for suffix in suffixes}
    return {"x"} <= kinds <= {"x", "y", "c"} and arrays.keys() == full


def _train_and_test(name: str, data_dir: str | os.PathLike[str] | None, layout: str) -> Dataset:
    path = Path(os.path.expanduser(name))
    if name == "digits":
        return _digits()
    if name in NAMES:
        return _split(_tfds_arrays(name, data_dir), name, name, "nhwc")
    if name and os.path.isdir(path):
        return _split({"x": read_folder(path)}, name, repr(name), "nhwc")
    if os.path.isfile(path):
        if path.suffix not in READERS:
            raise UserError(f"Cannot read {name!r}: expected a .npy or .npz file, or a folder of PNG or JPEG images.")
        return _split(READERS[path.suffix](path), name, repr(name), layout)
    if os.path.basename(name) != name or path.suffix in READERS:
        raise UserError(f"No file or folder {name!r}. Give the path of a .npy or .npz file or of a folder of images.")
    guess = difflib.get_close_matches(name.lower(), NAMES, 1)
    hint = f" Did you mean {guess[0]!r}?" if guess else ""
    raise UserError(
        f"Unknown data set {name!r}.{hint} Choose one of: {', '.join(NAMES)}, "
        "or give the path of a .npy or .npz file or of a folder of images."
    )


def _streamed(name: str, classes: Iterable[int | str], validation_size: int, layout: str) -> Dataset:
    path = Path(os.path.expanduser(name))
    if path.suffix != ".npy" or not os.path.isfile(path):
        raise UserError(f"stream is true, but {name!r} is not a .npy file. Save x as one or set --config.stream=false.")
    if tuple(classes):
        raise UserError(f"Got classes for {name!r}, which has no labels. Leave classes empty.")
    rows = open_rows(path, layout)
    check_layout(rows.shape, rows.dtype, f"x of {name!r}")
    _check_num(rows.shape[0], repr(name))
    _check_validation_size(validation_size, rows.shape[0] - num_test(rows))
    stream, validation, test = open_stream(rows, validation_size)
    held_out = Split(validation, None) if validation_size else None
    return Dataset(name, Split(stream.x, None), held_out, Split(test, None), stream=stream)


def _take(split: Split, index: np.ndarray) -> Split:
    return Split(split.x[index], *(None if array is None else array[index] for array in split[1:]))


def _only_classes(dataset: Dataset, classes: Iterable[int | str]) -> tuple[Split, Split]:
    """The train and test splits with the examples of some classes alone, which are numbers or names of labels."""
    name, kept = dataset.name, []
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        raise UserError(f"Got classes={classes!r}, expected labels, such as classes=(3, 7).")
    wanted = {value_of(dataset.names, c) for c in classes}
    for split, part in ((dataset.train, "train"), (dataset.test, "test")):
        if not wanted:
            kept.append(split)
            continue
        if split.label is None:
            raise UserError(f"Got classes for {name!r}, which has no labels. Leave classes empty.")
        present = set(np.unique(split.label).tolist())
        if missing := wanted - present:
            shown = [
                str([text_of(dataset.names, v) for v in sorted(values, key=str)])[:200]
                for values in (wanted, missing, present)
            ]
            raise UserError(
                f"Got classes {shown[0]}, but the {part} split of {name!r} has no example of {shown[1]}. "
                f"Choose among {shown[2]}."
            )
        kept.append(_take(split, np.isin(split.label, sorted(wanted))))
    return kept[0], kept[1]


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


def value_of(names: tuple[str, ...], text: int | str) -> int | str:
    """The label that a number or a name stands for; the text itself if there is no such name."""
    if names:
        return names.index(str(text)) if str(text) in names else str(text)
    return int(text) if str(text).removeprefix("-").isdecimal() else text


def text_of(names: tuple[str, ...], value: int | str) -> int | str:
    """The name of a label, or the label itself if it has none."""
    return names[value] if names and isinstance(value, int) else value


def _hold_out(train: Split, validation_size: int) -> tuple[Split, Split | None]:
    n = len(train.x)
    _check_validation_size(validation_size, n)
    if validation_size == 0:
        return train, None
    order = permutation(n)
    return _take(train, order[:-validation_size]), _take(train, order[-validation_size:])


def _check_num(n: int, source: str) -> None:
    if n < 2:
        raise UserError(f"{source} holds one example, expected at least 2, since one becomes the test split.")


def _check_validation_size(validation_size: int, num_train: int) -> None:
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
    check_finite(*not_finite(c), 2, source)
    return c


def _parts(
    arrays: dict[str, np.ndarray], suffixes: tuple[str, ...], source: str, layout: str
) -> tuple[list[Split], tuple[str, ...]]:
    """The splits of arrays x, y and c with these suffixes, and the names of the labels."""
    splits: list[Split] = []
    labels: Sequence[np.ndarray | None] = [None] * len(suffixes)
    names: tuple[str, ...] = ()
    of = {suffix: {kind: f"{kind}{suffix} of {source}" for kind in "xyc"} for suffix in suffixes}
    for suffix in suffixes:
        stored = channels_last(arrays[f"x{suffix}"], layout, of[suffix]["x"])
        x, c = as_images(stored, of[suffix]["x"]), arrays.get(f"c{suffix}")
        splits.append(Split(x, None, None if c is None else _as_covariates(c, len(x), of[suffix]["c"])))
        if x.dtype == np.uint8 and suffix != "_test":  # one line per file is enough
            log_integers(int(x.min()), int(x.max()), stored.shape, stored.dtype, of[suffix]["x"])
    ys = [arrays[f"y{suffix}"] for suffix in suffixes if f"y{suffix}" in arrays]
    for y, split, suffix in zip(ys, splits, suffixes, strict=False):
        if y.shape not in ((n := len(split.x),), (n, 1)) and y.shape[:1] != (n,):
            raise UserError(f"{of[suffix]['y']} has shape {y.shape}; expected one label per example, ({n},).")
    if ys:
        labels, names = _as_labels(ys, [of[suffix]["y"] for suffix in suffixes])
    return [split._replace(label=label) for split, label in zip(splits, labels, strict=True)], names


def _split(arrays: dict[str, np.ndarray], name: str, source: str, layout: str) -> Dataset:
    """Return the train and test splits of arrays that are named as the docstring of `load` says."""

    if _named(arrays, ""):
        (whole,), names = _parts(arrays, ("",), source, layout)
        n = len(whole.x)
        _check_num(n, source)
        order, cut = permutation(n), n - max(1, n // 10)
        return Dataset(name, _take(whole, order[:cut]), None, _take(whole, order[cut:]), names)
    if _named(arrays, "_train", "_test"):
        (train, test), names = _parts(arrays, ("_train", "_test"), source, layout)
        if train.x.shape[1:] != test.x.shape[1:] or train.x.dtype != test.x.dtype:
            raise UserError(
                f"{source} has x_train of shape {train.x.shape}, {train.x.dtype}, and x_test of shape {test.x.shape}, "
                f"{test.x.dtype}; expected examples of one shape and type."
            )
        return Dataset(name, train, None, test, names)
    advice = "Type np.savez(FILE, x=a, y=b) instead of np.savez(FILE, a, b)." if "arr_0" in arrays else "Rename them."
    raise UserError(
        f"{source} holds the arrays {str(sorted(arrays))[:200]}; expected x (and y, c), or x_train and x_test "
        f"(and y_train, y_test, c_train, c_test). {advice}"
    )


def _digits() -> Dataset:
    def read() -> dict[str, np.ndarray]:
        # Read the file directly: importing scikit-learn takes longer than all the rest before the first step.
        file = importlib.metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
        table = np.loadtxt(str(file), np.uint8, delimiter=",")
        return {"x": table[:, :64].reshape(-1, 8, 8), "y": table[:, 64]}

    arrays = _cached(f"digits-{importlib.metadata.version('scikit-learn')}", read)
    whole = Split(arrays["x"].astype(np.float32)[..., None] / 16, arrays["y"].astype(np.int32))
    order = permutation(len(whole.x))
    return Dataset("digits", _take(whole, order[:1500]), None, _take(whole, order[1500:]))


def _tfds_arrays(name: str, data_dir: str | os.PathLike[str] | None) -> dict[str, np.ndarray]:
    root = Path(os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"))
    directory = _newest_version(root / name)
    if directory is None:
        from vae_jax.data import tfds_builders

        directory = tfds_builders.prepare(name, root)
    prepared = directory.resolve()

    def read() -> dict[str, np.ndarray]:
        from vae_jax.data import tfds_builders

        return tfds_builders.read(prepared)

    with reading(prepared, "a directory prepared by TFDS"):
        files = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(prepared.iterdir())]
    key = hashlib.sha256(repr((str(prepared), files)).encode()).hexdigest()[:16]
    return _cached(f"{name}-{prepared.name}-{key}", read)


def _newest_version(directory: Path) -> Path | None:
    found = [p.parent for p in directory.glob("*/dataset_info.json")]
    versions = [p for p in found if re.fullmatch(r"\d+\.\d+\.\d+", p.name)]
    return max(versions, key=lambda p: [int(n) for n in p.name.split(".")], default=None)


def _cached(key: str, read: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the copy of read() in the user's cache. If it is missing or damaged, call read() and store a new copy."""
    path = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"), "vae_jax", f"{key}.npz")
    with contextlib.suppress(UserError):
        return read_npz(path)
    arrays: dict[str, Any] = read()  # `read` chooses the names: none is a keyword of np.savez
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_npz(path, arrays)
    return arrays
