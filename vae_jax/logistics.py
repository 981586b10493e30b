"""Logistic distributions rounded to bytes, and mixtures of them, for 8-bit images."""

from collections.abc import Callable
from math import prod

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.core import Likelihood, Params
from vae_jax.distributions import distribution, expand_like, softplus, static, sum_event
from vae_jax.reals import bounded


def discretized_logistic(shape: tuple[int, ...]) -> Likelihood:
    """A logistic distribution rounded to bytes, for 8-bit images. Each element has its own location and scale."""

    def build(params: Params, outputs: Array) -> DiscretizedLogistic:
        # The output 0 means the scale e^-2 = 0.14, which is about the spread of a pixel.
        return DiscretizedLogistic(outputs[..., 0], bounded(outputs[..., 1]) - 2, len(shape))

    def output_bias(mean: Array) -> Array:
        return jnp.stack([_location_of(mean), jnp.zeros_like(mean)], -1)

    return Likelihood(2, build, output_bias, support=(0.0, 1.0), num_levels=256)


def logistic_mixture(shape: tuple[int, ...], *, num_components: int = 10) -> Likelihood:
    """A mixture of K logistic distributions rounded to bytes, for 8-bit images [H, W, C]: PixelCNN++'s likelihood.

    The C channels of a pixel choose one component together, and the location of a channel is linear in the channels
    before it: green in red, blue in red and green. Other shapes than [H, W, C] have one channel. See Salimans et al.
    2017 (arXiv:1701.05517), equations 2 and 3.

    A pixel has K logits, C K locations, C K log-scales and C (C - 1) / 2 K coefficients, in this order. They are the
    first of its C num_outputs numbers, where num_outputs is as small as it can be: 34 for K = 10 and C = 3, of whose
    102 numbers 2 are unused.
    """
    if num_components < 1:
        raise ValueError(f"num_components is {num_components}; expected at least 1.")
    channels = shape[-1] if len(shape) == 3 else 1
    ends = [num_components * num for num in (1, 1 + channels, 1 + 2 * channels)]
    num_outputs = -(-(ends[-1] + num_components * channels * (channels - 1) // 2) // channels)  # rounded up

    def build(params: Params, outputs: Array) -> LogisticMixture:
        batch = outputs.shape[: outputs.ndim - len(shape) - 1]
        flat = outputs.reshape(*batch, prod(shape) // channels, channels * num_outputs)

        def part(start: int, num: int) -> Array:
            return flat[..., start : start + num * num_components].reshape(*flat.shape[:-1], num, num_components)

        log_scale, coefficients = part(ends[1], channels), part(ends[2], channels * (channels - 1) // 2)
        return LogisticMixture(
            part(0, 1)[..., 0, :], part(ends[0], channels), bounded(log_scale) - 2, jnp.tanh(coefficients), shape
        )

    def output_bias(mean: Array) -> Array:
        location = jnp.repeat(_location_of(mean).reshape(-1, channels), num_components, -1)
        unused = channels * num_outputs - ends[1]
        outputs = jnp.pad(location, ((0, 0), (ends[0], unused)))
        return outputs.reshape(*mean.shape, num_outputs)

    return Likelihood(num_outputs, build, output_bias, support=(0.0, 1.0), num_levels=256, independent=False)


@distribution
class DiscretizedLogistic:
    """A logistic distribution rounded to the values 0, 1/255, ..., 1. The values 0 and 1 also take its tails.

    See Salimans et al. 2017 (arXiv:1701.05517), equation 2, with one component. `log_prob` takes v / 255 for bytes v.
    """

    location: Array  # [..., *event]
    log_scale: Array  # [..., *event]
    event_dim: int = static(default=1)

    @property
    def mean(self) -> Array:
        def add(k: Array, total: Array) -> Array:  # E[x] is the average over k of P(x >= k / 255)
            return total + jax.nn.sigmoid((self.location - (k - 0.5) / 255) * jnp.exp(-self.log_scale))

        return jax.lax.fori_loop(1, 256, add, jnp.zeros_like(self.location)) / 255

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        noise = jax.random.logistic(key, sample_shape + self.location.shape, self.location.dtype)
        x = expand_like(self.location, noise) + expand_like(jnp.exp(self.log_scale), noise) * noise
        return _to_byte(x)

    def log_prob(self, value: Array) -> Array:
        location, log_scale = (expand_like(a, value) for a in (self.location, self.log_scale))
        return sum_event(_byte_log_prob(value, location, log_scale), self.event_dim)


@distribution
class LogisticMixture:
    """A mixture of K logistic distributions rounded to bytes, of P pixels with C channels each.

    The location of channel c is location_c + sum_{j < c} coefficient_cj (x_j - 1/2), and a channel is rounded as in
    `DiscretizedLogistic`. `mean` is exact for one channel. For more it is a representative point near the expectation:
    in every component, each channel's mean is taken at the means of the channels before it.
    """

    logits: Array  # [..., P, K]
    location: Array  # [..., P, C, K]
    log_scale: Array  # [..., P, C, K]
    coefficients: Array  # [..., P, C (C - 1) / 2, K], in the order (1, 0), (2, 0), (2, 1), ...
    shape: tuple[int, ...] = static()  # of one example

    @property
    def mean(self) -> Array:
        each: list[Array] = []
        for c in range(self.location.shape[-2]):
            location = _location_given(each, self.location, self.coefficients)
            each.append(DiscretizedLogistic(location, self.log_scale[..., c, :]).mean)
        weights = jax.nn.softmax(self.logits)
        x = jnp.stack([jnp.sum(weights * mean, -1) for mean in each], -1)
        return x.reshape(*x.shape[:-2], *self.shape)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        which_key, noise_key = jax.random.split(key)
        which = jax.random.categorical(which_key, self.logits, shape=sample_shape + self.logits.shape[:-1])

        def chosen(a: Array) -> Array:  # [..., P, M, K] -> [*sample_shape, ..., P, M, 1]
            return jnp.take_along_axis(jnp.broadcast_to(a, sample_shape + a.shape), which[..., None, None], -1)

        location, log_scale, coefficients = (chosen(a) for a in (self.location, self.log_scale, self.coefficients))
        noise = jax.random.logistic(noise_key, location.shape, location.dtype)
        x: list[Array] = []
        for c in range(location.shape[-2]):
            at = _location_given(x, location, coefficients)
            x.append(_to_byte(at + jnp.exp(log_scale[..., c, :]) * noise[..., c, :]))
        return jnp.stack(x, -2).reshape(*sample_shape, *self.logits.shape[:-2], *self.shape)

    def log_prob(self, value: Array) -> Array:
        batch = value.shape[: value.ndim - len(self.shape)]
        value = value.reshape(*batch, *self.location.shape[-3:-1], 1)
        location, log_scale, coefficients = (
            expand_like(a, value) for a in (self.location, self.log_scale, self.coefficients)
        )
        x = [value[..., c, :] for c in range(value.shape[-2])]
        log_prob = expand_like(jax.nn.log_softmax(self.logits), x[0])
        for c in range(len(x)):
            at = _location_given(x[:c], location, coefficients)
            log_prob = log_prob + _byte_log_prob(x[c], at, log_scale[..., c, :])
        return jnp.sum(jax.nn.logsumexp(log_prob, -1), -1)


def _location_given(before: list[Array], location: Array, coefficients: Array) -> Array:
    """The location of the next channel, [..., P, K], from the channels before it, [..., P, K] or [..., P, 1] each."""
    c = len(before)
    shift = [coefficients[..., c * (c - 1) // 2 + j, :] * (x - 0.5) for j, x in enumerate(before)]
    return sum(shift, location[..., c, :])


def _to_byte(x: Array) -> Array:
    return jnp.clip(jnp.round(255 * x), 0, 255) / 255


def _byte_log_prob(value: Array, location: Array, log_scale: Array) -> Array:
    """log p(value) of a `DiscretizedLogistic`, elementwise."""
    inverse_scale = jnp.exp(-log_scale)
    centered = value - location
    above, below = ((centered + half) * inverse_scale for half in (0.5 / 255, -0.5 / 255))
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)) subtracts no nearly equal numbers.
    log_cdf, log_survival = -softplus(-above), -softplus(below)
    inside = log_cdf + log_survival + jnp.log(-jnp.expm1(-inverse_scale / 255))
    edge = 0.5 / 255
    return jnp.where(value < edge, log_cdf, jnp.where(value > 1 - edge, log_survival, inside))


def _location_of(mean: Array) -> Array:
    """The location of the `DiscretizedLogistic` with this mean and the log-scale -2, elementwise."""
    mean = jnp.clip(mean, 1e-2, 1 - 1e-2)
    spread = jnp.full_like(mean, -2.0)
    return solve(lambda at: DiscretizedLogistic(at, spread).mean, mean, mean)


def solve(function: Callable[[Array], Array], target: Array, start: Array) -> Array:
    """x with function(x) = target, elementwise, by 10 steps of Newton's method from `start`."""

    def step(_, x: Array) -> Array:
        value, slope = jax.jvp(function, (x,), (jnp.ones_like(x),))
        return x - (value - target) / slope

    return jax.lax.fori_loop(0, 10, step, start)
