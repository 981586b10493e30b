"""p(x | z) by name: how many numbers an element of x the decoder gives, and the distribution made of them."""

from collections.abc import Callable
from math import log
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from vae_jax.core import Distribution, Params
from vae_jax.distributions import Bernoulli, DiagonalGaussian

MAX_LOG_VAR = 6.0  # bound on a learned log-variance: sigma within [0.05, 20]; without one a constant pixel diverges


class Likelihood(NamedTuple):
    num_outputs: int  # numbers an element of x that the decoder gives
    build: Callable[[Params, Array], Distribution]  # (params, outputs [..., *shape, num_outputs]) -> p(x | z)
    output_bias: Callable[[Array], Array]  # data mean [*shape] -> the outputs [*shape, num_outputs] whose mean it is
    init: Callable[[], Params] = dict  # parameters beyond the decoder's
    support: tuple[float, float] | None = None  # where x must lie, None for anywhere


def bernoulli(shape: tuple[int, ...]) -> Likelihood:
    """Bernoulli(sigmoid(logits)) for x in {0, 1}; on grey x in [0, 1] a cross-entropy loss."""

    def output_bias(mean: Array) -> Array:
        mean = jnp.clip(mean, 1e-3, 1 - 1e-3)
        return (jnp.log(mean) - jnp.log1p(-mean))[..., None]

    return Likelihood(
        1, lambda params, outputs: Bernoulli(outputs[..., 0], len(shape)), output_bias, support=(0.0, 1.0)
    )


def gaussian(shape: tuple[int, ...], *, sigma: float = 1.0) -> Likelihood:
    """N(mean, sigma^2) with sigma fixed: at sigma 1, half the squared error plus log(2 pi) / 2 an element."""
    if not sigma > 0:
        raise ValueError(f"sigma is {sigma}; expected a positive number.")

    def build(params: Params, outputs: Array) -> DiagonalGaussian:
        mean = outputs[..., 0]
        return DiagonalGaussian(mean, jnp.full_like(mean, 2 * log(sigma)), len(shape))

    return Likelihood(1, build, lambda mean: mean[..., None])


def gaussian_scalar(shape: tuple[int, ...]) -> Likelihood:
    """N(mean, sigma^2) with one learned sigma for all elements of x (Rybkin et al. 2021, arXiv:2006.13202)."""

    def build(params: Params, outputs: Array) -> DiagonalGaussian:
        mean = outputs[..., 0]
        return DiagonalGaussian(mean, jnp.broadcast_to(_bounded(params["log_var"]), mean.shape), len(shape))

    return Likelihood(1, build, lambda mean: mean[..., None], lambda: {"log_var": jnp.zeros(())})


def gaussian_pixel(shape: tuple[int, ...]) -> Likelihood:
    """N(mean, sigma^2) with the mean and sigma of every element learned (Kingma & Welling 2014, appendix C.2)."""

    def build(params: Params, outputs: Array) -> DiagonalGaussian:
        return DiagonalGaussian(outputs[..., 0], _bounded(outputs[..., 1]), len(shape))

    return Likelihood(2, build, lambda mean: jnp.stack([mean, jnp.zeros_like(mean)], -1))


def _bounded(log_var: Array) -> Array:
    return MAX_LOG_VAR * jnp.tanh(log_var / MAX_LOG_VAR)
