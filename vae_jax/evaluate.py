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

from vae_jax import compiling
from vae_jax.core import VAE, Params, condition
from vae_jax.distributions import kl_divergence
from vae_jax.inputs import Examples
from vae_jax.update import Objective

ACTIVE_VARIANCE = 0.01  # Var_x E_q[z] above which a latent dimension counts as active (Burda et al. 2016, section 5.1)


class Evaluation(NamedTuple):
    """Per-example figures in nats."""

    log_likelihood: Array  # [N], log p(x | z), averaged over the samples
    kl: Array  # [N]
    log_px: Array  # [N], the importance bound of log p(x) with `num_samples` samples
    mean: Array  # [N, L], the mean of q(z | x)


def make_evaluate(
    vae: VAE,
    *,
    num_samples: int,
    batch_size: int = 400,
    chunk_size: int = 10,
    kl: Callable[..., Array] = kl_divergence,
) -> Callable[..., Evaluation]:
    """evaluate(params, key, examples) -> Evaluation of all of them, in one compiled call for each batch.

    Memory grows with batch_size * chunk_size decoded examples, whatever `num_samples`.
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
            sums, top, total = carry
            log_likelihood, divergence, log_w = jax.vmap(sample)(first + jnp.arange(chunk_size))
            sums = (sums[0] + log_likelihood.sum(0), sums[1] + divergence.sum(0))
            new_top = jnp.maximum(top, log_w.max(0))
            total = total * jnp.exp(top - new_top) + jnp.exp(log_w - new_top[None]).sum(0)
            return (sums, new_top, total), None

        zero = jnp.zeros(1)
        firsts = jnp.arange(0, num_samples, chunk_size)
        (sums, top, total), _ = jax.lax.scan(chunk, ((zero, zero), zero - jnp.inf, zero), firsts)
        log_px = top + jnp.log(total) - jnp.log(num_samples)
        return Evaluation(sums[0][0] / num_samples, sums[1][0] / num_samples, log_px[0], flat_mean(q)[0])

    return _over_examples(one, batch_size)


def make_evaluate_objective(vae: VAE, objective: Objective, *, batch_size: int = 500) -> Callable[..., Any]:
    """evaluate(params, key, examples) -> (the objective's metrics with its `loss`, q's mean), each per example."""

    def one(params: Params, key: Array, x: Array, context: Array | None):
        own = condition(vae, context)
        loss, metrics = objective(params, key, x, own)
        return {"loss": loss, **metrics}, flat_mean(own.encode(params, x))[0]

    return _over_examples(one, batch_size)


def flat_mean(q: Any) -> Array:
    """The mean of q as one vector an example, [B, L], for a latent that may be a pytree."""
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(q.mean)]
    return jnp.concatenate(leaves, -1)


def active_units(mean: Any) -> int:
    """The number of latent dimensions whose posterior mean varies over examples. mean: [N, L]."""
    return int(np.sum(np.var(mean, axis=0) > ACTIVE_VARIANCE))


def summarize(result: Evaluation, num_samples: int) -> dict[str, float | int | None]:
    """Averages over the examples and their standard errors, None for one example.

    `nll` is minus the `num_samples`-sample bound.
    """
    elbo, nll = result.log_likelihood - result.kl, -result.log_px
    return {
        "elbo": _mean(elbo),
        "elbo_se": _standard_error(elbo),
        "nll": _mean(nll),
        "nll_se": _standard_error(nll),
        "log_likelihood": _mean(result.log_likelihood),
        "kl": _mean(result.kl),
        "active_units": active_units(result.mean),
        "num_samples": num_samples,
        "num_examples": len(elbo),
    }


def _over_examples(one: Callable[..., Any], batch_size: int) -> Callable[..., Any]:
    """`one(params, key, x [1, ...], context [1, C])` for every example, in batches padded to one size."""

    @compiling.jit
    def batch(params: Params, key: Array, index: Array, examples: Examples):
        own = jax.tree.map(lambda a: a[index], examples)
        keys = jax.vmap(partial(jax.random.fold_in, key))(index)
        return jax.vmap(lambda key, e: one(params, key, *jax.tree.map(lambda a: a[None], e)))(keys, own)

    def evaluate(
        params: Params, key: Array, examples: Examples, progress: Callable[[range], Iterator[int]] = iter
    ) -> Any:
        num, size = len(examples.x), min(batch_size, len(examples.x))
        parts = []
        for start in progress(range(0, num, size)):
            index = jnp.minimum(jnp.arange(start, start + size), num - 1)
            part = batch(params, key, index, examples)
            parts.append(jax.tree.map(lambda a, left=num - start: np.asarray(a)[:left], part))
        return jax.tree.map(lambda *a: np.concatenate(a), *parts)

    return evaluate


def _mean(a: Any) -> float:
    return float(np.mean(a, dtype=np.float64))


def _standard_error(a: Any) -> float | None:
    return float(np.std(a, dtype=np.float64, ddof=1) / np.sqrt(len(a))) if len(a) > 1 else None
