"""Read a folder of images as one array."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vae_jax.data.files import check_memory, leads_outside, reading

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


@contextlib.contextmanager
def _open_image(path: Path) -> Iterator[Any]:
    from PIL import Image

    with reading(path, "an 8-bit PNG or JPEG image"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            yield image


# Pillow's name for each EXIF orientation. A camera that is held upright writes 6 or 8.
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def _orientation(image: Any) -> int:
    from PIL import Image

    with contextlib.suppress(Exception):  # damaged EXIF data is ignored, as in image viewers
        return Image.Image.getexif(image).get(0x0112, 1)  # the getexif of a PNG's own class would decode it
    return 1


def check_depth(image: Any) -> None:
    """Raise ValueError if an open image has more than 8 bits per colour."""
    if image.mode[0] in "IF" or ";16" in str(image.tile):  # Pillow silently reduces 16-bit colours to 8 bits
        raise ValueError("it has more than 8 bits per pixel")


def _decode(image: Any, mode: str) -> np.ndarray:
    """Decode an image as [H, W, C], uint8, turned as its EXIF data says and with transparent parts over white."""
    from PIL import Image

    image.load()
    turn = _TURNS.get(_orientation(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert(mode)
    x = np.asarray(image.transpose(Image.Transpose[turn]) if turn else image)
    return x.reshape(*x.shape[:2], len(mode))


def read_folder(folder: Path) -> np.ndarray:
    """Return the images of a folder as one array, [N, H, W, C], uint8.

    Each image is turned as its EXIF data says, and transparent parts are drawn over white. Every header is checked
    before any image is decoded.
    """
    with reading(folder, "a folder of PNG or JPEG images"):
        files = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
        paths = sorted(p for p in files if p.is_file())
        if not paths:
            raise ValueError(f"it holds no file ending in {', '.join(IMAGE_SUFFIXES)}, and sub-folders are not read")
    sizes, modes = [], set()
    for path in paths:
        with _open_image(path) as image:
            sizes.append(image.size[:: -1 if _orientation(image) in (5, 6, 7, 8) else 1])
            modes.add(image.mode)
            if leads_outside(path, folder):
                raise ValueError("it is a link out of its folder; put a copy there")
            check_depth(image)
            if sizes[-1] != sizes[0]:
                raise ValueError(f"its size is {sizes[-1]}, but that of {str(paths[0])!r} is {sizes[0]}; resize it")
    mode = "L" if modes <= {"1", "L", "LA"} else "RGB"
    width, height = sizes[0]
    shape = (len(paths), height, width, len(mode))
    with reading(folder, "fewer or smaller images"):
        check_memory(math.prod(shape))
        x = np.empty(shape, np.uint8)
    for row, path in zip(x, paths, strict=True):
        with _open_image(path) as image:
            decoded = _decode(image, mode)
            if decoded.shape != row.shape:  # a PNG may store its EXIF orientation after its pixels
                raise ValueError("its EXIF orientation stands behind its pixels; save it turned")
            row[...] = decoded
    return x
