"""Checks of what the functions of a VAE give. They run while JAX traces a step, so they cost nothing when it runs."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.core import VAE, Params


def batch_shape(x: Any) -> tuple[int, ...]:
    """The shape (B,) of a batch x, [B, ...], an array or a pytree. Raises ValueError if x is empty or holds bytes."""
    leaves = jax.tree.leaves(x)
    shapes = [jnp.shape(leaf) for leaf in leaves]
    if not shapes or any(len(shape) == 0 or shape[0] == 0 for shape in shapes):
        raise ValueError(f"x has shape {str(shapes)[1:-1]}; expected [B, ...] with at least one example.")
    for leaf in leaves:
        if jnp.result_type(leaf) == jnp.uint8:
            raise ValueError("x has type uint8; expected floats, such as x / 255 for bytes.")
    return shapes[0][:1]


def posterior(vae: VAE, params: Params, x: Any) -> Any:
    """q(z | x). Raises ValueError if `encode` does not return a distribution."""
    return _distribution("encode(params, x)", vae.encode(params, x))


def prior(vae: VAE, params: Params) -> Any:
    """p(z). Raises ValueError if `prior` does not return a distribution."""
    return _distribution("prior(params)", vae.prior(params))


def log_prob(term: str, distribution: Any, value: Any, shape: tuple[int, ...]) -> Array:
    """`distribution.log_prob(value)`, one number per example.

    term: the name of this number in error messages, such as 'log p(x | z)'. Raises ValueError unless the result has
    `shape`: the shape of the batch, with the axis of the samples in front if there is one.
    """
    return per_example(term, _distribution(f"the distribution of {term}", distribution).log_prob(value), shape)


def per_example(term: str, value: Array, shape: tuple[int, ...]) -> Array:
    """`value` itself. Raises ValueError unless it has `shape`, which means one number per example."""
    if jnp.shape(value) != shape:
        raise ValueError(
            f"{term} has shape {jnp.shape(value)}; expected {shape}, one number per example. Its distribution must sum "
            "the axes of one event: set event_dim, or call to_event on a distribution of NumPyro."
        )
    return value


def _distribution(what: str, value: Any) -> Any:
    if not all(callable(getattr(value, name, None)) for name in ("sample", "log_prob")):
        raise ValueError(
            f"{what} is a {type(value).__name__}; expected a distribution with sample, log_prob and mean, such as "
            "DiagonalGaussian(mean, log_var)."
        )
    return value
