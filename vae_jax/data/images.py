"""Read a folder of images, as people have them, as one array.

The decoded copy is kept in the user's cache, so that the next start only maps it into memory.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vae_jax import progress
from vae_jax.data.files import PLAIN, Reading, check_memory, leads_outside, reading
from vae_jax.errors import UserError
from vae_jax.progress import plural

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # which Pillow decodes itself, and safely
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
MAX_LISTED = 5  # names of files in a line of the log
_MAX_SCALED = 1 << 26  # pixels: of a very long image, whose whole would not fit in memory, only the centre is scaled
_THREADS = os.cpu_count() or 1
_PART, _HELD = 16, 512  # images that a thread takes at a time, and that wait to be written, at most
_HELD_BYTES = 64 << 20  # of those that wait, if that is more than two for each thread
_LEFT_OVER = 3600  # seconds after which an unfinished copy that no longer grows is taken as left over from a crash


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
    x = path if isinstance(path, np.ndarray) else np.lib.format.open_memmap(path, mode="r")
    with reading(folder, "fewer or smaller images", "Training reads more of them with --config.stream=true."):
        check_memory(x.nbytes)
    return Folder(x, label, classes)


def read_image(path: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, str]:
    """Read one image file as [H, W, C], uint8: turned, over white, scaled and cut as in `read_folder`.

    The second result is the size that it had, such as '30 x 90' (height x width), if it was another one. Raises
    UserError if it cannot be read, or has more than 8 bits per colour.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        size = _header(path.parent, path, load=False).size
        x = _decode(path, "L" if shape[2] == 1 else "RGB", (shape[0], shape[1]), scaled=True)
    return x, "" if size == (shape[1], shape[0]) else _by_height(size)


def decoded_file(folder: Path, how: Reading = PLAIN) -> tuple[Path | np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """The .npy file in the cache that holds the images of a folder, their labels and the classes.

    The images themselves, if they cannot be kept in a file. They are read only if the folder has changed since.
    """
    with reading(folder, "a folder of images"):
        names, classes = _find(folder, how)
        stats = [_stat(f"{folder}/{name}") for name in names]
        files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in zip(names, stats, strict=True)]
    options = (how.labels, how.image_size, how.channels, how.skip_broken)
    place = hashlib.sha256(repr((str(folder.resolve()), options)).encode()).hexdigest()[:16]
    content = hashlib.sha256(repr(files).encode()).hexdigest()[:16]
    cache = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"), "vae_jax")
    kept = cache / f"images-{place}-{content}.npy"
    x: Path | np.ndarray = kept
    skipped, said = _kept(kept, names, how) or (None, "")
    if skipped is None:
        x, skipped, said = _decode_all(folder, names, how, kept)
    progress.say(said)
    if not classes:
        return x, None, ()
    number, left_out = {name: i for i, name in enumerate(classes)}, set(skipped)
    labels = [number[name.partition(os.sep)[0]] for name in names if name not in left_out]
    return x, np.array(labels, np.int32), classes


def _find(folder: Path, how: Reading) -> tuple[list[str], tuple[str, ...]]:
    """The image files of a folder, relative to it, class by class, and the classes. ValueError if there are none."""
    found = []
    for inside, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if name[0] != "."]
        for path in (f"{inside}/{name}" for name in folders):
            if os.path.islink(path):  # os.walk passes over it, and a class would be missing
                raise UserError(f"Cannot read {path!r}: it is a link to a folder; put the folder itself there.")
        relative = os.path.relpath(inside, folder)
        for name in files:
            if name[0] != "." and os.path.splitext(name)[1].lower() in SUFFIXES and _is_file(f"{inside}/{name}"):
                found.append(name if relative == "." else os.path.join(relative, name))
    if not found:
        raise ValueError(f"it holds no file ending in {', '.join(SUFFIXES)}")
    loose = sorted(name for name in found if os.sep not in name)
    classes = tuple(sorted({name.partition(os.sep)[0] for name in found} - set(loose)))
    if not classes or not how.labels:
        return sorted(found), ()
    if loose:
        raise UserError(
            f"Cannot read {str(folder)!r}: it holds images, such as {loose[0]!r}, beside sub-folders of images, "
            f"such as {classes[0]!r}; expected only one of the two.",
            "Move them, or give --config.labels=false.",
            "Move them.",
        )
    return sorted(found, key=lambda name: (name.partition(os.sep)[0], name)), classes


def _refuse(error: OSError) -> None:
    raise UserError(f"Cannot read {str(error.filename)!r}: {error.strerror}. Expected a folder of images.") from error


def _is_file(path: str) -> bool:
    """Whether a path is a file, or a link that leads nowhere, which counts as a broken file."""
    return os.path.isfile(path) or not os.path.exists(path)


def _stat(path: str) -> os.stat_result:
    return os.stat(path) if os.path.exists(path) else os.lstat(path)


def _kept(kept: Path, names: list[str], how: Reading) -> tuple[list[str], str] | None:
    """The files that a copy in the cache leaves out, and what is said of it; None if there is no sound copy."""
    try:
        about = json.loads(kept.with_suffix(".json").read_text("utf-8"))
        skipped, said = about["skipped"], str(about["said"])
        x = np.lib.format.open_memmap(kept, mode="r")  # checks that the file is as long as its header says
        sound = x.dtype == np.uint8 and x.ndim == 4 and len(x) == len(names) - len(skipped) and x.flags.c_contiguous
        size = (how.image_size[0], how.image_size[-1]) if how.image_size else x.shape[1:3]
        sound = sound and x.shape[1:3] == size and x.shape[3] in ((how.channels,) if how.channels else (1, 3))
        return (skipped, said) if sound and set(skipped) <= set(names) else None
    except (OSError, EOFError, ValueError, TypeError, KeyError):
        return None


def _decode_all(folder: Path, names: list[str], how: Reading, kept: Path) -> tuple[Path | np.ndarray, list[str], str]:
    """Decode images into the file `kept`, or into memory, list those left out, and say what was read."""
    from PIL import Image

    paths = [folder / name for name in names]
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
    with ThreadPoolExecutor(_THREADS) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        check = partial(attempt, partial(_header, folder, load=how.skip_broken))
        headers = _in_order(pool, check, paths, f"reading {_printable(folder.name)}")
        images = [image for image in headers if image is not None]
        left_out = [path for path in paths if path in broken]  # the order in `broken` is that of the threads
        if not images:
            first = broken[left_out[0]].message
            raise UserError(f"{str(folder)!r}: of its {plural(len(paths), 'image')}, none can be read. {first}")
        shape, mode = _shape(images, how), _mode(images, how)
        full = (len(images), *shape, len(mode))
        skipped = [str(path.relative_to(folder)) for path in left_out]
        said = _said(folder, images, full, skipped)

        def rows() -> Iterator[np.ndarray]:
            decode = partial(_decode, mode=mode, shape=shape, scaled=bool(how.image_size))
            what = f"decoding {_printable(folder.name)}"
            return _in_order(pool, decode, [image.path for image in images], what, math.prod(full[1:]))

        try:
            _write(kept, full, rows(), lambda: _kept(kept, names, how) is None, {"skipped": skipped, "said": said})
            return kept, skipped, said
        except OSError as error:  # the cache is read-only or full
            reason = error.strerror or str(error)
        with reading(folder, "fewer or smaller images"):
            check_memory(math.prod(full))
        progress.say(f"Cannot write {str(kept.parent)!r}: {reason}. The images are decoded into memory, at each start.")
        x = np.empty(full, np.uint8)
        for row, pixels in zip(x, rows(), strict=True):
            row[...] = pixels
        return x, skipped, said


def _write(
    kept: Path, full: tuple[int, ...], rows: Iterator[np.ndarray], needed: Callable[[], bool], about: dict[str, Any]
) -> None:
    """Write images, one by one, as the file `kept` of shape `full`, and remove older copies. Raises OSError.

    needed: whether there is still no such file. If another program has made it meanwhile, it may be streaming from it.
    """
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_name(f".{kept.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": full})
            for pixels in rows:
                file.write(pixels.tobytes())
        if needed():
            kept.with_suffix(".json").write_text(json.dumps(about), "utf-8")
            os.replace(temporary, kept)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    place = kept.name.rpartition("-")[0]
    old = [path for path in kept.parent.glob(f"{place}-*") if path.stem != kept.stem]
    for path in [*old, *kept.parent.glob(f".{place}-*.tmp")]:
        with contextlib.suppress(OSError):  # another program has removed it, or uses it
            if path in old or time.time() - path.stat().st_mtime > _LEFT_OVER:
                path.unlink()


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[Path], Any], paths: list[Path], what: str, size: int = 1
) -> Iterator[Any]:
    """function(path) of each path, in order. size: bytes of a result. Few results wait at a time to be taken."""
    held = max(2 * _THREADS, min(_HELD, _HELD_BYTES // size))
    step = max(1, min(_PART, held // (2 * _THREADS)))
    parts = (paths[start : start + step] for start in range(0, len(paths), step))
    tasks = (pool.submit(lambda part: [function(path) for path in part], part) for part in parts)
    waiting: collections.deque[Future[list[Any]]] = collections.deque(itertools.islice(tasks, held // step))
    with progress.bar(total=len(paths), unit="image", delay=2, desc=what) as bar:
        try:
            while waiting:
                results = waiting.popleft().result()
                waiting.extend(itertools.islice(tasks, 1))
                bar.update(len(results))
                yield from results
        finally:  # after an error, nothing more is decoded
            for task in waiting:
                task.cancel()


def _said(folder: Path, images: list[_Image], full: tuple[int, ...], skipped: list[str]) -> str:
    """What was read, in one line. Sizes are height x width, as in `image_size`."""
    sizes = {image.size for image in images}
    count, height, width, channels = full
    colours = "grey" if channels == 1 else "RGB"
    said = f"{_printable(str(folder))}: {plural(count, 'image')}, {colours}, {height} x {width} (height x width)"
    if sizes != {(width, height)}:
        least, most = (_by_height(size) for size in (min(sizes, key=math.prod), max(sizes, key=math.prod)))
        said += f", scaled and cut from {least} to {most}"
    if classes := {image.path.relative_to(folder).parts[0] for image in images if image.path.parent != folder}:
        said += f", {plural(len(classes), 'sub-folder')}"
    are = "is" if len(skipped) == 1 else "are"
    return said + (f"; {_names(skipped)} cannot be read and {are} left out" if skipped else "")


def _by_height(size: tuple[int, int]) -> str:
    """The height and the width of a size that is, as in Pillow, width and height."""
    return f"{size[1]} x {size[0]}"


def _names(skipped: list[str]) -> str:
    more = f" and {len(skipped) - MAX_LISTED} more" if len(skipped) > MAX_LISTED else ""
    return f"{', '.join(_printable(name) for name in skipped[:MAX_LISTED])}{more}"


def _printable(name: str) -> str:
    """The name of a file for a line of the log: escaped if it would break the line or steer the terminal."""
    return name if name.isprintable() else repr(name)


@contextlib.contextmanager
def _open_image(path: Path) -> Iterator[Any]:
    from PIL import Image, UnidentifiedImageError

    setting = "Remove it, or give --config.skip_broken=true to leave it out."
    with reading(path, "an 8-bit image", setting, "Remove it, or give other data with --data."):
        try:
            opened = Image.open(path, formats=FORMATS)
        except UnidentifiedImageError:  # whose message has the path, too
            raise ValueError("it holds no image of a known format") from None
        with opened as image:
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


def _header(folder: Path, path: Path, load: bool) -> _Image:
    """What the header of an image says. load: also decode the image, whose pixels may be broken all the same."""
    with _open_image(path) as image:
        if path.is_symlink() and leads_outside(path, folder):
            raise ValueError("it is a link out of its folder; put a copy there")
        check_depth(image)
        if load:
            image.load()
        width, height = image.size[:: -1 if _orientation(image) in (5, 6, 7, 8) else 1]
        mode = "LA" if image.mode in ("1", "L", "LA", "La") else "RGB"
        return _Image(path, (width, height), mode)


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
                f"{str(image.path)!r} has the size {_by_height(image.size)} (height x width), and {str(first.path)!r} "
                f"has {_by_height(first.size)}.",
                "Give --config.image_size=64, say, to scale and cut all images.",
                "Give images of one size.",
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
            if math.prod(size) <= _MAX_SCALED:
                image = image.resize(size, Image.Resampling.LANCZOS).crop((left, top, left + width, top + height))
            else:  # the same but for rounding, which depends on the order in which Pillow scales the axes
                x, y = image.width / size[0], image.height / size[1]
                box = (left * x, top * y, min((left + width) * x, image.width), min((top + height) * y, image.height))
                image = image.resize((width, height), Image.Resampling.LANCZOS, box)
        return np.asarray(image).reshape(height, width, len(mode))
