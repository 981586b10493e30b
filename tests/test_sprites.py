"""The drawn shapes against their areas, centres and axes in closed form; factors of files; and how they are refused."""

from itertools import product

import numpy as np
import pytest

from vae_jax.data import datasets
from vae_jax.data.sprites import SHAPES, sprites
from vae_jax.errors import UserError

SMALL = {"num_scales": 3, "num_angles": 4, "num_positions": 3}
AREAS = {
    "square": 2.0,
    "ellipse": np.pi / 2,
    "heart": 3.6610 / 1.25**2,
}  # where the circle around the shape has radius 1


def whole(**options):
    """Images [N, S, S] in [0, 1] and their factors, in the order of the factors."""
    data = sprites(**options)
    x = np.concatenate([data.train.x, data.test.x])[..., 0] / 255
    factors = np.concatenate([data.train.factors, data.test.factors])
    order = np.lexsort(factors.T[::-1])
    return x[order], factors[order]


def centre_of(x):
    """The centre of mass of each image [N, S, S], rightwards and downwards, in pixels: [N, 2]."""
    points = np.arange(x.shape[1]) + 0.5
    return np.stack([x.sum(1) @ points, x.sum(2) @ points], -1) / x.sum((1, 2))[:, None]


def test_each_combination_of_the_factors_occurs_once():
    data = sprites(**SMALL)
    _, factors = whole(**SMALL)
    np.testing.assert_array_equal(factors, list(product(range(3), range(3), range(4), range(3), range(3))))
    assert data.factors == ("shape", "scale", "angle", "x", "y") and data.names == SHAPES
    assert (len(data.train.x), len(data.test.x)) == (292, 32) and data.train.x.shape[1:] == (32, 32, 1)
    np.testing.assert_array_equal(data.test.label, data.test.factors[:, 0])
    assert sprites(**SMALL).fingerprint == data.fingerprint


def test_the_grid_of_dsprites_is_a_matter_of_options():
    _, factors = whole(image_size=8, num_scales=6, num_angles=40, num_positions=2)
    assert factors.max(0).tolist() == [2, 5, 39, 1, 1]


@pytest.mark.parametrize("antialias", (False, True))
def test_shapes_have_their_areas_and_centres(antialias):
    x, factors = whole(image_size=64, antialias=antialias, **SMALL)
    assert set(np.unique(x)) == {0, 1} if not antialias else len(np.unique(x)) == 17
    radius = 64 / 4 * np.array([0.5, 0.75, 1])[factors[:, 1]]
    area = np.array([AREAS[shape] for shape in SHAPES])[factors[:, 0]]
    np.testing.assert_allclose(x.sum((1, 2)), area * radius**2, rtol=0.04 if antialias else 0.15)
    symmetric = factors[:, 0] < 2
    expected = 64 * np.array([0.25, 0.5, 0.75])[factors[:, 3:]]
    np.testing.assert_allclose(centre_of(x)[symmetric], expected[symmetric], atol=0.1 if antialias else 0.5)


def test_ellipses_turn_against_the_clock_and_hearts_stand_upright_at_0():
    x, factors = whole(image_size=64, num_shapes=3, num_scales=1, num_angles=6, num_positions=1, antialias=True)
    points = np.arange(64) + 0.5 - 32
    for image, (shape, angle) in zip(x, factors, strict=True):
        xx, yy, xy = (np.sum(image * p) for p in (points**2, points[:, None] ** 2, -points * points[:, None]))
        if SHAPES[shape] == "ellipse":
            assert np.cos(2 * np.arctan2(2 * xy, xx - yy) / 2 - 2 * np.pi * angle / 3) == pytest.approx(1, abs=1e-3)
        if SHAPES[shape] == "heart" and angle == 0:
            np.testing.assert_array_equal(image, image[:, ::-1])
            assert image.sum(1)[:32].max() > image.sum(1)[32 + 8 :].max()  # it is wide above and narrow below


def test_a_quarter_turn_of_a_square_is_the_same_image():
    x, factors = whole(num_scales=2, num_angles=8, num_positions=2)
    squares = x[factors[:, 0] == 0].reshape(2, 8, 4, 32, 32)
    np.testing.assert_array_equal(squares[:, :2], squares[:, 2:4])
    assert (squares[:, 0] != squares[:, 1]).any()


def test_factors_of_one_value_are_not_listed_and_every_image_is_drawn_whole():
    data = sprites(num_shapes=1, num_scales=1, num_angles=1, num_positions=8, image_size=16)
    assert data.factors == ("x", "y") and data.train.factors.shape == (58, 2)
    assert np.all(data.train.x.sum((1, 2, 3)) >= 255 * 25)  # a square of 5.7 pixels


def test_classes_and_validation_keep_factors_and_examples_together():
    data = datasets.load("sprites", options=SMALL, classes=["heart"], validation_size=20)
    every = sprites(**SMALL)
    both = {tuple(f): x for x, f in zip(every.train.x, every.train.factors, strict=True)}
    assert len(data.validation.x) == 20 and set(data.train.factors[:, 0]) == {2}
    for split in (data.train, data.validation):
        for x, f in zip(split.x, split.factors, strict=True):
            np.testing.assert_array_equal(x, both[tuple(f)])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_shapes": 4}, "num_shapes is 4; expected a whole number from 1 to 3"),
        ({"image_size": 4}, "image_size is 4; expected a whole number from 8 to 256"),
        ({"num_angles": 0}, "num_angles is 0; expected positive whole numbers"),
        ({"num_angles": "many"}, "num_angles is 'many'; expected a whole number"),
        ({"antialias": 1}, "antialias is 1; expected true or false"),
        ({"angles": 3}, "Unknown option of sprites 'angles'. Did you mean 'num_angles'?"),
        ({"num_positions": 10**9}, "dataset_options"),
        (dict.fromkeys(("num_shapes", *SMALL), 1), "holds one example"),
    ],
)
def test_other_options_are_refused(options, words):
    with pytest.raises(UserError) as caught:
        datasets.load("sprites", options=options)
    assert words in str(caught.value)


def test_options_are_for_sprites():
    with pytest.raises(UserError, match="are for sprites; 'digits' takes none"):
        datasets.load("digits", options={"num_angles": 3})


def test_factors_of_a_file_stay_with_their_examples(tmp_path):
    number = np.arange(40, dtype=np.float32)
    x, f = np.stack([number, 2 * number], -1), np.stack([number % 3, number // 3], -1)
    np.savez(tmp_path / "a.npz", x=x, f=f)
    data = datasets.load(tmp_path / "a.npz", validation_size=5)
    assert data.factors == ("f_0", "f_1") and data.train.factors.dtype == np.int32
    for split in (data.train, data.validation, data.test):
        np.testing.assert_array_equal(split.factors[:, 0], split.x[:, 0] % 3)
    np.testing.assert_array_equal(datasets.load_whole(tmp_path / "a.npz").test.factors, f)
    np.savez(tmp_path / "b.npz", x_train=x, x_test=x[:9], f_train=f[:, 0], f_test=f[:9, 0])
    np.testing.assert_array_equal(datasets.load(tmp_path / "b.npz").test.factors, f[:9, :1])
    np.savez(tmp_path / "c.npz", x=x)
    bare = datasets.load(tmp_path / "c.npz", validation_size=5)
    assert bare.fingerprint == data.fingerprint and bare.factors == () and bare.train.factors is None


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (np.full(9, 0.5), "not whole numbers"),
        (np.full(9, np.nan), "not whole numbers"),
        (np.full(9, 2.0**40), "not whole numbers of 32 bits"),
        (np.zeros(8), "expected whole numbers of shape (9, F)"),
        (np.zeros((9, 0)), "expected whole numbers of shape (9, F)"),
        (np.full(9, "a"), "expected whole numbers of shape (9, F)"),
    ],
)
def test_other_factors_of_a_file_are_refused(tmp_path, f, words):
    np.savez(tmp_path / "a.npz", x=np.zeros((9, 2), np.float32), f=f)
    with pytest.raises(UserError) as caught:
        datasets.load(tmp_path / "a.npz")
    assert words in str(caught.value) and "a.npz" in str(caught.value)


def test_as_many_factors_in_both_splits(tmp_path):
    x = np.zeros((9, 2), np.float32)
    np.savez(tmp_path / "a.npz", x_train=x, x_test=x, f_train=np.zeros((9, 2)), f_test=np.zeros((9, 3)))
    with pytest.raises(UserError, match="expected as many factors in both"):
        datasets.load(tmp_path / "a.npz")
