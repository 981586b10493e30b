"""What a trained VAE can make: pure functions from (params, key or x, vae) to arrays of images."""

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.scipy.special import ndtri

from vae_jax.core import VAE, Params, condition
from vae_jax.distributions import DiagonalGaussian, FullGaussian

MAX_CHUNK, CHUNK_VALUES = 10_000, 2**24  # samples of one call, and the numbers that describe them


class Samples(NamedTuple):
    z: Any  # [N, L], or a pytree of such
    mean: Array  # [N, *shape], E[x | z]
    x: Array  # [N, *shape], a draw from p(x | z)


def sample(params: Params, key: Array, vae: VAE, num: int) -> Samples:
    """Ancestral samples: z ~ p(z), x ~ p(x | z)."""
    z_key, x_key = jax.random.split(key)
    z = vae.prior(params).sample(z_key, (num,))
    p = vae.decode(params, z)
    return Samples(z, p.mean, p.sample(x_key))


def reconstruct(params: Params, x: Array, vae: VAE) -> Array:
    """E[x' | z] at the posterior mean z of each x: [N, *shape]."""
    return vae.decode(params, vae.encode(params, x).mean).mean


def interpolate(params: Params, x: Array, y: Array, vae: VAE, num: int) -> Array:
    """Decoded points on the lines between the posterior means of x and of y: [N, *shape] each -> [N, num, *shape]."""
    start, end = (vae.encode(params, a).mean for a in (x, y))
    steps = jnp.linspace(0.0, 1.0, num, dtype=jax.tree.leaves(start)[0].dtype)
    decode = jax.vmap(lambda t: vae.decode(params, jax.tree.map(lambda a, b: (1 - t) * a + t * b, start, end)).mean)
    return jnp.swapaxes(decode(steps), 0, 1)


def traverse(params: Params, x: Array, vae: VAE, num: int, extent: float = 3.0) -> Array:
    """One latent dimension moved at a time from -extent to extent, the rest at the posterior mean of x [1, *shape].

    Result: [L, num, *shape], the dimensions of a latent pytree one after the other.
    """
    z, unravel = ravel_pytree(vae.encode(params, x).mean)
    values = jnp.linspace(-extent, extent, num, dtype=z.dtype)
    decode = jax.vmap(lambda i, value: vae.decode(params, unravel(z.at[i].set(value))).mean[0], (None, 0))
    return jax.lax.map(lambda i: decode(i, values), jnp.arange(z.size))


def manifold(params: Params, vae: VAE, num: int, extent: float = 2.0, *, gaussian: bool = False) -> Array:
    """E[x | z] over a num x num grid of a 2-dimensional z: [num, num, *shape].

    The grid covers [-extent, extent]^2 evenly, or with `gaussian` lies at the quantiles of N(0, 1), as in figure 4 of
    Kingma & Welling 2014. z_1 runs to the right and z_2 upwards.
    """
    axis = jnp.linspace(-extent, extent, num, dtype=jnp.float32)
    if gaussian:
        axis = ndtri((jnp.arange(num, dtype=jnp.float32) + 0.5) / num)
    z = jnp.stack(jnp.meshgrid(axis, axis[::-1]), -1)
    return jax.lax.map(lambda row: vae.decode(params, row).mean, z)


def flat(z: Any) -> Array:
    """A latent, or a pytree of such, as vectors [N, L]: its parts one after the other."""
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(z)], -1)


def sample_flat(params: Params, key: Array, vae: VAE, num: int) -> Samples:
    """`sample`, with z as `flat` makes it."""
    drawn = sample(params, key, vae, num)
    return drawn._replace(z=flat(drawn.z))


def chunk_size(params: Params, vae: VAE, num_classes: int = 0) -> int:
    """How many samples are drawn in one call, so that any number of them takes the memory of these.

    num_classes: of the labels that `vae` takes as its context, 0 without them.
    """
    own = condition(vae, jnp.zeros((1, num_classes), jnp.float32) if num_classes else None)

    def one(params: Params) -> tuple[Any, Any]:
        z = vae.prior(params).sample(jax.random.key(0), (1,))
        return z, own.decode(params, z)

    values = num_classes + sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(one, params)))
    return max(1, min(MAX_CHUNK, CHUNK_VALUES // values))


def in_chunks(draw: Callable[[Array, int], Samples], key: Array, num: int, size: int) -> Iterator[Samples]:
    """`num` samples in the host's memory, a chunk at a time, of draw(key, start), which gives `size` of them.

    The first chunk is of the key itself and chunk i of fold_in(key, i), as in `sample` of exported.py. start: how many
    samples come before. The next chunk is computed while the caller handles one.
    """
    ahead = draw(key, 0)
    for start in range(0, num, size):
        drawn, after = ahead, start + size
        if after < num:
            ahead = draw(jax.random.fold_in(key, after // size), after)
        yield jax.tree.map(lambda a, rest=num - start: np.asarray(a[:rest]), drawn)


def unflat(z: Array, like: Any) -> Any:
    """The latent, a pytree of [N, L], from the vectors z that `flat` made of it. like: one of it, [1, L] each."""
    leaves, structure = jax.tree.flatten(like)
    ends = list(accumulate(leaf.size for leaf in leaves))
    return jax.tree.unflatten(structure, jnp.split(z, ends[:-1], -1))


def moments(q: Any) -> dict[str, Array]:
    """The mean of q(z | x) and, of a Gaussian, the log_var of each dimension: [N, L]."""
    arrays = {"mean": flat(q.mean)}
    if isinstance(q, DiagonalGaussian):
        arrays["log_var"] = q.log_var
    if isinstance(q, FullGaussian):
        arrays["log_var"] = jnp.log(jnp.sum(q.scale_tril**2, -1))
    return arrays
