"""How good a VAE is, on every example of a split. One example at a time in the code, many at once on the device.

Each example has its own key, from its index, and each posterior sample has one of that. So the figures of an example
do not depend on how examples or samples are batched, and a ragged last batch counts exactly.
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
from vae_jax.core import VAE, Examples, Params, condition
from vae_jax.distributions import Delta, DiagonalGaussian, kl_by_dimension, kl_divergence
from vae_jax.objectives import importance_bound, log_weight
from vae_jax.update import Objective
from vae_jax.xla import compiling, devices

ACTIVE_VARIANCE = 0.01  # Var_x E_q[z] above which a latent dimension counts as active (Burda et al. 2016, section 5.1)
HEAVY_TAIL = 0.7  # of Pareto's k, above which the bound of an example is unreliable (Vehtari et al. 2024, section 3)
_EQUAL = 1e-3  # a share of the largest weight, within which weights are equal: rounding differs by as much
FEW_SAMPLES = 10  # effective samples of an example, below which its bound hangs on a handful of draws


class Evaluation(NamedTuple):
    """Per-example figures in nats. Of a point posterior, which has no density, those of importance weights are None."""

    log_likelihood: Array  # [N], log p(x | z), averaged over the samples
    kl: Array  # [N]
    log_px: Array | None  # [N], the importance bound of log p(x) with `num_samples` samples
    effective_sample_size: Array | None  # [N], (sum w)^2 / sum w^2 of the importance weights, from 1 to `num_samples`
    mean: Any  # [N, L], the mean of q(z | x); a pytree of such for a latent pytree
    kl_by_dimension: Array | None  # [N, L], where q and p are diagonal Gaussians
    pareto_k: Array | None = None  # [N], the tail of the importance weights, for 25 samples or more; see `pareto_k`


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

    Memory grows with batch_size * chunk_size decoded examples, and by 4 bytes for each example of a batch and each of
    the `num_samples`. jit: what compiles a batch.
    """
    chunk_size, tail = min(chunk_size, num_samples), tail_size(num_samples)

    def one(params: Params, key: Array, x: Array, context: Array | None) -> Evaluation:
        own, batch = condition(vae, context), checks.batch_shape(x)
        q, p = checks.posterior(own, params, x), checks.prior(own, params)

        def sample(k: Array):
            z = q.sample(jax.random.fold_in(key, k))
            log_likelihood, log_w = log_weight(q, own.decode(params, z), p, x, z, batch)
            divergence = checks.per_example("KL(q(z | x) || p(z))", kl(q, p, z), batch)
            # Samples past the last one fill the last chunk and count for nothing.
            real = k < num_samples
            return jax.tree.map(partial(jnp.where, real), (log_likelihood, divergence, log_w), (0.0, 0.0, -jnp.inf))

        def chunk(carry, first: Array):
            sums, top, total, squares = carry
            log_likelihood, divergence, log_w = jax.vmap(sample)(first + jnp.arange(chunk_size))
            sums = (sums[0] + log_likelihood.sum(0), sums[1] + divergence.sum(0))
            new_top = jnp.maximum(top, log_w.max(0))
            w, shrink = jnp.exp(log_w - new_top[None]), jnp.exp(top - new_top)
            total, squares = total * shrink + w.sum(0), squares * shrink**2 + (w**2).sum(0)
            return (sums, new_top, total, squares), log_w if tail else None

        shapes = jax.eval_shape(sample, 0)
        zeros = [jnp.zeros(a.shape, a.dtype) for a in shapes]
        firsts = jnp.arange(0, num_samples, chunk_size)
        start = (tuple(zeros[:2]), zeros[2] - jnp.inf, zeros[2], zeros[2])
        (sums, top, total, squares), log_w = jax.lax.scan(chunk, start, firsts)
        log_px = top + jnp.log(total) - jnp.log(num_samples)
        closed = isinstance(q, DiagonalGaussian) and isinstance(p, DiagonalGaussian)
        result = Evaluation(
            sums[0] / num_samples,
            sums[1] / num_samples,
            log_px,
            total**2 / squares,
            q.mean,
            kl_by_dimension(q, p) if closed else None,
            pareto_k(log_w.reshape(-1, *batch), tail) if tail else None,
        )
        point = _is_point(q)
        return _only(result._replace(log_px=None, effective_sample_size=None, pareto_k=None) if point else result)

    return _over_examples(one, batch_size, jit)


def make_evaluate_objective(vae: VAE, objective: Objective, *, batch_size: int = 500) -> Callable[..., Any]:
    """evaluate(params, key, examples) -> (the objective's metrics with its `loss`, the mean of q), each per example.

    objective: that of `build.make_evaluation_objective`, whose terms of single examples `build.split_loss` puts
    together; one that trains may compute gradients that are thrown away here.
    """

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


def make_mutual_information(vae: VAE, *, num_samples: int = 1000, batch_size: int = 100) -> Callable[..., Array]:
    """information(params, key, examples) -> log q(z_i | x_i) - log q(z_i) at z_i ~ q(z | x_i), one for each x_i.

    [min(num_samples, N)], in nats, for the examples `evenly(N, num_samples)`; q(z) is the aggregate posterior, the
    average of q(z | x) over all N examples. The mean is the mutual information of x and z under q, and the mean KL less
    it is KL(q(z) || p(z)). Hoffman & Johnson 2016 (ELBO surgery), equation 5.

    It is at most log N. Near that bound it only says that the posteriors do not overlap, and the KL less it says
    nothing of KL(q(z) || p(z)).
    """

    @compiling.jit
    def information(params: Params, key: Array, examples: Examples) -> Array:
        num = len(examples.x)

        def posterior(i: Array):
            x, context = jax.tree.map(lambda a: a[i][None], examples)
            return checks.posterior(condition(vae, context), params, x)

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
        # Its own q is in q(z), so that no z is beyond all of them.
        (top, total), _ = jax.lax.scan(batch, (own, jnp.zeros_like(own)), jnp.arange(0, num, batch_size))
        return own - (top + jnp.log(total) - jnp.log(num))

    return information


def evenly(num: int, count: int) -> np.ndarray:
    """`count` of the numbers 0 .. num - 1, or all of them if they are fewer, evenly spaced: data may be sorted."""
    count = min(count, num)
    return np.arange(count) * num // max(count, 1)


def tail_size(num_samples: int) -> int:
    """The number of importance weights that `pareto_k` looks at; 0 where there are too few for it."""
    size = ceil(min(num_samples / 5, 3 * num_samples**0.5))
    return size if size >= 5 else 0


def pareto_k(log_w: Array, tail: int) -> Array:
    """The shape k of the generalised Pareto distribution of the `tail` largest importance weights, [K, B] -> [B].

    The weights have a finite variance for k < 1/2, and no mean for k >= 1; above 0.7 their average is unreliable. The
    fit is that of Zhang & Stephens 2009 with the prior of Vehtari et al. 2024 (Pareto smoothed importance sampling,
    arXiv:1507.02646, appendix C). It is inf where fewer than five weights count at all, and 0 where the
    largest are equal to three digits.
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
    k = (tail * k + 10 * 0.5) / (tail + 10)  # a prior worth ten weights, at 1/2
    return jnp.where(last[:, 0] > _EQUAL, jnp.where(counts[:, 0], k, jnp.inf), 0)


def active_units(mean: Any) -> int:
    """The number of latent dimensions whose posterior mean varies over examples. mean: [N, L], or a pytree of such.

    Burda et al. 2016, section 5.1, for a prior N(0, I): the threshold is a share of its variance, so that under a
    learned prior, whose scale is free, the count says little. Of a flow, `mean` is the image of the base's mean, and of
    the latent inferred second in a hierarchy the mean given that of the first: not E_q[z] but a point in its place.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return sum(int(np.sum(np.var(leaf, axis=0) > ACTIVE_VARIANCE)) for leaf in jax.tree.leaves(mean))


def summarize(result: Evaluation, num_samples: int) -> dict[str, Any]:
    """Averages over the examples and their standard errors, None for one example.

    A point posterior has no density: `nll` and the other figures of importance weights are left out.
    """
    elbo = result.log_likelihood - result.kl
    layers = result.mean.items() if isinstance(result.mean, dict) else ()
    each = None if result.kl_by_dimension is None else np.mean(result.kl_by_dimension, 0, dtype=np.float64).tolist()
    return {
        "elbo": mean(elbo),
        "elbo_se": standard_error(elbo),
        **_summarize_weights(result, num_samples),
        "log_likelihood": mean(result.log_likelihood),
        "kl": mean(result.kl),
        "kl_by_dimension": each,
        "active_units": active_units(result.mean),
        **{f"active_units_{name}": active_units(layer) for name, layer in layers},
        "num_samples": num_samples,
        "num_examples": len(elbo),
    }


def _summarize_weights(result: Evaluation, num_samples: int) -> dict[str, Any]:
    """What the importance weights give, and how far to trust it.

    `nll` is minus the `num_samples`-sample bound, `nll_se` its standard error over examples, `nll_weights_se` that over
    the draws of the importance weights with the examples given, None for one sample. The latter is of the delta method:
    it cannot exceed 1, and is too small where a few weights have all the weight. `share_ess_below_10` and
    `share_pareto_k_above_0.7` are the shares of examples whose error may be larger: there `nll` is a loose bound,
    which `make_annealed` checks.
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


def _is_point(q: Any) -> bool:
    """Whether q has all its mass at a point, and so no density; of a chain of two, its first."""
    return isinstance(getattr(q, "first", q), Delta)


def _only(tree: Any) -> Any:
    """The one example of a batch of one."""
    return jax.tree.map(lambda a: a[0], tree)


def mean(a: Any) -> float:
    return float(np.mean(a, dtype=np.float64))


def standard_error(a: Any) -> float | None:
    """Of the mean of a; None for one number."""
    return float(np.std(a, dtype=np.float64, ddof=1) / np.sqrt(len(a))) if len(a) > 1 else None
