"""The likelihoods p(x | z) that a config can name: what the decoder has to give, and what distribution it makes."""

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.core import Likelihood
from vae_jax.counts import negative_binomial, poisson, zero_inflated_negative_binomial  # noqa: F401
from vae_jax.distributions import Bernoulli, distribution, expand_like, static, sum_event
from vae_jax.logistics import discretized_logistic, logistic_mixture, solve  # noqa: F401
from vae_jax.mixed import mixed  # noqa: F401
from vae_jax.reals import gaussian, gaussian_pixel, gaussian_scalar, laplace, log_normal, student_t  # noqa: F401

NAMES = (
    "bernoulli",
    "categorical",
    "continuous_bernoulli",
    "discretized_logistic",
    "gaussian",
    "gaussian_pixel",
    "gaussian_scalar",
    "laplace",
    "log_normal",
    "logistic_mixture",
    "mixed",
    "negative_binomial",
    "poisson",
    "student_t",
    "zero_inflated_negative_binomial",
)  # what a config may name


def bernoulli(shape: tuple[int, ...]) -> Likelihood:
    """Bernoulli(sigmoid(logits)) for x in {0, 1}. For grey x in [0, 1], -log p is the cross-entropy loss."""

    def output_bias(mean: Array) -> Array:
        mean = jnp.clip(mean, 1e-3, 1 - 1e-3)
        return (jnp.log(mean) - jnp.log1p(-mean))[..., None]

    return Likelihood(
        1, lambda params, outputs: Bernoulli(outputs[..., 0], len(shape)), output_bias, support=(0.0, 1.0)
    )


def continuous_bernoulli(shape: tuple[int, ...]) -> Likelihood:
    """The density proportional to exp(logits * x) for x in [0, 1]: the cross-entropy of grey pixels, but normalised."""

    def output_bias(mean: Array) -> Array:
        mean = jnp.clip(mean, 1e-2, 1 - 1e-2)
        start = 1 / (1 - mean) - 1 / mean  # exact in the limits mean -> 0 and mean -> 1
        return solve(lambda logits: ContinuousBernoulli(logits).mean, mean, start)[..., None]

    return Likelihood(
        1, lambda params, outputs: ContinuousBernoulli(outputs[..., 0], len(shape)), output_bias, support=(0.0, 1.0)
    )


def categorical(shape: tuple[int, ...], *, num_levels: int = 256) -> Likelihood:
    """Every element takes one of `num_levels` evenly spaced values of [0, 1]: 256 for bytes, 17 for the digits.

    The decoder has one output per element and level, so large images of bytes take much time and memory; choose
    `discretized_logistic` for them. The output bias is the log of how often each element takes each level, after one
    is added to every count.
    """
    if num_levels < 2:
        raise ValueError(f"num_levels is {num_levels}; expected at least 2.")

    def average(x: Array) -> Array:  # one example at a time, to save memory
        flat = x.reshape(x.shape[0], -1)
        element, count = jnp.arange(flat.shape[1]), jnp.ones((flat.shape[1], num_levels), x.dtype)
        count = jax.lax.fori_loop(0, len(x), lambda i, c: c.at[element, _level(flat[i], num_levels)].add(1.0), count)
        return (count / (len(x) + num_levels)).reshape(*x.shape[1:], num_levels)

    return Likelihood(
        num_levels,
        lambda params, outputs: Categorical(outputs, len(shape)),
        jnp.log,
        support=(0.0, 1.0),
        average=average,
        num_levels=num_levels,
    )


@distribution
class ContinuousBernoulli:
    """The density proportional to exp(logits * x) on [0, 1], independent over the event axes.

    See Loaiza-Ganem & Cunningham 2019 (arXiv:1907.06845), equation 6; `logits` is the natural parameter.
    """

    logits: Array  # [..., *event]
    event_dim: int = static(default=1)

    @property
    def mean(self) -> Array:
        return jax.vmap(jax.grad(_log_mean_exp))(self.logits.reshape(-1)).reshape(self.logits.shape)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        shape = sample_shape + self.logits.shape
        size = jnp.broadcast_to(jnp.maximum(jnp.abs(self.logits), 1e-3), shape)
        u = jax.random.uniform(key, shape, self.logits.dtype)
        x = 1 + jnp.log(u + (1 - u) * jnp.exp(-size)) / size  # the inverse distribution function at |logits|
        return jnp.clip(jnp.where(jnp.broadcast_to(self.logits, shape) < 0, 1 - x, x), 0, 1)

    def log_prob(self, value: Array) -> Array:
        logits = expand_like(self.logits, value)
        return sum_event(value * logits - _log_mean_exp(logits), self.event_dim)


@distribution
class Categorical:
    """Each element of x independently takes one of the C values 0, 1/(C - 1), ..., 1 with softmax(logits)."""

    logits: Array  # [..., *event, C]
    event_dim: int = static(default=1)

    @property
    def mean(self) -> Array:
        num = self.logits.shape[-1]
        levels = jnp.linspace(0.0, 1.0, num, dtype=self.logits.dtype)
        return jnp.sum(jax.nn.softmax(self.logits) * expand_like(levels, self.logits), -1)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        level = jax.random.categorical(key, self.logits, shape=sample_shape + self.logits.shape[:-1])
        return level.astype(self.logits.dtype) / (self.logits.shape[-1] - 1)

    def log_prob(self, value: Array) -> Array:
        level = _level(value, self.logits.shape[-1])
        log_p = expand_like(jax.nn.log_softmax(self.logits), level[..., None])
        log_p = jnp.broadcast_to(log_p, (*level.shape, self.logits.shape[-1]))
        return sum_event(jnp.take_along_axis(log_p, level[..., None], -1)[..., 0], self.event_dim)


def _level(x: Array, num_levels: int) -> Array:
    return jnp.round(x * (num_levels - 1)).astype(jnp.int32)


def _log_mean_exp(a: Array) -> Array:
    """log of the integral of exp(a x) over [0, 1], elementwise: log((exp(a) - 1) / a), and 0 at a = 0."""
    size = jnp.maximum(jnp.abs(a), 0.1)
    large = jnp.maximum(a, 0) + jnp.log1p(-jnp.exp(-size)) - jnp.log(size)
    return jnp.where(jnp.abs(a) < 0.1, a / 2 + a**2 / 24 - a**4 / 2880, large)
