"""The priors p(z) that a config can name: their parameters, and the distributions built from them.

A prior is a function of the number of latent dimensions. One of codes is a function of the codes of the posterior.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax import flows
from vae_jax.codes import Categoricals, Codes
from vae_jax.core import Distribution, Params
from vae_jax.distributions import DiagonalGaussian, GaussianMixture

# what a config may name
NAMES = ("factorized_codes", "mixture", "real_nvp", "standard_normal", "uniform_codes", "vamp")
OF_CODES = ("factorized_codes", "uniform_codes")  # those for a discrete posterior, which take no other


class Prior(NamedTuple):
    build: Callable[[Params, Callable[[Array], Distribution]], Distribution]  # (params, x -> q(z | x)) -> p(z)
    init: Callable[[Array, Array], Params] = lambda key, x: {}  # (key, training examples x) -> params
    encodes: bool = False  # whether `build` calls x -> q(z | x), which must be a diagonal Gaussian without a label


def standard_normal(latent_dim: int) -> Prior:
    """N(0, I)."""
    return Prior(lambda params, encode: _standard_normal(latent_dim))


def mixture(latent_dim: int, *, num_components: int = 100) -> Prior:
    """A mixture of diagonal Gaussians with learned weights, means and variances."""

    def init(key: Array, x: Array) -> Params:
        shape = (num_components, latent_dim)
        mean = jax.random.normal(key, shape, jnp.float32)  # drawn from N(0, I), since equal components would stay equal
        return {"logits": jnp.zeros_like(mean[:, 0]), "mean": mean, "log_var": jnp.zeros_like(mean)}

    def build(params: Params, encode: Callable[[Array], Distribution]) -> GaussianMixture:
        return GaussianMixture(params["logits"], DiagonalGaussian(params["mean"], params["log_var"]))

    return Prior(build, init)


def vamp(latent_dim: int, *, num_components: int = 500) -> Prior:
    """VampPrior: the mixture of q(z | u_c) over learned pseudo-inputs u_c, which begin as training examples.

    See Tomczak & Welling 2018 (arXiv:1705.07120), equation 9. It needs a diagonal posterior and x in [0, 1].
    """

    def init(key: Array, x: Array) -> Params:
        rows = jax.random.choice(key, x.shape[0], (num_components,), replace=num_components > x.shape[0])
        return {"pseudo_inputs": x[rows]}

    def build(params: Params, encode: Callable[[Array], Distribution]) -> GaussianMixture:
        components = encode(jnp.clip(params["pseudo_inputs"], 0, 1))
        if not isinstance(components, DiagonalGaussian):
            raise ValueError(f"The VampPrior needs a diagonal posterior; got a {type(components).__name__}.")
        return GaussianMixture(jnp.zeros_like(components.mean[:, 0]), components)

    return Prior(build, init, encodes=True)


def real_nvp(latent_dim: int, *, num_couplings: int = 6, hidden_size: int = 256) -> Prior:
    """N(0, I) transformed by learned affine couplings (`flows.RealNVP`)."""
    flow = flows.real_nvp(latent_dim, num_couplings, hidden_size)
    return Prior(
        lambda params, encode: flow.distribution(params, _standard_normal(latent_dim)), lambda key, x: flow.init(key)
    )


def uniform_codes(codes: Codes) -> Prior:
    """All codes with the same probability."""
    return Prior(lambda params, encode: Categoricals(jnp.zeros(sum(codes.sizes), jnp.float32), codes))


def factorized_codes(codes: Codes) -> Prior:
    """Independent variables with learned probabilities, which begin equal."""

    def init(key: Array, x: Array) -> Params:
        return {"logits": jnp.zeros(sum(codes.sizes), jnp.float32)}

    return Prior(lambda params, encode: Categoricals(params["logits"], codes), init)


def _standard_normal(latent_dim: int) -> DiagonalGaussian:
    zeros = jnp.zeros(latent_dim, jnp.float32)
    return DiagonalGaussian(zeros, zeros)
