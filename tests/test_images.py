"""Folders of images as people have them, against what PIL.ImageOps and a plain resize give."""

import errno
import os
import threading
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import train_flags
from PIL import Image, ImageOps

from vae_jax import load
from vae_jax.__main__ import main
from vae_jax.data import datasets, images
from vae_jax.data.files import Reading
from vae_jax.errors import UserError

pytestmark = pytest.mark.robust

TURNS = [Image.Transpose[name] for name in ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE")]
TURNS += [Image.Transpose[name] for name in ("ROTATE_270", "TRANSVERSE", "ROTATE_90")]


def photograph(width, height, seed=0):
    """A smooth colour picture that looks different from every side."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([255 * x / width, 255 * y / height, 40 * seed % 200 + 50 * np.sin(x / 9)], -1)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def save(image, path, orientation=1):
    """Write an image so that it stands upright only if it is turned as its EXIF data says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = {1: image}.get(orientation)
    if stored is None:
        inverse = {5: 7, 7: 5, 6: 8, 8: 6}.get(orientation, orientation)
        inverse = orientation if orientation in (5, 7) else inverse
        stored = image.transpose(TURNS[inverse - 2])
    stored.save(path, exif=exif)


def reference(path, height, width):
    """The pixels by ImageOps: upright, scaled to cover height x width, the centre cut out."""
    image = ImageOps.cover(ImageOps.exif_transpose(Image.open(path)).convert("RGB"), (width, height), Image.LANCZOS)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)), np.int32)


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def classes(tmp_path, no_cache):
    """Nine photographs of mixed sizes and orientations in three sub-folders, one of them nested deeper."""
    for i in range(9):
        folder = ("b", "10", "9/deep")[i % 3]
        width, height = (40 + 7 * i, 30 + 2 * i)
        save(photograph(width, height, i), tmp_path / "data" / folder / f"{i}.{'png' if i % 2 else 'jpg'}", i % 8 + 1)
    (tmp_path / "data" / "empty").mkdir()
    (tmp_path / "data" / ".hidden").mkdir()
    photograph(9, 9).save(tmp_path / "data" / ".hidden" / "x.png")
    (tmp_path / "data" / "notes.txt").write_text("not an image")
    return tmp_path / "data"


def error(folder, **how):
    with pytest.raises(UserError) as caught:
        images.read_folder(folder, Reading(**how))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sub_folders_are_classes_in_the_order_of_their_names(classes, capsys):
    folder = images.read_folder(classes, Reading(image_size=(16,)))
    assert folder.classes == ("10", "9", "b") and folder.label.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert folder.x.shape == (9, 16, 16, 3) and folder.x.dtype == np.uint8
    line = capsys.readouterr().err
    assert "9 images, RGB, 16 x 16 (height x width), scaled and cut from 30 x 40 to 46 x 96, 3 sub-folders" in line
    flat = images.read_folder(classes, Reading(image_size=(16,), labels=False))
    assert flat.label is None and flat.classes == () and len(flat.x) == 9


@pytest.mark.parametrize("size", [(16,), (24, 16), (16, 40)], ids=str)
def test_pixels_are_those_of_image_ops(classes, size):
    folder = images.read_folder(classes, Reading(image_size=size))
    paths = [p for name in ("10", "9", "b") for p in sorted((classes / name).rglob("*.*"))]
    for pixels, path in zip(folder.x, paths, strict=True):
        expected = reference(path, size[0], size[-1])
        assert np.abs(pixels - expected).max() <= 1, path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_images_stand_upright_to_the_pixel(tmp_path, no_cache, orientation, ending):
    image = photograph(24, 16)
    for i in range(2):
        save(image, tmp_path / "data" / f"{i}.{ending}", orientation)
    x = images.read_folder(tmp_path / "data").x
    expected = ImageOps.exif_transpose(Image.open(tmp_path / "data" / f"0.{ending}")).convert("RGB")
    np.testing.assert_array_equal(x[0], np.asarray(expected))
    assert np.abs(x[0].astype(int) - np.asarray(image)).mean() < 6


def test_scaling_is_lanczos_of_the_whole_image_then_a_cut(tmp_path, no_cache):
    image = photograph(60, 40)
    image.save(tmp_path / "a.png")
    x = images.read_folder(tmp_path, Reading(image_size=(20,))).x[0]
    expected = image.resize((30, 20), Image.Resampling.LANCZOS).crop((5, 0, 25, 20))
    np.testing.assert_array_equal(x, np.asarray(expected))


@pytest.mark.parametrize("size", [(19, 268), (268, 19), (66, 154), (300, 200)], ids=str)
def test_scaling_of_noise(tmp_path, no_cache, size):
    """Noise, because smooth pictures hide in which order the axes are scaled."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    image.save(tmp_path / "a.png")
    x = images.read_folder(tmp_path, Reading(image_size=(78, 113))).x[0]
    assert np.abs(x - reference(tmp_path / "a.png", 78, 113)).max() <= 1


@pytest.mark.parametrize("ending", ["png", "webp", "bmp", "tif", "tiff", "gif", "jpeg", "PNG"])
def test_formats(tmp_path, no_cache, ending):
    photograph(12, 8).save(tmp_path / f"a.{ending}")
    assert images.read_folder(tmp_path).x.shape == (1, 8, 12, 3)


def test_transparency_lies_over_white_whatever_the_mode(tmp_path, no_cache):
    for mode in ("RGBA", "LA"):
        Image.new("RGBA", (4, 4), (200, 0, 0, 0)).convert(mode).save(tmp_path / f"{mode}.png")
    Image.new("RGB", (4, 4), (200, 0, 0)).quantize(4).save(tmp_path / "P.png", transparency=0)
    assert images.read_folder(tmp_path).x.min() == 255


def test_channels(tmp_path, no_cache):
    Image.new("L", (4, 4), 100).save(tmp_path / "a.png")
    assert images.read_folder(tmp_path).x.shape[-1] == 1
    assert images.read_folder(tmp_path, Reading(channels=3)).x.shape[-1] == 3
    photograph(4, 4).save(tmp_path / "b.png")
    assert images.read_folder(tmp_path).x.shape[-1] == 3
    assert images.read_folder(tmp_path, Reading(channels=1)).x.shape[-1] == 1
    assert "channels is 2; expected 1 (grey), 3 (RGB) or 0" in error(tmp_path, channels=2)


def test_two_sizes_name_both_files_and_the_flag(classes):
    message = error(classes)
    assert "has the size" in message and message.count("/data/") == 2 and "--config.image_size=64" in message


def test_images_beside_sub_folders_are_refused(classes):
    photograph(9, 9).save(classes / "loose.png")
    message = error(classes, image_size=(8,))
    assert "'loose.png', beside sub-folders of images, such as '10'" in message and "--config.labels=false" in message
    assert len(images.read_folder(classes, Reading(image_size=(8,), labels=False)).x) == 10


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "cut off"])
def test_a_broken_file_is_named_or_left_out_and_listed(classes, content, capsys):
    broken = classes / "b" / "broken.png"
    photograph(50, 50).save(broken)
    broken.write_bytes(broken.read_bytes()[:-60] if content is None else content)
    message = error(classes, image_size=(8,))
    assert message.count("b/broken.png") == 1 and "--config.skip_broken=true" in message
    for _ in range(2):  # the second time from the cache
        folder = images.read_folder(classes, Reading(image_size=(8,), skip_broken=True))
        assert len(folder.x) == len(folder.label) == 9
        assert "b/broken.png cannot be read and is left out" in capsys.readouterr().err


def test_the_first_frame_is_taken_and_one_image_is_too_few(tmp_path, no_cache):
    frames = [photograph(8, 6, i) for i in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert images.read_folder(tmp_path).x.shape == (1, 6, 8, 3)
    with pytest.raises(UserError, match="holds one example, expected at least 2"):
        datasets.load(tmp_path)


def test_a_folder_of_broken_files_alone(tmp_path, no_cache):
    (tmp_path / "a.png").write_bytes(b"")
    message = error(tmp_path, skip_broken=True)
    assert "of its 1 image, none can be read. Cannot read" in message and "skip_broken" not in message


def test_image_size_has_one_or_two_numbers(classes):
    for size in ((0,), (8, 8, 3)):
        assert "expected 64, or 64,96 for height and width" in error(classes, image_size=size)


def test_files_left_out_are_listed_in_order_and_without_control_characters(tmp_path, no_cache, capsys):
    photograph(8, 8).save(tmp_path / "0.png")
    for i in range(300):  # threads find them in any order
        (tmp_path / f"b{i:03}.png").write_bytes(b"x" * (i % 3))
    (tmp_path / "a\n\x1b[31m.png").write_bytes(b"")
    images.read_folder(tmp_path, Reading(skip_broken=True))
    assert (
        r"; 'a\n\x1b[31m.png', b000.png, b001.png, b002.png, b003.png and 296 more cannot be" in capsys.readouterr().err
    )


def test_sub_folders_that_cannot_be_read_are_named(classes, tmp_path, monkeypatch):
    scandir = os.scandir

    def denied(path):
        if os.path.basename(path) == "b":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert "data/b': Permission denied" in error(classes, image_size=(8,))
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (classes / "linked").symlink_to(classes / "b")
    assert "data/linked': it is a link to a folder; put the folder itself there" in error(classes, image_size=(8,))


def test_a_broken_link_and_a_link_out_are_named_or_left_out(classes, tmp_path, capsys):
    photograph(9, 9).save(tmp_path / "outside.png")
    for name, target in (("gone", "nowhere.png"), ("out", "../../outside.png")):
        link = classes / "b" / f"{name}.png"
        link.symlink_to(target)
        assert f"b/{name}.png" in error(classes, image_size=(8,))
        link.rename(classes / "b" / f"{name}.kept")
    for name in ("gone", "out"):
        (classes / "b" / f"{name}.kept").rename(classes / "b" / f"{name}.png")
    assert len(images.read_folder(classes, Reading(image_size=(8,), skip_broken=True)).x) == 9
    assert "b/gone.png, b/out.png cannot be read and are left out" in capsys.readouterr().err


@pytest.mark.parametrize("size", [(2_000_000, 1), (1, 2_000_000)], ids=str)
def test_only_the_centre_of_a_very_long_image_is_computed(tmp_path, no_cache, size):
    Image.new("L", size, 77).save(tmp_path / "a.png")  # the whole of it, scaled, would have 8 GB
    x = images.read_folder(tmp_path, Reading(image_size=(64,))).x
    assert x.shape == (1, 64, 64, 1) and (x == 77).all()


def test_an_orientation_behind_the_pixels_of_a_png(tmp_path, no_cache):
    save(photograph(12, 8), tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    content = (tmp_path / "a.png").read_bytes()
    chunk = (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    start = content.find(b"eXIf") - 4  # that which Pillow has written stands before the pixels
    if start > 0:
        content = content[:start] + content[start + 12 + int.from_bytes(content[start : start + 4], "big") :]
    (tmp_path / "a.png").write_bytes(content[:-12] + chunk + content[-12:])
    assert "stands behind its pixels" in error(tmp_path)
    for how in (Reading(image_size=(12, 8)), Reading(skip_broken=True)):  # every image is decoded to check it
        x = images.read_folder(tmp_path, how).x[0]
        np.testing.assert_array_equal(x, np.asarray(photograph(12, 8).transpose(Image.Transpose.ROTATE_270)))


def test_an_error_ends_the_decoding(tmp_path, no_cache, monkeypatch):
    decoded = []

    def decode(path, **kwargs):
        decoded.append(path)
        raise UserError("broken")

    for i in range(200):
        Image.new("L", (1, 1)).save(tmp_path / f"{i}.bmp")
    monkeypatch.setattr(images, "_decode", decode)
    assert error(tmp_path) == "broken"
    assert len(decoded) < 200 and not list((tmp_path / "cache/vae_jax").iterdir())


# the cache


def test_the_second_start_reads_the_cache(classes, monkeypatch):
    first = images.read_folder(classes, Reading(image_size=(8,)))
    monkeypatch.setattr(images, "_decode", None)
    second = images.read_folder(classes, Reading(image_size=(8,)))
    np.testing.assert_array_equal(first.x, second.x)
    assert second.classes == first.classes and second.label.tolist() == first.label.tolist()
    assert isinstance(second.x, np.memmap)


@pytest.mark.parametrize("change", ["touched", "new", "removed", "renamed"])
def test_a_change_is_seen(classes, tmp_path, change):
    how = Reading(image_size=(8,))
    before = images.read_folder(classes, how)
    path = next(iter(sorted((classes / "b").iterdir())))
    if change == "touched":
        photograph(77, 50, 5).save(path)
        os.utime(path, ns=(1, 1))
    elif change == "new":
        photograph(20, 20).save(classes / "b" / "z.png")
    elif change == "removed":
        path.unlink()
    else:
        path.rename(classes / "10" / path.name)
    after = images.read_folder(classes, how)
    assert len(after.x) == len(before.x) + {"new": 1, "removed": -1}.get(change, 0)
    assert after.x.shape != before.x.shape or not np.array_equal(after.x, before.x)
    assert len(list((tmp_path / "cache/vae_jax").glob("images-*.npy"))) == 1


@pytest.mark.parametrize("damage", [b"", b"no array", b"PK\3\4", None], ids=["empty", "text", "zip", "cut off"])
def test_a_damaged_copy_is_made_anew(classes, tmp_path, damage):
    how = Reading(image_size=(8,))
    before = np.array(images.read_folder(classes, how).x)
    (copy,) = (tmp_path / "cache/vae_jax").glob("images-*.npy")
    copy.write_bytes(copy.read_bytes()[:500] if damage is None else damage)
    np.testing.assert_array_equal(images.read_folder(classes, how).x, before)


def test_without_a_cache_the_images_are_in_memory(classes, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    x = images.read_folder(classes, Reading(image_size=(8,))).x
    assert x.shape == (9, 8, 8, 3) and not isinstance(x, np.memmap)
    with pytest.raises(UserError, match="cannot be kept in the cache"):
        datasets.load(classes, stream=True, how=Reading(image_size=(8,)))


def test_a_copy_of_another_size_is_made_anew(classes, tmp_path):
    how = Reading(image_size=(8,))
    images.read_folder(classes, how)
    (copy,) = (tmp_path / "cache/vae_jax").glob("images-*.npy")
    for wrong in (np.zeros((9, 9, 8, 3), np.uint8), np.zeros((9, 8, 8, 2), np.uint8), np.zeros((9, 8, 8, 3))):
        np.save(copy, wrong)
        x = images.read_folder(classes, how).x
        assert x.shape == (9, 8, 8, 3) and x.dtype == np.uint8 and x.any()


def test_on_a_full_disk_the_images_are_in_memory(classes, tmp_path, capsys):
    resource = pytest.importorskip("resource")
    expected = np.array(images.read_folder(classes, Reading(image_size=(64,))).x)
    for copy in (tmp_path / "cache/vae_jax").iterdir():
        copy.unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        x = images.read_folder(classes, Reading(image_size=(64,))).x
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    np.testing.assert_array_equal(x, expected)
    assert not isinstance(x, np.memmap) and not list((tmp_path / "cache/vae_jax").iterdir())
    assert "File too large. The images are decoded into memory, at each start." in capsys.readouterr().err


def test_two_starts_at_once_share_a_copy(classes, monkeypatch):
    """One start does not replace the copy that the other streams from."""
    how, kept = Reading(image_size=(8,)), images._kept
    path, *_ = images.decoded_file(classes, how)
    before = os.stat(path)
    answers = iter([None])  # as if the copy had come into being while this start decoded
    monkeypatch.setattr(images, "_kept", lambda *args: next(answers, kept(*args)))
    assert images.decoded_file(classes, how)[0] == path
    assert (os.stat(path).st_mtime_ns, os.stat(path).st_ino) == (before.st_mtime_ns, before.st_ino)


def test_copies_left_over_from_a_crash_are_removed(classes):
    how = Reading(image_size=(8,))
    path, *_ = images.decoded_file(classes, how)
    left_over, growing = (path.with_name(f".{path.name}.{i}.tmp") for i in range(2))
    left_over.write_bytes(b"")
    growing.write_bytes(b"")
    os.utime(left_over, (1, 1))
    path.unlink()
    images.decoded_file(classes, how)
    assert not left_over.exists() and growing.exists()


def test_few_images_wait_for_a_slow_disk(monkeypatch):
    monkeypatch.setattr(images, "_THREADS", 2)
    lock, waiting, most = threading.Lock(), 0, 0

    def decode(path):
        nonlocal waiting, most
        with lock:
            waiting += 1
            most = max(most, waiting)
        return path

    paths = [Path(str(i)) for i in range(200)]
    with images.ThreadPoolExecutor(2) as pool:
        for i, path in enumerate(images._in_order(pool, decode, paths, "", size=8 << 20)):
            time.sleep(0.001)
            with lock:
                waiting -= 1
            assert path == paths[i]
    assert most <= 11  # 64 MB, and the part that is being written


def test_memory_stays_flat_while_a_folder_is_decoded(tmp_path, no_cache):
    for i in range(600):
        photograph(64, 64, i).save(tmp_path / f"{i}.jpg")
    tracemalloc.start()
    path, *_ = images.decoded_file(tmp_path, Reading())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.load(path, mmap_mode="r").nbytes == 600 * 64 * 64 * 3 > 7e6 and peak < 5e6


# a run


def test_a_folder_trains_streams_and_knows_its_classes(train, classes, tmp_path, no_pictures, capsys):
    fields = {"dataset": classes, "image_size": 8, "batch_size": 4, "num_epochs": 1, "conditional": "true"}
    train(tmp_path / "run", likelihood="discretized_logistic", **fields)
    data = load(tmp_path / "run").data
    assert data.names == ("10", "9", "b") and data.classes == (0, 1, 2) and data.shape == (8, 8, 3)
    fields |= {"conditional": "false", "stream": "true"}
    train(tmp_path / "streamed", likelihood="discretized_logistic", **fields)
    assert load(tmp_path / "streamed").data.num_train == 8


def test_options_of_folders_are_refused_for_other_data(refused, train_py, tmp_path):
    line = refused(train_py.main, train_flags(tmp_path / "run", image_size="8"))
    assert "image_size is (8,), which is for a folder of images; 'digits' is not one" in line


def test_sizes_are_height_and_width_as_in_the_flag(tmp_path, no_cache, capsys):
    photograph(30, 20).save(tmp_path / "a.png")
    images.read_folder(tmp_path, Reading(image_size=(16, 24)))
    said = "1 image, RGB, 16 x 24 (height x width), scaled and cut from 20 x 30 to 20 x 30\n"
    assert capsys.readouterr().err.endswith(said)
    photograph(30, 24).save(tmp_path / "b.png")
    message = error(tmp_path)
    assert "b.png' has the size 24 x 30 (height x width)" in message and "a.png' has 20 x 30." in message


def test_what_a_command_says_of_a_folder_can_be_done_there(train, vae, refused, classes, tmp_path, no_pictures):
    """The commands that use a run have no flags of a config."""
    run, other = tmp_path / "run", tmp_path / "other"
    train(run, dataset=classes, image_size=8, batch_size=4, num_epochs=1, likelihood="discretized_logistic")
    other.mkdir()
    photograph(8, 8).save(other / "a.png")
    (classes / "b" / "late.png").write_bytes(b"no image")
    (other / "b.png").write_bytes(b"")
    for flags in ([], [f"--data={other}"]):
        line = refused(main, ["encode", run, *flags])
        assert line.endswith("Expected an 8-bit image. Remove it, or give other data with --data.")
    (classes / "b" / "late.png").unlink()
    (other / "b.png").unlink()
    vae("encode", run)
    vae("encode", run, f"--data={other}")
    photograph(8, 8).save(classes / "loose.png")
    assert refused(main, ["encode", run]).endswith("such as '10'; expected only one of the two. Move them.")
