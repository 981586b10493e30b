"""q(z | x) by name: how many numbers an example the encoder gives, and the distribution made of them."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from vae_jax.core import Distribution, Params
from vae_jax.distributions import Delta, DiagonalGaussian, FullGaussian


class Posterior(NamedTuple):
    num_outputs: int  # numbers an example that the encoder gives
    build: Callable[[Params, Array], Distribution]  # (params, outputs [..., num_outputs]) -> q(z | x)
    init: Callable[[Array], Params] = lambda key: {}  # parameters beyond the encoder's


def diagonal(latent_dim: int) -> Posterior:
    """N(mean, diag(exp(log_var))), both linear in the encoder's last layer."""

    def build(params: Params, outputs: Array) -> DiagonalGaussian:
        mean, log_var = jnp.split(outputs, 2, axis=-1)
        return DiagonalGaussian(mean, log_var)

    return Posterior(2 * latent_dim, build)


def full_covariance(latent_dim: int) -> Posterior:
    """N(mean, T T') with T lower triangular, its diagonal exponentiated."""
    rows, columns = jnp.tril_indices(latent_dim, -1)

    def build(params: Params, outputs: Array) -> FullGaussian:
        mean, half_log_var, below = jnp.split(outputs, (latent_dim, 2 * latent_dim), axis=-1)
        tril = jnp.exp(half_log_var)[..., None] * jnp.eye(latent_dim, dtype=outputs.dtype)
        return FullGaussian(mean, tril.at[..., rows, columns].set(below))

    return Posterior(2 * latent_dim + len(rows), build)


def delta(latent_dim: int) -> Posterior:
    """All mass at one point. With beta = 0 the VAE is a deterministic autoencoder."""
    return Posterior(latent_dim, lambda params, outputs: Delta(outputs))
