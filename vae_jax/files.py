"""One's own files as arrays: .npy, .npz and folders of images. Nothing in them runs, nothing is believed unchecked."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from vae_jax.errors import UserError

MAX_BYTES = 16 << 30
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


@contextlib.contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Turn whatever a library raises on a damaged file into one line that names the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"Cannot read {str(path)!r}: {' '.join(reason.split())[:200]}. Expected {expected}.") from error


def _check_size(size: int) -> None:
    # Half of the memory, where it is known, since splitting copies the data once.
    known = hasattr(os, "sysconf")
    limit = min(MAX_BYTES, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2) if known else MAX_BYTES
    if size > limit:
        raise ValueError(f"it expands to {size} bytes, and the limit here is {limit}")


def _read_array(file: IO[bytes], size: int) -> np.ndarray:
    """Read a .npy stream of `size` bytes, allocating nothing that the stream does not hold."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its npy format is {version}")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds pickled Python objects, as NumPy saves ragged arrays")
    announced, held = math.prod(shape) * dtype.itemsize, size - file.tell()
    if announced != held:
        raise ValueError(f"its header announces {announced} bytes of values, but it holds {held}")
    _check_size(announced)
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def read_npy(path: Path) -> dict[str, np.ndarray]:
    with reading(path, "one plain array written by numpy.save"), open(path, "rb") as file:
        return {"x": _read_array(file, os.fstat(file.fileno()).st_size)}


def read_npz(path: Path) -> dict[str, np.ndarray]:
    with reading(path, "plain arrays written by numpy.savez"), zipfile.ZipFile(path) as archive:
        _check_size(sum(info.file_size for info in archive.infolist()))
        arrays = {}
        for info in archive.infolist():
            with archive.open(info) as file:
                arrays[info.filename.removesuffix(".npy")] = _read_array(file, info.file_size)
        return arrays


READERS = {".npy": read_npy, ".npz": read_npz}


@contextlib.contextmanager
def _open_image(path: Path) -> Iterator[Any]:
    from PIL import Image

    with reading(path, "an 8-bit PNG or JPEG image"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            yield image


def read_folder(folder: Path) -> np.ndarray:
    """Return the images of a folder, [N, H, W, C], uint8. Every header is checked before any image is decoded."""
    with reading(folder, "a folder of PNG or JPEG images"):
        files = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
        paths = sorted(p for p in files if p.is_file())
        if not paths:
            raise ValueError(f"it holds no file ending in {', '.join(IMAGE_SUFFIXES)}, and sub-folders are not read")
    sizes, modes = [], set()
    for path in paths:
        with _open_image(path) as image:
            sizes.append(image.size)
            modes.add(image.mode)
            if image.mode[0] in "IF":
                raise ValueError("it has more than 8 bits per pixel")
            if image.size != sizes[0]:
                raise ValueError(f"its size is {image.size}, but that of {str(paths[0])!r} is {sizes[0]}; resize it")
    mode = "L" if modes <= {"1", "L"} else "RGB"
    width, height = sizes[0]
    shape = (len(paths), height, width, len(mode))
    with reading(folder, "fewer or smaller images"):
        _check_size(math.prod(shape))
        x = np.empty(shape, np.uint8)
    for row, path in zip(x, paths, strict=True):
        with _open_image(path) as image:
            row[...] = np.asarray(image.convert(mode)).reshape(row.shape)
    return x
