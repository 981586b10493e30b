"""Invertible maps of z, built from affine coupling layers, for flow priors and flow posteriors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.core import Params
from vae_jax.distributions import DiagonalGaussian, Flow
from vae_jax.errors import MAX_LAYERS
from vae_jax.networks import Function, coupling

MAX_LOG_SCALE = 2.0  # a layer scales by e^-2 to e^2, so that the first steps do not overflow


class RealNVP(NamedTuple):
    """Affine coupling layers: one part of z scales and shifts the other part, then the two parts change places.

    See Dinh et al. 2017 (arXiv:1605.08803), equations 7 and 8.
    """

    kept: tuple[int, ...]  # for each layer, the number of dimensions in the part that it reads and keeps
    layers: tuple[Function, ...]  # each maps the kept part to shifts and log-scales for the other part

    def init(self, key: Array, context: Array | None = None) -> Params:
        keys = jax.random.split(key, len(self.layers))
        parts = zip(keys, self.kept, self.layers, strict=True)
        return [layer.init(key, jnp.zeros((1, kept), jnp.float32), context) for key, kept, layer in parts]

    def distribution(self, params: Params, base: DiagonalGaussian, context: Array | None = None) -> Flow:
        return Flow(base, params, context, self.forward, self.inverse)

    def forward(self, params: Params, context: Array | None, u: Array) -> Array:
        for own, kept, layer in zip(params, self.kept, self.layers, strict=True):
            a, b = jnp.split(u, (kept,), -1)
            shift, log_scale = _affine(layer.apply(own, a, context))
            u = jnp.concatenate([b * jnp.exp(log_scale) + shift, a], -1)
        return u

    def inverse(self, params: Params, context: Array | None, z: Array) -> tuple[Array, Array]:
        log_det = jnp.zeros(z.shape[:-1], z.dtype)
        for own, kept, layer in reversed(list(zip(params, self.kept, self.layers, strict=True))):
            b, a = jnp.split(z, (z.shape[-1] - kept,), -1)
            shift, log_scale = _affine(layer.apply(own, a, context))
            z = jnp.concatenate([a, (b - shift) * jnp.exp(-log_scale)], -1)
            log_det = log_det - jnp.sum(log_scale, -1)
        return z, log_det


def real_nvp(latent_dim: int, num_couplings: int, hidden_size: int) -> RealNVP:
    """A RealNVP that keeps half the dimensions per layer. Raises ValueError below 2 dimensions or 1 coupling."""
    if latent_dim < 2 or num_couplings < 1:
        raise ValueError(f"a flow needs at least 1 coupling and 2 dimensions; got {num_couplings} and {latent_dim}.")
    if num_couplings > MAX_LAYERS:
        raise ValueError(f"num_couplings is {num_couplings}; expected at most {MAX_LAYERS}.")
    half = latent_dim // 2
    kept = tuple(half if i % 2 == 0 else latent_dim - half for i in range(num_couplings))
    return RealNVP(kept, tuple(coupling(2 * (latent_dim - n), hidden_size=hidden_size) for n in kept))


def _affine(outputs: Array) -> tuple[Array, Array]:
    shift, log_scale = jnp.split(outputs, 2, -1)
    return shift, MAX_LOG_SCALE * jnp.tanh(log_scale / MAX_LOG_SCALE)
