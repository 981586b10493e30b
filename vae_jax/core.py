"""A VAE is three conditional distributions, each a pure function of the parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

Params = Any  # a pytree of arrays


class Distribution(Protocol):
    """A probability distribution: an immutable value that holds arrays.

    `log_prob` sums over the event axes and gives one number per example, in nats. The methods have NumPyro's names, so
    that NumPyro's distributions fit as they are.
    """

    @property
    def mean(self) -> Any: ...
    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Any: ...
    def log_prob(self, value: Any) -> Array: ...


class Init(Protocol):
    """init(key, x) -> params, the initial parameters.

    key: one typed key. x: training examples, [N, *shape]; `init` may use their values, for example their mean for an
    output bias, or only their shape. params: any pytree of float arrays.
    """

    def __call__(self, key: Array, x: Any, /, *args: Any, **kwargs: Any) -> Params: ...


class Encode(Protocol):
    """encode(params, x[, context]) -> q(z | x), the approximate posterior.

    x: a batch, [B, *shape], of floats. context: one-hot labels, [B, C], if the VAE is conditional. q: a
    `Distribution` with the batch shape (B,), such as DiagonalGaussian(mean, log_var) with arrays [B, L].
    """

    def __call__(self, params: Params, x: Any, /, *args: Any, **kwargs: Any) -> Any: ...


class Decode(Protocol):
    """decode(params, z[, context]) -> p(x | z), the likelihood.

    z: latents, [..., B, L], with any number of axes of samples in front. context: as in `Encode`, [B, C]. p: a
    `Distribution` with the batch shape (..., B) that sums over an example's axes, such as Bernoulli(logits, event_dim).
    """

    def __call__(self, params: Params, z: Any, /, *args: Any, **kwargs: Any) -> Any: ...


class PriorOf(Protocol):
    """prior(params) -> p(z): a `Distribution` with an empty batch shape over one latent z, [L]."""

    def __call__(self, params: Params, /) -> Any: ...


class VAE(NamedTuple):
    """Three distributions, each a pure function of the parameters, and a function that makes the initial ones.

    A latent z may be any pytree; for a hierarchy, q and p are joint distributions of its latents. In a conditional VAE,
    `encode` and `decode` take the label as a last argument `context`; `condition` makes a VAE without that argument.
    """

    init: Init
    encode: Encode
    decode: Decode
    prior: PriorOf


jax.tree_util.register_static(VAE)  # so that it may be an argument of a jitted function: its fields are not arrays


class Likelihood(NamedTuple):
    """What p(x | z) needs of the networks, and the distribution that their outputs make."""

    num_outputs: int  # numbers per element of x that the decoder gives
    build: Callable[[Params, Array], Distribution]  # (params, outputs [..., *shape, num_outputs]) -> p(x | z)
    output_bias: Callable[[Array], Array]  # average of the data -> outputs [*shape, num_outputs] with that average
    init: Callable[[Array], Params] = lambda x: {}  # training examples [N, *shape] -> parameters beyond the decoder's
    support: tuple[float, float] | None = None  # the closed interval in which x must lie; None: any
    average: Callable[[Array], Array] = lambda x: jnp.mean(x, 0)  # [N, *shape] -> [*shape, ...], for output_bias
    num_levels: int | None = None  # x takes this many evenly spaced values of [0, 1]; None: any value
    features: Callable[[Array], Array] = lambda x: x  # what the encoder sees of x, [..., *shape] -> [..., *seen]
    whole: bool = False  # whether x must be whole numbers, as counts are
    scaled: tuple[bool, ...] | None = None  # which elements of x, flat, `standardize` may shift and scale; None: all
    independent: bool = True  # whether p(x | z) with event_dim 0 gives the log density of each element


class Examples(NamedTuple):
    """Examples on the device."""

    x: Array  # [N, *shape], uint8 or float32
    context: Array | None  # [N, C], one-hot labels for a conditional VAE; else None


def condition(vae: VAE, context: Array | None) -> VAE:
    """The VAE with q(z | x, c) and p(x | z, c) for the contexts c of one batch, [B, C]; `vae` itself if c is None.

    Its functions take no context, so objectives and evaluation need not know about labels.
    """
    if context is None:
        return vae
    return vae._replace(
        encode=lambda params, x: vae.encode(params, x, context),
        decode=lambda params, z: vae.decode(params, z, context),
    )


def with_context(x: Array, context: Array | None) -> Array:
    """x and its context joined along the last axis, [..., D] and [..., C] -> [..., D + C]; x itself without one."""
    if context is None:
        return x
    return jnp.concatenate([x, jnp.broadcast_to(context, (*x.shape[:-1], context.shape[-1])).astype(x.dtype)], -1)


def reparameterize(key: Array, mean: Array, log_var: Array) -> Array:
    """z = mean + exp(log_var / 2) * eps with eps ~ N(0, I), so that gradients reach mean and log_var.

    mean, log_var and z have the same shape. See Kingma & Welling 2014 (arXiv:1312.6114), section 2.4.
    """
    return mean + jnp.exp(0.5 * log_var) * jax.random.normal(key, mean.shape, mean.dtype)


def to_float(x: Array) -> Array:
    """Turn bytes v into v / 255 in float32. An array of another type is returned as it is."""
    if x.dtype != jnp.uint8:
        return x
    # For v / 255, XLA would multiply v by a rounded 1 / 255, which is wrong in the last bit. The sum below is right in
    # that bit, because 1 / 255 = 65793 / 2^24 + 1 / (255 * 2^24).
    v = x.astype(jnp.float32)
    return v * (65793 / 2**24) + v * (1 / 255 / 2**24)
