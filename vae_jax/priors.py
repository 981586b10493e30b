"""p(z) by name: its parameters and the distribution made of them."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from vae_jax.core import Distribution, Params
from vae_jax.distributions import DiagonalGaussian


class Prior(NamedTuple):
    build: Callable[[Params, Callable[[Array], Distribution]], Distribution]  # (params, x -> q(z | x)) -> p(z)
    init: Callable[[Array, Array], Params] = lambda key, x: {}  # (key, examples x) -> params


def standard_normal(latent_dim: int) -> Prior:
    """N(0, I)."""
    return Prior(lambda params, encode: DiagonalGaussian(jnp.zeros(latent_dim), jnp.zeros(latent_dim)))
