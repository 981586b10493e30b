"""Samples, reconstructions and views of the latent space: pure functions of (params, key or x, vae).

Where a posterior is relaxed in training, they are of the discrete VAE (`codes.discrete`).
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.scipy.special import ndtri

from vae_jax.codebooks import NearestCode
from vae_jax.codes import Categoricals, PointCode, discrete
from vae_jax.core import VAE, Params, condition
from vae_jax.distributions import DiagonalGaussian, FullGaussian, mixture_mean
from vae_jax.objectives import weighted_latents

MAX_CHUNK, CHUNK_VALUES = 10_000, 2**24  # the most samples in one call, and the most numbers in their arrays


class Samples(NamedTuple):
    z: Any  # [N, L], or a pytree of such arrays
    mean: Array  # [N, *shape], E[x | z]
    x: Array  # [N, *shape], a draw from p(x | z)


def sample(params: Params, key: Array, vae: VAE, num: int) -> Samples:
    """Ancestral samples: z ~ p(z), x ~ p(x | z)."""
    z_key, x_key = jax.random.split(key)
    z = vae.prior(params).sample(z_key, (num,))
    p = vae.decode(params, z)
    return Samples(z, p.mean, p.sample(x_key))


def reconstruct(params: Params, x: Array, vae: VAE) -> Array:
    """E[x | z] at the posterior mean z of each example: [N, *shape] -> [N, *shape]."""
    return vae.decode(params, discrete(vae).encode(params, x).mean).mean


def impute(params: Params, key: Array, x: Array, vae: VAE, *, num_samples: int) -> Array:
    """x [B, *shape] with E[x_missing | x_observed] in place of NaN.

    The expectation is that of K = num_samples draws of z ~ q(z | x_observed), weighted by the normalised importance
    weights (self-normalised importance sampling). See Mattei & Frellsen 2019 (arXiv:1812.02633), equation 12.
    """
    z, log_w = weighted_latents(params, key, x, discrete(vae), num_samples=num_samples)
    mean = mixture_mean(vae.decode(params, z), jax.nn.softmax(log_w, 0))
    return jnp.where(jnp.isnan(x), mean, x)


def imputations(params: Params, key: Array, x: Array, vae: VAE, num: int, *, num_samples: int) -> Array:
    """`num` completions of x [B, *shape], [num, B, *shape]: NaN is replaced by draws from p(x_missing | x_observed).

    Each draw takes one of K = num_samples draws of z ~ q(z | x_observed) with the probability of its importance weight
    (sampling importance resampling), then x ~ p(x | z). As K grows, the draws become exact. See Mattei & Frellsen 2019
    (arXiv:1812.02633), section 3.2.
    """
    z_key, which_key, x_key = jax.random.split(key, 3)
    z, log_w = weighted_latents(params, z_key, x, discrete(vae), num_samples=num_samples)
    total = jnp.cumsum(jax.nn.softmax(log_w, 0), 0)
    u = jax.random.uniform(which_key, (num, x.shape[0]), total.dtype) * total[-1:]
    which = jax.vmap(partial(jnp.searchsorted, side="right"), (1, 1), 1)(total, u).clip(max=num_samples - 1)
    chosen = jax.tree.map(lambda a: a[which, jnp.arange(x.shape[0])[None]], z)
    return jnp.where(jnp.isnan(x)[None], vae.decode(params, chosen).sample(x_key), x[None])


def interpolate(params: Params, x: Array, y: Array, vae: VAE, num: int) -> Array:
    """Decoded points on the lines between the posterior means of x and of y: [N, *shape] each -> [N, num, *shape]."""
    start, end = (vae.encode(params, a).mean for a in (x, y))
    steps = jnp.linspace(0.0, 1.0, num, dtype=jax.tree.leaves(start)[0].dtype)
    decode = jax.vmap(lambda t: vae.decode(params, jax.tree.map(lambda a, b: (1 - t) * a + t * b, start, end)).mean)
    return jnp.swapaxes(decode(steps), 0, 1)


def traverse(params: Params, x: Array, vae: VAE, num: int, extent: float = 3.0) -> Array:
    """E[x | z] where one dimension of z runs from -extent to extent and the others stay at the posterior mean of x.

    x: [1, *shape]. The result is [L, num, *shape]; if z is a pytree, the dimensions of its arrays follow one another.
    """
    z, unravel = ravel_pytree(vae.encode(params, x).mean)
    values = jnp.linspace(-extent, extent, num, dtype=z.dtype)
    decode = jax.vmap(lambda i, value: vae.decode(params, unravel(z.at[i].set(value))).mean[0], (None, 0))
    return jax.lax.map(lambda i: decode(i, values), jnp.arange(z.size))


def manifold(params: Params, vae: VAE, num: int, extent: float = 2.0, *, gaussian: bool = False) -> Array:
    """E[x | z] over a num x num grid of a 2-dimensional z: [num, num, *shape].

    The grid covers [-extent, extent]^2 evenly. With `gaussian`, its points are quantiles of N(0, 1) instead, as in
    figure 4 of Kingma & Welling 2014. z_1 runs to the right and z_2 upwards.
    """
    axis = jnp.linspace(-extent, extent, num, dtype=jnp.float32)
    if gaussian:
        axis = ndtri((jnp.arange(num, dtype=jnp.float32) + 0.5) / num)
    z = jnp.stack(jnp.meshgrid(axis, axis[::-1]), -1)
    return jax.lax.map(lambda row: vae.decode(params, row).mean, z)


def flat(z: Any) -> Array:
    """z as vectors [N, L]; if z is a pytree, its arrays follow one another."""
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(z)], -1)


def sample_flat(params: Params, key: Array, vae: VAE, num: int) -> Samples:
    """Draw as `sample` does, and turn z into vectors with `flat`."""
    drawn = sample(params, key, vae, num)
    return drawn._replace(z=flat(drawn.z))


def samples_per_call(params: Params, vae: VAE, context_size: int = 0) -> int:
    """How many samples one call should draw, so that the memory does not grow with the number of samples in all.

    context_size: how many numbers `vae` takes as the context of an example; 0 if it takes none.
    """
    own = condition(vae, jnp.zeros((1, context_size), jnp.float32) if context_size else None)

    def one(params: Params) -> tuple[Any, Any]:
        z = vae.prior(params).sample(jax.random.key(0), (1,))
        return z, own.decode(params, z)

    values = context_size + sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(one, params)))
    return max(1, min(MAX_CHUNK, CHUNK_VALUES // values))


def in_chunks(draw: Callable[[Array, int], Samples], key: Array, num: int, size: int) -> Iterator[Samples]:
    """Yield `num` samples as NumPy arrays, in chunks of the `size` samples that `draw(key, start)` gives.

    start: the number of samples before the chunk. The first chunk is drawn with the key itself, and chunk i with
    fold_in(key, i), as `sample` in exported.py does. The next chunk is computed while the caller handles this one.
    """
    ahead = draw(key, 0)
    for start in range(0, num, size):
        drawn, after = ahead, start + size
        if after < num:
            ahead = draw(jax.random.fold_in(key, after // size), after)
        yield jax.tree.map(lambda a, rest=num - start: np.asarray(a[:rest]), drawn)


def unflat(z: Array, like: Any) -> Any:
    """The inverse of `flat`: vectors z [N, L] as a pytree of arrays. like: such a pytree for one z, [1, L] each."""
    leaves, structure = jax.tree.flatten(like)
    ends = list(accumulate(leaf.size for leaf in leaves))
    return jax.tree.unflatten(structure, jnp.split(z, ends[:-1], -1))


def moments(q: Any) -> dict[str, Array]:
    """The `mean` of q(z | x) and, if it is Gaussian, the `log_var` of each dimension, [N, L] each.

    If it is discrete, the mean is the most probable z, and `code` holds the numbers of its codes, [N, G]. Of a
    hierarchy, the mean holds the levels one after the other, each at the means of the levels before it in q, and
    `mean_z1`, `mean_z2`, ... hold each by itself.
    """
    q = q.discrete() if hasattr(q, "discrete") else q
    mean = q.mean
    arrays = {"mean": flat(mean)}
    if isinstance(mean, dict):
        arrays |= {f"mean_{level}": each for level, each in mean.items()}
    if isinstance(q, DiagonalGaussian):
        arrays["log_var"] = q.log_var
    if isinstance(q, FullGaussian):
        arrays["log_var"] = jnp.log(jnp.sum(q.scale_tril**2, -1))
    if isinstance(q, Categoricals | PointCode):
        arrays["code"] = q.codes.indices(q.mean)
    if isinstance(q, NearestCode):
        arrays["code"] = q.digits
    return arrays
