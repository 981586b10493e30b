"""The posteriors q(z | x) that a config can name: what the encoder has to give, and what distribution it makes."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from vae_jax import flows
from vae_jax.core import Distribution, Params
from vae_jax.distributions import Delta, DiagonalGaussian, Flow, FullGaussian

NAMES = ("delta", "diagonal", "flow", "full_covariance")  # what a config may name

MAX_FULL = 2000  # dimensions of the largest full covariance, for which the encoder gives two million numbers


class Posterior(NamedTuple):
    num_outputs: int  # numbers per example that the encoder gives
    build: Callable[[Params, Array], Distribution]  # (params, outputs [..., num_outputs]) -> q(z | x)
    init: Callable[[Array], Params] = lambda key: {}  # key -> parameters beyond the encoder's


def diagonal(latent_dim: int) -> Posterior:
    """N(mean, diag(exp(log_var))). The encoder's outputs are `mean` and `log_var`."""

    def build(params: Params, outputs: Array) -> DiagonalGaussian:
        mean, log_var = jnp.split(outputs, 2, axis=-1)
        return DiagonalGaussian(mean, log_var)

    return Posterior(2 * latent_dim, build)


def full_covariance(latent_dim: int) -> Posterior:
    """N(mean, T T') with a lower-triangular T, whose diagonal is the exponential of encoder outputs."""
    if latent_dim > MAX_FULL:
        raise ValueError(f"latent_dim is {latent_dim}; expected at most {MAX_FULL}.")
    rows, columns = jnp.tril_indices(latent_dim, -1)

    def build(params: Params, outputs: Array) -> FullGaussian:
        mean, half_log_var, below = jnp.split(outputs, (latent_dim, 2 * latent_dim), axis=-1)
        diagonal = jnp.arange(latent_dim)
        tril = jnp.zeros((*mean.shape, latent_dim), mean.dtype).at[..., diagonal, diagonal].set(jnp.exp(half_log_var))
        return FullGaussian(mean, tril.at[..., rows, columns].set(below))

    return Posterior(2 * latent_dim + len(rows), build)


def delta(latent_dim: int) -> Posterior:
    """All mass at one point. With beta = 0 the VAE is a deterministic autoencoder."""
    return Posterior(latent_dim, lambda params, outputs: Delta(outputs))


def flow(latent_dim: int, *, num_couplings: int = 4, hidden_size: int = 128, context_size: int = 32) -> Posterior:
    """A diagonal Gaussian transformed by affine couplings, which also read `context_size` numbers from the encoder.

    See Rezende & Mohamed 2015 (arXiv:1505.05770); `flows.RealNVP` describes the couplings.
    """
    couplings = flows.real_nvp(latent_dim, num_couplings, hidden_size)

    def build(params: Params, outputs: Array) -> Flow:
        mean, log_var, context = jnp.split(outputs, (latent_dim, 2 * latent_dim), -1)
        return couplings.distribution(params, DiagonalGaussian(mean, log_var), context)

    def init(key: Array) -> Params:
        return couplings.init(key, jnp.zeros((1, context_size), jnp.float32))

    return Posterior(2 * latent_dim + context_size, build, init)
