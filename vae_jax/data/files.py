"""Read the user's own .npy and .npz files as arrays.

No code in a file is ever run, and everything that a file says about itself is checked.
"""

from __future__ import annotations

import contextlib
import math
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from vae_jax import progress
from vae_jax.errors import UserError

MAX_BYTES = 16 << 30
MAX_HEADER = 1 << 10  # bytes of a .npy header, which Python parses; the header of a plain array has 118
MAX_ARRAYS = 16  # in an .npz file: at most four are used, and an error can list a few more
DEFLATE_MAX_RATIO = 1032  # how many bytes one compressed byte can expand to, at most


class Reading(NamedTuple):
    """How the user's own files are read: the fields of the same names in a Config."""

    layout: str = "auto"  # of images in arrays
    label_column: str = ""  # of a table
    covariate_columns: tuple[str, ...] = ()  # of a table
    labels: bool = True  # whether the sub-folders of a folder of images are classes
    image_size: tuple[int, ...] = ()  # of a folder of images
    channels: int = 0  # of a folder of images
    skip_broken: bool = False  # of a folder of images
    missing: bool = False  # whether NaN, or an empty cell of a table, is a missing value
    texts: bool = False  # whether columns of text of a table are categories, and its integers not v / 255
    counts: bool = False  # whether the numbers of arrays and tables are counts, and integers v not v / 255


PLAIN = Reading()


@contextlib.contextmanager
def reading(path: Path, expected: str, setting: str = "", instead: str = "") -> Iterator[None]:
    """Turn any error that a library raises for a damaged file into a UserError of one line that names the file.

    setting, instead: what the UserError advises.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, UnicodeDecodeError):
            raise UserError(
                f"Cannot read {str(path)!r}: its text is not in UTF-8 (byte {error.object[error.start]:#x}). Save it "
                "in UTF-8, which Excel calls CSV UTF-8."
            ) from error
        what = f"Cannot read {str(path)!r}: {' '.join(reason.split())[:200]}. Expected {expected}."
        raise UserError(what, setting, instead) from error


def leads_outside(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Whether a path leads out of a folder when all symbolic links in it are followed."""
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a file under another name, then rename it: a half-written file never replaces a good file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
    """Write arrays, by name, as an uncompressed .npz file, whole or not at all."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # given a name, numpy would append a suffix to it
            np.savez(file, **arrays)

    write_whole(path, write)


def permutation(n: int) -> np.ndarray:
    """The fixed permutation of n examples, or of blocks of examples, that decides which of them are held out."""
    return np.random.RandomState(0).permutation(n)


class TooLargeError(ValueError):
    """The data needs more memory than there is."""


def check_memory(size: int, what: str = "it expands to") -> None:
    """Raise TooLargeError if `size` bytes are more than this program may hold in memory."""
    # The limit is half of the memory, if that is known, because splitting copies the data once.
    known = hasattr(os, "sysconf")
    limit = min(MAX_BYTES, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2) if known else MAX_BYTES
    if size > limit:
        raise TooLargeError(f"{what} {size} bytes, and the limit here is {limit}")


def _read_header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read shape, Fortran order and type of a .npy stream, and check that its `size` bytes hold just such an array."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its npy format is {version}")
    start = file.tell()
    length = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
    if length > MAX_HEADER:
        raise ValueError(f"its header has {length} bytes, and the limit is {MAX_HEADER}")
    file.seek(start)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns about some literals in a header
            shape, fortran_order, dtype = read_header(file)
    except Exception:
        raise ValueError("its header is not one that numpy.save writes") from None
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"its header announces the shape {shape}")
    if dtype.hasobject:
        raise ValueError("it holds pickled Python objects, as NumPy saves ragged arrays")
    announced, held = math.prod(shape) * dtype.itemsize, size - file.tell()
    if announced != held:
        raise ValueError(f"its header announces {announced} bytes of values, but it holds {held}")
    return shape, fortran_order, dtype


def _read_array(file: IO[bytes], size: int) -> np.ndarray:
    """Read a .npy stream of `size` bytes. Memory is allocated only for values that the stream really holds."""
    shape, _, dtype = _read_header(file, size)
    # The values become uint8 or float32, and the permutation that splits the rows takes 16 bytes per row.
    values = math.prod(shape)
    kept = values * max(dtype.itemsize, 4 if dtype.kind == "f" else 1) + 16 * min(values, math.prod(shape[:1]))
    check_memory(kept)
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def read_npy(path: Path) -> dict[str, np.ndarray]:
    with reading(path, "one plain array written by numpy.save"), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            return {"x": _read_array(file, size)}
        except TooLargeError as error:
            raise UserError(
                f"Cannot read {str(path)!r}: {error}.",
                "Give fewer rows, or train with --config.stream=true, which reads it piece by piece.",
                "Give fewer rows.",
            ) from error


def read_npz(path: Path) -> dict[str, np.ndarray]:
    with reading(path, "plain arrays written by numpy.savez"), zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise ValueError("it holds two arrays of one name")
        if len(members) > MAX_ARRAYS:
            raise ValueError(f"it holds {len(members)} files, and the limit is {MAX_ARRAYS}")
        if not {info.compress_type for info in members.values()} <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise ValueError("it is compressed by a method that numpy does not use")
        announced, held = sum(info.file_size for info in members.values()), path.stat().st_size
        if announced > DEFLATE_MAX_RATIO * held:
            raise ValueError(f"it announces {announced} bytes, more than its {held} can expand to")
        check_memory(announced)
        arrays = {}
        for name, info in members.items():
            with archive.open(info) as file:
                arrays[name] = _read_array(file, info.file_size)
        return arrays


READERS = {".npy": read_npy, ".npz": read_npz}


class Rows(NamedTuple):
    """The rows of a .npy file, which `read` takes from the disk when they are needed.

    The file is not mapped into memory, because the process would be killed if a mapped file became shorter.
    """

    path: Path
    shape: tuple[int, ...]  # [N, ...]
    dtype: np.dtype
    offset: int  # bytes before the values
    version: tuple[int, int]  # the file's size in bytes, and when it was last written, in ns
    how: Reading = PLAIN

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def read(self, blocks: np.ndarray) -> np.ndarray:
        """Read the rows of all blocks, one block after another.

        blocks: [M, 2], the first row of each block and the row after its last. Raises UserError if the file has
        changed since it was opened.
        """
        lengths = blocks[:, 1] - blocks[:, 0]
        x = np.empty((int(lengths.sum()), *self.shape[1:]), self.dtype)
        with reading(self.path, "the file as it was when first read"), open(self.path, "rb") as file:
            if _version(file) != self.version:
                raise ValueError("it has changed since")
            end = 0
            for first, length in zip(blocks[:, 0].tolist(), lengths.tolist(), strict=True):
                start, end = end, end + length
                file.seek(self.offset + first * self.row_bytes)
                if file.readinto(x[start:end].data) != length * self.row_bytes:
                    raise ValueError("it has changed since")
        return x


def open_rows(path: Path, how: Reading = PLAIN) -> Rows:
    """Open a .npy file as `Rows`, with the channels last. This reads only its header."""
    with reading(path, "one plain array written by numpy.save"), open(path, "rb") as file:
        shape, fortran_order, dtype = _read_header(file, os.fstat(file.fileno()).st_size)
        if fortran_order:
            raise ValueError("its values are in Fortran order; save numpy.ascontiguousarray(x)")
        _check_axes(shape, how.layout, repr(str(path)))
        if how.layout == "nchw" or (how.layout == "auto" and _channels(shape) != "last"):
            raise ValueError(
                f"its shape {shape} has the channels first, or may have; save x.transpose(0, 2, 3, 1), or, if they are "
                "last, give --config.layout=nhwc"
            )
        return Rows(path, shape, dtype, file.tell(), _version(file), how)


def _version(file: IO[bytes]) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def as_images(x: np.ndarray, source: str, how: Reading = PLAIN) -> np.ndarray:
    """Return x as [N, D] or [N, H, W, C], uint8 or float32, where only missing values are NaN. Raises UserError."""
    check_layout(x.shape, x.dtype, source)
    if x.dtype.kind in "ui" and not how.counts:
        check_integers(int(x.min()), int(x.max()), x.shape, x.dtype, source)
    images = convert(x, how)
    check_finite(*not_finite(images, how.missing), x.ndim, source, not how.missing)
    if how.counts:
        check_counts(*not_counts(x), x.ndim, source)
    return images


def check_layout(shape: tuple[int, ...], dtype: np.dtype, source: str) -> None:
    """Raise UserError if an array of this shape and type cannot hold images or vectors."""
    if dtype.kind not in "buif":
        raise UserError(f"{source} holds values of type {dtype}, expected floats, integers or bools.")
    if len(shape) not in (2, 3, 4) or 0 in shape:
        raise UserError(f"{source} has shape {shape}, expected non-empty [N, D], [N, H, W] or [N, H, W, C].")


def channels_last(x: np.ndarray, layout: str, source: str) -> np.ndarray:
    """Images with the channels last. layout: 'nhwc' or 'nchw', or 'auto' to see it by the shape.

    Images [N, C, H, W] are recognised where 1 to 4 channels can stand nowhere else, and a line of the log says so.
    Raises UserError where the shape may be meant in two ways.
    """
    _check_axes(x.shape, layout, source)
    if x.ndim != 4 or layout == "nhwc":
        return x
    where = _channels(x.shape) if layout == "auto" else "first"
    if where == "unclear":
        raise UserError(
            f"{source} has shape {x.shape}, which may have the channels first or last.",
            "Set --config.layout=nchw or --config.layout=nhwc.",
            "Give images of the shape that the VAE was trained on.",
        )
    if where == "last":
        return x
    if layout == "auto":
        progress.say(
            f"{source}: the shape {x.shape} is taken as channels first. Training denies it with --config.layout=nhwc."
        )
    return x.transpose(0, 2, 3, 1)


def _check_axes(shape: tuple[int, ...], layout: str, source: str) -> None:
    """Raise UserError if a layout of images is given for vectors."""
    if layout != "auto" and len(shape) == 2:
        raise UserError(
            f"layout is {layout!r}, which is for images; {source} has the shape {shape}.",
            "Leave the layout out.",
            "Give images.",
        )


def _channels(shape: tuple[int, ...]) -> str:
    """Where the channels of images are by their shape: 'first', 'last' or 'unclear'."""
    if len(shape) != 4 or not shape[1] <= 4 < max(shape[2:]):
        return "last"
    return "first" if min(shape[2:]) > 4 else "unclear"


def check_integers(low: int, high: int, shape: tuple[int, ...], dtype: np.dtype, source: str) -> None:
    """Raise UserError if integers from `low` to `high` are not bytes v that stand for v/255, or if that is unclear."""
    if low < 0 or high > 255:
        or_counts = ", or give --config.integers=counts if they are counts" if low >= 0 else ""
        raise UserError(
            f"{source} holds integers from {low} to {high}, expected 0 to 255. Save it as float32{or_counts}."
        )
    # As v/255 this would be a nearly black picture. It is binary data that was saved with the wrong type.
    if high == 1:
        raise UserError(
            f"{source} holds integers of 0 and 1 only, but v stands for v/255. Save it as bool, or multiply it by 255."
        )
    if len(shape) == 2 and dtype != np.uint8:
        raise UserError(
            f"{source} is a table of {dtype} from {low} to {high}, expected floats, uint8 or bools. "
            "Save it as float32 for its own values, or as uint8 if v stands for v/255."
        )


def log_integers(low: int, high: int, shape: tuple[int, ...], dtype: np.dtype, source: str) -> None:
    """Log that integers from `low` to `high` are taken as v/255, if their shape or type may mean something else."""
    if dtype.kind in "ui" and (len(shape) == 2 or dtype != np.uint8):
        progress.say(
            f"{source}: the integers from {low} to {high} are taken as v/255. Save them as float32 if v means v."
        )


def convert(x: np.ndarray, how: Reading = PLAIN) -> np.ndarray:
    """Convert stored examples to uint8 or float32, and [N, H, W] to [N, H, W, 1].

    Bools become 0 and 255, integers uint8 and floats float32. Counts become whole numbers in float32. Floats that are
    too large for float32 become infinite.
    """
    x = x[..., None] if x.ndim == 3 else x
    if x.dtype.kind == "b":
        return x.astype(np.uint8) * np.uint8(255)
    if x.dtype.kind in "ui" and not how.counts:
        return x.astype(np.uint8, copy=False)
    with np.errstate(over="ignore"):
        x = np.rint(x) + 0.0 if how.counts and x.dtype.kind == "f" else x  # + 0.0 makes -0 to 0
        return x.astype(np.float32, copy=False)


def extremes(x: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest value that is not NaN; inf and -inf if all are NaN."""
    if x.dtype.kind != "f":
        return float(x.min()), float(x.max())
    seen = ~np.isnan(x)
    return float(np.min(x, initial=math.inf, where=seen)), float(np.max(x, initial=-math.inf, where=seen))


def not_finite(x: np.ndarray, missing: bool = False) -> tuple[int, list[int]]:
    """Count the values that are not finite. Returns the count and the index of the first such value.

    missing: NaN is a missing value and does not count.
    """
    if x.dtype.kind != "f":
        return 0, []
    finite = ~np.isinf(x) if missing else np.isfinite(x)
    count = x.size - int(np.count_nonzero(finite))
    return count, [int(i) for i in np.unravel_index(np.argmin(finite), x.shape)] if count else []


def not_counts(x: np.ndarray) -> tuple[int, list[int], float]:
    """Find stored values that are negative, or not whole up to a rounding error of 1e-6, relative to max(1, x).

    Returns how many there are, and the index and the value of the first.
    """
    if x.dtype.kind == "f":
        whole = np.rint(x)
        with np.errstate(invalid="ignore"):  # `not_finite` finds what is infinite
            wrong = (whole < 0) | (np.abs(x - whole) > 1e-6 * np.maximum(1, x))
    else:
        wrong = x < 0 if x.dtype.kind == "i" else np.zeros(x.shape, bool)
    if not wrong.any():
        return 0, [], 0.0
    first = np.unravel_index(np.argmax(wrong), x.shape)
    return int(np.count_nonzero(wrong)), [int(i) for i in first], float(x[first])


def check_counts(count: int, first: list[int], value: float, ndim: int, source: str) -> None:
    """Raise UserError if `count` is above 0. The first three are from `not_counts`; ndim: the axes of the array."""
    if count:
        raise UserError(
            f"{source} holds numbers that are not counts ({count}; the first, {value:g}, in {_place(first, ndim)}), "
            "expected 0, 1, 2, ... Give the counts themselves, neither scaled nor centred, or another likelihood."
        )


def log_counts(high: float, dtype: np.dtype, source: str) -> None:
    """Log that the numbers of a file up to `high` are taken as counts, and if float32 rounds some of them."""
    rounded = " float32 rounds counts beyond 2^24." if high > 2**24 and dtype != np.float32 else ""
    progress.say(f"{source}: the whole numbers, at most {high:.0f}, are taken as counts.{rounded}")


def check_finite(count: int, first: list[int], ndim: int, source: str, may_miss: bool) -> None:
    """Raise UserError if `count` is above 0. count, first: from `not_finite`. ndim: the axes of the stored array.

    may_miss: whether the advice is to take NaN as a missing value.
    """
    if count:
        where = _place(first, ndim)
        keep = "keep the rows, of y too, where np.isfinite(np.float32(x)).reshape(len(x), -1).all(1) is true."
        raise UserError(
            f"{source} holds NaN, infinite or too large values ({count}; the first in {where}), expected finite "
            "float32.",
            f"Give --config.missing=true if NaN is a missing value, or {keep}" if may_miss else keep.capitalize(),
            keep.capitalize(),
        )


def _place(index: list[int], ndim: int) -> str:
    """An index in words. ndim: the axes of the stored array."""
    axes = ("row", "column") if ndim == 2 else ("row", "y", "x", "channel")[:ndim]
    return ", ".join(f"{axis} {i}" for axis, i in zip(axes, index, strict=False))
