"""Load data sets as arrays in memory, by name or from the user's own file or folder.

Every split depends only on the data and the sizes asked for: the permutations use a fixed seed and NumPy's
`RandomState`, whose random numbers are the same in every version of NumPy.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vae_jax import progress
from vae_jax.data.files import (
    PLAIN,
    READERS,
    Reading,
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
from vae_jax.data.images import decoded_file, read_folder
from vae_jax.data.labels import number
from vae_jax.data.streaming import Stream, num_test, open_stream
from vae_jax.data.tables import read_table
from vae_jax.errors import UserError

SUFFIXES = (*READERS, ".csv", ".tsv", ".parquet")
_LISTED = ".npy, .npz, .csv, .tsv or .parquet"
NAMES = ("digits", "mnist", "fashion_mnist", "kmnist")
# NAME or NAME/CONFIG, as tensorflow-datasets (TFDS) calls its data sets.
_TFDS_NAME = re.compile(r"[a-z]\w{0,99}(/\w[\w.+-]{0,99})?", re.ASCII | re.IGNORECASE)


class Split(NamedTuple):
    """The examples of one split, with their labels and covariates if the data set has them."""

    x: np.ndarray  # [N, H, W, C] or [N, D]; float32, or uint8 where the byte v stands for v/255
    label: np.ndarray | None  # int32, [N]
    c: np.ndarray | None = None  # covariates, float32, [N, C]


class Dataset(NamedTuple):
    """The three splits of a data set."""

    name: str
    train: Split  # only some of the training examples, if there is a stream
    validation: Split | None  # None if the data set has none of its own, and none was asked for
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
    how: Reading = PLAIN,
    features: tuple[str, ...] = (),
) -> Dataset:
    """Load a data set by name or from a path.

    name: one of
      `digits`: scikit-learn's 8x8 digits, float32 in [0, 1]; 1,500 train and 297 test, by a fixed permutation;
      `mnist`, `fashion_mnist`, `kmnist`: their own 60,000 train and 10,000 test images, uint8;
      NAME or NAME/CONFIG: any other data set of images that TFDS (tensorflow-datasets) has prepared, as array_record
        or TFRecord files, such as `cifar10` or `celeb_a_hq/256`; a file or folder of that path goes first. Its train,
        test and validation splits are taken as they are; without a test split, its validation split serves as one, or
        else the last tenth of a fixed permutation. A line on stderr names all splits that are not taken. The images,
        uint8, must have one size; if all values are 0 and 1, they are taken as bools;
      a `.npy` file with x; an `.npz` file with x (and y, c), or with x_train and x_test (and y_train, y_test, c_train,
        c_test), where c are covariates, numbers of shape [N, C];
      a `.csv`, `.tsv` or `.parquet` table: see `tables.read_table`;
      a folder of images: see `images.read_folder`. Its sub-folders are the classes.
      x has the shape [N, D], [N, H, W] (taken as C = 1) or [N, H, W, C]. Floats become float32, and bools become 0 and
      255. Integers from 0 to 255 become uint8, but integers of shape [N, D] must be uint8 already. If integers have
      the shape [N, D] or are not uint8, a line on stderr says that they are taken as v/255. y has the shape [N] or
      [N, 1] and holds whole numbers, as integers or floats. Without x_test, the test split is the last tenth (at
      least one example) of a fixed permutation.
    data_dir: where TFDS finds its data, or prepares `mnist`, `fashion_mnist` and `kmnist`; by default `TFDS_DATA_DIR`,
      or else `~/tensorflow_datasets`. A decoded copy is kept in `$XDG_CACHE_HOME/vae_jax` or `~/.cache/vae_jax`.
    classes: keep only the examples with these labels, in every split.
    validation_size: how many examples move from train to validation, after `classes` is applied: the last ones of a
      fixed permutation. With 0, the train split keeps its order, and `validation` is the data set's own or None. It
      must be 0 if the data set has a validation split and a test split of its own.
    stream: load only some training examples of a `.npy` file, and read the others during training. The file is then
      split in another way, which `streaming.open_stream` describes.
    features: of a data set of TFDS, the name of its image feature, and perhaps that of its label. By default, the only
      image feature, and the only ClassLabel, or else the whole number that is called `label`, or else no label. Labels
      are left out, and a line on stderr says so, if one is -1, which means that it is unknown.
    how: how the user's own files and folders are read.

    Raises UserError, which names the file if there is one, if the data cannot be loaded as described.
    """
    name = os.fspath(name)
    _check_features(features)
    if stream:
        if features:
            raise _no_features(name, features)
        return _streamed(name, classes, validation_size, how)
    dataset = _only_classes(_find(name, data_dir, tuple(features), how), classes)
    if dataset.validation is None:
        train, validation = _hold_out(dataset.train, validation_size)
        return dataset._replace(train=train, validation=validation)
    if validation_size != 0:
        raise UserError(
            f"Got validation_size={validation_size!r}, but {name} has a validation split of its own. "
            "Leave validation_size 0."
        )
    return dataset


def absolute(name: str) -> str:
    """Make an existing path absolute, so that a run directory works from anywhere; keep any other name as it is."""
    path = os.path.expanduser(name)
    return os.path.abspath(path) if name not in NAMES and os.path.exists(path) else name


def is_tfds(name: str) -> bool:
    """Whether a name is looked for among the data sets of TFDS, since there is no file or folder of that path."""
    path = os.path.expanduser(name)
    if name in NAMES:
        return name != "digits"
    return bool(_TFDS_NAME.fullmatch(name)) and Path(path).suffix not in READERS and not os.path.exists(path)


def load_whole(name: str | os.PathLike[str], how: Reading = PLAIN) -> Dataset | None:
    """Load every example of the user's file or folder, in its order, as both the train and the test split.

    Returns None for anything else, such as the name of a data set, or a file that holds a train and a test split.
    """
    path = Path(os.path.expanduser(name))
    if os.fspath(name) in NAMES:  # even if a folder has this name
        return None
    if path.is_dir():
        arrays, names = _read_folder(path, how)
        return _whole(arrays, os.fspath(name), "nhwc")._replace(names=names)
    arrays = _read_file(path, how) if path.suffix in SUFFIXES and path.is_file() else {}
    return _whole(arrays, os.fspath(name), how.layout) if _named(arrays, "") else None


def _read_folder(path: Path, how: Reading) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The arrays x and y of a folder of images, and the names of its classes."""
    folder = read_folder(path, how)
    return {"x": folder.x} if folder.label is None else {"x": folder.x, "y": folder.label}, folder.classes


def _read_file(path: Path, how: Reading) -> dict[str, np.ndarray]:
    """The arrays x, y and c of a file of the user, by the ending of its name."""
    if path.suffix in READERS:
        return READERS[path.suffix](path)
    table = read_table(path, label_column=how.label_column, covariate_columns=how.covariate_columns)
    arrays = {"x": table.x, "y": table.label, "c": table.covariates}
    return {name: array for name, array in arrays.items() if array is not None}


def _whole(arrays: dict[str, np.ndarray], name: str, layout: str) -> Dataset:
    (split,), names = _parts(arrays, ("",), repr(name), layout)
    return Dataset(name, split, None, split, names)


def _named(arrays: dict[str, np.ndarray], *suffixes: str) -> bool:
    """Whether arrays are x, and perhaps y and c, with each of the suffixes and nothing else."""
    kinds = {name.partition("_")[0] for name in arrays}
    full = {kind + suffix for kind in kinds for suffix in suffixes}
    return {"x"} <= kinds <= {"x", "y", "c"} and arrays.keys() == full


def check_reading(name: str, how: Reading) -> None:
    """Raise UserError if `how` holds what the data set `name` has no use for."""
    path = Path(os.path.expanduser(name))
    kinds = {
        "a folder of images": ("labels", "image_size", "channels", "skip_broken"),
        "a table": ("label_column", "covariate_columns"),
        "a .npy or .npz file": ("layout",),
    }
    kind = "a folder of images" if os.path.isdir(path) and name not in NAMES else ""
    if os.path.isfile(path) and name not in NAMES:
        kind = "a .npy or .npz file" if path.suffix in READERS else "a table"
    for what, fields in kinds.items():
        for field in fields:
            value = getattr(how, field)
            if what != kind and value != getattr(PLAIN, field):
                raise UserError(f"{field} is {value!r}, which is for {what}; {name!r} is not one. Leave it out.")


def _check_features(features: tuple[str, ...]) -> None:
    texts = isinstance(features, (tuple, list)) and all(isinstance(key, str) and key for key in features)
    if not texts or len(features) > 2:
        raise UserError(
            f"Got features={str(features)[:100]!r}, expected at most two names, such as features=('image', 'label')."
        )


def _no_features(name: str, features: tuple[str, ...]) -> UserError:
    return UserError(
        f"Got features={tuple(features)}, but {name!r} is no data set of tensorflow-datasets. Leave features empty."
    )


def _find(name: str, data_dir: str | os.PathLike[str] | None, features: tuple[str, ...], how: Reading) -> Dataset:
    """The train and test splits of a data set, and its validation split if it has its own."""
    root = Path(os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"))
    if is_tfds(name):
        directory = _newest_version(root / name)
        if directory is None and name in NAMES:
            from vae_jax.data import tfds_builders

            directory = tfds_builders.prepare(name, root)
        if directory is not None:
            return _tfds(name, directory.resolve(), features)
        _refuse_unprepared(name, root)
    if features:
        raise _no_features(name, features)
    return _digits() if name == "digits" else _own(name, how)


def _own(name: str, how: Reading) -> Dataset:
    """The train and test splits of the user's file or folder."""
    path = Path(os.path.expanduser(name))
    if name and os.path.isdir(path):
        arrays, names = _read_folder(path, how)
        return _split(arrays, name, repr(name), "nhwc")._replace(names=names)
    if os.path.isfile(path):
        if path.suffix not in SUFFIXES:
            raise UserError(f"Cannot read {name!r}: expected a {_LISTED} file, or a folder of images.")
        return _split(_read_file(path, how), name, repr(name), how.layout)
    if os.path.basename(name) != name or path.suffix in SUFFIXES:
        raise UserError(f"No file or folder {name!r}. Give the path of a {_LISTED} file or of a folder of images.")
    from vae_jax.data import tfds_records

    guess = difflib.get_close_matches(name.lower(), [*NAMES, *tfds_records.known_names()], 1)
    hint = f" Did you mean {guess[0]!r}?" if guess else ""
    raise UserError(
        f"Unknown data set {name!r}.{hint} Choose one of: {', '.join(NAMES)}, or a data set that "
        f"tensorflow-datasets has prepared, or give the path of a {_LISTED} file or of a folder of images."
    )


def _streamed(name: str, classes: Iterable[int | str], validation_size: int, how: Reading) -> Dataset:
    path = Path(os.path.expanduser(name))
    if tuple(classes):
        raise UserError(f"Got classes for {name!r}, which streams without labels. Leave classes empty.")
    layout = how.layout
    if name not in NAMES and path.is_dir():
        decoded, *_ = decoded_file(path, how)
        if not isinstance(decoded, Path):
            raise UserError(f"stream is true, and the images of {name!r} cannot be kept in the cache. Make room there.")
        path, layout = decoded, "nhwc"
    elif path.suffix != ".npy" or not os.path.isfile(path):
        raise UserError(
            f"stream is true, but {name!r} is not a .npy file or a folder of images. Save x as one or set "
            "--config.stream=false."
        )
    rows = open_rows(path, layout)
    check_layout(rows.shape, rows.dtype, f"x of {name!r}")
    _check_num(rows.shape[0], repr(name))
    _check_validation_size(validation_size, rows.shape[0] - num_test(rows))
    stream, validation, test = open_stream(rows, validation_size)
    held_out = Split(validation, None) if validation_size else None
    return Dataset(name, Split(stream.x, None), held_out, Split(test, None), stream=stream)


def _take(split: Split, index: np.ndarray) -> Split:
    return Split(split.x[index], *(None if array is None else array[index] for array in split[1:]))


def _only_classes(dataset: Dataset, classes: Iterable[int | str]) -> Dataset:
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
        kept[part] = _take(split, np.isin(split.label, sorted(wanted)))
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
    ys = [arrays[f"y{suffix}"] for suffix in suffixes if f"y{suffix}" in arrays]
    for y, suffix in zip(ys, suffixes, strict=False):
        if y.shape[:1] != (n := arrays[f"x{suffix}"].shape[:1]):
            raise UserError(f"{of[suffix]['y']} has shape {y.shape}; expected one label per example, {n}.")
    for suffix in suffixes:
        stored = channels_last(arrays[f"x{suffix}"], layout, of[suffix]["x"])
        x, c = as_images(stored, of[suffix]["x"]), arrays.get(f"c{suffix}")
        splits.append(Split(x, None, None if c is None else _as_covariates(c, len(x), of[suffix]["c"])))
        if x.dtype == np.uint8 and suffix != "_test":  # one line per file is enough
            log_integers(int(x.min()), int(x.max()), stored.shape, stored.dtype, of[suffix]["x"])
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


def _refuse_unprepared(name: str, root: Path) -> None:
    """Raise UserError if `name` is a data set of TFDS that is not prepared in `root`."""
    if configs := sorted({path.parent.parent.name for path in (root / name).glob("*/*/dataset_info.json")}):
        raise UserError(
            f"{name} is prepared in {root} with the configs {', '.join(configs)[:200]}. "
            f"Choose one, such as {name}/{configs[0]}."
        )
    from vae_jax.data import tfds_records

    if name.split("/")[0] in tfds_records.known_names():
        raise UserError(
            f"{name!r} is no file or folder, and {root} has no {name}/VERSION/dataset_info.json, so that tensorflow-"
            f"datasets has not prepared it there. Type: tfds build {name} --data_dir={root} (which needs TensorFlow)."
        )


def _tfds(name: str, directory: Path, features: tuple[str, ...]) -> Dataset:
    def read() -> dict[str, np.ndarray]:
        from vae_jax.data import tfds_records

        return tfds_records.read(directory, name, features)

    with reading(directory, "a directory prepared by TFDS"):
        paths = sorted(directory.rglob("*"))
        files = [(str(p.relative_to(directory)), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    key = hashlib.sha256(repr((str(directory), files, *([features] if features else []))).encode()).hexdigest()[:16]
    arrays = _cached(f"{name.replace('/', '-')}-{directory.name}-{key}", read)

    taken = [key.removeprefix("x_") for key in arrays if key.startswith("x_")]
    if ignored := [split for split in _split_names(directory) if split not in taken]:
        progress.say(f"{name}: the splits {', '.join(ignored)[:200]} are not taken, only {', '.join(taken)}.")
    labels = [key for key in arrays if key.startswith("y_")]
    if any(arrays[key].min() == -1 for key in labels):
        progress.say(f"{name}: some labels are -1, which means that they are unknown, so all labels are left out.")
        arrays = {key: x for key, x in arrays.items() if key not in labels}
    if taken == ["train"]:
        arrays = {key.removesuffix("_train"): x for key, x in arrays.items()}
    elif "test" not in taken:
        progress.say(f"{name} has no test split, so that its validation split serves as one.")
        arrays = {key.replace("_validation", "_test"): x for key, x in arrays.items()}
    own = {key: arrays.pop(key) for key in list(arrays) if key.endswith("_validation")}
    dataset = _split(arrays, name, name, "nhwc")
    if own:
        (validation,), _ = _parts(own, ("_validation",), name, "nhwc")
        dataset = dataset._replace(validation=validation)
    return dataset


def _split_names(directory: Path) -> list[str]:
    path = directory / "dataset_info.json"
    with reading(path, "one that TFDS has written"):
        return [str(split["name"]) for split in json.loads(path.read_text("utf-8")).get("splits", [])]


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
