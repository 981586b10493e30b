"""Models small enough to be known in closed form, shared by the tests."""

from contextlib import contextmanager
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import multivariate_normal

from vae_jax import hierarchies, likelihoods, networks, posteriors, priors
from vae_jax.core import VAE
from vae_jax.distributions import Bernoulli, DiagonalGaussian, FullGaussian
from vae_jax.errors import UserError
from vae_jax.names import make


@contextmanager
def lenient():
    """Code of other libraries, to which the guards of conftest.py do not apply."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def lenient_optax(optimizer):
    """An optimiser of optax, which mixes floats and whole numbers."""

    def update(*args):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(*args)

    return optax.GradientTransformation(optimizer.init, update)


def members(module, kind):
    """The names of a module that a config may use: those that a misspelt name is told."""
    with pytest.raises(UserError) as caught:
        make(module, getattr(module, kind), "?")
    return set(str(caught.value).partition("Choose one of: ")[2].rstrip(".").split(", "))


KINDS = {
    "network": networks,
    "posterior": posteriors,
    "prior": priors,
    "likelihood": likelihoods,
    "hierarchy": hierarchies,
}


def names_of_kind(kind):
    """The members of a family of parts, by the field of the config that names them."""
    return sorted(members(KINDS[kind], kind.capitalize()))


# The fields beside the posterior that a discrete one with three dimensions needs.
CODED = {
    "categorical": {"prior": "factorized_codes", "posterior_options": {"num_categories": 3}},
    "fsq": {"prior": "uniform_codes", "posterior_options": {"levels": [4, 3, 2]}},
    "vq": {
        **{"prior": "uniform_codes", "objective": "vq"},
        "posterior_options": {"num_codes": 4, "code_dim": 1, "restart_steps": 3},
    },
}


def jit(function, vae, **options):
    """function(params, key, x) of a VAE in one compilation: op by op, each operation would have its own."""
    return jax.jit(partial(function, vae=vae, **options))


def affine(params, x):
    y = x @ params["w"]
    return y + jnp.broadcast_to(params["b"], y.shape)


def dense(key, num_in, num_out):
    return {"w": jax.random.normal(key, (num_in, num_out)) / num_in**0.5, "b": jnp.zeros(num_out)}


def standard_normal(latent_dim):
    return DiagonalGaussian(jnp.zeros(latent_dim), jnp.zeros(latent_dim))


def mlp_vae(shape=(4,), latent_dim=2, hidden=8, context_size=0):
    """A Bernoulli VAE with one hidden tanh layer in encoder and decoder, and a label if `context_size`."""

    def init(key, x, context=None):
        keys = jax.random.split(key, 4)
        return {
            "encoder": [
                dense(keys[0], prod(shape) + context_size, hidden),
                dense(keys[1], hidden, 2 * latent_dim),
            ],
            "decoder": [dense(keys[2], latent_dim + context_size, hidden), dense(keys[3], hidden, prod(shape))],
        }

    def network(layers, x, context):
        if context is not None:
            x = jnp.concatenate([x, jnp.broadcast_to(context, (*x.shape[:-1], context_size))], -1)
        return affine(layers[1], jnp.tanh(affine(layers[0], x)))

    def encode(params, x, context=None):
        flat = x.reshape(*x.shape[: x.ndim - len(shape)], prod(shape))
        return DiagonalGaussian(*jnp.split(network(params["encoder"], flat, context), 2, -1))

    def decode(params, z, context=None):
        logits = network(params["decoder"], z, context)
        return Bernoulli(logits.reshape(*z.shape[:-1], *shape), len(shape))

    return VAE(init, encode, decode, lambda params: standard_normal(latent_dim))


PCA_SIZE, PCA_LATENTS = 5, 2


def pca_params(seed=0):
    """w, b, the noise variance, and a posterior a little off the exact one in mean and variance."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(PCA_LATENTS, PCA_SIZE))
    params = {"w": w, "b": rng.normal(size=PCA_SIZE), "log_var": np.array(-0.5)}
    gain, cov = _pca_posterior(params)
    params |= {"gain": 0.9 * gain, "log_var_q": np.log(1.3 * np.diag(cov))}
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)


def pca_data(num=6, seed=1):
    return np.random.default_rng(seed).normal(size=(num, PCA_SIZE)).astype(np.float32)


def pca_vae(*, exact=False):
    """Probabilistic PCA, p(x | z) = N(z W + b, s^2 I) and p(z) = N(0, I), with all of its figures in closed form.

    Tipping & Bishop 1999. q(z | x) is the exact posterior, or a diagonal Gaussian beside it.
    """

    def encode(params, x):
        centred = x - jnp.broadcast_to(params["b"], x.shape)
        if not exact:
            mean = centred @ params["gain"]
            return DiagonalGaussian(mean, jnp.broadcast_to(params["log_var_q"], mean.shape))
        precision = jnp.eye(PCA_LATENTS) + params["w"] @ params["w"].T * jnp.exp(-params["log_var"])
        cov = jnp.linalg.inv(precision)
        mean = centred @ params["w"].T @ cov * jnp.exp(-params["log_var"])
        tril = jnp.linalg.cholesky(cov)
        return FullGaussian(mean, jnp.broadcast_to(tril, (*mean.shape, PCA_LATENTS)))

    def decode(params, z):
        mean = affine(params, z)
        return DiagonalGaussian(mean, jnp.broadcast_to(params["log_var"], mean.shape))

    return VAE(lambda key, x: pca_params(), encode, decode, lambda params: standard_normal(PCA_LATENTS))


def pca_log_px(params, x):
    """log N(x | b, W'W + s^2 I), [B], in float64."""
    p = _float64(params)
    cov = p["w"].T @ p["w"] + np.exp(p["log_var"]) * np.eye(PCA_SIZE)
    return multivariate_normal(p["b"], cov).logpdf(np.asarray(x, np.float64))


def pca_elbo(params, x):
    """The expected log-likelihood and the KL of `pca_vae()`, [B] each, in float64."""
    p = _float64(params)
    centred = np.asarray(x, np.float64) - p["b"]
    mean, var = centred @ p["gain"], np.exp(p["log_var_q"])
    square = np.sum((centred - mean @ p["w"]) ** 2, -1) + np.sum(p["w"] ** 2 * var[:, None])
    log_likelihood = -0.5 * (PCA_SIZE * (np.log(2 * np.pi) + p["log_var"]) + square / np.exp(p["log_var"]))
    return log_likelihood, 0.5 * np.sum(var + mean**2 - 1 - np.log(var), -1)


def _pca_posterior(params):
    """x - b -> E[z | x] as a matrix, and Cov[z | x]."""
    cov = np.linalg.inv(np.eye(PCA_LATENTS) + params["w"] @ params["w"].T / np.exp(params["log_var"]))
    return params["w"].T @ cov / np.exp(params["log_var"]), cov


def _float64(params):
    return {name: np.asarray(value, np.float64) for name, value in params.items()}


def assert_within_errors(draws, expected, errors=5):
    """The mean over the first axis of `draws` is `expected`, to so many standard errors and float32's rounding."""
    draws = np.asarray(draws, np.float64)
    error = draws.std(0, ddof=1) / np.sqrt(len(draws))
    distance = np.abs(draws.mean(0) - expected)
    assert np.all(distance <= errors * error + 1e-5 * np.abs(expected)), f"{distance} away, standard errors {error}"
