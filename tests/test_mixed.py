"""Mixed tables: every column is a distribution of SciPy's, from the file to samples with the right types."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_within_errors
from scipy import stats
from scipy.special import expit, log_softmax, logit

from vae_jax.likelihoods import mixed
from vae_jax.missing import observed
from vae_jax.mixed import kind_of

COLUMNS = {
    "kind": {"category": ["a", "b", "c"]},
    "height": "real",
    "visits": "count",
    "grade": "ordinal:4",
    "income": "positive",
    "flag": "category:2",
    "size": {"ordinal": ["s", "m", "l"]},
}
SHAPE = (len(COLUMNS),)


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(0)
    n = 400
    columns = [
        rng.integers(0, 3, n),
        rng.normal(2, 1.5, n),
        rng.poisson(4, n),
        rng.choice(4, n, p=[0.1, 0.2, 0.3, 0.4]),
        rng.lognormal(1, 0.7, n),
        rng.random(n) < 0.2,
        rng.choice(3, n, p=[0.5, 0.3, 0.2]),
    ]
    return np.stack(columns, 1).astype(np.float32)


@pytest.fixture(scope="module")
def part():
    return mixed(SHAPE, columns=COLUMNS)


def cuts_of(params):
    params = {name: np.asarray(value, np.float64) for name, value in params.items()}
    gaps = np.log1p(np.exp(params["gaps"])) + 1e-4
    return params["cut"][:, None] + np.concatenate([np.zeros((2, 1)), np.cumsum(gaps, -1)], -1)


def exact(params, outputs, x):
    """log p of each column of x by SciPy, in float64."""
    o, x = np.asarray(outputs, np.float64), np.asarray(x, np.float64)
    sigma = np.exp(3 * np.tanh(o[..., 1] / 6))
    cuts = cuts_of(params)
    each = np.zeros(x.shape)
    take = lambda a, i: np.take_along_axis(a, i[..., None].astype(int), -1)[..., 0]  # noqa: E731
    each[..., 0] = take(log_softmax(o[..., 0, :3], -1), x[..., 0])
    each[..., 1] = stats.norm(o[..., 1, 0], sigma[..., 1]).logpdf(x[..., 1])
    each[..., 2] = stats.poisson(np.exp(o[..., 2, 0])).logpmf(x[..., 2])
    each[..., 4] = stats.lognorm(sigma[..., 4], scale=np.exp(o[..., 4, 0])).logpdf(x[..., 4])
    each[..., 5] = take(log_softmax(o[..., 5, :2], -1), x[..., 5])
    for place, row, num in ((3, 0, 4), (6, 1, 3)):
        ends = np.concatenate([[-np.inf], cuts[row, : num - 1], [np.inf]])
        p = np.diff(stats.logistic.cdf(ends[None] - o[..., place, 0].reshape(-1, 1)))
        each[..., place] = np.log(take(p.reshape(*x.shape[:-1], num), x[..., place]))
    return each


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_each_column_is_scipys(part, x, scale):
    outputs = (np.random.default_rng(1).normal(size=(400, *SHAPE, part.num_outputs)) * scale).astype(np.float32)
    params = jax.jit(part.init)(x)
    log_prob = jax.jit(lambda o: part.build(params, o).log_prob(x))
    expected = exact(params, outputs, x)
    np.testing.assert_allclose(log_prob(outputs), expected.sum(-1), rtol=2e-5, atol=2e-4)
    gaps = x.copy()
    gaps[np.random.default_rng(2).random(x.shape) < 0.4] = np.nan
    log_prob = jax.jit(lambda o: observed(part, SHAPE).build(params, o).log_prob(gaps))
    np.testing.assert_allclose(log_prob(outputs), np.where(np.isnan(gaps), 0, expected).sum(-1), rtol=2e-5, atol=2e-4)
    grad = np.asarray(jax.jit(jax.grad(lambda o: log_prob(o).sum()))(outputs))
    assert np.all(grad[np.isnan(gaps)] == 0) and np.all(np.isfinite(grad))


def test_the_values_of_a_category_have_the_probability_1(part, x):
    params = jax.jit(part.init)(x)
    outputs = jax.random.normal(jax.random.key(0), (5, *SHAPE, part.num_outputs)) * 3
    log_prob = jax.jit(lambda alone: observed(part, SHAPE).build(params, outputs).log_prob(alone))
    for place, num in ((0, 3), (3, 4), (5, 2), (6, 3)):
        alone = np.full((4, 5, *SHAPE), np.nan, np.float32)
        alone[:num, :, place] = np.arange(num)[:, None]
        np.testing.assert_allclose(np.exp(log_prob(alone)[:num]).sum(0), 1, rtol=1e-5)


def test_gradients_are_finite_at_extremes(part, x):
    params = jax.jit(part.init)(x)
    loss = lambda params, o: part.build(params, o).log_prob(x).sum()  # noqa: E731
    grad = jax.jit(jax.grad(loss, (0, 1)))
    for size in (-50.0, 0.0, 50.0):
        outputs = jnp.full((len(x), *SHAPE, part.num_outputs), size)
        assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(grad(params, outputs)))


def test_samples_have_the_moments_and_the_types(part, x, key):
    params = jax.jit(part.init)(x)
    outputs = jax.jit(lambda x: part.output_bias(part.average(x)))(x)
    p = part.build(params, outputs)
    draws = np.asarray(jax.jit(lambda key: p.sample(key, (20_000,)))(key), np.float64)
    assert_within_errors(draws[:, [0, 2, 3, 5, 6]], x[:, [0, 2, 3, 5, 6]].astype(np.float64).mean(0), errors=8)
    np.testing.assert_allclose(draws[:, 1].mean(), x[:, 1].mean(), atol=0.05)
    np.testing.assert_allclose(np.log(draws[:, 4]).mean(), np.log(x[:, 4]).mean(), atol=0.05)
    np.testing.assert_allclose(draws[:, 1].std(), x[:, 1].std(), rtol=0.05)
    for place, num in ((0, 3), (3, 4), (5, 2), (6, 3)):
        share = np.bincount(draws[:, place].astype(int), minlength=num) / len(draws)
        own = np.bincount(x[:, place].astype(int), minlength=num) / len(x)
        np.testing.assert_allclose(share, own, atol=0.03)
    mean = np.asarray(p.mean)
    assert mean[0] == np.bincount(x[:, 0].astype(int)).argmax() and mean[3] == 3 and mean[6] == 0
    w = jnp.array([[0.1, 0.9], [0.9, 0.1]])
    two = jax.tree.map(lambda a: jnp.broadcast_to(a, (2, 2, *a.shape)), p)
    np.testing.assert_allclose(two.mixture_mean(w), jnp.broadcast_to(mean, (2, *mean.shape)), rtol=1e-5)


def test_the_mean_of_a_mixture_of_categories_is_the_most_probable_value():
    part = mixed((1,), columns={"a": "category:3"})
    outputs = jnp.log(jnp.array([[0.5, 0.4, 0.1], [0.05, 0.4, 0.55], [0.1, 0.4, 0.5]]))[:, None, None, :]
    p = part.build({}, outputs)
    assert p.mean[:, 0, 0].tolist() == [0, 2, 2]
    assert p.mixture_mean(jnp.full((3, 1), 1 / 3)).tolist() == [[1]]


def test_the_cut_points_begin_at_the_frequencies(part, x):
    cuts = cuts_of(jax.jit(part.init)(x))
    for row, place, num in ((0, 3, 4), (1, 6, 3)):
        below = (np.cumsum(np.bincount(x[:, place].astype(int), minlength=num) + 1) / (400 + num))[:-1]
        np.testing.assert_allclose(cuts[row, : num - 1], logit(below), atol=2e-3)
        assert expit(cuts[row, 0]) == pytest.approx(below[0], abs=1e-3)


@pytest.mark.parametrize(
    "kind", ["Real", "category", "category:1", "ordinal:x", "real:3", 3, {"category": ["a"]}, {"real": ["a", "b"]}]
)
def test_other_kinds_are_refused(kind):
    with pytest.raises(ValueError, match=r"has the kind .*; expected real, positive"):
        kind_of("a", kind)
