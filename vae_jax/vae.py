"""Joins a network, a posterior, a likelihood and a prior into a VAE."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax import networks, posteriors, priors
from vae_jax.core import VAE, Likelihood, Params, to_float
from vae_jax.distributions import Affine, expand_like


class Parts(NamedTuple):
    """The parts of a VAE."""

    shape: tuple[int, ...]  # of one example
    encoder: networks.Function  # of `likelihood.features`
    decoder: networks.Function
    posterior: posteriors.Posterior
    likelihood: Likelihood
    prior: priors.Prior
    latent_dim: int
    context_size: int = 0
    output_bias: networks.OutputBias | None = None  # how the decoder's last bias begins at the average of the examples
    read_by: str = "both"  # which networks read the context: both, encoder or decoder


def join(parts: Parts) -> VAE:
    """The VAE made of `parts`. Its `init(key, x)` takes the training examples, [N, *shape], as bytes or floats.

    While JAX traces them, `encode` and `decode` raise a ValueError for inputs of another shape or type, and for a
    missing or unexpected context.
    """
    shape, encoder, decoder, posterior, likelihood, prior, latent_dim, context_size, output_bias, read_by = parts

    def encoder_context(context: Array | None) -> Array | None:
        return None if read_by == "decoder" else context

    def decoder_context(context: Array | None) -> Array | None:
        return None if read_by == "encoder" else context

    def init(key: Array, x: Array) -> Params:
        x = to_float(x).astype(jnp.float32)
        keys = jax.random.split(key, 4)
        context = jnp.zeros((1, context_size)) if context_size else None
        params = {
            "encoder": encoder.init(keys[0], likelihood.features(x[:1]), encoder_context(context)),
            "decoder": decoder.init(keys[1], jnp.zeros((1, latent_dim), x.dtype), decoder_context(context)),
            "posterior": posterior.init(keys[2]),
            "likelihood": likelihood.init(x),
            "prior": prior.init(keys[3], x),
        }
        if output_bias:
            params["decoder"] = output_bias(params["decoder"], likelihood.average(x), likelihood.output_bias)
        return params

    def encode(params: Params, x: Array, context: Array | None = None):
        _check_input(x, shape, context, context_size)
        seen = likelihood.features(x)
        return posterior.build(params["posterior"], encoder.apply(params["encoder"], seen, encoder_context(context)))

    def decode(params: Params, z: Array, context: Array | None = None):
        _check_input(z, (latent_dim,), context, context_size)
        return likelihood.build(params["likelihood"], decoder.apply(params["decoder"], z, decoder_context(context)))

    def prior_of(params: Params):
        p = posterior.prior_of(params["posterior"], prior.build(params["prior"], lambda x: encode(params, x)))
        dtype = jax.tree.leaves(params["decoder"])[0].dtype  # a prior's constants are float32 in any case
        return jax.tree.map(lambda a: a.astype(dtype), p)

    return VAE(init, encode, decode, prior_of)


def standardized(vae: VAE, shift: Array, scale: Array) -> VAE:
    """The VAE of x whose networks see u = (x - shift) / scale. shift, scale: [*shape], of one example.

    p(x | z) is a density of x itself: log p(x | z) = log p(u | z) - sum(log(scale)). So samples, reconstructions and
    all figures are of the data as given.
    """

    def to_u(x: Array) -> Array:
        return (x - expand_like(shift, x)) / expand_like(scale, x)

    return VAE(
        lambda key, x: vae.init(key, to_u(to_float(x).astype(jnp.float32))),
        lambda params, x, *context: vae.encode(params, to_u(x), *context),
        lambda params, z, *context: Affine(vae.decode(params, z, *context), shift, scale),
        vae.prior,
    )


def standardized_context(vae: VAE, shift: Array, scale: Array) -> VAE:
    """The VAE whose networks see the context (c - shift) / scale for covariates c, [B, C]. shift, scale: [C]."""

    def to_u(c: Array) -> Array:
        return (c - expand_like(shift, c)) / expand_like(scale, c)

    return vae._replace(
        encode=lambda params, x, c: vae.encode(params, x, to_u(c)),
        decode=lambda params, z, c: vae.decode(params, z, to_u(c)),
    )


def _check_input(a: Array, shape: tuple[int, ...], context: Array | None, context_size: int) -> None:
    """Raise ValueError, while JAX traces, for inputs that the networks would misread or could not take."""
    if a.shape[-len(shape) :] != shape or not jnp.issubdtype(a.dtype, jnp.floating):
        expected = f"floats of shape [..., {str(shape)[1:-1].rstrip(',')}], where a byte v stands for v / 255"
        raise ValueError(f"the network got {a.dtype} of shape {a.shape}; expected {expected}.")
    got = 0 if context is None else context.shape[-1]
    if got != context_size:
        raise ValueError(
            f"the network got a context of {got} numbers; expected {context_size}. A conditional VAE takes the one-hot "
            "label of each example, or its covariates, as context, [B, C]: vae_jax.condition(vae, context)."
        )
