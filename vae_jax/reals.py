"""Likelihoods of real numbers with heavier tails than a Gaussian's."""

from math import log, pi

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.core import Likelihood, Params
from vae_jax.distributions import distribution, expand_like, softplus, static, sum_event

MAX_LOG_VAR = 6.0  # bounds a learned log-variance, sigma within [0.05, 20]; else a constant pixel would diverge


def student_t(shape: tuple[int, ...]) -> Likelihood:
    """Student's t with the location, the scale and the degrees of freedom of every element learned: for outliers.

    See Mattei & Frellsen 2019 (arXiv:1812.02633); as in their code, there are more than 3 degrees of freedom, and so a
    mean and a variance.
    """

    def build(params: Params, outputs: Array) -> StudentT:
        log_scale = 0.5 * bounded(outputs[..., 1])
        return StudentT(outputs[..., 0], log_scale, 3 + softplus(outputs[..., 2]), len(shape))

    def output_bias(mean: Array) -> Array:
        return jnp.stack([mean, jnp.zeros_like(mean), jnp.zeros_like(mean)], -1)

    return Likelihood(3, build, output_bias)


@distribution
class StudentT:
    """location + exp(log_scale) * t, elementwise, for Student's t with df >= 2 degrees of freedom."""

    location: Array  # [..., *event]
    log_scale: Array  # [..., *event]
    df: Array  # [..., *event]
    event_dim: int = static(default=1)

    @property
    def mean(self) -> Array:
        return self.location

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        shape = sample_shape + self.location.shape
        t = jax.random.t(key, jnp.broadcast_to(self.df, shape), shape, self.location.dtype)
        return expand_like(self.location, t) + expand_like(jnp.exp(self.log_scale), t) * t

    def log_prob(self, value: Array) -> Array:
        location, log_scale, df = (expand_like(a, value) for a in (self.location, self.log_scale, self.df))
        tail = 0.5 * (df + 1) * jnp.log1p(((value - location) * jnp.exp(-log_scale)) ** 2 / df)
        return sum_event(_log_gamma_step(0.5 * df) - 0.5 * log(2 * pi) - log_scale - tail, self.event_dim)


def bounded(log_var: Array) -> Array:
    return MAX_LOG_VAR * jnp.tanh(log_var / MAX_LOG_VAR)


def unbounded(log_var: Array) -> Array:
    """The inverse of `bounded`, cut off where `bounded` would pass almost no gradient."""
    return MAX_LOG_VAR * jnp.arctanh(jnp.clip(log_var / MAX_LOG_VAR, -0.95, 0.95))


def _log_gamma_step(a: Array) -> Array:
    """log Gamma(a + 1/2) - log Gamma(a) - log(a) / 2 for a >= 1, elementwise, to 3e-6.

    For large a, two `lgamma` would nearly cancel. So it is the asymptotic series (DLMF 5.11.8, of h = 1/2 minus h = 0)
    at a + 1, from which Gamma(a + 1) = a Gamma(a) leads back to a.
    """
    y = 1 / (a + 1)
    series = y * (-1 / 8 + y**2 * (1 / 192 + y**2 * (-1 / 640 + y**2 * (17 / 14336))))
    return series + 0.5 * jnp.log1p(1 / a) - jnp.log1p(0.5 / a)
