"""A VAE is three conditional distributions, each a pure function of the parameters."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

Params = Any  # a pytree of arrays


class Distribution(Protocol):
    """An immutable value holding arrays. The names are NumPyro's, so that its distributions fit as they are.

    `log_prob` sums the event axes: one number per example, in nats.
    """

    @property
    def mean(self) -> Any: ...
    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Any: ...
    def log_prob(self, value: Any) -> Array: ...


class Init(Protocol):
    """init(key, x) -> params: how the parameters begin.

    key: one typed key. x: training examples, [N, *shape]. An initialiser may look at their values, as at their mean for
    an output bias, or at their shape alone. params: any pytree of float arrays.
    """

    def __call__(self, key: Array, x: Any, /, *args: Any, **kwargs: Any) -> Params: ...


class Encode(Protocol):
    """encode(params, x[, context]) -> q(z | x), the approximate posterior.

    x: a batch, [B, *shape], of floats. context: one-hot labels, [B, C], of a conditional VAE. q: a `Distribution` with
    the batch shape (B,), such as DiagonalGaussian(mean, log_var) of [B, L] each.
    """

    def __call__(self, params: Params, x: Any, /, *args: Any, **kwargs: Any) -> Any: ...


class Decode(Protocol):
    """decode(params, z[, context]) -> p(x | z), the likelihood.

    z: latents, [..., B, L], with any number of axes of samples in front. context: as in `Encode`, [B, C]. p: a
    `Distribution` with the batch shape (..., B) that sums the axes of an example, such as Bernoulli(logits, event_dim).
    """

    def __call__(self, params: Params, z: Any, /, *args: Any, **kwargs: Any) -> Any: ...


class PriorOf(Protocol):
    """prior(params) -> p(z): a `Distribution` with an empty batch shape over one latent z, [L]."""

    def __call__(self, params: Params, /) -> Any: ...


class VAE(NamedTuple):
    """Three conditional distributions, each a pure function of the parameters, and how the parameters begin.

    A latent z may be any pytree, so a hierarchy is a joint distribution. A model with a label takes it as a last
    argument `context` of `encode` and `decode`; `condition` turns it into a VAE without one.
    """

    init: Init
    encode: Encode
    decode: Decode
    prior: PriorOf


jax.tree_util.register_static(VAE)  # its functions are not arrays, and it may be an argument of a jitted function


class Examples(NamedTuple):
    """Examples on the device."""

    x: Array  # [N, *shape], uint8 or float32
    context: Array | None  # [N, C], one-hot labels of a conditional VAE


def condition(vae: VAE, context: Array | None) -> VAE:
    """The VAE of p(x | z, c) and q(z | x, c) for one batch of contexts c, [B, C]; `vae` itself if there are none.

    Objectives and evaluation therefore know nothing of labels.
    """
    if context is None:
        return vae
    return vae._replace(
        encode=lambda params, x: vae.encode(params, x, context),
        decode=lambda params, z: vae.decode(params, z, context),
    )


def with_context(x: Array, context: Array | None) -> Array:
    """x with its context at the end, [..., D] and [..., C] -> [..., D + C]; x itself without one."""
    if context is None:
        return x
    return jnp.concatenate([x, jnp.broadcast_to(context, (*x.shape[:-1], context.shape[-1])).astype(x.dtype)], -1)


def reparameterize(key: Array, mean: Array, log_var: Array) -> Array:
    """z = mean + exp(log_var / 2) * eps with eps ~ N(0, I), so that gradients reach mean and log_var.

    mean, log_var: arrays of one shape; z has that shape. Kingma & Welling 2014 (arXiv:1312.6114), section 2.4.
    """
    return mean + jnp.exp(0.5 * log_var) * jax.random.normal(key, mean.shape, mean.dtype)


def to_float(x: Array) -> Array:
    """A byte v stands for v / 255."""
    if x.dtype != jnp.uint8:
        return x
    # XLA would divide by multiplying with 1 / 255, wrong in the last bit. 65793 / 2^24 is 1 / 255 less 1 / (255 2^24).
    v = x.astype(jnp.float32)
    return v * (65793 / 2**24) + v * (1 / 255 / 2**24)
