"""Annealed importance sampling gives log p(x) where it is known, whatever q(z | x) is."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_within_errors, jit, mlp_vae, pca_data, pca_log_px, pca_params, pca_vae, standard_normal
from scipy import stats
from scipy.special import logsumexp

from vae_jax.annealing import annealed_log_weights, sigmoidal_schedule
from vae_jax.core import VAE
from vae_jax.distributions import DiagonalGaussian
from vae_jax.objectives import importance_bound, log_weights

# More noise than in `pca_params`, so that few temperatures do, and a q(z | x) far too wide.
PARAMS, X = pca_params() | {"log_var": jnp.ones(()), "log_var_q": jnp.zeros(2)}, pca_data(3)


def assert_is_log_px(log_w, log_px):
    """The bound to 1e-2 nats, and the weights within their own errors."""
    np.testing.assert_allclose(importance_bound(log_w), log_px, atol=1e-2)
    assert_within_errors(np.exp(np.asarray(log_w) - log_px), 1)


def test_both_estimates_are_log_px_of_a_linear_gaussian_model(key):
    """Two independent ways to the closed form."""
    log_px = pca_log_px(PARAMS, X)
    log_w = jit(annealed_log_weights, pca_vae(), num_chains=8_000, num_steps=60, num_leapfrog=3)(PARAMS, key, X)
    assert_is_log_px(log_w, log_px)
    assert log_w.shape == (8_000, 3) and np.std(log_w, axis=0).max() < 0.5
    log_w = jit(log_weights, pca_vae(), num_samples=50_000)(PARAMS, jax.random.key(1), X)
    assert_is_log_px(log_w, log_px)


@pytest.mark.parametrize("num_steps, step_size", ((1, 0.1), (3, 0.5), (6, 0.01), (6, 10.0)))
def test_the_weights_are_unbiased_however_poor_the_chains(key, num_steps, step_size):
    options = {"num_chains": 20_000, "num_steps": num_steps, "num_leapfrog": 2}
    log_w = jit(annealed_log_weights, pca_vae(), **options, step_size=step_size)(PARAMS, key, X)
    assert_within_errors(np.exp(np.asarray(log_w) - pca_log_px(PARAMS, X)), 1)


@pytest.mark.parametrize("step_size", (1e-3, 1e8))
def test_the_step_size_finds_its_way(key, step_size):
    """Even from one whose paths overflow."""
    options = {"num_chains": 100, "num_steps": 300, "num_leapfrog": 5}
    log_w = jit(annealed_log_weights, pca_vae(), **options, step_size=step_size)(PARAMS, key, X)
    assert np.std(log_w, axis=0).max() < 0.5


def test_the_encoder_has_no_say(key):
    draws = [
        jit(annealed_log_weights, vae, num_chains=4, num_steps=5)(PARAMS, jax.random.clone(key), X)
        for vae in (pca_vae(), pca_vae()._replace(encode=None))
    ]
    np.testing.assert_array_equal(*draws)


def test_a_nonlinear_model_of_images_by_quadrature(key):
    vae, x = mlp_vae((2, 3, 1), latent_dim=1), jax.random.bernoulli(jax.random.key(1), 0.5, (3, 2, 3, 1)).astype(float)
    params = jax.tree.map(lambda a: 1.5 * a, vae.init(jax.random.key(2), x))
    z = np.linspace(-10, 10, 2_001)
    p = np.asarray(vae.decode(params, jnp.asarray(z[:, None], jnp.float32)).mean, np.float64)
    log_likelihood = np.log(np.where(x[:, None] == 1, p, 1 - p)).sum((2, 3, 4))
    log_px = logsumexp(log_likelihood + stats.norm.logpdf(z), -1) + np.log(z[1] - z[0])
    log_w = jit(annealed_log_weights, vae, num_chains=8_000, num_steps=50, num_leapfrog=2)(params, key, x)
    assert_is_log_px(log_w, log_px)


class Hierarchy(NamedTuple):
    """a ~ N(0, I) in two dimensions, and two rows b_i ~ N(a, exp(-1) I)."""

    def sample(self, key, sample_shape=()):
        a_key, b_key = jax.random.split(key)
        a = standard_normal(2).sample(a_key, sample_shape)
        return {"a": a, "b": self.rows(a).sample(b_key)}

    def log_prob(self, z):
        return standard_normal(2).log_prob(z["a"]) + self.rows(z["a"]).log_prob(z["b"])

    def rows(self, a):
        mean = jnp.stack([a, a], -2)
        return DiagonalGaussian(mean, jnp.full_like(mean, -1.0), event_dim=2)


@pytest.mark.slow
def test_a_latent_may_be_a_tree(key):
    """p(x | a, b) = N(b, I), with leaves of different ranks."""

    def decode(params, z):
        mean = z["b"].reshape(*z["b"].shape[:-2], 4)
        return DiagonalGaussian(mean, jnp.zeros_like(mean))

    vae, x = VAE(None, None, decode, lambda params: Hierarchy()), pca_data(3)[:, :4]
    cov = np.kron(np.ones((2, 2)), np.eye(2)) + (np.exp(-1) + 1) * np.eye(4)
    log_w = jit(annealed_log_weights, vae, num_chains=8_000, num_steps=60, num_leapfrog=3)({}, key, x)
    log_px = stats.multivariate_normal(np.zeros(4), cov).logpdf(x.astype(np.float64))
    assert_is_log_px(log_w, log_px)


def test_one_compilation_maps_over_examples(key):
    """The weights of an example are those of its own key, whatever stands beside it."""
    traces = []

    @jax.jit
    def each(keys, x, step_size):
        traces.append(x)
        one = lambda key, x: annealed_log_weights(  # noqa: E731
            PARAMS, key, x[None], pca_vae(), num_chains=4, num_steps=5, num_leapfrog=2, step_size=step_size
        )
        return jax.vmap(one, out_axes=2)(keys, x)[:, 0]

    keys = jax.random.split(key, 3)
    draws = each(jax.random.clone(keys), X, 0.1)
    again = each(jax.random.clone(keys), X[[0, 2, 1]], 0.1)
    assert draws.shape == (4, 3) and len(traces) == 1
    np.testing.assert_array_equal(draws[:, 0], again[:, 0])
    assert np.all(draws[:, 1] != again[:, 1])


@pytest.mark.parametrize("name", ("num_chains", "num_steps", "num_leapfrog"))
@pytest.mark.parametrize("number", (0, -1))
def test_numbers_below_one_are_an_error(key, name, number):
    call = partial(annealed_log_weights, **{"num_chains": 2, "num_steps": 2, name: number})
    with pytest.raises(ValueError, match=rf"{name} is {number}; expected at least 1\."):
        call(PARAMS, key, X, pca_vae())


def test_the_schedule_rises_from_zero_to_one_and_is_its_own_mirror():
    t = np.asarray(sigmoidal_schedule(50))
    assert t.shape == (51,) and t[0] == 0 and t[-1] == 1
    np.testing.assert_allclose(t + t[::-1], 1, atol=1e-6)
    assert np.all(np.diff(t) > 0) and np.argmax(np.diff(t)) in (24, 25)
    np.testing.assert_array_equal(sigmoidal_schedule(1), [0, 1])
