"""Measures how good a VAE is on every example of a split; the code treats one example, and vmap runs many at once.

Each example has its own random key, made from its index, and each posterior sample has a key made from that one, so
an example's figures do not depend on how examples or samples are batched, or on whether the last batch is full.

Where a posterior is relaxed in training, all figures are of the discrete VAE (`codes.discrete`).
"""

from collections.abc import Callable, Iterator
from functools import partial
from math import ceil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax import checks
from vae_jax.annealing import annealed_log_weights
from vae_jax.codes import Codes, discrete, usage
from vae_jax.core import VAE, Examples, Params, condition
from vae_jax.distributions import Delta, DiagonalGaussian, kl_by_dimension, kl_by_level, kl_divergence
from vae_jax.objectives import importance_bound, log_weight
from vae_jax.update import Objective
from vae_jax.xla import compiling, devices

ACTIVE_VARIANCE = 0.01  # Var_x E_q[z] above which a latent dimension counts as active (Burda et al. 2016, section 5.1)
HEAVY_TAIL = 0.7  # the Pareto k above which an example's bound is unreliable (Vehtari et al. 2024, section 3)
_EQUAL = 1e-3  # weights closer than this share of the largest one count as equal: they may differ by rounding
FEW_SAMPLES = 10  # with fewer effective samples, an example's bound depends on a handful of draws


class Evaluation(NamedTuple):
    """Figures per example, in nats. A point posterior has no density: its figures from importance weights are None."""

    log_likelihood: Array  # [N], log p(x | z), averaged over the samples
    kl: Array  # [N]
    log_px: Array | None  # [N], the importance bound of log p(x) with `num_samples` samples
    effective_sample_size: Array | None  # [N], (sum w)^2 / sum w^2 of the importance weights, from 1 to `num_samples`
    mean: Any  # [N, L], the mean of q(z | x), or the most probable codes; a pytree of such arrays if z is a pytree
    kl_by_dimension: Array | None  # [N, L]; None unless q and p are diagonal Gaussians
    pareto_k: Array | None = None  # [N], the tail of the importance weights; None below 21 samples. See `pareto_k`
    # [N] each: the KL of each level of a hierarchy whose q and p have their latents in the same order; else empty
    kl_by_level: dict[str, Array] = {}  # noqa: RUF012


def make_evaluate(
    vae: VAE,
    *,
    num_samples: int,
    batch_size: int = 400,
    chunk_size: int = 10,
    kl: Callable[..., Array] = kl_divergence,
    jit: Callable[..., Any] = compiling.jit,
) -> Callable[..., Evaluation]:
    """evaluate(params, key, examples) -> the Evaluation of all examples, in one compiled call per batch.

    chunk_size: how many posterior samples are decoded at once. Memory holds batch_size * chunk_size decoded examples
    and batch_size * num_samples weights of 4 bytes. jit: the function that compiles the call.
    """
    chunk_size, tail = min(chunk_size, num_samples), tail_size(num_samples)

    def one(params: Params, key: Array, x: Array, context: Array | None) -> Evaluation:
        own, batch = condition(discrete(vae), context), checks.batch_shape(x)
        q, p = checks.posterior(own, params, x), checks.prior(own, params)

        def sample(k: Array):
            z = q.sample(jax.random.fold_in(key, k))
            log_likelihood, log_w = log_weight(q, own.decode(params, z), p, x, z, batch)
            divergence = checks.per_example("KL(q(z | x) || p(z))", kl(q, p, z), batch)
            by_level = kl_by_level(q, p, z) if kl is kl_divergence else {}
            # Extra samples fill up the last chunk and count for nothing.
            terms = jax.tree.map(
                lambda term: jnp.where(k < num_samples, term, 0.0), (log_likelihood, divergence, by_level)
            )
            return terms, jnp.where(k < num_samples, log_w, -jnp.inf)

        def chunk(carry, first: Array):
            sums, top, total, squares = carry
            terms, log_w = jax.vmap(sample)(first + jnp.arange(chunk_size))
            sums = jax.tree.map(lambda total, term: total + term.sum(0), sums, terms)
            new_top = jnp.maximum(top, log_w.max(0))
            w, shrink = jnp.exp(log_w - new_top[None]), jnp.exp(top - new_top)
            total, squares = total * shrink + w.sum(0), squares * shrink**2 + (w**2).sum(0)
            return (sums, new_top, total, squares), log_w if tail else None

        sums, zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(sample, 0))
        firsts = jnp.arange(0, num_samples, chunk_size)
        start = (sums, zeros - jnp.inf, zeros, zeros)
        (sums, top, total, squares), log_w = jax.lax.scan(chunk, start, firsts)
        log_likelihood, divergence, by_level = jax.tree.map(lambda total: total / num_samples, sums)
        log_px = top + jnp.log(total) - jnp.log(num_samples)
        closed = isinstance(q, DiagonalGaussian) and isinstance(p, DiagonalGaussian)
        result = Evaluation(
            log_likelihood,
            divergence,
            log_px,
            total**2 / squares,
            q.mean,
            kl_by_dimension(q, p) if closed else None,
            pareto_k(log_w.reshape(-1, *batch), tail) if tail else None,
            by_level,
        )
        point = _is_point(q)
        return _only(result._replace(log_px=None, effective_sample_size=None, pareto_k=None) if point else result)

    return over_examples(one, batch_size, jit)


def make_evaluate_objective(vae: VAE, objective: Objective, *, batch_size: int = 500) -> Callable[..., Any]:
    """evaluate(params, key, examples) -> (the objective's metrics and its `loss`, the mean of q), each per example.

    objective: `build.make_evaluation_objective` makes it, and `build.split_loss` turns its figures per example into the
    loss of a split. An objective for training may compute gradients that are thrown away here.
    """

    def one(params: Params, key: Array, x: Array, context: Array | None):
        own = condition(discrete(vae), context)
        loss, metrics = objective(params, key, x, own)
        return {"loss": loss, **metrics}, _only(own.encode(params, x).mean)

    return over_examples(one, batch_size)


def make_exact(vae: VAE, codes: Codes, *, batch_size: int = 100, chunk_size: int = 50) -> Callable[..., Array]:
    """evaluate(params, key, examples) -> log p(x), [N], in nats: exact, as the sum over all values of z.

    log p(x) = logsumexp_z (log p(z) + log p(x | z)), up to float32's rounding. The key is unused. codes: what z is. The
    time grows with `codes.num_joint`. Memory holds batch_size * chunk_size decoded examples. Raises ValueError if an
    int32 does not count the values of z.
    """
    num = codes.num_joint

    def one(params: Params, key: Array, x: Array, context: Array | None) -> Array:
        own, batch = condition(vae, context), checks.batch_shape(x)
        p = checks.prior(own, params)

        def joint(index: Array) -> Array:
            z = p.codes.joint(jnp.minimum(index, num - 1), p.logits.dtype)[None]
            log_likelihood = checks.log_prob("log p(x | z)", own.decode(params, z), x, batch)
            return jnp.where(index < num, log_likelihood + checks.log_prob("log p(z)", p, z, batch), -jnp.inf)

        def chunk(carry: tuple[Array, Array], first: Array):
            top, total = carry
            log_p = jax.vmap(joint)(first + jnp.arange(chunk_size))
            new_top = jnp.maximum(top, log_p.max(0))
            return (new_top, total * jnp.exp(top - new_top) + jnp.exp(log_p - new_top[None]).sum(0)), None

        shape = jax.eval_shape(joint, jnp.int32(0))
        zeros = jnp.zeros(shape.shape, shape.dtype)
        (top, total), _ = jax.lax.scan(chunk, (zeros - jnp.inf, zeros), jnp.arange(0, num, chunk_size))
        return (top + jnp.log(total))[0]

    return over_examples(one, batch_size)


def make_annealed(vae: VAE, *, num_chains: int, num_steps: int, batch_size: int = 100) -> Callable[..., Array]:
    """evaluate(params, key, examples) -> the bound of log p(x) by annealed importance sampling, [N], in nats.

    It does not use q(z | x), so it is a check of the importance bound. z must be continuous. See
    `annealing.annealed_log_weights`.
    """

    def one(params: Params, key: Array, x: Array, context: Array | None) -> Array:
        own = condition(vae, context)
        log_w = annealed_log_weights(params, key, x, own, num_chains=num_chains, num_steps=num_steps)
        return importance_bound(log_w)[0]

    return over_examples(one, batch_size)


def make_mutual_information(vae: VAE, *, num_samples: int = 1000, batch_size: int = 100) -> Callable[..., Array]:
    """information(params, key, examples) -> log q(z_i | x_i) - log q(z_i) at z_i ~ q(z | x_i), one per example x_i.

    The result is [min(num_samples, N)], in nats, for the examples `evenly(N, num_samples)`. q(z) is the aggregate
    posterior, the average of q(z | x) over all N examples. The mean of the result is the mutual information of x and z
    under q; the mean KL minus it is KL(q(z) || p(z)). See Hoffman & Johnson 2016 (ELBO surgery), equation 5.

    The information is at most log N. If it is near log N, it only says that the posteriors do not overlap, and the
    difference says nothing about KL(q(z) || p(z)).
    """

    @compiling.jit
    def information(params: Params, key: Array, examples: Examples) -> Array:
        num = len(examples.x)

        def posterior(i: Array):
            x, context = jax.tree.map(lambda a: a[i][None], examples)
            return checks.posterior(condition(discrete(vae), context), params, x)

        def draw(i: Array):
            z = posterior(i).sample(jax.random.fold_in(key, i))
            return z, checks.log_prob("log q(z | x)", posterior(i), z, (1,))[0]

        def batch(carry, first: Array):
            top, total = carry
            index = first + jnp.arange(batch_size)
            log_q = jax.vmap(lambda i: jax.vmap(posterior(jnp.minimum(i, num - 1)).log_prob)(z)[:, 0])(index)
            log_q = jnp.where((index < num)[:, None], log_q, -jnp.inf)
            new_top = jnp.maximum(top, log_q.max(0))
            return (new_top, total * jnp.exp(top - new_top) + jnp.exp(log_q - new_top[None]).sum(0)), None

        z, own = jax.lax.map(draw, jnp.asarray(evenly(num, num_samples), jnp.int32), batch_size=batch_size)
        # The maximum begins at log q(z_i | x_i), a term of q(z_i), so that it is finite for every z_i.
        (top, total), _ = jax.lax.scan(batch, (own, jnp.zeros_like(own)), jnp.arange(0, num, batch_size))
        return own - (top + jnp.log(total) - jnp.log(num))

    return information


def evenly(num: int, count: int) -> np.ndarray:
    """At most `count` of the numbers 0 .. num - 1, evenly spaced because data may be sorted."""
    count = min(count, num)
    return np.arange(count) * num // max(count, 1)


def tail_size(num_samples: int) -> int:
    """The number of importance weights to which `pareto_k` fits a tail; 0 if there are too few samples."""
    size = ceil(min(num_samples / 5, 3 * num_samples**0.5))
    return size if size >= 5 else 0


def pareto_k(log_w: Array, tail: int) -> Array:
    """The shape k of a generalised Pareto distribution fitted to the `tail` largest weights, [K, B] -> [B].

    The importance weights have a finite variance for k < 1/2 and no mean for k >= 1; above k = 0.7 their average is
    unreliable. The method is from Zhang & Stephens 2009, with the prior of Vehtari et al. 2024 (Pareto smoothed
    importance sampling, arXiv:1507.02646, appendix C). k is inf if fewer than five weights are large enough to count,
    and 0 if the largest weights are equal to three digits.
    """
    top, _ = jax.lax.top_k(log_w.T, tail + 1)
    w = jnp.exp(top - top[:, :1])
    x = (w[:, :-1] - w[:, -1:])[:, ::-1]  # what exceeds the threshold, in rising order
    last, quartile = x[:, -1:], x[:, int(tail / 4 + 0.5) - 1][:, None]
    counts = (quartile > 0) & (x[:, -5:-4] > 0)
    num = 30 + int(tail**0.5)
    grid = 1 - jnp.sqrt(num / (jnp.arange(1, num + 1, dtype=x.dtype) - 0.5))
    theta = 1 / jnp.where(last > 0, last, 1) + grid[None] / (3 * jnp.where(counts, quartile, 1))

    def shape_of(theta: Array) -> Array:
        return jnp.mean(jnp.log1p(-theta[..., None] * x.reshape(len(x), *(1,) * (theta.ndim - 1), -1)), -1)

    shape = shape_of(theta)
    log_likelihood = tail * (jnp.log(-theta / shape) - shape - 1)
    k = shape_of(jnp.sum(theta * jax.nn.softmax(log_likelihood, -1), -1))
    k = (tail * k + 10 * 0.5) / (tail + 10)  # the prior says k = 1/2 with the strength of ten weights
    return jnp.where(last[:, 0] > _EQUAL, jnp.where(counts[:, 0], k, jnp.inf), 0)


def active_units(mean: Any) -> int:
    """The number of latent dimensions whose posterior mean varies over the examples.

    mean: [N, L], or a pytree of such arrays. See Burda et al. 2016, section 5.1. The threshold is a share of the
    variance of N(0, I), so the count says little under a learned prior, whose scale is free. For a flow, and for the
    latent that a hierarchy infers second, `mean` is not E_q[z] but a representative point: see `Flow` and `Chain`.
    Codes have no such scale: see `latents`.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return sum(int(np.sum(np.var(leaf, axis=0) > ACTIVE_VARIANCE)) for leaf in jax.tree.leaves(mean))


def latents(mean: Any, codes: Codes | None = None) -> dict[str, Any]:
    """How much of the latents the examples use: `active_units`, or `codes.usage` of their codes if z is discrete.

    mean: the means of q(z | x), [N, L], or a pytree of such arrays; of a discrete posterior, its most probable codes.
    """
    if codes:
        return usage(codes, mean)
    layers = mean.items() if isinstance(mean, dict) else ()
    each = {f"active_units_{name}": active_units(layer) for name, layer in layers}
    return {"active_units": active_units(mean), **each}


def summarize(result: Evaluation, num_samples: int, codes: Codes | None = None) -> dict[str, Any]:
    """Averages over the examples, and their standard errors, which are None for a single example.

    A point posterior has no density, so `nll` and the other figures from importance weights are left out for it. codes:
    what z is, if it is discrete; the figures of `codes.usage` then stand in place of `active_units`.
    """
    elbo = result.log_likelihood - result.kl
    levels = {name: mean(term) for name, term in result.kl_by_level.items()}
    each = None if result.kl_by_dimension is None else np.mean(result.kl_by_dimension, 0, dtype=np.float64).tolist()
    return {
        "elbo": mean(elbo),
        "elbo_se": standard_error(elbo),
        **_summarize_weights(result, num_samples),
        "log_likelihood": mean(result.log_likelihood),
        "kl": mean(result.kl),
        "kl_by_dimension": each,
        **({"kl_by_level": levels} if levels else {}),
        **latents(result.mean, codes),
        "num_samples": num_samples,
        "num_examples": len(elbo),
    }


def _summarize_weights(result: Evaluation, num_samples: int) -> dict[str, Any]:
    """The figures that come from the importance weights, and how far to trust them.

    `nll` is minus the bound from `num_samples` samples, and `nll_se` is its standard error over the examples.
    `nll_weights_se` is its standard error over the draws of the samples, with the examples fixed; it is None for one
    sample. By its formula (the delta method) it is at most 1, and too small where a few weights outweigh the rest.
    `share_ess_below_10` and `share_pareto_k_above_0.7` are the shares of the examples whose error may be larger: for
    these examples `nll` is a loose bound, which `make_annealed` checks.
    """
    if result.log_px is None or result.effective_sample_size is None:
        return {}
    ess, nll, weights_se = result.effective_sample_size.astype(np.float64), -result.log_px, None
    if num_samples > 1:
        variance = (num_samples / ess - 1) / (num_samples - 1)
        weights_se = float(np.sqrt(np.sum(np.maximum(variance, 0))) / len(variance))
    few = mean(ess < FEW_SAMPLES) if num_samples >= 2 * FEW_SAMPLES else None
    heavy = None if result.pareto_k is None else mean(result.pareto_k > HEAVY_TAIL)
    return {
        "nll": mean(nll),
        "nll_se": standard_error(nll),
        "nll_weights_se": weights_se,
        "effective_sample_size": mean(ess),
        f"share_ess_below_{FEW_SAMPLES}": few,
        f"share_pareto_k_above_{HEAVY_TAIL}": heavy,
    }


def over_examples(
    one: Callable[..., Any], batch_size: int, jit: Callable[..., Any] = compiling.jit
) -> Callable[..., Any]:
    """A function that calls `one(params, key, x [1, ...], context [1, C])` for every example, in batches of one size.

    The last batch is padded, and the results of the padding are cut off.
    """

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
            key, examples = devices.place((key, examples), devices.replicated(mesh))
        for start in progress(range(0, num, size)):
            index = np.minimum(np.arange(start, start + size), num - 1)
            part = batch(params, key, devices.place(index, devices.batch_sharded(mesh)) if mesh else index, examples)
            parts.append(jax.tree.map(lambda a, left=num - start: a[:left], devices.to_host(part)))
        return jax.tree.map(lambda *a: np.concatenate(a), *parts)

    return evaluate


def _is_point(q: Any) -> bool:
    """Whether q, or the first distribution of a Chain, has all its mass at one point, and so no density."""
    return isinstance(getattr(q, "first", q), Delta)


def _only(tree: Any) -> Any:
    """The only example of a batch of one."""
    return jax.tree.map(lambda a: a[0], tree)


def mean(a: Any) -> float:
    return float(np.mean(a, dtype=np.float64))


def standard_error(a: Any) -> float | None:
    """The standard error of the mean of a; None if a is one number."""
    return float(np.std(a, dtype=np.float64, ddof=1) / np.sqrt(len(a))) if len(a) > 1 else None
