"""Likelihoods of counts x = 0, 1, 2, ...: exact in float32 from single counts to millions, without any epsilon.

log Gamma of a large number has a large rounding error: float32 holds log Gamma(1e6) = 1.3e7 to the nearest whole
number. The densities are therefore sums of non-negative deviances and small corrections, as in Loader 2000, "Fast and
accurate computation of binomial probabilities", and none of their terms cancels another.
"""

from math import log, pi, prod

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.core import Likelihood, Params
from vae_jax.distributions import distribution, excess, expand_like, softplus, static, sum_event

MAX_LOG_RATE = 60.0  # exp(60) = 1e26 and its sums fit into float32; no count is as large
MAX_LOG_R = 6.0  # bounds log r: from r = 400 on, counts below 100 hardly tell a negative binomial from a Poisson
_FLOOR = 0.5  # of a count in all training examples together: the start of an element that is 0 in all of them
_LARGE_RATE = 10.0  # from here on, the rejection of Hoermann holds


def poisson(shape: tuple[int, ...]) -> Likelihood:
    """Poisson counts of the rate exp(outputs), and at most exp(60). The encoder sees log(1 + x).

    The output bias is the log of the average of the training examples. An element that is 0 in all of them counts as
    half a count in one of them.
    """
    return Likelihood(
        1,
        lambda params, outputs: Poisson(jnp.minimum(outputs[..., 0], MAX_LOG_RATE), len(shape)),
        lambda mean: jnp.log(mean)[..., None],
        average=_average,
        support=(0.0, float("inf")),
        features=jnp.log1p,
        whole=True,
    )


def negative_binomial(shape: tuple[int, ...], *, shares: bool = False) -> Likelihood:
    """Counts of the mean m = exp(outputs) and the variance m + m^2 / r, with a learned r per element, e^-6 < r < e^6.

    r begins at the moments of the training examples. The encoder sees log(1 + x), and the output bias is that of
    `poisson`.

    shares: softmax(outputs over all elements) are shares, and m is the share times the total of the example itself, at
    least 1 (Lopez et al. 2018, doi:10.1038/s41592-018-0229-2, with the observed total as the library size). So the
    likelihood treats the total as known beforehand, and log_prob takes it from its value: it does not sum to 1 over all
    x, and its figures compare with those of other likelihoods with shares only. A mean or a sample has no such value:
    it is for the average total of the training examples, which `params["log_total"]` keeps and no gradient changes. The
    output bias is the log of the shares of all training examples together, with the same half count.
    """

    def init(x: Array) -> Params:
        total = jnp.sum(x, tuple(range(1, x.ndim)), keepdims=True)
        average = _average(x)[None]
        mean = average / jnp.sum(average) * jnp.maximum(total, 1) if shares else average
        beyond = jnp.sum((x - mean) ** 2 - mean, 0)  # what the variance has beyond that of a Poisson: m^2 / r
        square = jnp.sum(jnp.broadcast_to(mean**2, x.shape), 0)
        ratio = jnp.where(beyond > 0, square / jnp.where(beyond > 0, beyond, 1), jnp.inf)
        # The inverse of `_bounded`, cut off where it would pass almost no gradient.
        log_r = MAX_LOG_R * jnp.arctanh(jnp.clip(jnp.log(ratio) / MAX_LOG_R, -0.95, 0.95))
        return {"log_r": log_r} | ({"log_total": jnp.log(jnp.maximum(jnp.mean(total), 1))} if shares else {})

    def output_bias(mean: Array) -> Array:
        return jnp.log(mean / jnp.sum(mean) if shares else mean)[..., None]

    return Likelihood(
        1,
        lambda params, outputs: _negative_binomial(params, outputs[..., 0], len(shape)),
        output_bias,
        init,
        average=_average,
        support=(0.0, float("inf")),
        features=jnp.log1p,
        whole=True,
        independent=not shares,
    )


def zero_inflated_negative_binomial(shape: tuple[int, ...], *, shares: bool = False) -> Likelihood:
    """With the probability sigmoid(outputs[..., 1]) a zero, and otherwise a count of `negative_binomial`.

    The logit of the extra zero begins at -3, a probability of 0.05, and the output bias makes up for it, so that the
    mean is still the average of the training examples. With shares, the softmax leaves no room for that: the mean is
    0.95 of the average there.
    """
    plain = negative_binomial(shape, shares=shares)

    def build(params: Params, outputs: Array) -> ZeroInflatedNegativeBinomial:
        base = _negative_binomial(params, outputs[..., 0], len(shape))
        return ZeroInflatedNegativeBinomial(base, outputs[..., 1], len(shape))

    def output_bias(mean: Array) -> Array:
        logits = jnp.full_like(mean, -3.0)
        return jnp.concatenate([plain.output_bias(mean / jax.nn.sigmoid(-logits)), logits[..., None]], -1)

    return plain._replace(num_outputs=2, build=build, output_bias=output_bias)


def poisson_log_prob(x: Array, log_rate: Array) -> Array:
    """log Poisson(x | exp(log_rate)), elementwise, for log_rate <= 60.

    For x >= 1 it is -x (e^t - 1 - t) - log(2 pi x) / 2 - S(x), where t = log_rate - log x, and S is the error of
    Stirling's formula (Loader 2000, equation 4).
    """
    x, some = _positive(x)
    deviance = x * excess(_log_ratio(log_rate, x)) + 0.5 * jnp.log(2 * pi * x) + _stirling_error(x)
    return -jnp.where(some, deviance, jnp.exp(log_rate))


def negative_binomial_log_prob(x: Array, log_mean: Array, log_r: Array) -> Array:
    """log of the negative binomial of the mean m = exp(log_mean) and the variance m + m^2 / r, elementwise.

    log Gamma(x + r) - log Gamma(r) - log x! + r log(r / (r + m)) + x log(m / (r + m)) in Loader's form, with n = x + r:
    (log r - log(2 pi x) - log n) / 2 + S(n) - S(r) - S(x) - r (e^s - 1 - s) - x (e^t - 1 - t) for x >= 1, where
    s = log(n / (m + r)) and t = log(m n / (x (m + r))).
    """
    x, some = _positive(x)
    r, n = jnp.exp(log_r), x + jnp.exp(log_r)
    s = jnp.log(n) - jnp.logaddexp(log_mean, log_r)
    t = jnp.log1p(r / x) - softplus(log_r - log_mean)
    normalizer = 0.5 * (log_r - jnp.log(2 * pi * x) - jnp.log(n)) - _stirling_error(r)
    normalizer += _stirling_error(n) - _stirling_error(x)
    return jnp.where(some, normalizer - r * excess(s) - x * excess(t), -r * softplus(log_mean - log_r))


@distribution
class Poisson:
    """Poisson(exp(log_rate)), independent over the event axes."""

    log_rate: Array  # [..., *event], at most 60
    event_dim: int = static(default=1)

    @property
    def mean(self) -> Array:
        return jnp.exp(self.log_rate)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        return sample_poisson(key, jnp.broadcast_to(self.log_rate, sample_shape + self.log_rate.shape))

    def log_prob(self, value: Array) -> Array:
        return sum_event(poisson_log_prob(value, expand_like(self.log_rate, value)), self.event_dim)


@distribution
class NegativeBinomial:
    """Counts of the mean m and the variance m + m^2 / r, independent over the event axes given m."""

    log_mean: Array  # [..., *event], at most 60; with a log_total, the log of the shares, which sum to 1
    log_r: Array  # as log_mean, or with axes of size 1
    log_total: Array | None = None  # as log_mean, or with axes of size 1: for the mean and samples alone
    event_dim: int = static(default=1)

    @property
    def mean(self) -> Array:
        return jnp.exp(self._log_mean)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        gamma_key, count_key = jax.random.split(key)
        shape = sample_shape + self.log_mean.shape
        log_r = jnp.broadcast_to(expand_like(self.log_r, self._log_mean), shape)
        log_gamma = jax.random.loggamma(gamma_key, jnp.exp(log_r), dtype=log_r.dtype)  # of tiny r, its exp would be 0
        log_rate = jnp.broadcast_to(self._log_mean, shape) + log_gamma - log_r
        return sample_poisson(count_key, jnp.minimum(log_rate, MAX_LOG_RATE))

    def log_prob(self, value: Array) -> Array:
        return sum_event(self.each(value), self.event_dim)

    def each(self, value: Array) -> Array:
        """The log density of each element, [..., *event]."""
        log_mean, log_r = expand_like(self.log_mean, value), expand_like(self.log_r, value)
        if self.log_total is not None:
            total = jnp.sum(value, tuple(range(-self.event_dim, 0)), keepdims=True)
            log_mean = log_mean + jnp.log(jnp.maximum(total, 1))
        return negative_binomial_log_prob(value, log_mean, log_r)

    @property
    def _log_mean(self) -> Array:
        return self.log_mean if self.log_total is None else self.log_mean + self.log_total


@distribution
class ZeroInflatedNegativeBinomial:
    """With the probability sigmoid(logits) a zero, and otherwise a count of `base`; independent over the event axes."""

    base: NegativeBinomial
    logits: Array  # [..., *event]
    event_dim: int = static(default=1)

    @property
    def mean(self) -> Array:
        return jax.nn.sigmoid(-self.logits) * self.base.mean

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        zero_key, count_key = jax.random.split(key)
        p = jnp.broadcast_to(jax.nn.sigmoid(self.logits), sample_shape + self.logits.shape)
        return jnp.where(jax.random.bernoulli(zero_key, p), 0, self.base.sample(count_key, sample_shape))

    def log_prob(self, value: Array) -> Array:
        logits, each = expand_like(self.logits, value), self.base.each(value)
        each = jnp.where(value == 0, jnp.logaddexp(logits, each), each) - softplus(logits)
        return sum_event(each, self.event_dim)


def sample_poisson(key: Array, log_rate: Array) -> Array:
    """Draws from Poisson(exp(log_rate)), elementwise, as floats; log_rate <= 60.

    Rates from 10 on use the rejection of Hoermann 1993, "The transformed rejection method for generating Poisson random
    variables" (algorithm PTRS), with the density above. `jax.random.poisson` does so too, but with log Gamma in
    float32: its draws at a rate of 1e6 have a variance of 1.04e6. Float32 rounds draws beyond 2^24.
    """
    small_key, large_key = jax.random.split(key)
    rate = jnp.exp(log_rate)
    is_large = rate >= _LARGE_RATE
    small = jax.random.poisson(small_key, jnp.where(is_large, 0, rate)).astype(rate.dtype)
    rate, log_rate = jnp.where(is_large, rate, _LARGE_RATE), jnp.where(is_large, log_rate, log(_LARGE_RATE))
    b = 0.931 + 2.53 * jnp.sqrt(rate)
    a = -0.059 + 0.02483 * b
    log_inverse_alpha, v_inside = jnp.log(1.1239 + 1.1328 / (b - 3.4)), 0.9277 - 3.6224 / (b - 2)

    def draw(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        key, x, done = carry
        key, u_key, v_key = jax.random.split(key, 3)
        u = jax.random.uniform(u_key, rate.shape, rate.dtype) - 0.5
        v = jax.random.uniform(v_key, rate.shape, rate.dtype)
        inside = jnp.maximum(0.5 - jnp.abs(u), jnp.finfo(rate.dtype).tiny)
        k = jnp.floor((2 * a / inside + b) * u + rate + 0.43)
        log_p = poisson_log_prob(jnp.maximum(k, 0), log_rate)
        accept = jnp.log(v) + log_inverse_alpha - jnp.log(a / inside**2 + b) <= log_p
        accept &= (k >= 0) & ((inside >= 0.013) | (v <= inside))
        accept |= (inside >= 0.07) & (v <= v_inside)
        return key, jnp.where(accept & ~done, k, x), done | accept

    start = (large_key, jnp.zeros_like(rate), ~is_large)
    large = jax.lax.while_loop(lambda carry: ~jnp.all(carry[2]), draw, start)[1]
    return jnp.where(is_large, large, small)


def _negative_binomial(params: Params, log_mean: Array, event_dim: int) -> NegativeBinomial:
    """From the decoder's output for the mean, or for the shares if the parameters hold a log_total."""
    log_r = expand_like(MAX_LOG_R * jnp.tanh(params["log_r"] / MAX_LOG_R), log_mean)
    if "log_total" not in params:
        return NegativeBinomial(jnp.minimum(log_mean, MAX_LOG_RATE), log_r, None, event_dim)
    log_total = jax.lax.stop_gradient(params["log_total"]).reshape((1,) * log_mean.ndim)
    return NegativeBinomial(jax.nn.log_softmax(log_mean, tuple(range(-event_dim, 0))), log_r, log_total, event_dim)


def _average(x: Array) -> Array:
    return jnp.maximum(jnp.mean(x, 0), _FLOOR / len(x))


def _positive(x: Array) -> tuple[Array, Array]:
    """x with 1 in place of 0, so that a branch for x > 0 has finite gradients everywhere, and where x > 0."""
    some = x > 0
    return jnp.where(some, x, 1), some


def _log_ratio(log_a: Array, x: Array) -> Array:
    """log(a / x), elementwise: log a - log x without the rounding error of log x, which x would multiply."""
    fraction, exponent = jnp.frexp(jax.lax.stop_gradient(x))
    high, exponent = 0.693359375, exponent.astype(x.dtype)  # of few digits, so that its product is exact
    return (log_a - exponent * high) - (jnp.log(fraction) + exponent * (log(2) - high))


def _stirling_error(z: Array) -> Array:
    """log Gamma(z + 1) - log(sqrt(2 pi z) (z / e)^z) for z > 0: a series for z >= 8, which smaller z are moved to."""
    small = z < 8
    near = jnp.minimum(z, 8)
    rising = prod(near + k for k in range(1, 9))  # Gamma(z + 9) / Gamma(z + 1)
    moved = (near + 0.5) * jnp.log1p(8 / near) + 8 * jnp.log(near + 8) - 8 - jnp.log(rising)
    inverse = 1 / jnp.where(small, near + 8, z)
    series = inverse * (1 / 12 - inverse**2 * (1 / 360 - inverse**2 / 1260))
    return series + jnp.where(small, moved, 0)
