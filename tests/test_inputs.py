"""What a model sees of a data set: v / 255, exact coin flips, labels as contexts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import build
from vae_jax.config import Config
from vae_jax.core import to_float
from vae_jax.data import files, inputs
from vae_jax.data.datasets import Dataset, Split
from vae_jax.data.inputs import binarize
from vae_jax.data.streaming import Stream
from vae_jax.errors import UserError

GREY = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 1)).astype(np.uint8)
LABEL = np.arange(30, dtype=np.int32) % 3


@pytest.fixture
def dataset():
    """Bytes with three labels, and the same images in every split."""
    return Dataset("grey", Split(GREY, LABEL), Split(GREY[:20], LABEL[:20]), Split(GREY[:10], LABEL[:10]))


@pytest.fixture
def floats():
    x = np.linspace(-1, 3, 40, dtype=np.float32).reshape(10, 4)
    return Dataset("floats", Split(x, None), None, Split(x[:3], None))


# bytes


@pytest.mark.parametrize("transform", (lambda f: f, jax.jit), ids=("eager", "jit"))
def test_a_byte_v_is_exactly_v_over_255(transform):
    x = transform(to_float)(jnp.arange(256, dtype=jnp.uint8))
    assert x.dtype == jnp.float32
    np.testing.assert_array_equal(x, (np.arange(256) / 255).astype(np.float32))


def test_floats_stay_as_they_are():
    x = jnp.array([-3.0, 0.1, 7.0])
    np.testing.assert_array_equal(to_float(x), x)


# binarisation

DRAWS = 1_000_000


@pytest.mark.parametrize("value", (0, 1))
def test_black_is_never_and_white_is_always_set(key, value):
    assert np.all(binarize(key, jnp.full(DRAWS, float(value))) == value)


@pytest.mark.parametrize("v", (1, 2, 64, 127, 128, 200, 253, 254))
def test_a_pixel_is_set_with_the_probability_of_its_value(key, v):
    p = v / 255
    frequency = np.asarray(jax.jit(binarize)(key, jnp.full(DRAWS, p)), np.float64).mean()
    assert abs(frequency - p) < 5 * np.sqrt(p * (1 - p) / DRAWS)


def test_the_probability_is_the_value_to_within_a_float():
    """Of the uniform floats m / 2^23, exactly ceil(2^23 x) lie below x."""
    x = np.asarray(to_float(jnp.arange(256, dtype=jnp.uint8)))
    uniforms = np.arange(2**23, dtype=np.float32) / np.float32(2**23)
    below = np.searchsorted(uniforms, x, side="left")
    np.testing.assert_array_equal(below, np.ceil(x.astype(np.float64) * 2**23))
    assert np.all(np.abs(below / 2**23 - x) < 2**-23)
    assert below[0] == 0 and below[255] == 2**23


def test_uniform_floats_are_multiples_of_2_to_the_minus_23_below_1(key):
    m = np.asarray(jax.random.uniform(key, (DRAWS,)), np.float64) * 2**23
    np.testing.assert_array_equal(m, np.round(m))
    assert m.min() >= 0 and m.max() < 2**23


def test_pixels_are_drawn_independently(key):
    x = np.asarray(binarize(key, jnp.full((100_000, 2, 2), 0.5))).reshape(-1, 4)
    correlation = np.corrcoef(x, rowvar=False)
    assert np.all(np.abs(correlation - np.eye(4)) < 5 / np.sqrt(len(x)))


def test_dynamic_binarisation_is_another_draw_with_another_key(dataset):
    prepare = inputs.make_prepare(Config(binarization="dynamic"))
    one, again, other = (prepare(jax.random.key(seed), jnp.asarray(GREY)) for seed in (0, 0, 1))
    assert set(np.unique(one)) == {0.0, 1.0} and one.dtype == jnp.float32
    np.testing.assert_array_equal(one, again)
    assert np.any(one != other)


@pytest.mark.parametrize("binarization", ("none", "static"))
def test_the_other_preparations_ignore_the_key(key, binarization):
    prepare = inputs.make_prepare(Config(binarization=binarization))
    np.testing.assert_array_equal(prepare(key, jnp.asarray(GREY)), to_float(jnp.asarray(GREY)))


# splits


@pytest.mark.parametrize("binarization", ("dynamic", "static"))
def test_evaluation_binarises_once_for_good_and_each_split_anew(dataset, binarization):
    config = Config(binarization=binarization)
    test, again = (inputs.evaluation_examples(dataset, "test", config).x for _ in range(2))
    np.testing.assert_array_equal(test, again)
    assert set(np.unique(test)) == {0.0, 1.0}
    train, validation = (inputs.evaluation_examples(dataset, split, config).x for split in ("train", "validation"))
    assert np.any(train[:10] != test) and np.any(train[:10] != validation[:10]) and np.any(validation[:10] != test)


def test_the_binarised_test_split_is_that_of_every_run(dataset):
    splits = [
        inputs.evaluation_examples(dataset, "test", Config(binarization=binarization, seed=seed)).x
        for binarization in ("dynamic", "static")
        for seed in (0, 1)
    ]
    assert all(np.array_equal(split, splits[0]) for split in splits)


def test_without_binarisation_evaluation_sees_the_data(dataset, floats):
    np.testing.assert_array_equal(
        inputs.evaluation_examples(dataset, "test", Config()).x, (GREY[:10] / 255).astype(np.float32)
    )
    np.testing.assert_array_equal(inputs.evaluation_examples(floats, "test", Config()).x, floats.test.x)


def test_training_examples_are_stored_as_they_came(dataset, floats):
    for binarization in ("none", "dynamic"):
        examples = inputs.training_examples(dataset, Config(binarization=binarization))
        assert examples.x.dtype == jnp.uint8 and examples.context is None
        np.testing.assert_array_equal(examples.x, GREY)
    np.testing.assert_array_equal(inputs.training_examples(floats, Config()).x, floats.train.x)


def test_static_training_examples_are_binarised_before_they_are_stored(dataset):
    config = Config(binarization="static")
    x = inputs.training_examples(dataset, config).x
    assert set(np.unique(x)) == {0.0, 1.0}
    np.testing.assert_array_equal(x, inputs.evaluation_examples(dataset, "train", config).x)
    np.testing.assert_array_equal(inputs.make_prepare(config)(jax.random.key(0), x), x)


@pytest.mark.parametrize("split", ("validation", "tset"))
def test_a_split_that_is_not_there_is_one_line_of_error(floats, split):
    with pytest.raises(UserError, match=rf"no split '{split}'\. Choose one of: train, test\.$"):
        inputs.evaluation_examples(floats, split, Config())


# levels

SIXTEENTHS = np.arange(17, dtype=np.float32).repeat(2).reshape(17, 2) / 16
BITS = np.array([[0, 255], [255, 0]], np.uint8)
OWN_DATA = np.array([[0.1234, 0.5]], np.float32)


def check_levels(dataset, config):
    likelihood = build.make_likelihood(config, dataset.train.x.shape[1:])
    return inputs.check_levels(dataset, config, likelihood.num_levels)


def levels(likelihood, num=None, **changes):
    options = {} if num is None else {"num_levels": num}
    return Config(likelihood=likelihood, likelihood_options=options, **changes)


def of(*parts):
    return Dataset("own", Split(parts[0], None), None, Split(parts[-1], None))


@pytest.mark.parametrize(
    "x, config",
    (
        (SIXTEENTHS, levels("categorical", 17)),
        (SIXTEENTHS, levels("categorical", 33)),
        (SIXTEENTHS, levels("categorical", 2, binarization="dynamic")),
        (SIXTEENTHS, levels("bernoulli")),
        (OWN_DATA, levels("gaussian")),
        (OWN_DATA, levels("discretized_logistic", binarization="static")),
        (GREY, levels("discretized_logistic")),
        (GREY, levels("categorical", 511)),
        ((GREY / 255).astype(np.float32), levels("categorical")),
        (GREY // 15 * 15, levels("categorical", 18)),
        (BITS, levels("categorical", 2)),
        (BITS, levels("categorical", 100)),
    ),
)
def test_data_on_the_levels_of_a_likelihood_is_taken(x, config):
    check_levels(of(x), config)


@pytest.mark.parametrize(
    "parts, config, holds, fitting",
    (
        ([SIXTEENTHS], levels("categorical", 2), "0.0625", ("categorical", 17)),
        ([SIXTEENTHS], levels("discretized_logistic"), "0.0625", ("categorical", 17)),
        ([SIXTEENTHS[[0, 16]], SIXTEENTHS], levels("categorical", 2), "0.0625", ("categorical", 17)),
        ([SIXTEENTHS[::4]], levels("categorical"), "0.25", ("categorical", 5)),
        ([GREY], levels("categorical", 17), "0.", ("discretized_logistic", None)),
        ([GREY // 15 * 15], levels("categorical", 17), "0.", ("categorical", 18)),
        ([OWN_DATA], levels("categorical"), "0.1234", ("gaussian_scalar", None)),
    ),
)
def test_data_off_the_levels_is_one_line_of_error_whose_advice_works(parts, config, holds, fitting):
    with pytest.raises(UserError) as caught:
        check_levels(of(*parts), config)
    (message,) = str(caught.value).splitlines()
    assert f"likelihood '{config.likelihood}' needs data of " in message and f"own holds {holds}" in message
    assert f"--config.likelihood={fitting[0]} " in message and "--config.binarization=dynamic" in message
    assert fitting[1] is None or f"""--config.likelihood_options='{{"num_levels": {fitting[1]}}}'""" in message
    check_levels(of(*parts), levels(*fitting))


def test_data_outside_0_to_1_is_left_to_the_check_of_its_range(floats):
    check_levels(floats, levels("categorical"))


@pytest.mark.parametrize("x, num, taken", ((GREY, 256, True), (GREY, 17, False), (SIXTEENTHS, 17, False)))
def test_of_a_stream_bytes_alone_are_known_to_be_levels(x, num, taken):
    scale = 1 if x.dtype == np.float32 else 255
    stream = Stream(None, np.array([[0, len(x)]]), x, (0.0, float(scale)), "")
    dataset = of(x)._replace(stream=stream)
    if taken:
        return check_levels(dataset, levels("categorical", num))
    with pytest.raises(UserError, match=r"is a stream of \w+, .* Save x as uint8 .*--config\.stream=false\.$"):
        check_levels(dataset, levels("categorical", num))


# labels


LABELS = {"in a row": (0, 1, 2), "apart": (3, 7, 9), "far apart": (0, 1, 255), "very large": (5, 8, 2_000_000_000)}


@pytest.mark.parametrize("labels", LABELS.values(), ids=list(LABELS))
def test_a_conditional_vae_gets_one_hot_labels_of_the_classes_that_occur(dataset, labels):
    """Not of all numbers up to the largest label: a class without examples is never trained."""
    label = np.array(labels, np.int32)[LABEL]
    own = Dataset("own", *(Split(part.x, label[: len(part.x)]) for part in dataset[1:4]))
    config = Config(conditional=True)
    classes = inputs.describe(own, config, None).classes
    assert classes == labels
    expected = np.eye(3)[LABEL]
    np.testing.assert_array_equal(inputs.training_examples(own, config, classes).context, expected)
    np.testing.assert_array_equal(inputs.evaluation_examples(own, "test", config, classes).context, expected[:10])
    assert inputs.evaluation_examples(own, "test", Config()).context is None


def test_labels_of_some_classes_are_fine_and_others_are_named(dataset):
    config = Config(conditional=True)
    few = inputs.evaluation_examples(dataset, "test", config, (0, 1, 2, 5, 8)).context
    np.testing.assert_array_equal(few, np.eye(5)[LABEL[:10]])
    with pytest.raises(UserError, match=r"has the label 1; the VAE knows the classes 0, 2\. Give examples of these"):
        inputs.evaluation_examples(dataset, "test", config, (0, 2))


def test_contexts_that_memory_cannot_hold_are_refused(dataset, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 100)
    with pytest.raises(UserError, match=r"10 examples of 3 classes: .* take 120 bytes, and the limit here is 100"):
        inputs.evaluation_examples(dataset, "test", Config(conditional=True), (0, 1, 2))


def test_classes_for_a_person():
    assert inputs.show_classes(tuple(range(10))) == "the classes 0 to 9"
    assert inputs.show_classes((3, 7)) == "the classes 3, 7" and inputs.show_classes((4,)) == "the classes 4"


def test_describe_says_what_a_model_needs_to_know(dataset, floats, tmp_path):
    info = inputs.describe(dataset, Config(conditional=True), str(tmp_path))
    assert info.shape == (4, 4, 1) and info.classes == (0, 1, 2)
    assert info.range == (GREY.min() / 255, GREY.max() / 255)
    assert (info.num_train, info.num_validation, info.num_test) == (30, 20, 10)
    assert info.fingerprint == dataset.fingerprint and info.data_dir == str(tmp_path)
    info = inputs.describe(floats, Config(), None)
    assert info.shape == (4,) and info.classes == () and info.range == (-1.0, 3.0)
    assert (info.num_train, info.num_validation, info.num_test) == (10, 0, 3)
    assert info.data_dir is None
