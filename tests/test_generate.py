"""What a trained VAE makes lies where the docstrings say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_within_errors, mlp_vae, pca_data, pca_params, pca_vae
from scipy import stats

from vae_jax import generate
from vae_jax.core import condition

SHAPE = (2, 3, 1)
VAE = mlp_vae(SHAPE, latent_dim=2)
DECODE = jax.jit(lambda params, z: VAE.decode(params, z).mean)


@pytest.fixture(scope="module")
def x():
    return jax.random.uniform(jax.random.key(1), (5, *SHAPE))


@pytest.fixture(scope="module")
def params(x):
    return jax.tree.map(lambda a: 3 * a, jax.jit(VAE.init)(jax.random.key(2), x))


def jit(function, **options):
    return jax.jit(lambda params, *args: function(params, *args, VAE, **options))


def assert_close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def latents(params, x):
    return VAE.encode(params, x).mean


# samples


def test_samples_are_latents_means_and_draws(params, key):
    samples = jit(generate.sample, num=7)(params, key)
    assert samples.z.shape == (7, 2) and samples.mean.shape == samples.x.shape == (7, *SHAPE)
    assert_close(samples.mean, DECODE(params, samples.z))
    assert set(np.unique(samples.x)) == {0.0, 1.0}


def test_samples_have_the_moments_of_the_model(key):
    params, w = pca_params(), np.asarray(pca_params()["w"], np.float64)
    samples = jax.jit(lambda key: generate.sample(params, key, pca_vae(), 20_000))(key)
    assert_within_errors(samples.z, 0)
    assert_within_errors(samples.x, params["b"])
    d = np.asarray(samples.x) - np.asarray(params["b"])
    cov = w.T @ w + np.exp(float(params["log_var"])) * np.eye(len(w.T))
    assert_within_errors(d[:, :, None] * d[:, None, :], cov)


def test_samples_of_a_conditional_vae_are_of_its_context(key):
    vae = mlp_vae(SHAPE, context_size=3)
    params = jax.jit(vae.init)(jax.random.key(1), jnp.zeros((1, *SHAPE)))
    make = jax.jit(lambda key, context: generate.sample(params, key, condition(vae, context), 6))
    one, two = (make(jax.random.clone(key), jnp.broadcast_to(label, (6, 3))) for label in jnp.eye(3)[:2])
    np.testing.assert_array_equal(one.z, two.z)
    assert np.all(np.any(one.mean != two.mean, (1, 2, 3)))
    assert_close(one.mean, vae.decode(params, one.z, jnp.broadcast_to(jnp.eye(3)[0], (6, 3))).mean)


# reconstructions and lines between them


def test_a_reconstruction_is_decoded_at_the_posterior_mean(params, x):
    assert_close(jit(generate.reconstruct)(params, x), DECODE(params, latents(params, x)))


def test_reconstructions_of_a_linear_gaussian_model_are_its_projections():
    params, x = pca_params(), pca_data().astype(np.float64)
    w, b = (np.asarray(params[name], np.float64) for name in ("w", "b"))
    cov = w.T @ w + np.exp(float(params["log_var"])) * np.eye(len(b))
    expected = b + (x - b) @ np.linalg.solve(cov, w.T @ w)  # Tipping & Bishop 1999: E[x' | x]
    assert_close(generate.reconstruct(params, pca_data(), pca_vae(exact=True)), expected)


def test_interpolations_run_on_the_line_between_two_reconstructions(params, x):
    reconstruct, pairs = jit(generate.reconstruct), jit(generate.interpolate, num=5)(params, x[:4], x[1:])
    assert pairs.shape == (4, 5, *SHAPE)
    assert_close(pairs[:, 0], reconstruct(params, x[:4]))
    assert_close(pairs[:, -1], reconstruct(params, x[1:]))
    z = latents(params, x)
    assert_close(pairs[:, 1], DECODE(params, 0.75 * z[:4] + 0.25 * z[1:]))


# grids of the latent space


def test_a_traversal_moves_one_latent_at_a_time(params, x):
    images = jit(generate.traverse, num=5, extent=2.0)(params, x[:1])
    assert images.shape == (2, 5, *SHAPE)
    for latent in range(2):
        for step, value in enumerate((-2.0, -1.0, 0.0, 1.0, 2.0)):
            z = latents(params, x[:1]).at[0, latent].set(value)
            assert_close(images[latent, step], DECODE(params, z)[0])


@pytest.mark.parametrize("gaussian", (False, True))
def test_a_manifold_runs_to_the_right_in_z_1_and_upwards_in_z_2(params, gaussian):
    images = jit(generate.manifold, num=4, extent=3.0, gaussian=gaussian)(params)
    axis = stats.norm.ppf([0.125, 0.375, 0.625, 0.875]) if gaussian else np.array([-3.0, -1.0, 1.0, 3.0])
    assert images.shape == (4, 4, *SHAPE)
    for row in range(4):
        for column in range(4):
            z = jnp.array([[axis[column], axis[3 - row]]], jnp.float32)
            assert_close(images[row, column], DECODE(params, z)[0])
