"""Pictures show what they are given: pixel for pixel in grids, and never half a file."""

import numpy as np
import pytest
from PIL import Image

from vae_jax.data import files
from vae_jax.data.inputs import DataInfo
from vae_jax.show import pictures

LINE = round(0.35 * 255)  # the grey between the images of a grid
RECORDS = [
    {"epoch": epoch, "split": split, "elbo": -epoch, "log_likelihood": -2 * epoch, "kl": epoch}
    for epoch in (1, 2, 3)
    for split in ("train", "test")
]


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_grid_places_every_pixel():
    images = np.random.default_rng(0).random((5, 3, 4, 1)).astype(np.float32)
    canvas = pictures.grid(images, columns=2)
    assert canvas.shape == (3 * 4 + 1, 2 * 5 + 1) and canvas.dtype == np.uint8
    seen = np.zeros(canvas.shape, bool)
    for i, image in enumerate(images):
        area = np.s_[i // 2 * 4 + 1 : i // 2 * 4 + 4, i % 2 * 5 + 1 : i % 2 * 5 + 5]
        np.testing.assert_array_equal(canvas[area], np.rint(image[..., 0] * 255))
        seen[area] = True
    assert np.all(canvas[~seen] == LINE)


def test_grid_of_colours():
    canvas = pictures.grid(np.stack([np.full((2, 2, 3), c, np.float32) for c in (0.0, 1.0)]), columns=2)
    assert canvas.shape == (4, 7, 3)
    assert np.all(canvas[1:3, 1:3] == 0) and np.all(canvas[1:3, 4:6] == 255)


@pytest.mark.parametrize(
    ("value", "value_range", "pixel"),
    [(0.5, (0, 1), 128), (-2, (-2, 6), 0), (6, (-2, 6), 255), (2, (-2, 6), 128), (9, (-2, 6), 255), (3, (3, 3), 0)],
)
def test_range_becomes_black_to_white(value, value_range, pixel):
    assert pictures.grid(np.full((1, 1, 1, 1), value, np.float32), 1, value_range)[1, 1] == pixel


def test_standardised_columns_have_a_range_each():
    """A column of large numbers leaves the small ones to be seen."""
    data = DataInfo((3,), (), (-9.0, 4e6), 9, 0, 9, "", None, scaling=((1e6, 0.0, 5.0), (1e6, 0.5, 1.0)))
    low, high = pictures.range_of(data)
    middle = np.array([1e6, 0.0, 5.0])
    x = np.stack([low, middle, high, middle + np.array([1e6, 0.5, 1.0])])[:, None, :, None]
    canvas = pictures.grid(x.astype(np.float32), 1, (low, high))
    for row, value in ((1, 0), (3, 128), (5, 255), (7, 191)):
        np.testing.assert_array_equal(canvas[row, 1:-1], value)
    assert (
        pictures.range_of(data._replace(scaling=None))
        == pictures.range_of(data._replace(shape=(1, 3, 1)))
        == data.range
    )


def test_columns_that_are_not_standardised_have_a_range_too():
    """Those of a mixed table that `standardize` leaves alone, and all where it is off."""
    spread = ((1e6, 50.0), (1e6, 10.0))
    data = DataInfo((2,), (), (0.0, 4e6), 9, 0, 9, "", None, columns=("a", "b"), spread=spread)
    for scaling in (None, ((1e6, 0.0), (1e6, 1.0))):
        low, high = pictures.range_of(data._replace(scaling=scaling))
        assert low.tolist() == [-1e6, 30] and high.tolist() == [3e6, 70]


def test_vectors_in_a_picture_are_large_enough_to_see(tmp_path):
    assert [pictures.columns_for(shape, 12) for shape in ((8, 8, 1), (6,), (30,), (200,))] == [12, 12, 3, 1]


def test_a_missing_value_is_neither_black_nor_white():
    assert pictures.grid(np.full((1, 1, 1, 1), np.nan, np.float32), 1)[1, 1] == LINE


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((6, 8, 8, 1), ()), ((6, 8, 8, 3), (3,)), ((6, 8, 8, 2), ()), ((6, 12), ()), ((1, 600, 600, 1), ())],
)
def test_any_example_becomes_a_png(tmp_path, shape, expected):
    pictures.save_grid(tmp_path / "a.png", np.random.default_rng(0).random(shape), 3)
    image = pixels(tmp_path / "a.png")
    assert image.shape[2:] == expected and image.std() > 0
    assert max(image.shape[:2]) >= 240
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_small_images_are_enlarged_without_blur(tmp_path):
    pictures.save_grid(tmp_path / "a.png", np.random.default_rng(0).random((4, 2, 2, 1)) > 0.5, 2)
    assert set(np.unique(pixels(tmp_path / "a.png"))) <= {0, LINE, 255}


@pytest.mark.parametrize("records", [RECORDS, RECORDS[:2], RECORDS[::2], RECORDS * 50], ids=len)
def test_curves(tmp_path, records):
    pictures.save_curves(tmp_path / "curves.png", records)
    assert pixels(tmp_path / "curves.png").std() > 0


@pytest.mark.parametrize("label", [None, np.arange(50) % 3, np.arange(50)], ids=["none", "few", "many"])
def test_scatter(tmp_path, label):
    mean = np.random.default_rng(0).normal(size=(50, 2))
    pictures.save_scatter(tmp_path / "latents.png", mean, label)
    assert pixels(tmp_path / "latents.png").std() > 0


@pytest.mark.parametrize("num", [1, 2, 60])
def test_bars(tmp_path, num):
    pictures.save_bars(tmp_path / "bars.png", np.random.default_rng(0).random(num))
    assert pixels(tmp_path / "bars.png").std() > 0


@pytest.mark.parametrize("color", ["#1c1e21", "#e4e6ea"])
def test_transparent_charts_have_their_colour_and_the_same_bytes_again(tmp_path, color):
    for name in ("a", "b"):
        with pictures.transparent(color):
            pictures.save_curves(tmp_path / f"{name}.svg", RECORDS, names=("kl",))
    svg = (tmp_path / "a.svg").read_text()
    assert color in svg and "#000000" not in svg and "#ffffff" not in svg
    assert svg == (tmp_path / "b.svg").read_text()
    pictures.save_curves(tmp_path / "c.svg", RECORDS, names=("kl",))
    assert color not in (tmp_path / "c.svg").read_text()


def test_failed_picture_leaves_the_good_one(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"good")

    def half(temporary):
        temporary.write_bytes(b"ha")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_whole(path, half)
    assert path.read_bytes() == b"good"
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_pixels_that_are_not_finite_are_drawn_without_a_warning():
    image = np.array([np.nan, np.inf, -np.inf, 0.5]).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(pictures.grid(image, 1)[1:3, 1:3], [[LINE, 255], [0, 128]])
