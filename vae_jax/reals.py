"""Likelihoods of real numbers: the Gaussians, those with heavier tails, and one of positive numbers."""

from math import inf, log, pi

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.core import Likelihood, Params, reparameterize
from vae_jax.distributions import (
    DiagonalGaussian,
    distribution,
    expand_like,
    gaussian_log_prob,
    softplus,
    static,
    sum_event,
)

MAX_LOG_VAR = 6.0  # bounds a learned log-variance, sigma within [0.05, 20]; else a constant pixel would diverge
TINY = 2.0**-126  # the smallest positive number that float32 holds with all its digits: the least x of `log_normal`


def gaussian(shape: tuple[int, ...], *, sigma: float = 1.0) -> Likelihood:
    """N(mean, sigma^2) with a fixed sigma. For sigma 1, -log p is (x - mean)^2 / 2 + log(2 pi) / 2 per element."""
    if not 1e-18 <= sigma <= 1e18:  # so that float32 holds sigma^2 and 1 / sigma^2
        raise ValueError(f"sigma is {sigma}; expected a positive number. From 1e-18 to 1e18 is possible.")

    def build(params: Params, outputs: Array) -> DiagonalGaussian:
        mean = outputs[..., 0]
        return DiagonalGaussian(mean, jnp.full_like(mean, 2 * log(sigma)), len(shape))

    return Likelihood(1, build, lambda mean: mean[..., None])


def gaussian_scalar(shape: tuple[int, ...]) -> Likelihood:
    """N(mean, sigma^2) with one learned sigma for all elements of x (Rybkin et al. 2021, arXiv:2006.13202).

    sigma^2 begins at the variance of the training data: the variance of each element, averaged over the elements.
    """

    def build(params: Params, outputs: Array) -> DiagonalGaussian:
        mean = outputs[..., 0]
        return DiagonalGaussian(mean, jnp.broadcast_to(bounded(params["log_var"]), mean.shape), len(shape))

    return Likelihood(1, build, lambda mean: mean[..., None], lambda x: {"log_var": log_var_of(x)})


def gaussian_pixel(shape: tuple[int, ...]) -> Likelihood:
    """N(mean, sigma^2) with the mean and sigma of every element learned (Kingma & Welling 2014, appendix C.2)."""

    def build(params: Params, outputs: Array) -> DiagonalGaussian:
        return DiagonalGaussian(outputs[..., 0], bounded(outputs[..., 1]), len(shape))

    return Likelihood(2, build, lambda mean: jnp.stack([mean, jnp.zeros_like(mean)], -1))


def laplace(shape: tuple[int, ...]) -> Likelihood:
    """Laplace(location, b) with one learned scale b for all elements of x, as `gaussian_scalar` has one sigma.

    -log p is the absolute error |x - location| / b, plus log(2 b) per element. The variance, 2 b^2, begins at the
    variance of the training data. For heavy tails with a scale of each element, choose `student_t`.
    """

    def build(params: Params, outputs: Array) -> Laplace:
        location = outputs[..., 0]
        log_scale = 0.5 * (bounded(params["log_var"]) - log(2))
        return Laplace(location, jnp.broadcast_to(log_scale, location.shape), len(shape))

    return Likelihood(1, build, lambda mean: mean[..., None], lambda x: {"log_var": log_var_of(x)})


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


def log_normal(shape: tuple[int, ...]) -> Likelihood:
    """x > 0 whose log is N(location, sigma^2), with the location and sigma of every element learned.

    The encoder sees log(x), while the density is that of x itself. The model begins at the average of the data with
    sigma = 1, and sigma stays within [0.02, 7.4].
    """

    def build(params: Params, outputs: Array) -> LogNormal:
        return LogNormal(outputs[..., 0], bounded(outputs[..., 1]) - 2, len(shape))

    def output_bias(mean: Array) -> Array:
        location = jnp.log(jnp.maximum(mean, TINY)) - 0.5
        return jnp.stack([location, unbounded(jnp.full_like(mean, 2.0))], -1)

    return Likelihood(2, build, output_bias, support=(TINY, inf), features=jnp.log)


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


@distribution
class Laplace:
    """The density exp(-|x - location| / b) / (2 b) with b = exp(log_scale), independent over the event axes."""

    location: Array  # [..., *event]
    log_scale: Array  # [..., *event]
    event_dim: int = static(default=1)

    @property
    def mean(self) -> Array:
        return self.location

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        noise = jax.random.laplace(key, sample_shape + self.location.shape, self.location.dtype)
        return expand_like(self.location, noise) + expand_like(jnp.exp(self.log_scale), noise) * noise

    def log_prob(self, value: Array) -> Array:
        location, log_scale = (expand_like(a, value) for a in (self.location, self.log_scale))
        return sum_event(-jnp.abs(value - location) * jnp.exp(-log_scale) - log_scale - log(2), self.event_dim)


@distribution
class LogNormal:
    """exp(u) for u ~ N(location, exp(log_var)), independent over the event axes.

    The mean and the samples stay between the smallest and the largest positive number of float32.
    """

    location: Array  # [..., *event]
    log_var: Array  # [..., *event]
    event_dim: int = static(default=1)

    @property
    def mean(self) -> Array:
        return _positive(self.location + 0.5 * jnp.exp(self.log_var))

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        shape = sample_shape + self.location.shape
        location, log_var = (jnp.broadcast_to(a, shape) for a in (self.location, self.log_var))
        return _positive(reparameterize(key, location, log_var))

    def log_prob(self, value: Array) -> Array:
        u = jnp.log(value)
        location, log_var = (expand_like(a, value) for a in (self.location, self.log_var))
        return sum_event(gaussian_log_prob(u, location, log_var) - u, self.event_dim)


def log_var_of(x: Array) -> Array:
    """The parameter from which `bounded` makes the log of the variance of each element, averaged over the elements."""
    return unbounded(jnp.log(jnp.mean(jnp.var(x, 0))))


def bounded(log_var: Array) -> Array:
    return MAX_LOG_VAR * jnp.tanh(log_var / MAX_LOG_VAR)


def unbounded(log_var: Array) -> Array:
    """The inverse of `bounded`, cut off where `bounded` would pass almost no gradient."""
    return MAX_LOG_VAR * jnp.arctanh(jnp.clip(log_var / MAX_LOG_VAR, -0.95, 0.95))


def _positive(u: Array) -> Array:
    """exp(u), elementwise, within the positive numbers of float32."""
    return jnp.exp(jnp.clip(u, -87.3, 88.7))


def _log_gamma_step(a: Array) -> Array:
    """log Gamma(a + 1/2) - log Gamma(a) - log(a) / 2 for a >= 1, elementwise, to 3e-6.

    For large a, two `lgamma` would nearly cancel. So it is the asymptotic series (DLMF 5.11.8, of h = 1/2 minus h = 0)
    at a + 1, from which Gamma(a + 1) = a Gamma(a) leads back to a.
    """
    y = 1 / (a + 1)
    series = y * (-1 / 8 + y**2 * (1 / 192 + y**2 * (-1 / 640 + y**2 * (17 / 14336))))
    return series + 0.5 * jnp.log1p(1 / a) - jnp.log1p(0.5 / a)
