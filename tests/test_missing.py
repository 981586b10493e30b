"""Missing values: p of the observed values alone, and what is put in their place."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import PCA_SIZE, jit, pca_data, pca_params, pca_vae
from scipy.stats import multivariate_normal
from test_likelihoods import LIKELIHOODS, make, random_outputs

from vae_jax import VAE, generate, importance_bound, log_weights
from vae_jax.distributions import DiagonalGaussian
from vae_jax.missing import Observed, observed

MISSING = np.random.default_rng(3).random((6, PCA_SIZE)) < 0.4
MISSING[0], MISSING[1] = False, True
INDEPENDENT = [name for name, (options, _) in LIKELIHOODS.items() if make(name, (3,))[0].independent]


def missing_pca():
    """Probabilistic PCA of rows with gaps. q(z | x) is the posterior of the whole row with 0 for a gap, but wider."""
    whole = pca_vae()

    def encode(params, x):
        q = whole.encode(params, jnp.where(jnp.isnan(x), jnp.broadcast_to(params["b"], x.shape), x))
        return DiagonalGaussian(q.mean, jnp.log1p(jnp.exp(q.log_var)))

    def decode(params, z):
        p = whole.decode(params, z)
        return Observed(DiagonalGaussian(p.mean, p.log_var, 0), 1)

    return VAE(whole.init, encode, decode, whole.prior)


def with_gaps():
    return np.where(MISSING, np.float32(np.nan), pca_data())


def conditional(params, x):
    """log p(x_observed), E[x | x_observed] and Cov[x | x_observed] of each row, in closed form."""
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    cov, b = p["w"].T @ p["w"] + np.exp(p["log_var"]) * np.eye(PCA_SIZE), p["b"]
    for row in np.asarray(x, np.float64):
        o, m = np.flatnonzero(~np.isnan(row)), np.flatnonzero(np.isnan(row))
        log_px = multivariate_normal(b[o], cov[np.ix_(o, o)]).logpdf(row[o]) if len(o) else 0.0
        gain = cov[np.ix_(m, o)] @ np.linalg.inv(cov[np.ix_(o, o)])
        mean = row.copy()
        mean[m] = b[m] + gain @ (row[o] - b[o])
        left = np.zeros_like(cov)
        left[np.ix_(m, m)] = cov[np.ix_(m, m)] - gain @ cov[np.ix_(o, m)]
        yield log_px, mean, left


def test_the_importance_bound_is_that_of_the_observed_values_in_closed_form(key):
    params, x = pca_params(), with_gaps()
    log_w = jit(log_weights, missing_pca(), num_samples=200_000)(params, key, x)
    expected = [log_px for log_px, _, _ in conditional(params, x)]
    np.testing.assert_allclose(importance_bound(log_w), expected, atol=1e-2)


def test_what_is_imputed_is_the_conditional_mean_in_closed_form(key):
    params, x = pca_params(), with_gaps()
    full = np.asarray(jit(generate.impute, missing_pca(), num_samples=400_000)(params, key, x))
    expected = np.array([mean for _, mean, _ in conditional(params, x)])
    np.testing.assert_allclose(full, expected, atol=1e-2)
    assert np.array_equal(full[~MISSING], x[~MISSING])


def test_imputations_have_the_conditional_moments_in_closed_form(key):
    params, x = pca_params(), with_gaps()
    draw = partial(generate.imputations, num=20_000, num_samples=20_000, vae=missing_pca())
    full = np.asarray(jax.jit(draw)(params, key, x), np.float64)
    for i, (_, mean, cov) in enumerate(conditional(params, x)):
        np.testing.assert_allclose(full[:, i].mean(0), mean, atol=0.05)
        np.testing.assert_allclose(np.cov(full[:, i].T), cov, atol=0.15)


@pytest.mark.parametrize("name", INDEPENDENT)
def test_every_likelihood_counts_the_observed_elements_alone(name):
    """The density is that of a likelihood of these elements only, and the gradient of the others is exactly 0."""
    (likelihood, params), (one, _) = make(name, (6,)), make(name, (1,))
    outputs = random_outputs(likelihood, 4, 6)
    base = likelihood.build(params, outputs)
    x = np.array(base.sample(jax.random.key(0)))
    x[0, :], x[1, 2:5], x[2, 0] = np.nan, np.nan, np.nan
    log_prob = lambda outputs: observed(likelihood, (6,)).build(params, outputs).log_prob(x)  # noqa: E731
    each = np.zeros((4, 6))
    for i in range(6):
        own = jax.tree.map(lambda a, i=i: a[i : i + 1] if a.shape == (6,) else a, params)
        each[:, i] = one.build(own, outputs[:, i : i + 1]).log_prob(np.nan_to_num(x[:, i : i + 1], nan=1.0))
    expected = np.where(np.isnan(x), 0, each).sum(1)
    np.testing.assert_allclose(jax.jit(log_prob)(outputs), expected, rtol=1e-5, atol=1e-5)
    assert expected[0] == 0
    grad = np.asarray(jax.jit(jax.grad(lambda outputs: log_prob(outputs).sum()))(outputs))
    assert np.all(grad[np.isnan(x)] == 0) and np.all(np.isfinite(grad)) and np.any(grad[~np.isnan(x)] != 0)


@pytest.mark.parametrize("name", INDEPENDENT)
def test_every_likelihood_begins_at_what_is_observed(name):
    likelihood, params = make(name, (3,))
    full = likelihood.build(params, random_outputs(likelihood, 4000, 3)).sample(jax.random.key(0))
    x = np.array(full)
    x[np.random.default_rng(0).random(4000) < 0.3, 0], x[:, 2] = np.nan, np.nan
    part, x = observed(likelihood, (3,)), jnp.array(x)
    for function in ("average", "init"):  # about those of the whole data
        some, whole = (getattr(a, function)(b) for a, b in ((part, x), (likelihood, full)))
        for a, b in zip(jax.tree.leaves(some), jax.tree.leaves(whole), strict=True):
            assert np.all(np.isfinite(a))
            if a.shape[:1] == (3,):
                np.testing.assert_allclose(a[0], b[0], rtol=0.2, atol=0.1)
                np.testing.assert_allclose(a[1], b[1], rtol=1e-5)
    seen = np.asarray(part.features(x))
    assert np.all(np.isfinite(seen)) and np.all(seen[np.isnan(x)] == 0)
    np.testing.assert_array_equal(seen[:, 1], likelihood.features(x)[:, 1])
