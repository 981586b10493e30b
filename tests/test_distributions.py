"""Densities and divergences against SciPy, NumPyro, quadrature and sampling; distributions as pytrees."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as numpyro
import pytest
from helpers import assert_within_errors, lenient, standard_normal
from scipy import special, stats

from vae_jax import counts, distributions, likelihoods, logistics, missing, mixed, reals
from vae_jax.core import reparameterize
from vae_jax.counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from vae_jax.distributions import (
    Affine,
    Bernoulli,
    Delta,
    DiagonalGaussian,
    Flow,
    FullGaussian,
    GaussianMixture,
    bernoulli_log_prob,
    full_gaussian_log_prob,
    gaussian_log_prob,
    kl_analytic,
    kl_diagonal_gaussians,
    kl_divergence,
    kl_gaussians,
    kl_gaussians_tril,
    kl_monte_carlo,
    kl_standard_normal,
    softplus,
)
from vae_jax.likelihoods import Categorical, ContinuousBernoulli
from vae_jax.logistics import DiscretizedLogistic, LogisticMixture
from vae_jax.missing import Observed
from vae_jax.mixed import Codes, Mixed
from vae_jax.reals import Laplace, LogNormal, StudentT

DIMS = (1, 3, 32)
BATCH = 6
dims = pytest.mark.parametrize("dim", DIMS)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def covariances(rng, dim):
    a = rng.normal(size=(BATCH, dim, dim))
    return (a @ a.swapaxes(-1, -2) / dim + np.eye(dim)).astype(np.float32)


def gaussian_pair(rng, dim):
    """Means and full covariances of q and p, far enough apart for a KL of about 1 or more."""
    return normal(rng, BATCH, dim), covariances(rng, dim), normal(rng, BATCH, dim) + 2, covariances(rng, dim)


def diagonal_pair(rng, dim):
    means = normal(rng, 2, BATCH, dim)
    return means[0], normal(rng, BATCH, dim), means[1] + 2, normal(rng, BATCH, dim)


def exact_kl(mean_q, cov_q, mean_p, cov_p):
    """KL = E_q[log q] - E_q[log p] in float64, from SciPy's entropy of q and density of p."""
    mean_q, cov_q, mean_p, cov_p = (np.asarray(a, np.float64) for a in (mean_q, cov_q, mean_p, cov_p))
    kls = []
    for mq, cq, mp, cp in zip(mean_q, cov_q, mean_p, cov_p, strict=True):
        p = stats.multivariate_normal(mp, cp)
        expected_log_p = p.logpdf(mq) - 0.5 * np.trace(np.linalg.solve(cp, cq))
        kls.append(-stats.multivariate_normal(mq, cq).entropy() - expected_log_p)
    return np.array(kls)


def diagonals(log_var):
    return np.exp(np.asarray(log_var, np.float64))[..., None] * np.eye(log_var.shape[-1])


# log densities


@dims
def test_full_gaussian_log_prob_is_scipys(rng, dim):
    x, mean, tril = normal(rng, BATCH, dim), normal(rng, BATCH, dim), np.linalg.cholesky(covariances(rng, dim))
    cov = tril.astype(np.float64) @ tril.astype(np.float64).swapaxes(-1, -2)
    expected = [stats.multivariate_normal(m, c).logpdf(v) for v, m, c in zip(x, mean, cov, strict=True)]
    np.testing.assert_allclose(full_gaussian_log_prob(x, mean, tril), expected, rtol=1e-5)
    np.testing.assert_allclose(FullGaussian(mean, tril).log_prob(x), expected, rtol=1e-5)


@dims
def test_diagonal_gaussian_log_prob_is_scipys(rng, dim):
    x, mean, log_var = normal(rng, 3, BATCH, dim)
    expected = stats.norm.logpdf(*(a.astype(np.float64) for a in (x, mean)), np.exp(0.5 * log_var.astype(np.float64)))
    np.testing.assert_allclose(gaussian_log_prob(x, mean, log_var), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(DiagonalGaussian(mean, log_var).log_prob(x), expected.sum(-1), rtol=1e-5)


@dims
def test_bernoulli_log_prob_is_scipys(rng, dim):
    logits, x = normal(rng, BATCH, dim), rng.integers(0, 2, (BATCH, dim)).astype(np.float32)
    expected = stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-logits.astype(np.float64))))
    np.testing.assert_allclose(bernoulli_log_prob(x, logits), expected, rtol=1e-5)
    np.testing.assert_allclose(Bernoulli(logits).log_prob(x), expected.sum(-1), rtol=1e-5)


def test_bernoulli_log_prob_of_grey_is_the_cross_entropy(rng):
    logits, x = normal(rng, 20), rng.uniform(size=20).astype(np.float32)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    np.testing.assert_allclose(bernoulli_log_prob(x, logits), x * np.log(p) + (1 - x) * np.log1p(-p), rtol=1e-5)


def test_delta_puts_the_mean_in_every_sample_at_no_cost(rng, key):
    mean = jnp.asarray(normal(rng, BATCH, 3))
    delta = Delta(mean)
    np.testing.assert_array_equal(delta.sample(key, (4,)), np.broadcast_to(mean, (4, BATCH, 3)))
    np.testing.assert_array_equal(delta.log_prob(mean), np.zeros(BATCH))


# divergences


@dims
def test_kl_of_full_gaussians_is_scipys(rng, dim):
    mean_q, cov_q, mean_p, cov_p = gaussian_pair(rng, dim)
    expected = exact_kl(mean_q, cov_q, mean_p, cov_p)
    np.testing.assert_allclose(kl_gaussians(mean_q, cov_q, mean_p, cov_p), expected, rtol=1e-5)
    trils = np.linalg.cholesky(cov_q), np.linalg.cholesky(cov_p)
    np.testing.assert_allclose(kl_gaussians_tril(mean_q, trils[0], mean_p, trils[1]), expected, rtol=1e-5)
    q, p = FullGaussian(mean_q, trils[0]), FullGaussian(mean_p, trils[1])
    np.testing.assert_allclose(kl_divergence(q, p, None), expected, rtol=1e-5)


@dims
def test_kl_of_diagonal_gaussians_is_scipys(rng, dim):
    mean_q, log_var_q, mean_p, log_var_p = diagonal_pair(rng, dim)
    expected = exact_kl(mean_q, diagonals(log_var_q), mean_p, diagonals(log_var_p))
    np.testing.assert_allclose(kl_diagonal_gaussians(mean_q, log_var_q, mean_p, log_var_p), expected, rtol=1e-5)
    standard = exact_kl(mean_q + 2, diagonals(log_var_q), 0 * mean_p, diagonals(0 * log_var_p))
    np.testing.assert_allclose(kl_standard_normal(mean_q + 2, log_var_q), standard, rtol=1e-5)


@dims
def test_densities_and_kl_are_numpyros(rng, dim):
    def figures(mean_q, cov_q, mean_p, cov_p, x):
        q, p = numpyro.MultivariateNormal(mean_q, cov_q), numpyro.MultivariateNormal(mean_p, cov_p)
        return q.log_prob(x), numpyro.kl_divergence(q, p)

    mean_q, cov_q, mean_p, cov_p = gaussian_pair(rng, dim)
    x = normal(rng, BATCH, dim)
    with lenient(), jax.enable_x64(True):
        arrays = (jnp.asarray(a, jnp.float64) for a in (mean_q, cov_q, mean_p, cov_p, x))
        log_prob, kl = map(np.asarray, jax.jit(figures)(*arrays))
    np.testing.assert_allclose(kl_gaussians(mean_q, cov_q, mean_p, cov_p), kl, rtol=1e-5)
    np.testing.assert_allclose(full_gaussian_log_prob(x, mean_q, jnp.linalg.cholesky(cov_q)), log_prob, rtol=1e-5)


@dims
def test_diagonal_is_a_special_case_of_full(rng, dim):
    mean_q, log_var_q, mean_p, log_var_p = map(jnp.asarray, diagonal_pair(rng, dim))
    q, p = DiagonalGaussian(mean_q, log_var_q), DiagonalGaussian(mean_p, log_var_p)
    full_q, full_p = FullGaussian(mean_q, q.scale_tril), FullGaussian(mean_p, p.scale_tril)
    x = normal(rng, BATCH, dim)
    np.testing.assert_allclose(full_q.log_prob(x), q.log_prob(x), rtol=1e-5)
    for pair in ((full_q, full_p), (full_q, p), (q, full_p)):
        np.testing.assert_allclose(kl_divergence(*pair, None), kl_divergence(q, p, None), rtol=1e-5)
    zero = jnp.zeros((BATCH, dim))
    np.testing.assert_allclose(
        kl_diagonal_gaussians(mean_q, log_var_q, zero, zero), kl_standard_normal(mean_q, log_var_q), rtol=1e-5
    )


@pytest.mark.parametrize("dim", (1, 4))
@pytest.mark.parametrize("kinds", ("diagonal diagonal", "full full", "diagonal full", "full diagonal"))
def test_kl_is_its_monte_carlo_estimate(rng, key, kinds, dim):
    mean_q, cov_q, mean_p, cov_p = gaussian_pair(rng, dim)
    q, p = (
        FullGaussian(mean, np.linalg.cholesky(cov))
        if kind == "full"
        else DiagonalGaussian(mean, np.log(np.diagonal(cov, axis1=1, axis2=2)))
        for kind, mean, cov in zip(kinds.split(), (mean_q, mean_p), (cov_q, cov_p), strict=True)
    )
    z = q.sample(key, (20_000,))
    assert_within_errors(kl_monte_carlo(q, p, z), kl_divergence(q, p, z))


@pytest.mark.parametrize("event_dim", (0, 1, 2, 3))
def test_kl_sums_the_event_axes(rng, event_dim):
    mean, log_var = normal(rng, 2, 2, 3, 4)
    zero = np.zeros_like(mean)
    q, p = DiagonalGaussian(mean, log_var, event_dim), DiagonalGaussian(zero, zero, event_dim)
    expected = 0.5 * (np.exp(log_var) + mean**2 - 1 - log_var)
    axes = tuple(range(3 - event_dim, 3))
    np.testing.assert_allclose(kl_divergence(q, p, q.mean), expected.sum(axes), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dim", (1, 4))
def test_the_kl_of_collapsed_dimensions_keeps_its_digits(rng, dim):
    """Against float64: exp(r) - 1 - r in float32 has none left."""
    log_var = np.float32(rng.uniform(-1, 1, (6, dim)) * 10.0 ** -np.arange(1, 7)[:, None] / 2)
    mean, zero = np.zeros((6, dim), np.float32), np.zeros((6, dim), np.float32)
    r = np.float64(log_var)
    expected = 0.5 * np.sum(r**2 / 2 + r**3 / 6 + r**4 / 24, -1)
    q, p = DiagonalGaussian(mean, log_var), DiagonalGaussian(zero, zero)
    full_q, full_p = FullGaussian(mean, q.scale_tril), FullGaussian(zero, p.scale_tril)
    for got in (kl_divergence(q, p, None), kl_standard_normal(mean, log_var), kl_divergence(full_q, full_p, None)):
        assert np.all(got >= 0)
        np.testing.assert_allclose(got, expected, rtol=2e-2, atol=1e-10)


def test_a_closed_form_is_asked_for_or_refused(rng):
    q, p = DiagonalGaussian(normal(rng, 3, 4), normal(rng, 3, 4)), standard_normal(4)
    np.testing.assert_array_equal(kl_analytic(q, p), kl_divergence(q, p, None))
    with pytest.raises(ValueError, match=r"The KL of DiagonalGaussian and Delta has no closed form here\. Set kl="):
        kl_analytic(q, Delta(jnp.zeros(4)))
    with pytest.raises(ValueError, match=r"q\(z \| x\) has event_dim 1 and p\(z\) has 0; expected the same"):
        kl_divergence(q, DiagonalGaussian(jnp.zeros(4), jnp.zeros(4), 0), None)


def test_kl_without_a_closed_form_is_estimated(rng):
    q, p, z = Bernoulli(normal(rng, 3, 4)), Bernoulli(normal(rng, 4)), rng.integers(0, 2, (3, 4)).astype(np.float32)
    np.testing.assert_array_equal(kl_divergence(q, p, z), q.log_prob(z) - p.log_prob(z))


def test_gradient_of_kl_in_the_first_layer_is_the_one_derived_by_hand(rng):
    """l = W1 relu(W0 x + b0) + b1: dKL/dW0 = 1/2 H W1' (exp(l) - 1) x' with H = Diag(step(W0 x + b0))."""
    x, mean, w0, b0, w1, b1 = (normal(rng, *shape) for shape in ((5,), (3,), (7, 5), (7,), (3, 7), (3,)))

    def kl(w0):
        return kl_standard_normal(mean, w1 @ jax.nn.relu(w0 @ x + b0) + b1)

    hidden = w0 @ x + b0
    p = np.exp(w1 @ np.maximum(hidden, 0) + b1)
    by_hand = 0.5 * np.diag(np.heaviside(hidden, 0)) @ w1.T @ (p - 1)[:, None] @ x[None, :]
    assert 0 < np.sum(hidden > 0) < 7
    np.testing.assert_allclose(jax.grad(kl)(jnp.asarray(w0)), by_hand, rtol=1e-5, atol=1e-6)


# shapes that do not fit


VECTOR, MATRIX = np.zeros((4, 3), np.float32), np.eye(3, dtype=np.float32)


@pytest.mark.parametrize(
    "function, args",
    (
        (full_gaussian_log_prob, (VECTOR, VECTOR, MATRIX[:, :2])),
        (full_gaussian_log_prob, (VECTOR, VECTOR, MATRIX[0])),
        (full_gaussian_log_prob, (VECTOR, VECTOR, MATRIX[:2, :2])),
        (full_gaussian_log_prob, (VECTOR[:, :1], VECTOR, MATRIX)),
        (full_gaussian_log_prob, (VECTOR[:, :2], VECTOR, MATRIX)),
        (kl_gaussians, (VECTOR, MATRIX[:, :2], VECTOR, MATRIX)),
        (kl_gaussians, (VECTOR, MATRIX, VECTOR, MATRIX[:2])),
        (kl_gaussians, (VECTOR, MATRIX, VECTOR[:, :2], MATRIX)),
        (kl_gaussians, (VECTOR, MATRIX, VECTOR[:, :2], MATRIX[:2, :2])),
        (kl_gaussians_tril, (VECTOR, MATRIX[:, :2], VECTOR, MATRIX)),
        (kl_gaussians_tril, (VECTOR, MATRIX, VECTOR[:, :1], MATRIX[:1, :1])),
        (kl_diagonal_gaussians, (VECTOR, VECTOR, VECTOR[:, :2], VECTOR[:, :2])),
        (kl_diagonal_gaussians, (VECTOR, VECTOR, VECTOR[:, :1], VECTOR[:, :1])),
    ),
)
def test_shapes_that_do_not_fit_are_one_line_of_error(function, args):
    with pytest.raises(ValueError, match=r"expected") as caught:
        function(*map(jnp.asarray, args))
    assert "\n" not in str(caught.value)


# extremes


def finite(*arrays):
    return all(np.all(np.isfinite(array)) for array in arrays)


@pytest.mark.parametrize("logit", (-1e4, -100.0, 0.0, 100.0, 1e4))
@pytest.mark.parametrize("x", (0.0, 0.3, 1.0))
def test_bernoulli_is_exact_and_its_gradient_finite_at_any_logit(x, logit):
    value, grad = jax.value_and_grad(bernoulli_log_prob, argnums=1)(x, logit)
    exact = x * logit - np.logaddexp(0, logit)
    np.testing.assert_allclose(value, exact, rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(grad, x - 1 / (1 + np.exp(-np.maximum(logit, -700))), atol=1e-6)


@pytest.mark.parametrize("size", (1, 3, 16, 49, 784))
def test_a_sum_of_bernoulli_log_probs_is_as_exact_as_its_terms(rng, size):
    some = rng.choice([-1e4, -100, -17, -1, 0, 0.5, 17, 100, 1e4], (5, size))
    logits, x = some.astype(np.float32), rng.choice([0, 0.3, 1], (5, size)).astype(np.float32)
    logits[0], x[0] = 17, 1  # small terms alone
    log_prob = lambda x, logits: Bernoulli(logits).log_prob(x)  # noqa: E731
    exact = np.sum(x.astype(np.float64) * logits - np.logaddexp(0, logits.astype(np.float64)), -1)
    np.testing.assert_allclose(log_prob(x, logits), exact, rtol=1e-6)
    of_x, of_logits = jax.vmap(jax.grad(log_prob, argnums=(0, 1)))(x, logits)
    np.testing.assert_array_equal(of_x, logits)
    np.testing.assert_allclose(of_logits, x - special.expit(logits.astype(np.float64)), atol=1e-6)


@pytest.mark.parametrize("log_var", (-50.0, 50.0))
@pytest.mark.parametrize("mean", (-10.0, 0.0, 10.0))
def test_gaussians_are_finite_with_their_gradients_at_extreme_variances(key, mean, log_var):
    mean, log_var, x = jnp.full((2, 3), mean), jnp.full((2, 3), log_var), jnp.ones((2, 3))
    every = (
        lambda m, v: gaussian_log_prob(x, m, v).sum(),
        lambda m, v: kl_standard_normal(m, v).sum(),
        lambda m, v: kl_diagonal_gaussians(m, v, x, x).sum(),
        lambda m, v: DiagonalGaussian(m, v).log_prob(x).sum(),
        lambda m, v: DiagonalGaussian(m, v).sample(jax.random.clone(key), (4,)).sum(),
    )
    for function in every:
        value, grads = jax.jit(jax.value_and_grad(function, argnums=(0, 1)))(mean, log_var)
        assert finite(value, *grads)


def test_softplus_is_logaddexp_and_its_gradient_the_sigmoid():
    x = np.concatenate([np.linspace(-80, 80, 20_001), [-1e4, -1e3, 0, 1e3, 1e4]]).astype(np.float32)
    exact = np.logaddexp(0, x.astype(np.float64))
    np.testing.assert_allclose(softplus(x), exact, rtol=1e-6, atol=1e-38)
    sigmoid = 1 / (1 + np.exp(-x.clip(-700).astype(np.float64)))
    np.testing.assert_allclose(jax.vmap(jax.grad(softplus))(jnp.asarray(x)), sigmoid, rtol=1e-6, atol=1e-38)


# sampling


def test_reparameterized_gradients_are_those_of_a_shift_and_a_scale(key):
    mean, log_var = jnp.array([0.5, -2.0]), jnp.array([-1.0, 1.0])
    z = reparameterize(jax.random.clone(key), mean, log_var)
    eps = (z - mean) / jnp.exp(0.5 * log_var)
    grads = jax.grad(lambda *q: reparameterize(jax.random.clone(key), *q).sum(), argnums=(0, 1))(mean, log_var)
    np.testing.assert_allclose(grads[0], np.ones(2))
    np.testing.assert_allclose(grads[1], 0.5 * jnp.exp(0.5 * log_var) * eps, rtol=1e-5)


@pytest.mark.parametrize("dim", (1, 2, 8))
def test_full_gaussian_samples_have_the_mean_and_covariance(rng, key, dim):
    mean, cov = normal(rng, BATCH, dim), covariances(rng, dim)
    z = FullGaussian(mean, np.linalg.cholesky(cov)).sample(key, (20_000,))
    assert_within_errors(z, mean)
    d = np.asarray(z) - mean
    assert_within_errors(d[..., :, None] * d[..., None, :], cov)


def test_diagonal_gaussian_samples_have_the_mean_and_variance(rng, key):
    mean, log_var = normal(rng, 2, BATCH, 3)
    z = DiagonalGaussian(mean, log_var).sample(key, (20_000,))
    assert_within_errors(z, mean)
    assert_within_errors((np.asarray(z) - mean) ** 2, np.exp(log_var))


def test_bernoulli_samples_are_bits_with_the_mean(rng, key):
    p = Bernoulli(jnp.asarray(normal(rng, BATCH, 3)))
    x = p.sample(key, (20_000,))
    assert set(np.unique(x)) == {0.0, 1.0}
    assert_within_errors(x, p.mean)


# every distribution


def forward(params, context, u):
    return 2 * u + jnp.broadcast_to(context, u.shape)


def inverse(params, context, z):
    return (z - jnp.broadcast_to(context, z.shape)) / 2, jnp.full(z.shape[:-1], -3 * np.log(2), z.dtype)


def every_distribution(batch=(BATCH,)):
    """One of each class that takes a batch, over vectors of 3."""
    rng = np.random.default_rng(1)
    a, b, c = (jnp.asarray(normal(rng, *batch, 3)) for _ in range(3))
    tril = jnp.tril(jnp.asarray(normal(rng, *batch, 3, 3)), -1) + jnp.eye(3).reshape((1,) * len(batch) + (3, 3))
    normals = DiagonalGaussian(a, b), FullGaussian(a, tril)
    levels = Categorical(jnp.stack([a, b, c, -a], -1))
    others = Bernoulli(a), ContinuousBernoulli(a), DiscretizedLogistic(a, b), levels, Delta(a)
    base = NegativeBinomial(a, b)
    count = Poisson(a), base, ZeroInflatedNegativeBinomial(base, c)
    real = Laplace(a, b), LogNormal(a, b), StudentT(a, b, 3 + c**2)
    each = tril[..., None, :]
    pixels = LogisticMixture(tril, each, each - 2, each[..., :0, :], (3,))
    two, one = Poisson(a[..., :2], 0), Laplace(b[..., :1], c[..., :1], 0)
    columns = Observed(DiagonalGaussian(a, b, 0)), Codes(tril), Mixed((two, one), ((0, 2), (1,)))
    return *normals, *others, *count, *real, pixels, *columns, Flow(normals[0], {}, c, forward, inverse)


def mixture():
    rng = np.random.default_rng(1)
    return GaussianMixture(jnp.asarray(normal(rng, 4)), DiagonalGaussian(*jnp.asarray(normal(rng, 2, 4, 3))))


def name_of(d):
    return type(d).__name__


every = pytest.mark.parametrize("d", every_distribution(), ids=name_of)
log_prob = jax.jit(lambda d, z: d.log_prob(z))


def test_every_distribution_of_the_module_is_tested_here():
    modules = distributions, likelihoods, counts, logistics, missing, mixed, reals
    classes = {c for m in modules for c in vars(m).values() if inspect.isclass(c) and c.__module__ == m.__name__}
    classes -= {mixed.Kind}
    assert classes == {*map(type, every_distribution()), GaussianMixture, Affine}  # for Affine see test_scaling.py


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("d", (*every_distribution(), mixture()), ids=name_of)
def test_a_distribution_is_an_immutable_pytree(d):
    assert same(jax.tree.map(lambda a: a, d), d)
    assert same(jax.jit(lambda d: d)(d), d)
    with pytest.raises(AttributeError):
        d.mean = 0


@every
def test_a_distribution_may_be_mapped(d, key):
    z = d.sample(key)
    np.testing.assert_allclose(jax.jit(jax.vmap(lambda d, z: d.log_prob(z)))(d, z), log_prob(d, z), rtol=1e-5)
    assert same(jax.vmap(lambda d: jax.tree.map(lambda a: 2 * a, d))(d), jax.tree.map(lambda a: 2 * a, d))


@pytest.mark.parametrize("sample_shape", ((), (2, 5)))
@pytest.mark.parametrize("d, batch", [*((d, (BATCH,)) for d in every_distribution()), (mixture(), ())], ids=name_of)
def test_samples_lead_with_the_sample_shape_and_log_prob_is_one_number_an_example(d, batch, key, sample_shape):
    z, log_prob_z = jax.eval_shape(lambda key: (z := d.sample(key, sample_shape), d.log_prob(z)), key)
    assert z.shape == (*sample_shape, *batch, 3) and z.dtype == jnp.float32
    assert log_prob_z.shape == (*sample_shape, *batch)
    assert d.mean.shape == (*batch, 3)


@every
def test_parameters_broadcast_over_the_leading_axes_of_a_value(d, key):
    z, d = jax.tree.map(np.asarray, (jax.jit(lambda d, key: d.sample(key, (4,)))(d, key), d))
    one_by_one = [[log_prob(jax.tree.map(lambda a, b=b: a[b], d), z[k, b]) for b in range(BATCH)] for k in range(4)]
    np.testing.assert_allclose(log_prob(d, z), one_by_one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("d", (*every_distribution(batch=()), mixture()), ids=name_of)
def test_an_unbatched_distribution_takes_batches(d, key):
    z = np.asarray(jax.jit(lambda d, key: d.sample(key, (4, BATCH)))(d, key))
    one_by_one = [[log_prob(d, z[k, b]) for b in range(BATCH)] for k in range(4)]
    np.testing.assert_allclose(log_prob(d, z), one_by_one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("p", every_distribution(batch=())[:2], ids=name_of)
@pytest.mark.parametrize("q", every_distribution()[:2], ids=name_of)
def test_kl_to_an_unbatched_prior_is_that_to_a_batched_one(q, p):
    kl = jax.jit(lambda q, p: kl_divergence(q, p, None))
    batched = jax.tree.map(lambda a: jnp.broadcast_to(a, (BATCH, *a.shape)), p)
    np.testing.assert_allclose(kl(q, p), kl(q, batched), rtol=1e-5)


# mixtures and flows


def test_mixture_log_prob_is_scipys(rng):
    p, z = mixture(), normal(rng, 20, 3)
    weights = np.exp(p.logits) / np.exp(p.logits).sum()
    scales = np.exp(0.5 * np.asarray(p.components.log_var, np.float64))
    densities = stats.norm.pdf(z[:, None], np.asarray(p.components.mean), scales).prod(-1)
    np.testing.assert_allclose(p.log_prob(z), np.log(densities @ weights), rtol=1e-5)


def test_mixture_samples_have_the_mean_and_covariance(key):
    p = mixture()
    z, weights = np.asarray(p.sample(key, (20_000,))), np.exp(p.logits) / np.exp(p.logits).sum()
    assert_within_errors(z, p.mean)
    np.testing.assert_allclose(p.mean, weights @ p.components.mean, rtol=1e-5)
    second = weights @ (np.exp(p.components.log_var) + np.asarray(p.components.mean) ** 2)
    assert_within_errors(z**2, second)


def test_an_affine_flow_of_a_gaussian_is_a_gaussian(rng, key):
    flow = every_distribution()[-1]
    expected = DiagonalGaussian(2 * flow.base.mean + flow.context, flow.base.log_var + 2 * np.log(2))
    z = normal(rng, BATCH, 3)
    np.testing.assert_allclose(flow.log_prob(z), expected.log_prob(z), rtol=1e-5)
    np.testing.assert_allclose(flow.mean, expected.mean, rtol=1e-6)
    assert_within_errors(flow.sample(key, (20_000,)), expected.mean)
