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
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from vae_jax import progress
from vae_jax.config import DATASETS, check_option, unknown
from vae_jax.data.files import (
    PLAIN,
    READERS,
    Reading,
    check_layout,
    open_rows,
    permutation,
    read_npz,
    reading,
    write_npz,
)
from vae_jax.data.images import decoded_file, read_folder
from vae_jax.data.splits import (
    Dataset,
    Split,
    check_num,
    check_validation_size,
    hold_out,
    named,
    only_classes,
    parts,
    split_by_names,
    take,
    whole,
)
from vae_jax.data.sprites import sprites
from vae_jax.data.streaming import num_test, open_stream
from vae_jax.data.tables import SUFFIXES as TABLES, ending, read_table
from vae_jax.errors import UserError

SUFFIXES = (*READERS, *TABLES)
_LISTED = ".npy, .npz, .csv, .csv.gz, .tsv, .tsv.gz or .parquet"
NAMES = DATASETS
EMBEDDED = ("digits", "sprites")  # which need no file
# NAME or NAME/CONFIG, as tensorflow-datasets (TFDS) calls its data sets.
_TFDS_NAME = re.compile(r"[a-z]\w{0,99}(/\w[\w.+-]{0,99})?", re.ASCII | re.IGNORECASE)


def load(
    name: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    classes: Iterable[int | str] = (),
    validation_size: int = 0,
    stream: bool = False,
    how: Reading = PLAIN,
    features: tuple[str, ...] = (),
    options: Mapping[str, Any] | None = None,
) -> Dataset:
    """Load a data set by name or from a path.

    name: one of
      `digits`: scikit-learn's 8x8 digits, float32 in [0, 1]; 1,500 train and 297 test, by a fixed permutation;
      `sprites`: images of one shape each, uint8, with its factors: see `sprites.sprites`, which `options` go to;
      `mnist`, `fashion_mnist`, `kmnist`: their own 60,000 train and 10,000 test images, uint8;
      NAME or NAME/CONFIG: any other data set of images that TFDS (tensorflow-datasets) has prepared, as array_record
        or TFRecord files, such as `cifar10` or `celeb_a_hq/256`; a file or folder of that path goes first. Its train,
        test and validation splits are taken as they are; without a test split, its validation split serves as one, or
        else the last tenth of a fixed permutation. A line on stderr names all splits that are not taken. The images,
        uint8, must have one size; if all values are 0 and 1, they are taken as bools;
      a `.npy` file with x; an `.npz` file with x (and y, c, f), or with x_train and x_test (and y_train, y_test,
        c_train, c_test, f_train, f_test). Covariates c are numbers of shape [N, C]. The true factors of variation f
        are whole numbers of shape [N, F];
      a `.csv`, `.tsv` or `.parquet` table, or a `.csv.gz` or `.tsv.gz`: see `tables.read_table`;
      a folder of images: see `images.read_folder`. Its sub-folders are the classes.
      x has the shape [N, D], [N, H, W] (taken as C = 1) or [N, H, W, C]. Floats become float32, and bools become 0 and
        255. Integers from 0 to 255 become uint8, but integers of shape [N, D] must be uint8 already. If integers have
        the shape [N, D] or are not uint8, a line on stderr says that they are taken as v/255. With `how.counts`, both
        integers and floats must be counts, become float32, and a line says so. y has the shape [N] or [N, 1] and holds
        whole numbers, as integers or floats. Without x_test, the test split is the last tenth (at least one example)
        of a fixed permutation.
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
    options: further arguments of `sprites`. It must be empty for other data.

    Raises UserError, which names the file if there is one, if the data cannot be loaded as described.
    """
    name = os.fspath(name)
    _check_features(features)
    if options and name != "sprites":
        raise UserError(
            f"Got dataset_options={dict(options)}, which are for sprites; {name!r} takes none. Leave them out."
        )
    if stream:
        if features:
            raise _no_features(name, features)
        return _streamed(name, classes, validation_size, how)
    dataset = only_classes(_find(name, data_dir, tuple(features), how, options or {}), classes)
    if dataset.validation is None:
        train, validation = hold_out(dataset.train, validation_size)
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
        return name not in EMBEDDED
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
        return whole(arrays, os.fspath(name), _last(how))._replace(names=names)
    arrays, columns, texts = _read_file(path, how) if ending(path) in SUFFIXES and path.is_file() else ({}, (), ())
    return whole(arrays, os.fspath(name), how)._replace(columns=columns, texts=texts) if named(arrays, "") else None


def _last(how: Reading) -> Reading:
    """The same for images that are known to have their channels last, and whose bytes are not counts."""
    return how._replace(layout="nhwc", counts=False)


def _read_folder(path: Path, how: Reading) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The arrays x and y of a folder of images, and the names of its classes."""
    folder = read_folder(path, how)
    return {"x": folder.x} if folder.label is None else {"x": folder.x, "y": folder.label}, folder.classes


def _read_file(path: Path, how: Reading) -> tuple[dict[str, np.ndarray], tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The arrays x, y and c of a file of the user, by the ending of its name, and a table's columns and their texts."""
    if path.suffix in READERS:
        return READERS[path.suffix](path), (), ()
    table = read_table(
        path,
        label_column=how.label_column,
        covariate_columns=how.covariate_columns,
        missing=how.missing,
        texts=how.texts,
    )
    arrays = {"x": table.x, "y": table.label, "c": table.covariates}
    return {name: array for name, array in arrays.items() if array is not None}, table.columns, table.texts


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
        f"Got features={tuple(features)}, but {name!r} is not a data set of tensorflow-datasets. Leave features empty."
    )


def _find(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    features: tuple[str, ...],
    how: Reading,
    options: Mapping[str, Any],
) -> Dataset:
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
    if name == "sprites":
        return _sprites(options)
    return _digits() if name == "digits" else _own(name, how)


def _own(name: str, how: Reading) -> Dataset:
    """The train and test splits of the user's file or folder."""
    path = Path(os.path.expanduser(name))
    if name and os.path.isdir(path):
        arrays, names = _read_folder(path, how)
        return split_by_names(arrays, name, repr(name), _last(how))._replace(names=names)
    if os.path.isfile(path):
        if ending(path) not in SUFFIXES:
            raise UserError(f"Cannot read {name!r}: expected a {_LISTED} file, or a folder of images.")
        arrays, columns, texts = _read_file(path, how)
        return split_by_names(arrays, name, repr(name), how)._replace(columns=columns, texts=texts)
    if os.path.basename(name) != name or ending(path) in SUFFIXES:
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
    if name not in NAMES and path.is_dir():
        decoded, *_ = decoded_file(path, how)
        if not isinstance(decoded, Path):
            raise UserError(f"stream is true, and the images of {name!r} cannot be kept in the cache. Make room there.")
        path, how = decoded, _last(how)
    elif path.suffix != ".npy" or not os.path.isfile(path):
        raise UserError(
            f"stream is true, but {name!r} is not a .npy file or a folder of images.",
            "Save x as one or set --config.stream=false.",
            "Put back what the VAE was trained on, or give the data with --data.",
        )
    rows = open_rows(path, how)
    check_layout(rows.shape, rows.dtype, f"x of {name!r}")
    check_num(rows.shape[0], repr(name))
    check_validation_size(validation_size, rows.shape[0] - num_test(rows))
    stream, validation, test = open_stream(rows, validation_size)
    held_out = Split(validation, None) if validation_size else None
    return Dataset(name, Split(stream.x, None), held_out, Split(test, None), stream=stream)


def _sprites(options: Mapping[str, Any]) -> Dataset:
    known = get_type_hints(sprites)
    for option, value in options.items():
        if option not in (sprites.__kwdefaults__ or {}):
            raise unknown("option of sprites", option, tuple(sprites.__kwdefaults__ or ()))
        check_option(option, value, known[option])
    return sprites(**options)


def _digits() -> Dataset:
    def read() -> dict[str, np.ndarray]:
        # Read the file directly: importing scikit-learn takes longer than all the rest before the first step.
        file = importlib.metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
        table = np.loadtxt(str(file), np.uint8, delimiter=",")
        return {"x": table[:, :64].reshape(-1, 8, 8), "y": table[:, 64]}

    arrays = _cached(f"digits-{importlib.metadata.version('scikit-learn')}", read)
    whole = Split(arrays["x"].astype(np.float32)[..., None] / 16, arrays["y"].astype(np.int32))
    order = permutation(len(whole.x))
    return Dataset("digits", take(whole, order[:1500]), None, take(whole, order[1500:]))


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
            f"{name!r} is not a file or folder, and {root} has no {name}/VERSION/dataset_info.json, so that tensorflow-"
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
    dataset = split_by_names(arrays, name, name, _last(PLAIN))
    if own:
        (validation,), _ = parts(own, ("_validation",), name, _last(PLAIN))
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
