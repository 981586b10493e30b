"""Every likelihood is a normalised density of SciPy's, whose mean the output bias sets."""

from dataclasses import replace
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_within_errors, members
from scipy import stats
from scipy.special import expit, log_softmax, logsumexp

from vae_jax import likelihoods
from vae_jax.logistics import LogisticMixture
from vae_jax.reals import MAX_LOG_VAR, TINY, LogNormal, StudentT


def logistic(outputs, log_var, x):
    return bytes_of_logistic(x, outputs[..., 0], outputs[..., 1])


def bytes_of_logistic(x, location, output):
    reference = stats.logistic(location, np.exp(bounded(output) - 2))
    below = np.where(x < 0.5 / 255, 0, reference.cdf(x - 0.5 / 255))
    return np.log(np.where(x > 1 - 0.5 / 255, 1, reference.cdf(x + 0.5 / 255)) - below)


def nbinom(outputs, log_r, x):
    mean, r = np.exp(outputs[..., 0]), np.exp(bounded(LOG_R + log_r))
    return stats.nbinom(r, r / (r + mean)).logpmf(x)


def inflated(outputs, log_r, x):
    log_p = nbinom(outputs, log_r, x)
    return np.where(x == 0, np.logaddexp(outputs[..., 1], log_p), log_p) - np.log1p(np.exp(outputs[..., 1]))


def levels(outputs, log_var, x):
    chosen = np.round(x * (outputs.shape[-1] - 1)).astype(int)[..., None]
    return np.take_along_axis(log_softmax(outputs, -1), chosen, -1)[..., 0]


def student_t(outputs, log_var, x):
    location, scale, df = outputs[..., 0], np.exp(0.5 * bounded(outputs[..., 1])), 3 + np.logaddexp(0, outputs[..., 2])
    return stats.t(df, location, scale).logpdf(x)


def mixture(outputs, log_var, x):
    """log p of every pixel, component by component and channel by channel."""
    channels, k = x.shape[-1] if x.ndim == 5 else 1, NUM_COMPONENTS
    x = x.reshape(-1, channels)
    o = outputs.reshape(len(x), -1)
    logits, rest = o[:, :k], o[:, k:]
    at, scale = (rest[:, i * channels * k :][:, : channels * k].reshape(-1, channels, k) for i in (0, 1))
    slopes = iter(np.tanh(rest[:, (2 * channels + i) * k :][:, :k]) for i in range(channels * (channels - 1) // 2))
    total = log_softmax(logits, -1)
    for c in range(channels):
        location = at[:, c] + sum(next(slopes) * (x[:, [j]] - 0.5) for j in range(c))
        total = total + bytes_of_logistic(x[:, [c]], location, scale[:, c])
    return logsumexp(total, -1)


def log_normal(outputs, log_var, x):
    return stats.lognorm(np.exp(0.5 * bounded(outputs[..., 1]) - 1), scale=np.exp(outputs[..., 0])).logpdf(x)


NUM_COMPONENTS = 3

# Each with its options, and log p of every element of x from the outputs of the decoder and log_var, in float64.
LIKELIHOODS = {
    "bernoulli": ({}, lambda outputs, log_var, x: stats.bernoulli(expit(outputs[..., 0])).logpmf(np.round(x))),
    "categorical": ({"num_levels": 5}, levels),
    "continuous_bernoulli": (
        {},
        lambda outputs, log_var, x: outputs[..., 0] * x - np.log(np.expm1(outputs[..., 0]) / outputs[..., 0]),
    ),
    "discretized_logistic": ({}, logistic),
    "gaussian": ({"sigma": 0.3}, lambda outputs, log_var, x: stats.norm(outputs[..., 0], 0.3).logpdf(x)),
    "gaussian_scalar": (
        {},
        lambda outputs, log_var, x: stats.norm(outputs[..., 0], np.exp(0.5 * bounded(log_var))).logpdf(x),
    ),
    "gaussian_pixel": (
        {},
        lambda outputs, log_var, x: stats.norm(outputs[..., 0], np.exp(0.5 * bounded(outputs[..., 1]))).logpdf(x),
    ),
    "laplace": (
        {},
        lambda outputs, log_var, x: stats.laplace(outputs[..., 0], np.exp(0.5 * bounded(log_var)) / 2**0.5).logpdf(x),
    ),
    "log_normal": ({}, log_normal),
    "logistic_mixture": ({"num_components": NUM_COMPONENTS}, mixture),
    "negative_binomial": ({}, nbinom),
    "poisson": ({}, lambda outputs, log_var, x: stats.poisson(np.exp(outputs[..., 0])).logpmf(x)),
    "student_t": ({}, student_t),
    "zero_inflated_negative_binomial": ({}, inflated),
}
DISCRETE = {"bernoulli": 2, "categorical": 5, "discretized_logistic": 256, "logistic_mixture": 256}
REAL = {"gaussian", "gaussian_pixel", "gaussian_scalar", "laplace", "student_t"}
COUNTS = ("negative_binomial", "poisson", "zero_inflated_negative_binomial")  # more of them in test_counts.py
LOG_R = 6 * np.arctanh(0.95)  # where log r begins for data of no more variance than a Poisson
SHAPES = ((3,), (4, 5, 1), (4, 4, 3))

every = pytest.mark.parametrize("name", LIKELIHOODS)
gaussians = pytest.mark.parametrize("name", [name for name in LIKELIHOODS if name.startswith("gaussian")])
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def bounded(log_var):
    return MAX_LOG_VAR * np.tanh(log_var / MAX_LOG_VAR)


def make(name, shape):
    """A likelihood and its parameters, moved from where they begin."""
    likelihood = getattr(likelihoods, name)(shape, **LIKELIHOODS[name][0])
    start = likelihood.init(jnp.zeros((2, *shape)).at[0].set(2.0))  # of variance 1
    return likelihood, jax.tree.map(lambda a: a - 0.7, start)


def random_outputs(likelihood, *shape):
    return np.random.default_rng(0).normal(0.5, 0.3, size=(*shape, likelihood.num_outputs)).astype(np.float32)


def least(likelihood):
    """0, or where x must be positive, a little more."""
    return 1e-3 if likelihood.support == (TINY, np.inf) else 0.0


def bias_and_its_mean(likelihood, params, x):
    outputs = likelihood.output_bias(likelihood.average(x))
    return outputs, likelihood.build(params, outputs).mean


def test_every_likelihood_of_the_module_is_tested_here():
    assert members(likelihoods, "Likelihood") == {*LIKELIHOODS, "mixed"}  # for mixed see test_mixed.py


@every
@shapes
def test_log_prob_is_the_sum_of_scipys_over_an_example(name, shape, key):
    likelihood, params = make(name, shape)
    outputs = random_outputs(likelihood, 2, 6, *shape)
    p = likelihood.build(params, jnp.asarray(outputs))
    x, log_prob = jax.jit(lambda key: (x := p.sample(key), p.log_prob(x)))(key)
    elements = LIKELIHOODS[name][1](outputs.astype(np.float64), -0.7, np.asarray(x, np.float64))
    np.testing.assert_allclose(log_prob, elements.reshape(2, 6, -1).sum(-1), rtol=1e-5, atol=1e-4)


@every
def test_samples_have_the_shape_and_the_mean(name, key):
    likelihood, params = make(name, shape := (4, 5, 1))
    outputs = jnp.asarray(random_outputs(likelihood, 2, *shape))
    p = likelihood.build(params, outputs)
    x = jax.jit(lambda key: p.sample(key, (2_000,)))(key)
    assert x.shape == (2_000, 2, *shape) and p.mean.shape == (2, *shape)
    assert_within_errors(x, p.mean)


@every
def test_one_set_of_outputs_scores_a_batch_of_samples(name):
    likelihood, params = make(name, (4, 5, 1))
    p = likelihood.build(params, jnp.asarray(random_outputs(likelihood, 2, 4, 5, 1)))
    x = np.ones((7, 2, 4, 5, 1), np.float32)
    np.testing.assert_allclose(p.log_prob(x), np.broadcast_to(p.log_prob(x[0]), (7, 2)), rtol=1e-6)


def test_bernoulli_sums_to_one():
    likelihood, params = make("bernoulli", (3,))
    every_x = np.array(list(product((0, 1), repeat=3)), np.float32)
    p = likelihood.build(params, jnp.asarray(random_outputs(likelihood, 3)))
    np.testing.assert_allclose(np.exp(p.log_prob(every_x)).sum(), 1, rtol=1e-6)


@pytest.mark.parametrize("name, num_levels", DISCRETE.items())
def test_discrete_likelihoods_sum_to_one(name, num_levels):
    likelihood, params = make(name, (1,))
    x = np.linspace(0, 1, num_levels, dtype=np.float32)[:, None]
    p = likelihood.build(params, jnp.asarray(random_outputs(likelihood, 1)))
    np.testing.assert_allclose(np.exp(p.log_prob(x)).sum(), 1, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in LIKELIHOODS if name not in (*DISCRETE, *COUNTS)])
def test_densities_integrate_to_one(name):
    likelihood, params = make(name, (1,))
    line = np.linspace(-15, 15, 20_001)
    x = {None: np.sinh(line), (TINY, np.inf): np.exp(line), (0.0, 1.0): np.linspace(0, 1, 20_001)}[likelihood.support]
    x = x.astype(np.float32)
    density = np.exp(likelihood.build(params, jnp.asarray(random_outputs(likelihood, 1))).log_prob(x[:, None]))
    np.testing.assert_allclose(np.trapezoid(density, x), 1, rtol=1e-4)


@every
def test_the_output_bias_gives_the_mean_of_the_data(name):
    likelihood, params = make(name, shape := (4, 5, 1))
    x = np.random.default_rng(0).beta(1, 2, (300, *shape))
    x = np.maximum(np.round(4 * x) / 4, least(likelihood)).astype(np.float32)
    outputs, model_mean = jax.jit(bias_and_its_mean, static_argnums=0)(likelihood, params, x)
    assert outputs.shape == (*shape, likelihood.num_outputs)
    seen = np.concatenate([x, np.linspace(0, 1, 5).repeat(20).reshape(5, *shape)]) if name == "categorical" else x
    np.testing.assert_allclose(model_mean, seen.mean(0), rtol=1e-4)


def test_the_output_bias_of_levels_is_how_often_each_occurs():
    x = np.random.default_rng(0).integers(0, 4, (50, 2, 3)) * np.array([[1], [0]])
    likelihood = likelihoods.categorical((2, 3), num_levels=5)
    outputs = jax.jit(lambda x: likelihood.output_bias(likelihood.average(x)))(jnp.asarray(x / 4, jnp.float32))
    count = np.stack([np.sum(x == level, 0) for level in range(5)], -1)
    np.testing.assert_allclose(outputs, np.log((count + 1) / 55), rtol=1e-5)


@every
def test_the_output_bias_is_finite_where_every_example_is_0_or_1(name):
    likelihood, params = make(name, (2,))
    x = jnp.broadcast_to(jnp.array([least(likelihood), 1.0]), (50, 2))
    _, mean = jax.jit(bias_and_its_mean, static_argnums=0)(likelihood, params, x)
    assert 0 <= mean[0] < 0.2 and 0.8 < mean[1] <= 1


@pytest.mark.parametrize("scale", (0.1, 1.0, 10.0))
def test_one_sigma_begins_at_the_spread_of_the_data(scale):
    x = (scale * (np.random.default_rng(0).normal(size=(200, 3)) * [1, 0, 2] + 300)).astype(np.float32)
    likelihood = likelihoods.gaussian_scalar((3,))
    p = likelihood.build(likelihood.init(jnp.asarray(x)), jnp.zeros((3, 1)))
    np.testing.assert_allclose(np.exp(p.log_var), np.mean(np.var(x.astype(np.float64), 0)), rtol=1e-3)


@pytest.mark.parametrize(
    "x", (np.ones((5, 3)), np.ones((1, 3)), np.diag([1e6, 2e6, 3e6])), ids=("constant", "1", "wide")
)
def test_one_sigma_is_finite_and_learned_whatever_the_spread(x):
    likelihood = likelihoods.gaussian_scalar((3,))
    start = likelihood.init(jnp.asarray(x, jnp.float32))
    slope = jax.grad(lambda params: likelihood.build(params, jnp.zeros((3, 1))).log_var[0])(start)
    assert abs(likelihood.build(start, jnp.zeros((3, 1))).log_var[0]) < MAX_LOG_VAR
    assert 0.05 < slope["log_var"] < 1


@gaussians
@pytest.mark.parametrize("extreme", (-1e6, 1e6))
def test_log_variances_stay_bounded(name, extreme):
    likelihood, params = make(name, (2,))
    params = jax.tree.map(lambda a: jnp.full_like(a, extreme), params)
    outputs = jnp.full((2, likelihood.num_outputs), extreme)
    p = likelihood.build(params, outputs)
    assert np.all(np.abs(p.log_var) <= MAX_LOG_VAR)


@pytest.mark.parametrize("name, learned", (("gaussian_scalar", "params"), ("gaussian_pixel", "outputs")))
def test_learned_variances_get_gradients(name, learned):
    likelihood, params = make(name, (3,))
    outputs, x = jnp.asarray(random_outputs(likelihood, 3)), jnp.zeros(3)
    grads = jax.grad(lambda p: likelihood.build(p["params"], p["outputs"]).log_prob(x))(
        {"params": params, "outputs": outputs}
    )
    assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(grads[learned]))


@shapes
def test_gaussian_of_sigma_1_is_half_the_squared_error(shape):
    likelihood = likelihoods.gaussian(shape)
    outputs, x = random_outputs(likelihood, 6, *shape), random_outputs(likelihood, 6, *shape)[::-1, ..., 0]
    square = ((outputs[..., 0] - x).astype(np.float64) ** 2).reshape(6, -1).sum(-1)
    expected = -0.5 * square - np.prod(shape) / 2 * np.log(2 * np.pi)
    np.testing.assert_allclose(likelihood.build({}, outputs).log_prob(x), expected, rtol=1e-5)


@pytest.mark.parametrize("sigma", (0.0, -1.0, float("nan")))
def test_a_sigma_that_is_not_positive_is_an_error(sigma):
    with pytest.raises(ValueError, match=r"sigma is .*; expected a positive number\."):
        likelihoods.gaussian((3,), sigma=sigma)


@every
@pytest.mark.parametrize("extreme", (-50.0, 50.0))
def test_gradients_are_finite_at_extreme_outputs(name, extreme):
    likelihood, params = make(name, (2,))
    outputs, x = jnp.full((2, likelihood.num_outputs), extreme), jnp.array([least(likelihood), 1.0])
    value, slope = jax.value_and_grad(lambda outputs: likelihood.build(params, outputs).log_prob(x))(outputs)
    assert np.isfinite(value) and np.all(np.isfinite(slope))


def test_student_t_is_scipys_to_the_rounding_of_float32():
    df, t = np.meshgrid(np.geomspace(2, 1e4, 60), np.append(0, np.geomspace(1e-6, 1e6, 60)))
    df, t = df.astype(np.float32), t.astype(np.float32)
    p = StudentT(jnp.full_like(df, 2.0), jnp.full_like(df, np.log(0.5)), jnp.asarray(df), 0)
    expected = stats.t(df.astype(np.float64)).logpdf(t) - np.log(0.5)
    np.testing.assert_allclose(p.log_prob(2 + 0.5 * t), expected, rtol=5e-7, atol=1e-5)


def test_student_t_with_many_degrees_of_freedom_is_a_gaussian():
    x = np.linspace(-3, 3, 7, dtype=np.float32)
    p = StudentT(jnp.zeros(7), jnp.zeros(7), jnp.full(7, 1e12), 0)
    np.testing.assert_allclose(p.log_prob(x), stats.norm.logpdf(x), rtol=1e-5)


def test_samples_of_student_t_have_its_quantiles(key):
    p = StudentT(jnp.array([3.0]), jnp.array([0.7]), jnp.array([2.5]))
    x = np.sort(p.sample(key, (20_000,))[:, 0])
    assert stats.kstest(x, stats.t(2.5, 3, np.exp(0.7)).cdf).pvalue > 1e-3


def test_log_normal_stays_finite_and_positive_at_extreme_outputs(key):
    p = likelihoods.log_normal((2,)).build({}, jnp.array([[-1e6, -1e6], [1e6, 1e6]]))
    x = np.array([*p.sample(key, (5,)), p.mean])
    assert np.all(np.isfinite(x)) and np.all(x >= TINY)


def test_log_normal_is_scipys_from_the_smallest_to_the_largest_number():
    x = np.geomspace(TINY, 3e38, 99).astype(np.float32)
    p = LogNormal(jnp.full_like(x, 1.5), jnp.full_like(x, 2 * np.log(3)), 0)
    np.testing.assert_allclose(
        p.log_prob(x), stats.lognorm(3, scale=np.exp(1.5)).logpdf(x.astype(np.float64)), rtol=1e-6, atol=1e-5
    )


def test_the_encoder_sees_the_log_of_positive_numbers():
    np.testing.assert_allclose(likelihoods.log_normal((2,)).features(jnp.array([1.0, np.e])), [0, 1], atol=1e-7)


def mixture_of_one_pixel(channels):
    likelihood = likelihoods.logistic_mixture((1, 1, channels), num_components=NUM_COMPONENTS)
    outputs = np.random.default_rng(0).normal(0.5, 0.6, (1, 1, channels, likelihood.num_outputs))
    return likelihood.build({}, jnp.asarray(outputs, jnp.float32))


def test_the_channels_of_a_mixture_are_each_a_distribution_given_those_before():
    """p(red, green) summed over green is p(red), and p(red, green, blue) summed over blue is p(red, green)."""
    levels, p = np.linspace(0, 1, 256, dtype=np.float32), mixture_of_one_pixel(3)
    alone = LogisticMixture(p.logits, p.location[:, :1], p.log_scale[:, :1], p.coefficients[:, :0], (1, 1, 1))
    red = np.float32([0, 77 / 255, 1])
    green, blue = (a.ravel() for a in np.meshgrid(levels, levels))
    log_red = alone.log_prob(red.reshape(-1, 1, 1, 1))
    for r, log_r in zip(red, log_red, strict=True):
        x = np.stack([np.full_like(green, r), green, blue], -1).reshape(-1, 1, 1, 3)
        np.testing.assert_allclose(logsumexp(np.float64(jax.jit(p.log_prob)(x))), log_r, rtol=1e-5)
    np.testing.assert_allclose(np.exp(alone.log_prob(levels.reshape(-1, 1, 1, 1))).sum(), 1, rtol=1e-5)


def test_samples_of_a_mixture_occur_as_often_as_their_probability(key):
    p = mixture_of_one_pixel(3)
    x = np.asarray(p.sample(key, (4_000,)))
    assert x.min() >= 0 and x.max() <= 1
    np.testing.assert_allclose(255 * x, np.round(255 * x), atol=1e-4)
    other = replace(p, logits=p.logits[..., ::-1], location=p.location + 0.05, log_scale=p.log_scale - 0.1)
    other = replace(other, coefficients=0.7 * p.coefficients)
    # E_p[q(x) / p(x)] = 1 for any q
    assert_within_errors(np.exp(np.float64(other.log_prob(x)) - p.log_prob(x)), 1)


def test_the_mean_of_narrow_components_is_that_of_their_samples(key):
    p = mixture_of_one_pixel(3)
    p = replace(p, location=0.3 + 0.4 * jax.nn.sigmoid(p.location), log_scale=p.log_scale - 3)
    p = replace(p, coefficients=0.3 * p.coefficients)
    assert_within_errors(p.sample(key, (4_000,)), p.mean)


def test_one_component_of_one_channel_is_the_discretized_logistic():
    likelihood = likelihoods.logistic_mixture((4, 5, 1), num_components=1)
    outputs = random_outputs(likelihood, 2, 4, 5, 1)
    x = np.round(255 * np.random.default_rng(0).uniform(size=(2, 4, 5, 1)).astype(np.float32)) / 255
    expected = likelihoods.discretized_logistic((4, 5, 1)).build({}, jnp.asarray(outputs[..., 1:]))
    np.testing.assert_allclose(likelihood.build({}, jnp.asarray(outputs)).log_prob(x), expected.log_prob(x), rtol=1e-5)


@pytest.mark.parametrize("channels, num_components, num_outputs", ((1, 10, 30), (3, 10, 34), (2, 3, 9), (3, 5, 17)))
def test_a_pixel_of_a_mixture_has_as_few_outputs_as_it_needs(channels, num_components, num_outputs):
    likelihood = likelihoods.logistic_mixture((8, 8, channels), num_components=num_components)
    needed = num_components * (1 + 2 * channels + channels * (channels - 1) // 2)
    assert likelihood.num_outputs == num_outputs and 0 <= channels * num_outputs - needed < channels


def test_a_mixture_without_components_is_an_error():
    with pytest.raises(ValueError, match=r"num_components is 0; expected at least 1\."):
        likelihoods.logistic_mixture((8, 8, 3), num_components=0)


def test_what_takes_any_data():
    supports = {name: make(name, (3,))[0].support for name in LIKELIHOODS}
    rest = dict.fromkeys(LIKELIHOODS.keys() - REAL, (0.0, 1.0)) | {"log_normal": (TINY, np.inf)}
    assert supports == dict.fromkeys(REAL) | rest | dict.fromkeys(COUNTS, (0.0, np.inf))


def test_what_has_levels():
    levels = {name: make(name, (3,))[0].num_levels for name in LIKELIHOODS}
    assert levels == dict.fromkeys(LIKELIHOODS) | {
        "categorical": 5,
        "discretized_logistic": 256,
        "logistic_mixture": 256,
    }
