"""Read a folder of images, as people have them, as one array.

The decoded copy is kept in the user's cache, so that the next start only maps it into memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vae_jax import progress
from vae_jax.data.files import PLAIN, Reading, check_memory, leads_outside, reading
from vae_jax.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # which Pillow decodes itself, and safely
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
MAX_LISTED = 5  # names of files in a line of the log
_PART, _PARTS = 16, 32  # images that a thread takes at a time, and such parts that are decoded before they are written


class Folder(NamedTuple):
    """The images of a folder."""

    x: np.ndarray  # [N, H, W, C], uint8
    label: np.ndarray | None  # [N], int32, an index of `classes`; None without classes
    classes: tuple[str, ...]  # the names of the sub-folders, in order


class _Image(NamedTuple):
    """What the header of an image file says."""

    path: Path
    size: tuple[int, int]  # width and height, as the image stands upright
    mode: str


def read_folder(folder: Path, how: Reading = PLAIN) -> Folder:
    """Return the images of a folder and of its sub-folders, and their classes.

    The sub-folders are the classes, in the order of their names, unless `how.labels` is False. An image is turned as
    its EXIF data says, transparent parts are drawn over white, and it is scaled and cut to `how.image_size` (Lanczos).
    Every header is checked before any image is decoded. Raises UserError, which names a file, for images that cannot be
    read or that have two sizes.
    """
    path, label, classes = decoded_file(folder, how)
    x = path if isinstance(path, np.ndarray) else np.load(path, mmap_mode="r")
    with reading(folder, "fewer or smaller images, or --config.stream=true"):
        check_memory(x.nbytes)
    return Folder(x, label, classes)


def decoded_file(folder: Path, how: Reading = PLAIN) -> tuple[Path | np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """The .npy file in the cache that holds the images of a folder, their labels and the classes.

    The images themselves, if they cannot be kept in a file. They are read only if the folder has changed since.
    """
    with reading(folder, "a folder of images"):
        names, classes = _find(folder, how)
        stats = [os.stat(folder / name) for name in names]
        files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in zip(names, stats, strict=True)]
    options = (how.labels, how.image_size, how.channels, how.skip_broken)
    place = hashlib.sha256(repr((str(folder.resolve()), options)).encode()).hexdigest()[:16]
    content = hashlib.sha256(repr(files).encode()).hexdigest()[:16]
    cache = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"), "vae_jax")
    kept = cache / f"images-{place}-{content}.npy"
    x: Path | np.ndarray = kept
    skipped, said = _kept(kept, names) or (None, "")
    if skipped is None:
        x, skipped, said = _decode_all(folder, [folder / name for name in names], how, kept)
    progress.say(said)
    if not classes:
        return x, None, ()
    number, left_out = {name: i for i, name in enumerate(classes)}, set(skipped)
    labels = [number[name.partition(os.sep)[0]] for name in names if name not in left_out]
    return x, np.array(labels, np.int32), classes


def _find(folder: Path, how: Reading) -> tuple[list[str], tuple[str, ...]]:
    """The image files of a folder, relative to it, class by class, and the classes. ValueError if there are none."""
    found = []
    for inside, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]
        relative = os.path.relpath(inside, folder)
        for name in files:
            if name[0] != "." and os.path.splitext(name)[1].lower() in SUFFIXES and os.path.isfile(f"{inside}/{name}"):
                found.append(name if relative == "." else os.path.join(relative, name))
    if not found:
        raise ValueError(f"it holds no file ending in {', '.join(SUFFIXES)}")
    loose = sorted(name for name in found if os.sep not in name)
    classes = tuple(sorted({name.partition(os.sep)[0] for name in found} - set(loose)))
    if not classes or not how.labels:
        return sorted(found), ()
    if loose:
        raise ValueError(
            f"it holds images, such as {loose[0]!r}, beside sub-folders of images, such as {classes[0]!r}; put them in "
            "one, or give --config.labels=false"
        )
    return sorted(found, key=lambda name: (name.partition(os.sep)[0], name)), classes


def _kept(kept: Path, names: list[str]) -> tuple[list[str], str] | None:
    """The files that a copy in the cache leaves out, and what is said of it; None if there is no sound copy."""
    try:
        about = json.loads(kept.with_suffix(".json").read_text("utf-8"))
        skipped, said = about["skipped"], str(about["said"])
        x = np.load(kept, mmap_mode="r")  # checks that the file is as long as its header says
        sound = x.dtype == np.uint8 and x.ndim == 4 and len(x) == len(names) - len(skipped)
        return (skipped, said) if sound and set(skipped) <= set(names) else None
    except (OSError, EOFError, ValueError, TypeError, KeyError):
        return None


def _decode_all(folder: Path, paths: list[Path], how: Reading, kept: Path) -> tuple[Path | np.ndarray, list[str], str]:
    """Decode images into the file `kept`, or into memory, list those left out, and say what was read."""
    from PIL import Image

    broken: dict[Path, UserError] = {}

    def attempt(function: Callable[[Path], Any], path: Path) -> Any:
        try:
            return function(path)
        except UserError as error:
            if not how.skip_broken:
                raise
            broken[path] = error
            return None

    # The filters of warnings are those of all threads.
    with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        headers = _in_order(pool, partial(attempt, partial(_header, folder)), paths, f"reading {folder.name}")
        images = [image for image in headers if image is not None]
        if how.skip_broken and images:  # a header may be sound and the pixels not
            sound = _in_order(pool, partial(attempt, _check_pixels), [i.path for i in images], "checking")
            images = [image for image, fine in zip(images, sound, strict=True) if fine]
        if not images:
            raise UserError(f"{folder}: none of its {len(paths)} images can be read. {next(iter(broken.values()))}")
        shape, mode = _shape(images, how), _mode(images, how)
        full = (len(images), *shape, len(mode))
        decode = partial(_decode, mode=mode, shape=shape, scaled=bool(how.image_size))
        decoded = _in_order(pool, decode, [image.path for image in images], f"decoding {folder.name}")
        skipped = [str(path.relative_to(folder)) for path in broken]
        said = _said(folder, images, full, skipped)
        temporary = kept.with_name(f".{kept.name}.{os.getpid()}.tmp")
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            file = open(temporary, "wb")  # noqa: SIM115
        except OSError:
            with reading(folder, "fewer or smaller images"):
                check_memory(math.prod(full))
            x = np.empty(full, np.uint8)
            for row, pixels in zip(x, decoded, strict=True):
                row[...] = pixels
            return x, skipped, said
        try:
            with file:  # written one by one: memory holds few images at a time
                header = {"descr": "|u1", "fortran_order": False, "shape": full}
                np.lib.format.write_array_header_1_0(file, header)
                for pixels in decoded:
                    file.write(pixels.tobytes())
            for old in kept.parent.glob(f"{kept.name.rpartition('-')[0]}-*"):
                old.unlink()
            kept.with_suffix(".json").write_text(json.dumps({"skipped": skipped, "said": said}), "utf-8")
            os.replace(temporary, kept)
            return kept, skipped, said
        finally:
            temporary.unlink(missing_ok=True)


def _in_order(pool: ThreadPoolExecutor, function: Callable[[Path], Any], paths: list[Path], what: str) -> Iterator[Any]:
    """function(path) of each path, in order. Few results are held at a time."""
    parts = [paths[start : start + _PART] for start in range(0, len(paths), _PART)]
    with progress.bar(total=len(paths), unit="image", delay=2, desc=what) as bar:
        for start in range(0, len(parts), _PARTS):
            for results in pool.map(lambda part: [function(path) for path in part], parts[start : start + _PARTS]):
                bar.update(len(results))
                yield from results


def _said(folder: Path, images: list[_Image], full: tuple[int, ...], skipped: list[str]) -> str:
    """What was read, in one line."""
    sizes = {image.size for image in images}
    count, height, width, channels = full
    said = f"{folder}: {count} images, {'grey' if channels == 1 else 'RGB'}, {width} x {height}"
    if sizes != {(width, height)}:
        (least, most) = min(sizes, key=math.prod), max(sizes, key=math.prod)
        said += f", scaled and cut from {least[0]} x {least[1]} to {most[0]} x {most[1]}"
    if classes := {image.path.relative_to(folder).parts[0] for image in images if image.path.parent != folder}:
        said += f", {len(classes)} sub-folders"
    return said + (f"; {_names(skipped)} cannot be read and are left out" if skipped else "")


def _names(skipped: list[str]) -> str:
    more = f" and {len(skipped) - MAX_LISTED} more" if len(skipped) > MAX_LISTED else ""
    return f"{', '.join(skipped[:MAX_LISTED])}{more}"


@contextlib.contextmanager
def _open_image(path: Path) -> Iterator[Any]:
    from PIL import Image

    with reading(path, "an 8-bit image"), Image.open(path, formats=FORMATS) as image:
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


def _header(folder: Path, path: Path) -> _Image:
    with _open_image(path) as image:
        if path.is_symlink() and leads_outside(path, folder):
            raise ValueError("it is a link out of its folder; put a copy there")
        check_depth(image)
        width, height = image.size[:: -1 if _orientation(image) in (5, 6, 7, 8) else 1]
        mode = "LA" if image.mode in ("1", "L", "LA", "La") else "RGB"
        return _Image(path, (width, height), mode)


def _check_pixels(path: Path) -> bool:
    with _open_image(path) as image:
        image.load()
    return True


def _shape(images: list[_Image], how: Reading) -> tuple[int, int]:
    """The height and width of all images. UserError if they have two sizes and `how` gives none."""
    if how.image_size:
        if len(how.image_size) > 2 or min(how.image_size) < 1:
            raise UserError(f"image_size is {how.image_size}; expected 64, or 64,96 for height and width.")
        return how.image_size[0], how.image_size[-1]
    first = images[0]
    for image in images:
        if image.size != first.size:
            raise UserError(
                f"{str(image.path)!r} has the size {image.size[0]} x {image.size[1]}, and {str(first.path)!r} has "
                f"{first.size[0]} x {first.size[1]}. Give --config.image_size=64, say, to scale and cut all images."
            )
    return first.size[1], first.size[0]


def _mode(images: list[_Image], how: Reading) -> str:
    if how.channels not in (0, 1, 3):
        raise UserError(f"channels is {how.channels}; expected 1 (grey), 3 (RGB) or 0, which decides by the images.")
    grey = how.channels == 1 or (how.channels == 0 and all(image.mode == "LA" for image in images))
    return "L" if grey else "RGB"


def _decode(path: Path, mode: str, shape: tuple[int, int], scaled: bool) -> np.ndarray:
    """Decode an image as [H, W, C], uint8: upright, over white, and scaled to cover `shape`, its centre cut out."""
    from PIL import Image

    with _open_image(path) as image:
        image.load()
        turn = _TURNS.get(_orientation(image))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert(mode)
        image = image.transpose(Image.Transpose[turn]) if turn else image
        height, width = shape
        if image.size != (width, height):
            if not scaled:  # a PNG may store its EXIF orientation after its pixels
                raise ValueError("its EXIF orientation stands behind its pixels; save it turned")
            scale = max(width / image.width, height / image.height)
            size = tuple(
                max(least, round(scale * side)) for least, side in zip((width, height), image.size, strict=True)
            )
            left, top = ((a - b) // 2 for a, b in zip(size, (width, height), strict=True))
            image = image.resize(size, Image.Resampling.LANCZOS).crop((left, top, left + width, top + height))
        return np.asarray(image).reshape(height, width, len(mode))
