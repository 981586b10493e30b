"""How good a VAE is, on every example of a split. One example at a time in the code, many at once on the device.

Each example has its own key, from its index, and each posterior sample one of that: the figures of an example do not
depend on how examples or samples are batched, and a ragged last batch counts exactly.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax import compiling, devices
from vae_jax.annealing import annealed_log_weights
from vae_jax.core import VAE, Params, condition
from vae_jax.distributions import DiagonalGaussian, kl_by_dimension, kl_divergence
from vae_jax.inputs import Examples
from vae_jax.objectives import importance_bound
from vae_jax.update import Objective

ACTIVE_VARIANCE = 0.01  # Var_x E_q[z] above which a latent dimension counts as active (Burda et al. 2016, section 5.1)


class Evaluation(NamedTuple):
    """Per-example figures in nats."""

    log_likelihood: Array  # [N], log p(x | z), averaged over the samples
    kl: Array  # [N]
    log_px: Array  # [N], the importance bound of log p(x) with `num_samples` samples
    effective_sample_size: Array  # [N], (sum w)^2 / sum w^2 of the importance weights, from 1 to `num_samples`
    mean: Any  # [N, L], the mean of q(z | x); a pytree of such for a latent pytree
    kl_by_dimension: Array | None  # [N, L], where q and p are diagonal Gaussians


def make_evaluate(
    vae: VAE,
    *,
    num_samples: int,
    batch_size: int = 400,
    chunk_size: int = 10,
    kl: Callable[..., Array] = kl_divergence,
    jit: Callable[..., Any] = compiling.jit,
) -> Callable[..., Evaluation]:
    """evaluate(params, key, examples) -> Evaluation of all of them, in one compiled call for each batch.

    Memory grows with batch_size * chunk_size decoded examples, whatever `num_samples`. jit: what compiles a batch.
    """
    chunk_size = min(chunk_size, num_samples)

    def one(params: Params, key: Array, x: Array, context: Array | None) -> Evaluation:
        own = condition(vae, context)
        q, p = own.encode(params, x), own.prior(params)

        def sample(k: Array):
            z = q.sample(jax.random.fold_in(key, k))
            log_likelihood = own.decode(params, z).log_prob(x)
            log_weight = log_likelihood + p.log_prob(z) - q.log_prob(z)
            # Samples past the last one fill the last chunk and count for nothing.
            real = k < num_samples
            return jax.tree.map(
                partial(jnp.where, real), (log_likelihood, kl(q, p, z), log_weight), (0.0, 0.0, -jnp.inf)
            )

        def chunk(carry, first: Array):
            sums, top, total, squares = carry
            log_likelihood, divergence, log_w = jax.vmap(sample)(first + jnp.arange(chunk_size))
            sums = (sums[0] + log_likelihood.sum(0), sums[1] + divergence.sum(0))
            new_top = jnp.maximum(top, log_w.max(0))
            w, shrink = jnp.exp(log_w - new_top[None]), jnp.exp(top - new_top)
            total, squares = total * shrink + w.sum(0), squares * shrink**2 + (w**2).sum(0)
            return (sums, new_top, total, squares), None

        zero = jnp.zeros(1)
        firsts = jnp.arange(0, num_samples, chunk_size)
        (sums, top, total, squares), _ = jax.lax.scan(chunk, ((zero, zero), zero - jnp.inf, zero, zero), firsts)
        log_px = top + jnp.log(total) - jnp.log(num_samples)
        closed = isinstance(q, DiagonalGaussian) and isinstance(p, DiagonalGaussian)
        each = (sums[0] / num_samples, sums[1] / num_samples, log_px, total**2 / squares)
        return _only(Evaluation(*each, q.mean, kl_by_dimension(q, p) if closed else None))

    return _over_examples(one, batch_size, jit)


def make_evaluate_objective(vae: VAE, objective: Objective, *, batch_size: int = 500) -> Callable[..., Any]:
    """evaluate(params, key, examples) -> (the objective's metrics with its `loss`, the mean of q), each per example."""

    def one(params: Params, key: Array, x: Array, context: Array | None):
        own = condition(vae, context)
        loss, metrics = objective(params, key, x, own)
        return {"loss": loss, **metrics}, _only(own.encode(params, x).mean)

    return _over_examples(one, batch_size)


def make_annealed(vae: VAE, *, num_chains: int, num_steps: int, batch_size: int = 100) -> Callable[..., Array]:
    """evaluate(params, key, examples) -> the bound of log p(x) by annealed importance sampling, [N], in nats.

    It never asks q(z | x), and so checks the importance bound: `annealing.annealed_log_weights`.
    """

    def one(params: Params, key: Array, x: Array, context: Array | None) -> Array:
        own = condition(vae, context)
        log_w = annealed_log_weights(params, key, x, own, num_chains=num_chains, num_steps=num_steps)
        return importance_bound(log_w)[0]

    return _over_examples(one, batch_size)


def mutual_information(vae: VAE, *, num_samples: int = 1000, batch_size: int = 100) -> Callable[..., Array]:
    """information(params, key, examples) -> log q(z_i | x_i) - log q(z_i) at z_i ~ q(z | x_i), one for each x_i.

    [min(num_samples, N)], in nats, for the first examples; q(z) is the aggregate posterior, the average of q(z | x)
    over all N examples. The mean is the mutual information of x and z under q, at most log N; the mean KL less it is
    KL(q(z) || p(z)). Hoffman & Johnson 2016 (ELBO surgery), equation 5.
    """

    @compiling.jit
    def information(params: Params, key: Array, examples: Examples) -> Array:
        num = len(examples.x)

        def posterior(i: Array):
            x, context = jax.tree.map(lambda a: a[i][None], examples)
            return condition(vae, context).encode(params, x)

        def draw(i: Array):
            z = posterior(i).sample(jax.random.fold_in(key, i))
            return z, posterior(i).log_prob(z)[0]

        def batch(carry, first: Array):
            top, total = carry
            index = first + jnp.arange(batch_size)
            log_q = jax.vmap(lambda i: jax.vmap(posterior(jnp.minimum(i, num - 1)).log_prob)(z)[:, 0])(index)
            log_q = jnp.where((index < num)[:, None], log_q, -jnp.inf)
            new_top = jnp.maximum(top, log_q.max(0))
            return (new_top, total * jnp.exp(top - new_top) + jnp.exp(log_q - new_top[None]).sum(0)), None

        z, own = jax.lax.map(draw, jnp.arange(min(num_samples, num)), batch_size=batch_size)
        # Its own q is in q(z), so that no z is beyond all of them.
        (top, total), _ = jax.lax.scan(batch, (own, jnp.zeros_like(own)), jnp.arange(0, num, batch_size))
        return own - (top + jnp.log(total) - jnp.log(num))

    return information


def active_units(mean: Any) -> int:
    """The number of latent dimensions whose posterior mean varies over examples. mean: [N, L], or a pytree of such."""
    with np.errstate(over="ignore", invalid="ignore"):
        return sum(int(np.sum(np.var(leaf, axis=0) > ACTIVE_VARIANCE)) for leaf in jax.tree.leaves(mean))


def summarize(result: Evaluation, num_samples: int) -> dict[str, Any]:
    """Averages over the examples and their standard errors, None for one example.

    `nll` is minus the `num_samples`-sample bound, `nll_se` its standard error over examples, `nll_weights_se` that over
    the draws of the importance weights with the examples given (delta method), None for one sample.
    """
    elbo, nll = result.log_likelihood - result.kl, -result.log_px
    weights_se = None
    if num_samples > 1:
        variance = (num_samples / result.effective_sample_size.astype(np.float64) - 1) / (num_samples - 1)
        weights_se = float(np.sqrt(np.sum(np.maximum(variance, 0))) / len(variance))
    layers = result.mean.items() if isinstance(result.mean, dict) else ()
    each = None if result.kl_by_dimension is None else np.mean(result.kl_by_dimension, 0, dtype=np.float64).tolist()
    return {
        "elbo": mean(elbo),
        "elbo_se": standard_error(elbo),
        "nll": mean(nll),
        "nll_se": standard_error(nll),
        "nll_weights_se": weights_se,
        "effective_sample_size": mean(result.effective_sample_size),
        "log_likelihood": mean(result.log_likelihood),
        "kl": mean(result.kl),
        "kl_by_dimension": each,
        "active_units": active_units(result.mean),
        **{f"active_units_{name}": active_units(layer) for name, layer in layers},
        "num_samples": num_samples,
        "num_examples": len(elbo),
    }


def _over_examples(
    one: Callable[..., Any], batch_size: int, jit: Callable[..., Any] = compiling.jit
) -> Callable[..., Any]:
    """`one(params, key, x [1, ...], context [1, C])` for every example, in batches padded to one size."""

    @jit
    def batch(params: Params, key: Array, index: Array, examples: Examples):
        own = jax.tree.map(lambda a: a[index], examples)
        keys = jax.vmap(partial(jax.random.fold_in, key))(index)
        return jax.vmap(lambda key, e: one(params, key, *jax.tree.map(lambda a: a[None], e)))(keys, own)

    def evaluate(
        params: Params, key: Array, examples: Examples, progress: Callable[[range], Iterator[int]] = iter
    ) -> Any:
        num, size = len(examples.x), min(batch_size, len(examples.x))
        mesh, parts = devices.mesh_of(params), []
        if mesh:
            size = -(-size // mesh.size) * mesh.size
            key, examples = devices.put((key, examples), devices.everywhere(mesh))
        for start in progress(range(0, num, size)):
            index = np.minimum(np.arange(start, start + size), num - 1)
            part = batch(params, key, devices.put(index, devices.split(mesh)) if mesh else index, examples)
            parts.append(jax.tree.map(lambda a, left=num - start: a[:left], devices.fetch(part)))
        return jax.tree.map(lambda *a: np.concatenate(a), *parts)

    return evaluate


def _only(tree: Any) -> Any:
    """The one example of a batch of one."""
    return jax.tree.map(lambda a: a[0], tree)


def mean(a: Any) -> float:
    return float(np.mean(a, dtype=np.float64))


def standard_error(a: Any) -> float | None:
    """Of the mean of a; None for one number."""
    return float(np.std(a, dtype=np.float64, ddof=1) / np.sqrt(len(a))) if len(a) > 1 else None
