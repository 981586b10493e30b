"""Likelihoods of counts equal SciPy's and NumPyro's, from single counts to millions, and their draws are exact."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_within_errors, lenient
from scipy import stats
from scipy.special import log_softmax, softmax

from vae_jax import config, counts, likelihoods

with lenient():
    import numpyro.distributions as dist

X = np.array([0, 1, 2, 7, 8, 50, 1e3, 1e5, 1e6], np.float32)
LOG_MEAN = np.concatenate([np.linspace(-10, 14, 49), np.log([1e3, 1e5, 1e6]), [13.8]]).astype(np.float32)
LOG_R = np.linspace(-5, 6, 23).astype(np.float32)
NEGATIVE = ("negative_binomial", "zero_inflated_negative_binomial")

either = pytest.mark.parametrize("name", NEGATIVE)
poisson_log_prob = jax.jit(counts.poisson_log_prob)
negative_binomial_log_prob = jax.jit(counts.negative_binomial_log_prob)


def grid(*axes):
    return (a.reshape(-1) for a in np.meshgrid(*axes, indexing="ij"))


def nbinom(log_mean, log_r):
    mean, r = np.exp(np.float64(log_mean)), np.exp(np.float64(log_r))
    return stats.nbinom(r, r / (r + mean))


def assert_close(log_prob, expected):
    """Within 1e-5, or 4e-4 nats. With jaxlib 0.10 the last bit of a logarithm depends on the processor."""
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5, atol=4e-4)


def test_poisson_is_scipys():
    x, log_rate = grid(X, LOG_MEAN)
    assert_close(poisson_log_prob(x, log_rate), stats.poisson(np.exp(np.float64(log_rate))).logpmf(x))


def test_negative_binomial_is_scipys():
    x, log_mean, log_r = grid(X, LOG_MEAN, LOG_R)
    assert_close(negative_binomial_log_prob(x, log_mean, log_r), nbinom(log_mean, log_r).logpmf(x))


@pytest.mark.parametrize("mean", (30.0, 1e3, 1e5, 1e6))
def test_where_the_mass_is_the_error_is_smaller(mean):
    log_mean = np.float32(np.log(mean))
    x = np.unique(np.rint(mean + mean**0.5 * np.linspace(-5, 5, 201))).astype(np.float32)
    expected = stats.poisson(np.exp(np.float64(log_mean))).logpmf(x)
    atol = max(5e-4, 1.5e-9 * mean)  # a bit of a logarithm, times the mean
    np.testing.assert_allclose(poisson_log_prob(x, np.full_like(x, log_mean)), expected, atol=atol)
    some, six = np.full_like(x, log_mean), np.full_like(x, 6)
    np.testing.assert_allclose(negative_binomial_log_prob(x, some, six), nbinom(log_mean, 6).logpmf(x), atol=5e-5)


def test_gradients_are_finite_and_right_wherever_the_outputs_are():
    x, log_mean, log_r = grid(
        np.float32([0, 1, 7, 8, 1e6]), np.float32([-1e4, -50, 0, 3, 50, 59]), np.float32([-5, 0, 6])
    )
    slope = jax.jit(jax.vmap(jax.grad(counts.poisson_log_prob, 1)))(x, log_mean)
    m = np.exp(np.float64(log_mean))
    np.testing.assert_allclose(slope, x - m, rtol=1e-5, atol=1e-5)
    slopes = jax.jit(jax.vmap(jax.grad(counts.negative_binomial_log_prob, (1, 2))))(x, log_mean, log_r)
    r = np.exp(np.float64(log_r))
    np.testing.assert_allclose(slopes[0], r * (x - m) / (m + r), rtol=1e-5, atol=1e-5)
    assert np.isfinite(slopes[1]).all()


def test_the_slope_of_the_dispersion_is_that_of_scipy():
    x, log_mean, log_r = grid(X, np.float32([-3, 0.5, 6, 13]), LOG_R)
    slope = jax.jit(jax.vmap(jax.grad(counts.negative_binomial_log_prob, 2)))(x, log_mean, log_r)
    step = 1e-4
    up, down = (nbinom(log_mean, np.float64(log_r) + sign * step).logpmf(x) for sign in (1, -1))
    np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("name, shares", [("poisson", False), *((name, s) for name in NEGATIVE for s in (False, True))])
@pytest.mark.parametrize("extreme", (-1e6, -50, 50, 1e6))
def test_extreme_outputs_and_parameters_give_finite_losses_and_gradients(name, shares, extreme):
    likelihood = getattr(likelihoods, name)((4,), **({"shares": True} if shares else {}))
    x = jnp.array([[0.0, 1, 7, 1e6], [0, 0, 0, 0]])
    params = jax.tree.map(lambda a: jnp.full_like(a, extreme), likelihood.init(x))
    outputs = jnp.full((2, 4, likelihood.num_outputs), extreme, jnp.float32).at[:, 0].set(0)
    loss = lambda params, outputs: likelihood.build(params, outputs).log_prob(x).sum()  # noqa: E731
    value, slopes = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, outputs)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, slopes)))


def negative(name, shares=False, size=5, seed=0):
    """A likelihood with its parameters and its outputs, and log r and the outputs in float64."""
    likelihood = getattr(likelihoods, name)((size,), shares=shares)
    rng = np.random.default_rng(seed)
    x = rng.negative_binomial(2, 0.1, (60, size)).astype(np.float32)
    params = likelihood.init(jnp.asarray(x))
    outputs = rng.normal(1, 1, (7, size, likelihood.num_outputs)).astype(np.float32)
    log_r = 6 * np.tanh(np.asarray(params["log_r"], np.float64) / 6)
    return likelihood, params, outputs, log_r, x[:7]


@either
def test_both_are_numpyros(name):
    likelihood, params, outputs, log_r, x = negative(name)
    x[:, 0] = 0
    with lenient():
        mean, r = np.exp(outputs[..., 0]), np.exp(log_r).astype(np.float32)
        if name == "negative_binomial":
            other = dist.NegativeBinomial2(mean, r)
        else:
            other = dist.ZeroInflatedNegativeBinomial2(mean, r, gate_logits=outputs[..., 1])
        expected, expected_mean = other.log_prob(x.astype(np.int32)).sum(-1), other.mean
    p = likelihood.build(params, jnp.asarray(outputs))
    np.testing.assert_allclose(p.log_prob(x), expected, rtol=2e-5)
    np.testing.assert_allclose(p.mean, expected_mean, rtol=1e-5)


@either
def test_shares_are_of_the_total_of_the_value(name):
    likelihood, params, outputs, log_r, x = negative(name, shares=True)
    x[0] = 0  # an empty example counts as one of total 1
    total = np.maximum(x.sum(1, keepdims=True, dtype=np.float64), 1)
    each = nbinom(log_softmax(np.float64(outputs[..., 0]), -1) + np.log(total), log_r).logpmf(x)
    if name != "negative_binomial":
        logits = np.float64(outputs[..., 1])
        each = np.where(x == 0, np.logaddexp(logits, each), each) - np.log1p(np.exp(logits))
    p = likelihood.build(params, jnp.asarray(outputs))
    np.testing.assert_allclose(p.log_prob(x), each.sum(1), rtol=1e-5)
    draws = np.repeat(x[None], 3, 0) * np.float32([[[1]], [[0]], [[2]]])
    np.testing.assert_allclose(jax.jit(p.log_prob)(draws), [p.log_prob(one) for one in draws], rtol=1e-5)


@either
def test_the_mean_and_samples_of_shares_are_of_the_average_total(name, key):
    likelihood, params, outputs, *_ = negative(name, shares=True)
    p = likelihood.build(params, jnp.asarray(outputs[:2]))
    total = float(jnp.exp(params["log_total"]))
    x = np.random.default_rng(0).negative_binomial(2, 0.1, (60, 5))
    assert total == pytest.approx(x.sum(1).mean(), rel=1e-5)
    expected = softmax(np.float64(outputs[:2, :, 0]), -1) * total
    if name != "negative_binomial":
        expected /= 1 + np.exp(np.float64(outputs[:2, :, 1]))
    np.testing.assert_allclose(p.mean, expected, rtol=1e-5)
    assert_within_errors(jax.jit(lambda key: p.sample(key, (5_000,)))(key), p.mean)
    slopes = jax.grad(lambda params: likelihood.build(params, jnp.asarray(outputs[:2])).mean.sum())(params)
    assert slopes["log_total"] == 0


def test_a_sure_excess_of_no_zeros_leaves_the_plain_one():
    likelihood, params, outputs, _, x = negative("zero_inflated_negative_binomial")
    plain = likelihoods.negative_binomial((5,)).build(params, jnp.asarray(outputs[..., :1]))
    outputs[..., 1] = -100
    np.testing.assert_array_equal(likelihood.build(params, jnp.asarray(outputs)).log_prob(x), plain.log_prob(x))
    outputs[..., 1], x = 0.7, x + 1  # where nothing is 0, each element is half as likely, about
    np.testing.assert_allclose(
        likelihood.build(params, jnp.asarray(outputs)).log_prob(x), plain.log_prob(x) - 5 * np.log1p(np.exp(0.7)), 1e-5
    )


@pytest.mark.parametrize("name", config.COUNTS)
def test_counts_sum_to_one(name):
    likelihood = getattr(likelihoods, name)((1,))
    params = likelihood.init(jnp.array([[1.0], [4], [9]]))
    p = likelihood.build(params, jnp.asarray(np.full((1, likelihood.num_outputs), 1.2, np.float32)))
    x = np.arange(3_000, dtype=np.float32)[:, None]
    np.testing.assert_allclose(np.exp(np.float64(p.log_prob(x))).sum(), 1, rtol=1e-5)


@cache
def draws(rate):
    log_rate = np.float32(np.log(rate))
    x = jax.jit(counts.sample_poisson)(jax.random.key(3), jnp.full(50_000, log_rate))
    return stats.poisson(np.exp(np.float64(log_rate))), np.asarray(x, np.float64)


@pytest.mark.parametrize("rate", (0.01, 3, 9.99, 10, 1e3, 1e6))
def test_draws_of_a_poisson_have_its_distribution(rate):
    """With a uniform number added to each draw, P(X < x) + u P(X = x) is uniform. 1.95 has a p-value of 0.001."""
    p, x = draws(rate)
    u = p.cdf(x - 1) + np.random.default_rng(0).uniform(size=len(x)) * p.pmf(x)
    assert stats.kstest(u, "uniform").statistic * len(x) ** 0.5 < 1.95
    np.testing.assert_array_equal(x, np.rint(x))


@pytest.mark.parametrize("mean, log_r", ((0.3, -4.0), (20.0, 0.0), (1e5, -1.0), (1e5, 5.9)))
def test_draws_of_a_negative_binomial_have_its_distribution(mean, log_r, key):
    log_mean = np.float32(np.log(mean))
    p = counts.NegativeBinomial(jnp.full(1, log_mean), jnp.full(1, log_r))
    x = np.asarray(jax.jit(lambda key: p.sample(key, (50_000,)))(key), np.float64)[:, 0]
    other = nbinom(log_mean, np.float32(log_r))
    u = other.cdf(x - 1) + np.random.default_rng(0).uniform(size=len(x)) * other.pmf(x)
    assert stats.kstest(u, "uniform").statistic * len(x) ** 0.5 < 1.95


def test_draws_of_enormous_rates_are_finite(key):
    p = likelihoods.poisson((3,)).build({}, jnp.array([[-1e6], [50.0], [1e6]]))
    x = p.sample(key, (100,))
    assert np.isfinite(x).all() and np.all(x[:, 0] == 0) and np.all(x[:, 1:] > 1e21)


@pytest.mark.parametrize("shares", (False, True))
def test_the_dispersion_begins_at_the_moments_of_the_data(shares):
    rng = np.random.default_rng(0)
    r, share = np.array([0.2, 1, 5]), np.array([0.005, 0.003, 0.002])
    total = rng.integers(10_000, 40_000, (20_000, 1)) if shares else 20_000
    x = rng.poisson(share * total * rng.gamma(r, 1 / r, (20_000, 3)))
    if shares:  # a last element makes up the total
        x = np.concatenate([x, np.maximum(total - x.sum(1, keepdims=True), 0)], 1)
    x = x.astype(np.float32)
    likelihood = likelihoods.negative_binomial((x.shape[1],), shares=shares)
    log_r = 6 * np.tanh(likelihood.init(jnp.asarray(x))["log_r"] / 6)
    np.testing.assert_allclose(log_r[:3], np.log(r), atol=0.1)
    assert (
        likelihood.init(jnp.ones((9, x.shape[1])))["log_r"].max() < 11
    )  # no more than Poisson: it can still be learned


def test_the_bias_of_shares_is_their_log():
    x = np.array([[3, 1, 0], [5, 3, 0]], np.float32)
    likelihood = likelihoods.negative_binomial((3,), shares=True)
    bias = likelihood.output_bias(likelihood.average(jnp.asarray(x)))[:, 0]
    np.testing.assert_allclose(softmax(bias), np.array([8, 4, 0.5]) / 12.5, rtol=1e-5)


def test_the_likelihoods_of_counts_are_those_of_whole_numbers():
    made = {name: getattr(likelihoods, name)((2,)) for name in likelihoods.NAMES if name != "mixed"}
    assert {name for name, likelihood in made.items() if likelihood.whole} == set(config.COUNTS)
    for name in config.COUNTS:
        assert made[name].support == (0, np.inf) and made[name].independent
        np.testing.assert_allclose(made[name].features(jnp.array([[0.0, 9]])), np.log([[1, 10]]), rtol=1e-6)
    assert not any(getattr(likelihoods, name)((2,), shares=True).independent for name in NEGATIVE)
